//! Links: bridges, veth pairs, ports.

use std::{
    fmt,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
};

use super::{Netlink, NetlinkError, Verb};

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
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

    fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            mac: Vec::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            promiscuous: message.header.flags.contains(LinkFlags::Promisc),
            controller: None,
            alias: String::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
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

/// A bridge to be made.
#[derive(Debug, Clone)]
pub struct BridgeSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MTU; the kernel's default if not given.
    pub mtu: Option<u32>,
    /// Its hardware address: a bridge without one takes that of its ports, and changes it when they come and go.
    pub mac: [u8; 6],
}

/// A veth pair to be made, with one end in another namespace. This end is up at once; the other cannot be (the kernel
/// has not joined them yet when it would be opened).
#[derive(Debug, Clone)]
pub struct VethSpec<'a> {
    /// The name of this end.
    pub name: &'a str,
    /// The hardware address of this end.
    pub mac: [u8; 6],
    /// The bridge that this end joins.
    pub controller: u32,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// The hardware address of the other end.
    pub peer_mac: [u8; 6],
    /// The namespace of the other end.
    pub peer_netns: BorrowedFd<'a>,
    /// The MTU of both; the kernel's default if not given.
    pub mtu: Option<u32>,
}

/// What a bridge port is set to.
#[derive(Debug, Clone, Default)]
pub struct PortSettings<'a> {
    /// Frames may leave by the port that they came in.
    pub hairpin: bool,
    /// What is written on the link.
    pub alias: Option<&'a str>,
}

impl Netlink {
    /// Finds a link; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let message = LinkUnspec::new_with_name(name).build();
        let request = self.request(
            "finding a link",
            RouteNetlinkMessage::GetLink(message),
            Verb::Get,
        );
        match request.await {
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

    /// Makes a bridge, up.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if the name is taken.
    pub async fn create_bridge(&self, spec: &BridgeSpec<'_>) -> Result<(), NetlinkError> {
        let mut link = LinkBridge::new(spec.name).up().address(spec.mac.to_vec());
        if let Some(mtu) = spec.mtu {
            link = link.mtu(mtu);
        }
        self.new_link("creating a bridge", link.build(), Verb::Create)
            .await
    }

    /// Makes a veth pair in one request: this end joins its bridge, the other is born in its namespace.
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
            .controller(spec.controller)
            .up();
        if let Some(mtu) = spec.mtu {
            peer = peer.mtu(mtu);
            link = link.mtu(mtu);
        }
        let message = link
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        self.new_link("creating a veth pair", message, Verb::Create)
            .await
    }

    /// Sets what can only be set on a port that exists.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_port(&self, name: &str, port: &PortSettings<'_>) -> Result<(), NetlinkError> {
        let mut link = if port.hairpin {
            let mut message = LinkBridgePort::new(0).hairpin(true).build();
            message
                .attributes
                .insert(0, LinkAttribute::IfName(name.to_owned()));
            message
        } else {
            LinkUnspec::new_with_name(name).build()
        };
        if let Some(alias) = port.alias {
            link.attributes
                .push(LinkAttribute::IfAlias(alias.to_owned()));
        }
        self.new_link("setting a bridge port", link, Verb::Change)
            .await
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

    async fn new_link(
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
