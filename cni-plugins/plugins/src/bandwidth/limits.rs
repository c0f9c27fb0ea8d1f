//! Limits on a container's traffic: set, compared, removed.

use nix::errno::Errno;
use skiff_cni::{
    link_alias,
    netlink::{Link, Netlink, NetlinkError, RemoteAddress, Shaped, TokenBucket},
    skel::{Call, Target},
    types::{CniError, Interface, NetworkName, code},
};
use skiff_netns::NetNs;

use super::{
    config::Config,
    links::{find_host_end, ifb_name},
};
use crate::runtime::kernel;

/// The shortest queue of an intermediate device, in packets.
const QUEUE_LEN_MIN: u32 = 1000;

/// What CHECK finds.
pub(super) fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

/// The limits of one container.
pub(super) struct Limits<'a> {
    pub(super) host: &'a Netlink,
    pub(super) config: &'a Config,
    pub(super) ifb: String,
    pub(super) host_end: &'a Link,
}

impl Limits<'_> {
    /// Sets them, and names the intermediate device if one is needed. A failure leaves nothing behind.
    pub(super) async fn apply(
        &self,
        network: &NetworkName,
        target: &Target,
    ) -> Result<Option<Interface>, CniError> {
        let Some(bucket) = &self.config.egress else {
            self.limit_ingress().await?;
            return Ok(None);
        };
        let ifb = &self.ifb;
        match self.create_ifb().await {
            Err(error) if error.is_existing() => {
                let msg = format!("{ifb} exists already for this container: DEL comes first");
                return Err(CniError::new(code::EXISTS, msg));
            }
            created => created.map_err(refused("egressRate", "CONFIG_IFB"))?,
        }
        let limited = async {
            let device = self.find_ifb().await?;
            let device = device
                .ok_or_else(|| CniError::new(code::KERNEL, "the intermediate device is gone"))?;
            let alias = link_alias(network, &target.container_id, &target.ifname);
            let named = self.host.set_alias(device.index, &alias).await;
            named.map_err(kernel(format!("cannot name {ifb}'s owner")))?;
            let to_remote = RemoteAddress::Destination;
            self.limit(device.index, bucket, to_remote, "egressRate")
                .await?;
            self.redirect(&device).await?;
            Ok(device)
        }
        .await;
        let limited = match limited {
            Ok(device) => match self.limit_ingress().await {
                Ok(()) => Ok(device),
                Err(error) => {
                    let link = self.host_end.index;
                    self.host.delete_redirection(link).await.ok();
                    Err(error)
                }
            },
            failed => failed,
        };
        match limited {
            Ok(device) => Ok(Some(Interface {
                mac: device.mac_text(),
                name: device.name,
                ..Interface::default()
            })),
            Err(error) => {
                // The first error is the one to report.
                self.host.delete_link(ifb).await.ok();
                Err(error)
            }
        }
    }

    async fn create_ifb(&self) -> Result<(), NetlinkError> {
        let queue_len = self.host_end.tx_queue_len.max(QUEUE_LEN_MIN);
        self.host
            .create_ifb(&self.ifb, self.host_end.mtu, queue_len)
            .await
    }

    async fn find_ifb(&self) -> Result<Option<Link>, CniError> {
        let found = self.host.find_link(&self.ifb).await;
        found.map_err(kernel("cannot look for links"))
    }

    async fn limit_ingress(&self) -> Result<(), CniError> {
        let Some(bucket) = &self.config.ingress else {
            return Ok(());
        };
        let from_remote = RemoteAddress::Source;
        self.limit(self.host_end.index, bucket, from_remote, "ingressRate")
            .await
    }

    async fn limit(
        &self,
        link: u32,
        bucket: &TokenBucket,
        remote: RemoteAddress,
        key: &'static str,
    ) -> Result<(), CniError> {
        let shaped = self.config.shaped();
        let kernel_part = match shaped {
            Shaped::All => "CONFIG_NET_SCH_TBF",
            Shaped::Only(_) | Shaped::Except(_) => "CONFIG_NET_SCH_HTB or CONFIG_NET_CLS_U32",
        };
        let limited = self.host.limit_link(link, bucket, shaped, remote).await;
        limited.map_err(refused(key, kernel_part))
    }

    async fn redirect(&self, device: &Link) -> Result<(), CniError> {
        let link = self.host_end.index;
        let redirected = self.host.redirect_arrivals(link, device.index).await;
        redirected.map_err(refused(
            "egressRate",
            "CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32 or CONFIG_NET_ACT_MIRRED",
        ))
    }

    /// Compares them with the kernel's.
    pub(super) async fn check(&self) -> Result<(), CniError> {
        if let Some(bucket) = &self.config.ingress {
            self.check_limit(self.host_end, bucket).await?;
        }
        let Some(bucket) = &self.config.egress else {
            return Ok(());
        };
        let ifb = &self.ifb;
        let device = self.find_ifb().await?;
        let device = device.ok_or_else(|| differs(format!("there is no {ifb}")))?;
        self.check_limit(&device, bucket).await?;
        let redirection = self.host.redirection(self.host_end.index).await;
        if redirection.map_err(kernel("cannot read filters"))? != Some(device.index) {
            let name = &self.host_end.name;
            return Err(differs(format!("{name} does not hand on to {ifb}")));
        }
        Ok(())
    }

    async fn check_limit(&self, link: &Link, bucket: &TokenBucket) -> Result<(), CniError> {
        let found = self.host.link_limit(link.index).await;
        let found = found.map_err(kernel("cannot read queues"))?;
        let by_subnet = self.config.shaped() != Shaped::All;
        match found {
            Some(limit) if limit.is(bucket) && limit.by_subnet == by_subnet => Ok(()),
            Some(_) => Err(differs(format!("{} has another limit", link.name))),
            None => Err(differs(format!("{} has no limit", link.name))),
        }
    }
}

