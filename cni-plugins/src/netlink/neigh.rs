//! Neighbours (ARP and ND) and the forwarding database of a VXLAN device.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use super::{Netlink, NetlinkError, Verb};

/// Where the frames to a hardware address go: an entry of a VXLAN device's forwarding database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The hardware address.
    pub mac: [u8; 6],
    /// The outer destination.
    pub remote: IpAddr,
}

/// Which hardware address an IP address has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The IP address.
    pub ip: IpAddr,
    /// The hardware address.
    pub mac: [u8; 6],
}

impl Netlink {
    /// Makes an entry of a VXLAN device's forwarding database; one for the same hardware address is replaced.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_fdb(&self, index: u32, entry: &FdbEntry) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewNeighbour(fdb_message(index, entry));
        self.request("setting a forwarding entry", request, Verb::Replace)
            .await
            .map(drop)
    }

    /// Deletes an entry of a VXLAN device's forwarding database. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_fdb(&self, index: u32, entry: &FdbEntry) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelNeighbour(fdb_message(index, entry));
        self.delete_neighbour_entry("deleting a forwarding entry", request)
            .await
    }

    /// Lists a VXLAN device's forwarding database.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_fdb(&self, index: u32) -> Result<Vec<FdbEntry>, NetlinkError> {
        let mut filter = NeighbourMessage::default();
        filter.header.family = AddressFamily::Bridge;
        filter.header.ifindex = index;
        let request = RouteNetlinkMessage::GetNeighbour(filter);
        let messages = self
            .request("listing the forwarding database", request, Verb::Dump)
            .await?;
        let entries = of_link(messages, index).filter_map(|message| {
            let (remote, mac) = parse(&message)?;
            Some(FdbEntry { mac, remote })
        });
        Ok(entries.collect())
    }

    /// Makes a permanent neighbour of a link; one with the same IP address is replaced.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn set_neighbour(
        &self,
        index: u32,
        neighbour: &Neighbour,
    ) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewNeighbour(neighbour_message(index, neighbour));
        self.request("setting a neighbour", request, Verb::Replace)
            .await
            .map(drop)
    }

    /// Deletes a neighbour of a link. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_neighbour(
        &self,
        index: u32,
        neighbour: &Neighbour,
    ) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelNeighbour(neighbour_message(index, neighbour));
        self.delete_neighbour_entry("deleting a neighbour", request)
            .await
    }

    /// Lists a link's permanent neighbours of both families; those that the kernel found by itself come and go.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_neighbours(&self, index: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut filter = NeighbourMessage::default();
        filter.attributes.push(NeighbourAttribute::IfIndex(index));
        let request = RouteNetlinkMessage::GetNeighbour(filter);
        let messages = self
            .request("listing neighbours", request, Verb::Dump)
            .await?;
        let permanent = of_link(messages, index)
            .filter(|message| message.header.state == NeighbourState::Permanent);
        let neighbours = permanent.filter_map(|message| {
            let (ip, mac) = parse(&message)?;
            Some(Neighbour { ip, mac })
        });
        Ok(neighbours.collect())
    }

    async fn delete_neighbour_entry(
        &self,
        action: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<(), NetlinkError> {
        match self.request(action, request, Verb::Change).await {
            // What is not there is ENOENT for both, unlike with links and routes.
            Err(error) if !error.is_absent() && !error.is(nix::errno::Errno::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }
}

fn fdb_message(index: u32, entry: &FdbEntry) -> NeighbourMessage {
    let mut message = permanent_message(index, entry.mac, entry.remote);
    message.header.family = AddressFamily::Bridge;
    // Of the device itself; without it the entry would be its bridge's.
    message.header.flags = NeighbourFlags::Own;
    message
}

fn neighbour_message(index: u32, neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = permanent_message(index, neighbour.mac, neighbour.ip);
    message.header.family = if neighbour.ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message
}

fn permanent_message(index: u32, mac: [u8; 6], ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(ip.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    message
}

/// A kernel that does not filter sends the entries of every link.
fn of_link(
    messages: Vec<RouteNetlinkMessage>,
    index: u32,
) -> impl Iterator<Item = NeighbourMessage> {
    messages
        .into_iter()
        .filter_map(move |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == index => {
                Some(message)
            }
            _ => None,
        })
}

fn parse(message: &NeighbourMessage) -> Option<(IpAddr, [u8; 6])> {
    let mut ip = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => ip = ip_of(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((ip?, mac?))
}

/// In the forwarding database the family is that of bridges, and the address' length tells its own.
fn ip_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
