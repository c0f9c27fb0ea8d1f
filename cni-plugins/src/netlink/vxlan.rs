//! VXLAN devices.

use std::net::IpAddr;

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
    },
};

use super::{Link, Netlink, NetlinkError, Verb};

/// A VXLAN device to be made: up, and without learning, so that it forwards to nobody but those whom its forwarding
/// database names.
#[derive(Debug, Clone)]
pub struct VxlanSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port, here and on the other side.
    pub port: u16,
    /// The address that outer packets come from.
    pub local: IpAddr,
    /// The link that outer packets must take; by the routing table if not given.
    pub underlay: Option<u32>,
    /// Its MTU.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// A VXLAN device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanLink {
    /// What every link has.
    pub link: Link,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The address that outer packets come from.
    pub local: Option<IpAddr>,
    /// The link that outer packets must take.
    pub underlay: Option<u32>,
    /// Whether it learns where hardware addresses are from what it receives.
    pub learning: bool,
    /// Whether it takes its orders from routes and programs (`external`) and receives for every VNI.
    pub external: bool,
}

impl VxlanLink {
    /// `None` for a link of another kind.
    fn from_message(message: LinkMessage) -> Option<Self> {
        let infos = message.attributes.iter().find_map(vxlan_infos)?.to_vec();
        let mut vxlan = Self {
            link: Link::from_message(message),
            vni: 0,
            port: 0,
            local: None,
            underlay: None,
            learning: false,
            external: false,
        };
        for info in infos {
            match info {
                InfoVxlan::Id(vni) => vxlan.vni = vni,
                InfoVxlan::Port(port) => vxlan.port = port,
                InfoVxlan::Local(v4) => vxlan.local = Some(v4.into()),
                InfoVxlan::Local6(v6) => vxlan.local = Some(v6.into()),
                InfoVxlan::Link(index) => vxlan.underlay = Some(index),
                InfoVxlan::Learning(learning) => vxlan.learning = learning,
                InfoVxlan::CollectMetadata(external) => vxlan.external = external,
                _ => {}
            }
        }
        Some(vxlan)
    }
}

fn vxlan_infos(attribute: &LinkAttribute) -> Option<&[InfoVxlan]> {
    let LinkAttribute::LinkInfo(infos) = attribute else {
        return None;
    };
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(infos)) => Some(&**infos),
        _ => None,
    })
}

impl Netlink {
    /// Makes a VXLAN device.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if the name is taken, or the VNI on this port.
    pub async fn create_vxlan(&self, spec: &VxlanSpec<'_>) -> Result<(), NetlinkError> {
        let mut link = LinkMessageBuilder::<LinkVxlan>::new(spec.name)
            .id(spec.vni)
            .port(spec.port)
            .learning(false);
        link = match spec.local {
            IpAddr::V4(v4) => link.local(v4),
            IpAddr::V6(v6) => link.local6(v6),
        };
        if let Some(underlay) = spec.underlay {
            link = link.dev(underlay);
        }
        let message = link.address(spec.mac.to_vec()).mtu(spec.mtu).up().build();
        self.new_link("creating a VXLAN device", message, Verb::Create)
            .await
    }

    /// Finds a VXLAN device; `None` if no link has the name.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::Invalid`] if the link is of another kind.
    pub async fn find_vxlan(&self, name: &str) -> Result<Option<VxlanLink>, NetlinkError> {
        const ACTION: &str = "finding a VXLAN device";
        let message = LinkUnspec::new_with_name(name).build();
        let request = RouteNetlinkMessage::GetLink(message);
        let messages = match self.request(ACTION, request, Verb::Get).await {
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        let found = messages.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        let Some(message) = found else {
            return Ok(None);
        };
        match VxlanLink::from_message(message) {
            Some(vxlan) => Ok(Some(vxlan)),
            None => Err(NetlinkError::Invalid {
                action: ACTION,
                reason: format!("{name} is a link of another kind"),
            }),
        }
    }

    /// Writes on a link what its owner wants to read there later.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let mut message = LinkUnspec::new_with_index(index).build();
        message
            .attributes
            .push(LinkAttribute::IfAlias(alias.to_owned()));
        self.new_link("setting a link's alias", message, Verb::Change)
            .await
    }
}
