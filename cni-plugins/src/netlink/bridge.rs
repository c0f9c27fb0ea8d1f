//! Bridges: ports, their flags, and VLANs.
//!
//! A bridge that filters VLANs keeps for each port, and for itself, the list of VLANs that pass there. One of them may
//! be the port's VLAN for untagged frames (`PVID`), and some leave without their tag.

use nix::errno::Errno;
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkBridgeVlan, LinkUnspec,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{
            AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort,
            InfoData, InfoPortData, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
        },
    },
};

use super::{Link, Netlink, NetlinkError, Verb};

/// A bridge to be made.
#[derive(Debug, Clone)]
pub struct BridgeSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MTU; the kernel's default if not given.
    pub mtu: Option<u32>,
    /// Its hardware address: a bridge without one takes that of its ports, and changes it when they come and go.
    pub mac: [u8; 6],
    /// Whether it keeps VLANs apart.
    pub vlan_filtering: bool,
}

/// What a link is set to that may be a bridge's port.
#[derive(Debug, Clone)]
pub struct PortSettings<'a> {
    /// Frames may leave by the port that they came in.
    pub hairpin: bool,
    /// Frames do not pass to and from other isolated ports.
    pub isolated: bool,
    /// What is written on the link.
    pub alias: &'a str,
}

impl PortSettings<'_> {
    /// Sets them on the link of this name.
    pub(super) fn message(&self, name: &str) -> LinkMessage {
        let mut link = if self.hairpin || self.isolated {
            let mut message = LinkBridgePort::new(0)
                .append_info_data(InfoBridgePort::HairpinMode(self.hairpin))
                .append_info_data(InfoBridgePort::Isolated(self.isolated))
                .build();
            message
                .attributes
                .insert(0, LinkAttribute::IfName(name.to_owned()));
            message
        } else {
            LinkUnspec::new_with_name(name).build()
        };
        link.attributes
            .push(LinkAttribute::IfAlias(self.alias.to_owned()));
        link
    }
}

/// How the kernel has a bridge port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Frames may leave by the port that they came in.
    pub hairpin: bool,
    /// Frames do not pass to and from other isolated ports.
    pub isolated: bool,
}

/// A range of VLANs at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVlan {
    /// The first one.
    pub first: u16,
    /// The last one: the first, if it is only one.
    pub last: u16,
    /// Whether untagged frames that come in belong to it.
    pub pvid: bool,
    /// Whether frames of it leave without a tag.
    pub untagged: bool,
}

impl PortVlan {
    /// The VLAN of an access port: untagged inside and outside.
    #[must_use]
    pub fn native(id: u16) -> Self {
        Self {
            first: id,
            last: id,
            pvid: true,
            untagged: true,
        }
    }

    /// VLANs of a trunk.
    #[must_use]
    pub fn tagged(first: u16, last: u16) -> Self {
        Self {
            first,
            last,
            pvid: false,
            untagged: false,
        }
    }

    fn flags(&self) -> BridgeVlanInfoFlags {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, self.pvid);
        flags.set(BridgeVlanInfoFlags::Untagged, self.untagged);
        flags
    }
}

/// Whose VLANs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanOwner {
    /// Those of a port.
    Port(u32),
    /// Those of the bridge itself: what the host's own end of it takes part in.
    Bridge(u32),
}

impl VlanOwner {
    fn index(self) -> u32 {
        match self {
            Self::Port(index) | Self::Bridge(index) => index,
        }
    }
}

impl Netlink {
    /// Makes a bridge, up.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if the name is taken, [`NetlinkError::is_unsupported`] if the
    /// kernel cannot filter VLANs.
    pub async fn create_bridge(&self, spec: &BridgeSpec<'_>) -> Result<(), NetlinkError> {
        let mut link = LinkBridge::new(spec.name).up().address(spec.mac.to_vec());
        if let Some(mtu) = spec.mtu {
            link = link.mtu(mtu);
        }
        if spec.vlan_filtering {
            link = link.vlan_filtering(true);
        }
        self.new_link("creating a bridge", link.build(), Verb::Create)
            .await
    }

