//! ADD.

use std::os::fd::AsFd as _;

use ipnetwork::IpNetwork;
use skiff_cni::{
    firewall::Backend,
    netlink::{Link, Netlink, PortSettings, VethSpec},
    skel::{Call, Target},
    types::{CniError, CniResult, Interface, PluginType, code},
};
use skiff_netns::NetNs;

use super::{HostEnd, rules::Rules};
use crate::{
    ipam::{self, Ipam},
    runtime::{block_on, kernel},
};

/// One ADD on its way, with what must be undone if a later step fails.
pub(crate) struct Adding<'a> {
    pub(crate) call: &'a Call,
    pub(crate) target: &'a Target,
    pub(crate) netns: NetNs,
    /// The node's links.
    pub(crate) host: Netlink,
    /// The container's.
    pub(crate) pod: Netlink,
    /// The firewall's, which are made meanwhile.
    pub(crate) rules: Rules,
    ipam: Ipam,
    has_addresses: bool,
    host_veth: Option<String>,
}

/// A pair to be made, as far as plugins differ.
#[derive(Debug, Default)]
pub(crate) struct PairSpec {
    /// The bridge that the host's end joins, by its number.
    pub(crate) controller: Option<u32>,
    /// Frames may leave by the bridge's port that they came in.
    pub(crate) hairpin: bool,
    /// Frames do not pass to and from other isolated ports of the bridge.
    pub(crate) isolated: bool,
    /// The hardware address of the container's end.
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: Option<u32>,
}

impl<'a> Adding<'a> {
    /// Runs `steps`, and undoes what they did if they fail.
    pub(crate) fn run(
        call: &'a Call,
        target: &'a Target,
        ipam: Option<&PluginType>,
        steps: impl AsyncFnOnce(&mut Self) -> Result<CniResult, CniError>,
    ) -> Result<CniResult, CniError> {
        let ipam = Ipam::find(call, ipam)?;
        let netns = NetNs::open(target.netns()?).map_err(|error| {
            CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error)
        })?;
        let mut adding = Self {
            call,
            target,
            host: Netlink::open().map_err(kernel("cannot open netlink"))?,
            pod: Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?,
            netns,
            rules: Rules::default(),
            ipam,
            has_addresses: false,
            host_veth: None,
        };
        block_on(async {
            match steps(&mut adding).await {
                Ok(result) => Ok(result),
                Err(error) => {
                    adding.undo().await;
                    Err(error)
                }
            }
        })
    }

    /// Refuses a second link of the same name, before anything is changed.
    pub(crate) fn check_link_is_new(&self) -> Result<(), CniError> {
        let ifname = self.target.ifname.as_str();
        if self.pod.link_index(ifname).is_none() {
            return Ok(());
        }
        let msg = format!("the container has a link {ifname} already");
        Err(CniError::new(code::EXISTS, msg))
    }

    /// Takes the container's addresses, at least one where there is IPAM at all.
    pub(crate) fn take_addresses(&mut self) -> Result<CniResult, CniError> {
        // A delegated IPAM plugin may fail half-way: it is told to release in any case. Ours takes nothing then, and a
        // refused second ADD must not release what the first one has.
        self.has_addresses = matches!(self.ipam, Ipam::Exec(_));
        let result = self.ipam.add(self.call, self.target)?;
        self.has_addresses = true;
        if !matches!(self.ipam, Ipam::None) && result.ips.is_empty() {
            return Err(CniError::new(code::DELEGATE, "IPAM gave no address"));
        }
        Ok(result)
    }

    /// Begins to hide the container's addresses behind the node's.
    pub(crate) fn masquerade(&mut self, backend: Backend, result: &CniResult) {
        let addresses: Vec<IpNetwork> = result.ips.iter().map(|ip| ip.address).collect();
        if !addresses.is_empty() {
            self.rules
                .masquerade(self.call, self.target, backend, addresses);
        }
    }

    /// Begins to drop what the container sends with another hardware address than `mac`.
    pub(crate) fn check_spoofing(&mut self, host_veth: &str, mac: &str) {
        self.rules
            .check_spoofing(self.call, self.target, host_veth, mac);
    }

    /// Makes the pair, with the container's end born in its namespace; returns the name of the host's end.
    pub(crate) async fn create_pair(&mut self, pair: &PairSpec) -> Result<String, CniError> {
        let end = HostEnd::new(self.call, self.target);
        for name in end.names() {
            let spec = VethSpec {
                name,
                mac: end.mac,
                controller: pair.controller,
                peer_name: self.target.ifname.as_str(),
                peer_mac: pair.mac,
                peer_netns: self.netns.as_fd(),
                mtu: pair.mtu,
                settings: Some(PortSettings {
                    hairpin: pair.hairpin,
                    isolated: pair.isolated,
                    alias: &end.alias,
                }),
            };
            match self.host.create_veth(&spec).await {
                Ok(()) => {
                    self.host_veth = Some(name.clone());
                    return Ok(name.clone());
                }
                Err(error) if error.is_existing() => {
                    end.check_is_strangers(&self.host, name).await?
                }
                Err(error) => return Err(kernel("cannot make the veth pair")(error)),
            }
        }
        let msg = "every name for the host's end is taken";
        Err(CniError::new(code::EXISTS, msg))
    }

    /// The container's end of the pair.
    pub(crate) fn pod_end(&self, pair: &PairSpec) -> Result<Link, CniError> {
        let name = self.target.ifname.as_str();
        let found = self.pod.link_index(name).zip(self.pod.link_mtu(name));
        let (index, mtu) =
            found.ok_or_else(|| CniError::new(code::KERNEL, format!("{name} is gone")))?;
        Ok(Link {
            index,
            name: name.to_owned(),
            kind: "veth".to_owned(),
            mac: pair.mac.to_vec(),
            mtu,
            ..Link::default()
        })
    }

    /// A link of the container as the result has it.
    pub(crate) fn in_container(&self, link: &Link) -> Result<Interface, CniError> {
        Ok(Interface {
            sandbox: self.target.netns()?.to_string_lossy().into_owned(),
            ..on_node(link)
        })
    }

    /// In reverse order. What cannot be undone is left to DEL, which the runtime calls after a failed ADD: the error
    /// that it must see is the first one.
    async fn undo(self) {
        self.rules.undo(self.target);
        if let Some(name) = self.host_veth {
            self.host.delete_link(&name).await.ok();
        }
        if self.has_addresses {
            let del = ipam::as_del(self.call);
            self.ipam.del(&del, self.target).ok();
        }
    }
}

/// A link of the node as the result has it.
pub(crate) fn on_node(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac_text(),
        mtu: Some(link.mtu),
        ..Interface::default()
    }
}
