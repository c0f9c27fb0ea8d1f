//! Changing several settings of a link at once.

use rtnetlink::{LinkMessageBuilder, LinkUnspec, packet_route::RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Verb};

/// What to change on a link; what is not given stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkChange<'a> {
    /// Its hardware address.
    pub mac: Option<&'a [u8]>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Whether it is promiscuous.
    pub promiscuous: Option<bool>,
    /// Whether it takes every multicast frame.
    pub all_multicast: Option<bool>,
    /// How many frames may wait to be sent.
    pub tx_queue_len: Option<u32>,
}

impl Netlink {
    /// Changes a link in one request. The kernel may have done some of it when it refuses the rest.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn change_link(
        &self,
        index: u32,
        change: &LinkChange<'_>,
    ) -> Result<(), NetlinkError> {
        let mut link = LinkMessageBuilder::<LinkUnspec>::new().index(index);
        if let Some(mac) = change.mac {
            link = link.address(mac.to_vec());
        }
        if let Some(mtu) = change.mtu {
            link = link.mtu(mtu);
        }
        if let Some(on) = change.promiscuous {
            link = link.promiscuous(on);
        }
        if let Some(on) = change.all_multicast {
            link = link.allmulticast(on);
        }
        if let Some(length) = change.tx_queue_len {
            link = link.txqueuelen(length);
        }
        let request = RouteNetlinkMessage::NewLink(link.build());
        self.request("changing a link", request, Verb::Change)
            .await
            .map(drop)
    }
}