/// A refusal of the kernel; one for want of a part of it names the key that cannot be served.
fn refused(key: &'static str, kernel_part: &'static str) -> impl FnOnce(NetlinkError) -> CniError {
    move |error| {
        if error.is(Errno::EOPNOTSUPP) || error.is(Errno::ENOENT) {
            let msg = format!("{key:?} is not supported: this kernel lacks {kernel_part}");
            return CniError::from_error(code::UNSUPPORTED_FIELD, msg, &error);
        }
        if error.is_existing() {
            let msg = format!("{key:?}: a link has a queue already, which somebody else made");
            return CniError::from_error(code::EXISTS, msg, &error);
        }
        CniError::from_error(code::KERNEL, "cannot limit", &error)
    }
}

/// Removes a container's limits, whatever of them is still there.
pub(super) async fn delete(host: &Netlink, call: &Call, target: &Target) -> Result<(), CniError> {
    let ifb = ifb_name(&call.conf.name, &target.container_id);
    // First nothing may be sent to the device any more: without it, the container would be cut off.
    let queues = delete_queues(host, call, target, &ifb).await;
    let device = delete_ifb(host, &ifb).await;
    CniError::join(
        [queues, device]
            .into_iter()
            .filter_map(Result::err)
            .collect(),
    )
}

async fn delete_ifb(host: &Netlink, ifb: &str) -> Result<(), CniError> {
    let found = host.find_link(ifb).await;
    let Some(device) = found.map_err(kernel("cannot look for links"))? else {
        return Ok(());
    };
    let deleted = host.delete_links_grouped(&[device]).await;
    deleted.map_err(kernel(format!("cannot delete {ifb}")))
}

/// Without the container's namespace there is no veth pair either.
async fn delete_queues(
    host: &Netlink,
    call: &Call,
    target: &Target,
    ifb: &str,
) -> Result<(), CniError> {
    let (Some(path), Some(result)) = (&target.netns, &call.conf.prev_result) else {
        return Ok(());
    };
    let Ok(netns) = NetNs::open(path) else {
        return Ok(());
    };
    let Some(host_end) = find_host_end(host, &netns, target, result).await? else {
        return Ok(());
    };
    let failed = || kernel(format!("cannot remove the limits of {}", host_end.name));
    let device = host.find_link(ifb).await.map_err(failed())?;
    let redirection = host.redirection(host_end.index).await.map_err(failed())?;
    // 0: the device is gone already.
    let ours = [Some(0), device.map(|device| device.index)];
    if redirection.is_some() && ours.contains(&redirection) {
        let deleted = host.delete_redirection(host_end.index).await;
        deleted.map_err(failed())?;
    }
    // A configuration that is wrong by now does not say what was limited; the queue goes with its link then.
    if Config::new(call).is_ok_and(|config| config.ingress.is_some()) {
        let deleted = host.unlimit_link(host_end.index).await;
        deleted.map_err(failed())?;
    }
    Ok(())
}