    /// The VLAN that a bridge gives each new port, if any.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn default_vlan(&self, bridge: u32) -> Result<Option<u16>, NetlinkError> {
        let message = LinkUnspec::new_with_index(bridge).build();
        let attributes = self.link_attributes("reading a bridge", message).await?;
        let default = infos(attributes)
            .filter_map(|info| match info {
                LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
                _ => None,
            })
            .flatten()
            .find_map(|item| match item {
                InfoBridge::VlanDefaultPvid(id) => Some(id),
                _ => None,
            });
        Ok(default.filter(|id| *id != 0))
    }

    /// Reads how a port is set; all off if the link is not a port.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn port_flags(&self, port: u32) -> Result<PortFlags, NetlinkError> {
        let message = LinkUnspec::new_with_index(port).build();
        let attributes = self
            .link_attributes("reading a bridge port", message)
            .await?;
        let mut flags = PortFlags::default();
        for info in infos(attributes) {
            let LinkInfo::PortData(InfoPortData::BridgePort(data)) = info else {
                continue;
            };
            for item in data {
                match item {
                    InfoBridgePort::HairpinMode(on) => flags.hairpin = on,
                    InfoBridgePort::Isolated(on) => flags.isolated = on,
                    _ => {}
                }
            }
        }
        Ok(flags)
    }

    /// Lets VLANs pass. One that passes already changes its manner.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_unsupported`] if the kernel cannot filter VLANs or the link is not a port.
    pub async fn add_vlans(
        &self,
        owner: VlanOwner,
        vlans: &[PortVlan],
    ) -> Result<(), NetlinkError> {
        for vlan in vlans {
            // A bridge's own requests are RTM_SETLINK: as RTM_NEWLINK they succeed and change nothing.
            let message = RouteNetlinkMessage::SetLink(vlan_message(owner, vlan));
            self.request("adding a VLAN to a port", message, Verb::Change)
                .await?;
        }
        Ok(())
    }

    /// Lets VLANs pass no more. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_vlans(
        &self,
        owner: VlanOwner,
        vlans: &[PortVlan],
    ) -> Result<(), NetlinkError> {
        for vlan in vlans {
            let message = RouteNetlinkMessage::DelLink(vlan_message(owner, vlan));
            match self
                .request("removing a VLAN from a port", message, Verb::Change)
                .await
            {
                Err(error) if !error.is_absent() && !error.is(Errno::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lists the VLANs of a port or a bridge; none on a kernel that does not filter them.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_vlans(&self, owner: VlanOwner) -> Result<Vec<PortVlan>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let request = RouteNetlinkMessage::GetLink(message);
        let messages = self.request("listing VLANs", request, Verb::Dump).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) if link.header.index == owner.index() => {
                    Some(link.attributes)
                }
                _ => None,
            })
            .flatten()
            .filter_map(|attribute| match attribute {
                LinkAttribute::AfSpecBridge(specs) => Some(specs),
                _ => None,
            })
            .flatten()
            .filter_map(|spec| match spec {
                AfSpecBridge::VlanInfo(info) => Some(parse_vlan(info)),
                _ => None,
            })
            .collect())
    }

    async fn link_attributes(
        &self,
        action: &'static str,
        message: LinkMessage,
    ) -> Result<Vec<LinkAttribute>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(message);
        let messages = self.request(action, request, Verb::Get).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link.attributes),
                _ => None,
            })
            .flatten()
            .collect())
    }
}

impl Link {
    /// Whether it is a bridge.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.kind == "bridge"
    }
}

fn infos(attributes: Vec<LinkAttribute>) -> impl Iterator<Item = LinkInfo> {
    attributes
        .into_iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })
        .flatten()
}

/// Without ranges asked for, the kernel lists each VLAN by itself.
fn parse_vlan(info: BridgeVlanInfo) -> PortVlan {
    PortVlan {
        first: info.vid,
        last: info.vid,
        pvid: info.flags.contains(BridgeVlanInfoFlags::Pvid),
        untagged: info.flags.contains(BridgeVlanInfoFlags::Untagged),
    }
}

fn vlan_message(owner: VlanOwner, vlan: &PortVlan) -> LinkMessage {
    let builder = LinkBridgeVlan::new(owner.index());
    let builder = match owner {
        VlanOwner::Port(_) => builder,
        VlanOwner::Bridge(_) => builder.bridge_self(),
    };
    if vlan.first == vlan.last {
        builder.vlan(vlan.first, vlan.flags()).build()
    } else {
        builder
            .vlan_range_start(vlan.first, vlan.flags())
            .vlan_range_end(vlan.last, vlan.flags())
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(owner: VlanOwner, vlan: &PortVlan) -> Vec<AfSpecBridge> {
        let message = vlan_message(owner, vlan);
        assert_eq!(message.header.interface_family, AddressFamily::Bridge);
        assert_eq!(message.header.index, 7);
        message
            .attributes
            .into_iter()
            .flat_map(|attribute| match attribute {
                LinkAttribute::AfSpecBridge(specs) => specs,
                _ => Vec::new(),
            })
            .collect()
    }

    #[test]
    fn a_range_has_a_beginning_and_an_end() {
        let infos = specs(VlanOwner::Port(7), &PortVlan::tagged(10, 12));
        let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { vid, flags });
        assert_eq!(
            infos,
            [
                info(10, BridgeVlanInfoFlags::RangeBegin),
                info(12, BridgeVlanInfoFlags::RangeEnd)
            ]
        );
        let native = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        assert_eq!(
            specs(VlanOwner::Port(7), &PortVlan::native(100)),
            [info(100, native)]
        );
        assert_eq!(
            specs(VlanOwner::Bridge(7), &PortVlan::native(100)).len(),
            2,
            "the bridge itself is meant"
        );
    }
}
