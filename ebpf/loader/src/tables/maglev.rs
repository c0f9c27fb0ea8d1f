//! The order of backends in a set for packets from outside: Maglev's.
//!
//! A flow's hash names a place in the set. Every node lays the same backends out in the same places, so any node sends a flow
//! to the same backend; when a backend comes or goes, few places of the others change hands. What a place holds depends
//! on addresses and ports only, not on the order in which backends were listed.

use std::net::{IpAddr, SocketAddr};

use super::Backend;

/// How many places a set may have: primes, so that every step through the places visits all of them. Far apart, because
/// nearly all flows choose again where a set goes from one size to the next.
const SIZES: [u32; 7] = [1, 131, 1031, 8209, 65_537, 131_101, 524_287];
/// A backend has so many places at least, so that no share is more than a sixteenth above another.
const PLACES: usize = 16;

/// How many places a set of so many backends has.
pub(super) fn size_for(backends: usize) -> u32 {
    let fits = |size: &u32| match backends {
        0 => true,
        1 => *size >= 1,
        _ => *size as usize >= backends.saturating_mul(PLACES),
    };
    let [.., largest] = SIZES;
    match backends {
        0 => 0,
        _ => SIZES.into_iter().find(|size| fits(size)).unwrap_or(largest),
    }
}

/// For each place the backend (its index in `backends`) that has it.
pub(super) fn layout(backends: &[Backend]) -> Vec<u32> {
    let size = size_for(backends.len());
    let mut order: Vec<(SocketAddr, u32)> = (0..)
        .zip(backends)
        .map(|(index, backend)| (SocketAddr::new(backend.addr, backend.port), index))
        .collect();
    // Who is asked first depends on nothing but the addresses.
    order.sort_unstable();
    let mut walks: Vec<(u32, Walk)> = order
        .into_iter()
        .map(|(addr, index)| (index, Walk::of(addr, size)))
        .collect();
    let mut places = vec![None; size as usize];
    let mut free = places.len();
    while free > 0 {
        for (index, walk) in &mut walks {
            // Ends: the walk visits every place, and one is free.
            if let Some(place) = walk.find(|at| places.get(*at as usize) == Some(&None))
                && let Some(place) = places.get_mut(place as usize)
            {
                *place = Some(*index);
                free -= 1;
            }
            if free == 0 {
                break;
            }
        }
    }
    places.into_iter().flatten().collect()
}

/// A backend's preferences: every place once, in an order of its own.
struct Walk {
    next: u32,
    step: u32,
    size: u32,
    left: u32,
}

impl Walk {
    fn of(addr: SocketAddr, size: u32) -> Self {
        let below = |hash: u64, bound: u32| {
            u32::try_from(hash % u64::from(bound.max(1))).unwrap_or_default()
        };
        Self {
            next: below(hash(addr, 0), size),
            step: 1 + below(hash(addr, 1), size.saturating_sub(1)),
            size,
            left: size,
        }
    }
}

impl Iterator for Walk {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let here = self.next;
        self.next = (self.next + self.step) % self.size;
        Some(here)
    }
}

/// The same on every node and in every version: FNV-1a over the address, then the finaliser of MurmurHash3.
fn hash(addr: SocketAddr, seed: u8) -> u64 {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = ip.octets().into_iter().chain(addr.port().to_be_bytes());
    for byte in bytes.chain([seed]) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn backends(numbers: impl IntoIterator<Item = u16>) -> Vec<Backend> {
        let addr = |n: u16| IpAddr::from([10, 244, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
        numbers
            .into_iter()
            .map(|n| Backend::new(addr(n), 8080))
            .collect()
    }

    /// Who has each place, by address.
    fn owners(backends: &[Backend]) -> Vec<IpAddr> {
        let places = layout(backends);
        places.iter().map(|i| backends[*i as usize].addr).collect()
    }

    #[test]
    fn sizes_are_primes_with_room_for_every_backend() {
        for size in SIZES {
            assert!(
                (2..size)
                    .take_while(|d| d * d <= size)
                    .all(|d| size % d != 0),
                "{size}"
            );
        }
        assert_eq!(
            [0, 1, 2, 8, 9, 5000].map(size_for),
            [0, 1, 131, 131, 1031, 131_101]
        );
        assert_eq!(layout(&[]), Vec::<u32>::new());
        assert_eq!(layout(&backends([7])), [0]);
    }

    #[test]
    fn the_layout_is_part_of_what_nodes_agree_on() {
        // Nodes of two versions serve one cluster: a change here breaks connections that change nodes.
        let places = layout(&backends(1..=5));
        assert_eq!(places.len(), 131);
        assert_eq!(places[..12], [4, 1, 1, 2, 4, 0, 1, 3, 3, 1, 0, 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// No backend has more than one place more than another.
        #[test]
        fn prop_places_are_shared_evenly(members in prop::collection::btree_set(any::<u16>(), 1..80)) {
            let members = backends(members);
            let mut shares = BTreeMap::<IpAddr, u32>::new();
            for owner in owners(&members) {
                *shares.entry(owner).or_default() += 1;
            }
            prop_assert_eq!(shares.len(), members.len());
            let (least, most) = (shares.values().min(), shares.values().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{:?}", shares);
        }

        /// The order in which backends are listed means nothing.
        #[test]
        fn prop_the_order_of_backends_means_nothing(
            members in prop::collection::btree_set(any::<u16>(), 1..40).prop_map(backends).prop_shuffle()
        ) {
            let mut sorted = members.clone();
            sorted.sort_unstable();
            prop_assert_eq!(owners(&members), owners(&sorted));
        }

        /// When a backend goes, its places change hands and few others do.
        #[test]
        fn prop_a_backend_that_goes_disturbs_few_others(
            members in prop::collection::btree_set(any::<u16>(), 12..60), which in any::<prop::sample::Index>()
        ) {
            let before = backends(members);
            let gone = which.get(&before).addr;
            let after: Vec<Backend> = before.iter().filter(|b| b.addr != gone).copied().collect();
            let (old, new) = (owners(&before), owners(&after));
            prop_assert_eq!(old.len(), new.len());
            let disturbed = old.iter().zip(&new).filter(|(a, b)| **a != gone && a != b).count();
            // By chance alone all but one in n would change.
            prop_assert!(disturbed * 5 <= old.len(), "{} of {}", disturbed, old.len());
        }
    }
}
