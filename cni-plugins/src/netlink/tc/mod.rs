//! Traffic control: how fast packets may leave a link, and sending what arrives on one through another.
//!
//! The kernel shapes only what leaves. What a link receives is therefore redirected to an intermediate device (`ifb`),
//! whose queue is limited in its place:
//! ```text
//! to the container    host veth, root: tbf, or htb where some subnets are exempt
//! from the container  host veth, ingress: u32 filter -> mirred -> ifb, root: tbf or htb
//! ```
//! A `tbf` limits everything. An `htb` has one limited class, and sends whatever is not meant for it straight through.

mod bucket;
mod filter;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::DefaultNla,
    packet_route::{
        RouteNetlinkMessage,
        link::InfoKind,
        tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption},
    },
};

pub use bucket::{LinkLimit, TokenBucket};

use self::filter::{redirect_filter, redirect_target, subnet_filter};
use super::{Netlink, NetlinkError, Verb};

const TBF: &str = "tbf";
const HTB: &str = "htb";
const INGRESS: &str = "ingress";
const HTB_INIT: u16 = 2;
/// The version of the interface that `htb` asks for.
const HTB_VERSION: u32 = 3;

/// The queue at a link's root.
const ROOT_QUEUE: TcHandle = TcHandle { major: 1, minor: 0 };
const INGRESS_QUEUE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
/// The class of an `htb` whose packets are limited.
const LIMITED_CLASS: TcHandle = TcHandle {
    major: 1,
    minor: 0x30,
};

/// Whose packets are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shaped<'a> {
    /// Everybody's.
    All,
    /// Those from or to these subnets.
    Only(&'a [IpNetwork]),
    /// All others'.
    Except(&'a [IpNetwork]),
}

/// Which address of a packet is the one that is not the container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteAddress {
    /// The packet goes to the container.
    Source,
    /// The packet comes from it.
    Destination,
}

