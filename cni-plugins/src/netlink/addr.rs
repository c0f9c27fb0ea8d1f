//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::{
    AddressMessageBuilder,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
    },
};

use super::{Netlink, NetlinkError, Verb};

impl Netlink {
    /// Gives a link an address. IPv6 addresses come without duplicate detection: they are usable at once, and IPAM
    /// knows that nobody else has them.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if the link has it.
    pub async fn add_address(&self, index: u32, address: IpNetwork) -> Result<(), NetlinkError> {
        let mut message = address_message(index, address);
        if address.is_ipv6() {
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.new_address(message).await
    }

    /// [`Netlink::add_address`] that asks the neighbours first whether somebody has an IPv6 address already: it is of
    /// use only when [`Netlink::duplicate_detection`] says so.
    ///
    /// # Errors
    /// As [`Netlink::add_address`].
    pub async fn add_detected_address(
        &self,
        index: u32,
        address: IpNetwork,
    ) -> Result<(), NetlinkError> {
        self.new_address(address_message(index, address)).await
    }

    /// [`Netlink::add_address`] without the route to the address' subnet.
    ///
    /// # Errors
    /// As [`Netlink::add_address`].
    pub async fn add_address_without_route(
        &self,
        index: u32,
        address: IpNetwork,
    ) -> Result<(), NetlinkError> {
        let mut message = address_message(index, address);
        let flags = if address.is_ipv6() {
            AddressFlags::Noprefixroute | AddressFlags::Nodad
        } else {
            AddressFlags::Noprefixroute
        };
        message.attributes.push(AddressAttribute::Flags(flags));
        self.new_address(message).await
    }

    async fn new_address(&self, message: AddressMessage) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewAddress(message);
        self.request("adding an address", request, Verb::Create)
            .await
            .map(drop)
    }

    /// How far the detection of duplicates of a link's IPv6 addresses is.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn duplicate_detection(
        &self,
        index: u32,
    ) -> Result<DuplicateDetection, NetlinkError> {
        let mut state = DuplicateDetection::Settled;
        for address in self.dump_addresses(Some(index)).await? {
            let flags = flags(&address);
            if flags.contains(AddressFlags::Dadfailed) {
                return Ok(parse(&address)
                    .map_or(state, |address| DuplicateDetection::Duplicate(address.ip())));
            }
            if flags.contains(AddressFlags::Tentative) {
                state = DuplicateDetection::Waiting;
            }
        }
        Ok(state)
    }

    /// Takes an address from a link. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_address(&self, index: u32, address: IpNetwork) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelAddress(address_message(index, address));
        match self
            .request("deleting an address", request, Verb::Change)
            .await
        {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists a link's addresses, those of link scope included.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_addresses(&self, index: u32) -> Result<Vec<IpNetwork>, NetlinkError> {
        let addresses = self.dump_addresses(Some(index)).await?;
        Ok(addresses.iter().filter_map(parse).collect())
    }

    /// Lists the addresses of all links, each with the number of its link.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_all_addresses(&self) -> Result<Vec<(u32, IpNetwork)>, NetlinkError> {
        let addresses = self.dump_addresses(None).await?;
        Ok(addresses
            .iter()
            .filter_map(|address| Some((address.header.index, parse(address)?)))
            .collect())
    }

    /// Of one link or of all.
    async fn dump_addresses(&self, link: Option<u32>) -> Result<Vec<AddressMessage>, NetlinkError> {
        let mut wanted = AddressMessage::default();
        wanted.header.index = link.unwrap_or_default();
        let request = RouteNetlinkMessage::GetAddress(wanted);
        let messages = self
            .request("listing addresses", request, Verb::Dump)
            .await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address)
                    // Old kernels list them all.
                    if link.is_none_or(|link| link == address.header.index) =>
                {
                    Some(address)
                }
                _ => None,
            })
            .collect())
    }
}

/// What is known of the duplicates of a link's IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// The neighbours are still being asked.
    Waiting,
    /// Nobody else has them.
    Settled,
    /// Somebody else has this one.
    Duplicate(IpAddr),
}

/// The attribute has the bits for which the header has no room.
fn flags(message: &AddressMessage) -> AddressFlags {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        })
        .unwrap_or(AddressFlags::empty())
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    match address {
        IpNetwork::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(v4.ip(), v4.prefix())
            .build(),
        IpNetwork::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(v6.ip(), v6.prefix())
            .build(),
    }
}

/// `IFA_LOCAL` is the address of a point-to-point IPv4 link, `IFA_ADDRESS` its peer; elsewhere they are the same.
fn parse(message: &AddressMessage) -> Option<IpNetwork> {
    let mut found: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => {
                found = Some(*ip);
                break;
            }
            AddressAttribute::Address(ip) => found = Some(*ip),
            _ => {}
        }
    }
    IpNetwork::new(found?, message.header.prefix_len).ok()
}
