//! Links: bridges, veth pairs, ports.

use std::{
    fmt,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoKind, InfoVeth, LinkAttribute,
            LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
        },
    },
};

use super::{Netlink, NetlinkError, PortSettings, Verb, exchange::Request, probe};

const CREATING_VETH: &str = "creating a veth pair";

/// A link as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `veth`, ...; empty for a plain device.
    pub kind: String,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it is promiscuous.
    pub promiscuous: bool,
    /// Whether it takes every multicast frame.
    pub all_multicast: bool,
    /// How many frames may wait to be sent.
    pub tx_queue_len: u32,
    /// The link that it belongs to; for a veth the number of the other end, in the other end's namespace.
    pub peer: Option<u32>,
    /// The bridge that it is a port of.
    pub controller: Option<u32>,
    /// What its maker wrote on it.
    pub alias: String,
}

impl Link {
    /// The hardware address as `aa:bb:cc:dd:ee:ff`.
    #[must_use]
    pub fn mac_text(&self) -> String {
        struct Mac<'a>(&'a [u8]);
        impl fmt::Display for Mac<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (index, byte) in self.0.iter().enumerate() {
                    let colon = if index == 0 { "" } else { ":" };
                    write!(f, "{colon}{byte:02x}")?;
                }
                Ok(())
            }
        }
        Mac(&self.mac).to_string()
    }

    pub(super) fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            mac: Vec::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            promiscuous: message.header.flags.contains(LinkFlags::Promisc),
            all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
            tx_queue_len: 0,
            peer: None,
            controller: None,
            alias: String::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::TxQueueLen(length) => link.tx_queue_len = length,
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// A veth pair to be made, with one end in another namespace. This end is up at once; the other cannot be (the kernel
/// has not joined them yet when it would be opened).
#[derive(Debug, Clone)]
pub struct VethSpec<'a> {
    /// The name of this end.
    pub name: &'a str,
    /// The hardware address of this end.
    pub mac: [u8; 6],
    /// The bridge that this end joins, if any.
    pub controller: Option<u32>,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// The hardware address of the other end.
    pub peer_mac: [u8; 6],
    /// The namespace of the other end.
    pub peer_netns: BorrowedFd<'a>,
    /// The MTU of both; the kernel's default if not given.
    pub mtu: Option<u32>,
    /// What can only be set on a link that exists, which this end never is without.
    pub settings: Option<PortSettings<'a>>,
}

impl Netlink {
    /// Finds a link; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        self.find(LinkUnspec::new_with_name(name)).await
    }

    /// Finds a link by its number; `None` if there is none.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn find_link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.find(LinkUnspec::new_with_index(index)).await
    }

    /// Without its counters, which are half of the answer.
    async fn find(
        &self,
        which: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<Option<Link>, NetlinkError> {
        let lean = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        let message = which.append_extra_attribute(lean).build();
        let request = RouteNetlinkMessage::GetLink(message);
        match self.request("finding a link", request, Verb::Get).await {
            Ok(messages) => Ok(links(messages).next()),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists the links whose name begins with `prefix`.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_links(&self, prefix: &str) -> Result<Vec<Link>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let messages = self.request("listing links", message, Verb::Dump).await?;
        Ok(links(messages)
            .filter(|link| link.name.starts_with(prefix))
            .collect())
    }

    /// The number of a link; `None` if there is none of that name. Does not wait for links that are being changed.
    pub fn link_index(&self, name: &str) -> Option<u32> {
        probe::index(self.exchange().socket(), name)
    }

    /// The MTU of a link; `None` if there is none of that name. Does not wait for links that are being changed.
    pub fn link_mtu(&self, name: &str) -> Option<u32> {
        probe::mtu(self.exchange().socket(), name)
    }

    /// The hardware address of a link; `None` if there is no Ethernet of that name. Does not wait for links that are being
    /// changed.
    pub fn link_mac(&self, name: &str) -> Option<[u8; 6]> {
        probe::mac(self.exchange().socket(), name)
    }

    /// Makes a veth pair: this end joins its bridge, the other is born in its namespace. A process that is killed leaves
    /// all of it or nothing: an alias, say, the kernel does not take when it makes a link (6.18), but it works off two
    /// requests of one call before anybody can kill the caller.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if one of the names is taken.
    pub async fn create_veth(&self, spec: &VethSpec<'_>) -> Result<(), NetlinkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(spec.peer_name)
            .address(spec.peer_mac.to_vec())
            .setns_by_fd(spec.peer_netns.as_raw_fd());
        let mut link = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(spec.name)
            .address(spec.mac.to_vec())
            .up();
        if let Some(controller) = spec.controller {
            link = link.controller(controller);
        }
        if let Some(mtu) = spec.mtu {
            peer = peer.mtu(mtu);
            link = link.mtu(mtu);
        }
        let message = link
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        match &spec.settings {
            Some(settings) => self.create_with(spec.name, message, settings).await,
            None => self.new_link(CREATING_VETH, message, Verb::Create).await,
        }
    }

    async fn create_with(
        &self,
        name: &str,
        message: LinkMessage,
        settings: &PortSettings<'_>,
    ) -> Result<(), NetlinkError> {
        let request = |action, message, verb: Verb| Request {
            action,
            message: RouteNetlinkMessage::NewLink(message),
            flags: verb.flags(),
        };
        // A stranger's link of this name would get the settings.
        if self.link_index(name).is_some() {
            let (action, source) = (CREATING_VETH, Errno::EEXIST.into());
            return Err(NetlinkError::Kernel { action, source });
        }
        let requests = [
            request(CREATING_VETH, message, Verb::Create),
            request("setting a link", settings.message(name), Verb::Change),
        ];
        let [created, set] = self.exchange().ask_both(requests)?;
        created?;
        if let Err(error) = set {
            self.delete_link(name).await.ok();
            return Err(error);
        }
        Ok(())
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.new_link("setting a link up", message, Verb::Change)
            .await
    }

    /// Lets a link tell its neighbours of its IPv4 addresses when it is set up.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn announce_when_up(&self, index: u32) -> Result<(), NetlinkError> {
        let mut settings = InetDevConf::default();
        settings.arp_notify = 1;
        let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(settings)]);
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![inet]))
            .build();
        self.new_link("setting a link's announcements", message, Verb::Change)
            .await
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.new_link("setting a link's MTU", message, Verb::Change)
            .await
    }

    /// Sets a link's hardware address.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .address(mac.to_vec())
            .build();
        self.new_link("setting a link's hardware address", message, Verb::Change)
            .await
    }

    /// Makes a link promiscuous.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_promiscuous(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).promiscuous(true).build();
        self.new_link("making a link promiscuous", message, Verb::Change)
            .await
    }

    /// Deletes a link; both ends of a veth pair go. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_name(name).build());
        match self.request("deleting a link", message, Verb::Change).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn new_link(
        &self,
        action: &'static str,
        message: LinkMessage,
        verb: Verb,
    ) -> Result<(), NetlinkError> {
        self.request(action, RouteNetlinkMessage::NewLink(message), verb)
            .await
            .map(drop)
    }
}

fn links(messages: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = Link> {
    messages.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
        _ => None,
    })
}