impl Netlink {
    /// Makes an intermediate device, up.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EOPNOTSUPP` if the kernel has no such devices.
    pub async fn create_ifb(
        &self,
        name: &str,
        mtu: u32,
        queue_len: u32,
    ) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
            .name(name)
            .mtu(mtu)
            .txqueuelen(queue_len)
            .up()
            .build();
        let request = RouteNetlinkMessage::NewLink(message);
        self.request("creating an intermediate device", request, Verb::Create)
            .await
            .map(drop)
    }

    /// Limits what leaves a link. A failure leaves nothing behind.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if it has a queue that somebody made, `ENOENT` if the kernel has
    /// no such queues.
    pub async fn limit_link(
        &self,
        link: u32,
        bucket: &TokenBucket,
        shaped: Shaped<'_>,
        remote: RemoteAddress,
    ) -> Result<(), NetlinkError> {
        let (subnets, default, target) = match shaped {
            Shaped::All => {
                let message = root_queue(link, TBF, bucket.tbf());
                return self.create_queue(message).await;
            }
            // To no class at all: straight through.
            Shaped::Only(subnets) => (subnets, 0, LIMITED_CLASS),
            Shaped::Except(subnets) => (subnets, u32::from(LIMITED_CLASS.minor), ROOT_QUEUE),
        };
        let mut init = Vec::new();
        for number in [HTB_VERSION, 10, default, 0, 0] {
            init.extend(number.to_ne_bytes());
        }
        let queue = root_queue(link, HTB, vec![DefaultNla::new(HTB_INIT, init)]);
        self.create_queue(queue).await?;
        let filled = async {
            let class = tc_message(link, LIMITED_CLASS, ROOT_QUEUE, HTB, bucket.htb());
            let request = RouteNetlinkMessage::NewTrafficClass(class);
            self.request("creating a traffic class", request, Verb::Create)
                .await?;
            for subnet in subnets {
                let filter = subnet_filter(link, *subnet, remote, target);
                self.create_filter(filter).await?;
            }
            Ok(())
        }
        .await;
        if filled.is_err() {
            // The first error is the one to report.
            self.unlimit_link(link).await.ok();
        }
        filled
    }

    /// Sends all that arrives on `link` through the queue of `target`, from where it comes back. A failure leaves
    /// nothing behind.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if the link has an ingress queue.
    pub async fn redirect_arrivals(&self, link: u32, target: u32) -> Result<(), NetlinkError> {
        let mut queue = tc_header(link, INGRESS_QUEUE, TcHandle::INGRESS);
        queue.attributes.push(TcAttribute::Kind(INGRESS.to_owned()));
        self.create_queue(queue).await?;
        let filled = self.create_filter(redirect_filter(link, target)).await;
        if filled.is_err() {
            self.delete_redirection(link).await.ok();
        }
        filled
    }

    /// Undoes [`Netlink::limit_link`]. Absent, or somebody else's, is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn unlimit_link(&self, link: u32) -> Result<(), NetlinkError> {
        for kind in [TBF, HTB] {
            self.delete_queue(tc_message(
                link,
                ROOT_QUEUE,
                TcHandle::ROOT,
                kind,
                Vec::new(),
            ))
            .await?;
        }
        Ok(())
    }

    /// Undoes [`Netlink::redirect_arrivals`]. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_redirection(&self, link: u32) -> Result<(), NetlinkError> {
        let message = tc_message(link, INGRESS_QUEUE, TcHandle::INGRESS, INGRESS, Vec::new());
        self.delete_queue(message).await
    }

    /// The limit on what leaves a link, if there is one of the kinds that [`Netlink::limit_link`] makes.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn link_limit(&self, link: u32) -> Result<Option<LinkLimit>, NetlinkError> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let queues = self.request("listing queues", request, Verb::Dump).await?;
        // All links' are listed, whatever is asked for.
        let root = queues.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(queue)
                if queue.header.index == link.cast_signed()
                    && queue.header.parent == TcHandle::ROOT =>
            {
                Some(queue)
            }
            _ => None,
        });
        let Some(root) = root else { return Ok(None) };
        match kind_of(&root) {
            Some(TBF) => Ok(LinkLimit::of_tbf(&root)),
            Some(HTB) => {
                let request = RouteNetlinkMessage::GetTrafficClass(tc_header(
                    link,
                    TcHandle::UNSPEC,
                    TcHandle::UNSPEC,
                ));
                let classes = self
                    .request("listing traffic classes", request, Verb::Dump)
                    .await?;
                Ok(classes.iter().find_map(|message| match message {
                    RouteNetlinkMessage::NewTrafficClass(class)
                        if class.header.handle == LIMITED_CLASS =>
                    {
                        LinkLimit::of_htb(class)
                    }
                    _ => None,
                }))
            }
            _ => Ok(None),
        }
    }

    /// Where [`Netlink::redirect_arrivals`] sends what arrives on a link.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn redirection(&self, link: u32) -> Result<Option<u32>, NetlinkError> {
        let request =
            RouteNetlinkMessage::GetTrafficFilter(tc_header(link, TcHandle::UNSPEC, INGRESS_QUEUE));
        let filters = match self.request("listing filters", request, Verb::Dump).await {
            // Without an ingress queue there is nothing to list.
            Err(error) if error.is(Errno::EINVAL) => return Ok(None),
            filters => filters?,
        };
        Ok(filters.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => redirect_target(filter),
            _ => None,
        }))
    }

    async fn create_queue(&self, message: TcMessage) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.request("creating a queue", request, Verb::Create)
            .await
            .map(drop)
    }

    async fn create_filter(&self, message: TcMessage) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        self.request("creating a filter", request, Verb::Create)
            .await
            .map(drop)
    }

    async fn delete_queue(&self, message: TcMessage) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelQueueDiscipline(message);
        match self
            .request("deleting a queue", request, Verb::Change)
            .await
        {
            // EINVAL: a queue of another kind or handle, which is not ours.
            Err(error)
                if !error.is_absent() && !error.is(Errno::ENOENT) && !error.is(Errno::EINVAL) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

fn tc_header(link: u32, handle: TcHandle, parent: TcHandle) -> TcMessage {
    let header = TcHeader {
        index: link.cast_signed(),
        handle,
        parent,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, Vec::new())
}

fn tc_message(
    link: u32,
    handle: TcHandle,
    parent: TcHandle,
    kind: &str,
    options: Vec<DefaultNla>,
) -> TcMessage {
    let mut message = tc_header(link, handle, parent);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Options(
            options.into_iter().map(TcOption::Other).collect(),
        ));
    }
    message
}

fn root_queue(link: u32, kind: &str, options: Vec<DefaultNla>) -> TcMessage {
    tc_message(link, ROOT_QUEUE, TcHandle::ROOT, kind, options)
}

fn kind_of(message: &TcMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        })
}
