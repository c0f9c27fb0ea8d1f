//! Filters: which packets go to another device or class.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage,
    TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::{INGRESS_QUEUE, ROOT_QUEUE, RemoteAddress, tc_header};

const ETH_P_ALL: u16 = 0x0003;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

fn u32_filter(
    link: u32,
    parent: TcHandle,
    priority: u16,
    protocol: u16,
    options: Vec<TcFilterU32Option>,
) -> TcMessage {
    let mut message = tc_header(link, TcHandle::UNSPEC, parent);
    message.header.info = u32::from(TcHandle {
        major: priority,
        minor: protocol.to_be(),
    });
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(
        options.into_iter().map(TcOption::U32).collect(),
    ));
    message
}

fn selector(keys: Vec<TcU32Key>) -> TcFilterU32Option {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    // At most four words of an address.
    selector.nkeys = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    selector.keys = keys;
    TcFilterU32Option::Selector(selector)
}

/// Sends everything that arrives on `link` to `target`.
pub(super) fn redirect_filter(link: u32, target: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = target;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let options = vec![
        // A key without a mask matches everything.
        selector(vec![TcU32Key::default()]),
        TcFilterU32Option::Action(vec![action]),
    ];
    u32_filter(link, INGRESS_QUEUE, 1, ETH_P_ALL, options)
}

/// Sends packets from or to `subnet` to a class. The two families have priorities of their own: a priority has one
/// protocol.
pub(super) fn subnet_filter(
    link: u32,
    subnet: IpNetwork,
    remote: RemoteAddress,
    class: TcHandle,
) -> TcMessage {
    let (protocol, priority, offset) = match (subnet, remote) {
        (IpNetwork::V4(_), RemoteAddress::Source) => (ETH_P_IP, 16, 12),
        (IpNetwork::V4(_), RemoteAddress::Destination) => (ETH_P_IP, 16, 16),
        (IpNetwork::V6(_), RemoteAddress::Source) => (ETH_P_IPV6, 15, 8),
        (IpNetwork::V6(_), RemoteAddress::Destination) => (ETH_P_IPV6, 15, 24),
    };
    let options = vec![
        TcFilterU32Option::ClassId(class),
        selector(address_keys(subnet, offset)),
    ];
    u32_filter(link, ROOT_QUEUE, priority, protocol, options)
}

/// The words of an address that its mask touches, `offset` bytes into the packet; one that matches everything for a
/// mask of no bits.
fn address_keys(subnet: IpNetwork, offset: i32) -> Vec<TcU32Key> {
    let words = |ip: IpAddr| -> Vec<u32> {
        match ip {
            IpAddr::V4(v4) => vec![v4.to_bits()],
            IpAddr::V6(v6) => v6
                .segments()
                .chunks(2)
                .map(|pair| {
                    pair.iter()
                        .fold(0, |word, half| word << 16 | u32::from(*half))
                })
                .collect(),
        }
    };
    let mut keys = Vec::new();
    for ((val, mask), off) in words(subnet.network())
        .into_iter()
        .zip(words(subnet.mask()))
        .zip((offset..).step_by(4))
        .filter(|((_, mask), _)| *mask != 0)
    {
        let mut key = TcU32Key::default();
        (key.val, key.mask, key.off) = (val, mask, off);
        keys.push(key);
    }
    if keys.is_empty() {
        keys.push(TcU32Key::default());
    }
    keys
}

/// Where a [`redirect_filter`] sends packets.
pub(super) fn redirect_target(filter: &TcMessage) -> Option<u32> {
    let options = filter
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let attributes = actions.iter().flat_map(|action| &action.attributes);
    attributes
        .filter_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_becomes_the_words_that_its_mask_touches() {
        let keys = |subnet: &str| -> Vec<(u32, u32, i32)> {
            address_keys(subnet.parse().unwrap(), 16)
                .into_iter()
                .map(|key| (key.val, key.mask, key.off))
                .collect()
        };
        assert_eq!(keys("10.7.0.0/16"), [(0x0a07_0000, 0xffff_0000, 16)]);
        assert_eq!(keys("0.0.0.0/0"), [(0, 0, 0)]);
        assert_eq!(
            keys("fd07::/33"),
            [(0xfd07_0000, 0xffff_ffff, 16), (0, 0x8000_0000, 20)]
        );
    }
}
