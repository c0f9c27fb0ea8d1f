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
        let request = RouteNetlinkMessage::NewAddress(message);
        self.request("adding an address", request, Verb::Create)
            .await
            .map(drop)
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
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let messages = self
            .request("listing addresses", request, Verb::Dump)
            .await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address) if address.header.index == index => {
                    parse(&address)
                }
                _ => None,
            })
            .collect())
    }
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
