//! Range arithmetic. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::IpamError;

/// A range as a configuration spells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConfig {
    /// The subnet.
    pub subnet: IpNetwork,
    /// The first address; the second of the subnet if not given.
    #[serde(default, deserialize_with = "optional_address")]
    pub range_start: Option<IpAddr>,
    /// The last address; the last of the subnet before the broadcast address if not given.
    #[serde(default, deserialize_with = "optional_address")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never given away; the first address of the subnet if not given.
    #[serde(default, deserialize_with = "optional_address")]
    pub gateway: Option<IpAddr>,
}

/// An address; an empty text counts as none, as with the reference.
pub(super) fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(D::Error::custom),
    }
}

/// A checked range with its defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    start: u128,
    end: u128,
    gateway: IpAddr,
}

/// Ranges of one family, of which an attachment gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// An address as a number within its family.
pub(super) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The reverse of [`number`]. No range of IPv4 addresses leaves 32 bits: [`Range::new`] checked both of its ends.
pub(super) fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        IpAddr::V4(Ipv4Addr::from_bits(
            u32::try_from(number).unwrap_or(u32::MAX),
        ))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

/// A part of a range, in the order in which addresses are given away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) range: &'a Range,
    pub(super) from: u128,
    pub(super) to: u128,
}

impl Range {
    /// Checks `config`.
    ///
    /// # Errors
    /// [`IpamError::Range`].
    pub fn new(config: &RangeConfig) -> Result<Self, IpamError> {
        let subnet = config.subnet;
        let wrong = |reason: String| IpamError::Range {
            subnet: subnet.to_string(),
            reason,
        };
        if subnet.ip() != subnet.network() {
            return Err(wrong(format!(
                "host bits are set, the network is {}",
                subnet.network()
            )));
        }
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() > bits - 2 {
            return Err(wrong("too small to allocate from".to_owned()));
        }
        let first = number(subnet.network());
        let last = first | (u128::MAX >> (128 - u32::from(bits - subnet.prefix())));
        let inside = |what: &str, ip: Option<IpAddr>, default: u128| match ip {
            None => Ok(default),
            Some(ip) if subnet.contains(ip) => Ok(number(ip)),
            Some(ip) => Err(wrong(format!("{what} {ip} is not in it"))),
        };
        // As the reference has it: an IPv4 address may be written in the IPv6 form.
        let canonical = |ip: Option<IpAddr>| ip.map(|ip| ip.to_canonical());
        let start = inside("rangeStart", canonical(config.range_start), first + 1)?;
        // IPv6 has no broadcast address.
        let end = inside(
            "rangeEnd",
            canonical(config.range_end),
            if bits == 32 { last - 1 } else { last },
        )?;
        if start > end {
            return Err(wrong("rangeStart is after rangeEnd".to_owned()));
        }
        let gateway = canonical(config.gateway);
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != subnet.is_ipv4()) {
            return Err(wrong("the gateway is of another family".to_owned()));
        }
        let mut range = Self {
            subnet,
            start,
            end,
            gateway: subnet.network(),
        };
        range.gateway = gateway.unwrap_or_else(|| range.address(first + 1));
        Ok(range)
    }

    fn address(&self, number: u128) -> IpAddr {
        address(number, self.subnet.is_ipv4())
    }

    /// The subnet.
    #[must_use]
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// The gateway.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether `ip` may be given away.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && (self.start..=self.end).contains(&number(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && self.start <= other.end
            && other.start <= self.end
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.address(self.start), self.address(self.end))
    }
}

impl RangeSet {
    /// Checks ranges that belong together.
    ///
    /// # Errors
    /// [`IpamError::Range`] if one is wrong, two overlap, or families are mixed.
    pub fn new(configs: &[RangeConfig]) -> Result<Self, IpamError> {
        let ranges = configs
            .iter()
            .map(Range::new)
            .collect::<Result<Vec<_>, _>>()?;
        let wrong = |range: &Range, reason: String| IpamError::Range {
            subnet: range.subnet.to_string(),
            reason,
        };
        let Some(first) = ranges.first() else {
            return Err(IpamError::Range {
                subnet: "set".to_owned(),
                reason: "it is empty".to_owned(),
            });
        };
        for (index, range) in ranges.iter().enumerate() {
            if range.subnet.is_ipv4() != first.subnet.is_ipv4() {
                return Err(wrong(range, "a set mixes IPv4 and IPv6".to_owned()));
            }
            if let Some(other) = ranges
                .iter()
                .take(index)
                .find(|other| other.overlaps(range))
            {
                return Err(wrong(range, format!("overlaps {other}")));
            }
        }
        Ok(Self(ranges))
    }

    /// Whether an address could be given away by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0
            .iter()
            .any(|range| other.0.iter().any(|theirs| range.overlaps(theirs)))
    }

    /// Whether its addresses are IPv4 ones.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0.iter().any(|range| range.subnet.is_ipv4())
    }

    /// The range that may give `ip` away.
    #[must_use]
    pub fn find(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Every address once, beginning behind `last`. Gateways are among them.
    pub(super) fn spans_after(&self, last: Option<IpAddr>) -> impl Iterator<Item = Span<'_>> {
        let position = last.and_then(|ip| {
            let at = self.0.iter().position(|range| range.contains(ip))?;
            Some((at, number(ip)))
        });
        let count = self.0.len();
        let whole = |range| Span {
            range,
            from: range.start,
            to: range.end,
        };
        // What lies up to and with `last` comes at the very end.
        let (first, head, tail) = match position {
            None => (0, self.0.first().map(whole), None),
            Some((at, last)) => {
                let range = self.0.get(at);
                let head = range.filter(|range| last < range.end).map(|range| Span {
                    from: last + 1,
                    ..whole(range)
                });
                (
                    at,
                    head,
                    range.map(|range| Span {
                        to: last,
                        ..whole(range)
                    }),
                )
            }
        };
        let others = (1..count)
            .filter_map(move |step| self.0.get((first + step) % count))
            .map(whole);
        head.into_iter().chain(others).chain(tail)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn config(subnet: &str) -> RangeConfig {
        let subnet = subnet.parse().unwrap();
        RangeConfig {
            subnet,
            range_start: None,
            range_end: None,
            gateway: None,
        }
    }

    fn part(subnet: &str, start: &str, end: &str) -> RangeConfig {
        RangeConfig {
            range_start: Some(start.parse().unwrap()),
            range_end: Some(end.parse().unwrap()),
            ..config(subnet)
        }
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        addresses(set, last.map(|ip| ip.parse().unwrap()))
            .map(|ip| ip.to_string())
            .collect()
    }

    fn addresses(set: &RangeSet, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        set.spans_after(last).flat_map(|span| {
            (span.from..=span.to)
                .map(|number| span.range.address(number))
                .filter(|ip| *ip != span.range.gateway)
        })
    }

    #[test]
    fn defaults_leave_out_network_gateway_and_broadcast() {
        let set = RangeSet::new(&[config("10.0.0.0/29")]).unwrap();
        assert_eq!(
            order(&set, None),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        let set = RangeSet::new(&[config("fd00::/126")]).unwrap();
        assert_eq!(order(&set, None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn the_search_goes_round_through_all_ranges() {
        let set = RangeSet::new(&[
            part("10.0.0.0/24", "10.0.0.10", "10.0.0.12"),
            part("10.1.0.0/24", "10.1.0.1", "10.1.0.2"),
        ])
        .unwrap();
        assert_eq!(
            order(&set, Some("10.0.0.11")),
            ["10.0.0.12", "10.1.0.2", "10.0.0.10", "10.0.0.11"]
        );
        assert_eq!(order(&set, Some("10.0.0.12")).first().unwrap(), "10.1.0.2");
        assert_eq!(
            order(&set, Some("192.168.0.1")).first().unwrap(),
            "10.0.0.10"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (name, configs) in [
            ("host bits", vec![config("10.0.0.1/24")]),
            ("too small", vec![config("10.0.0.0/31")]),
            ("too small", vec![config("fd00::/127")]),
            (
                "start outside",
                vec![part("10.0.0.0/24", "10.1.0.1", "10.0.0.9")],
            ),
            (
                "wrong order",
                vec![part("10.0.0.0/24", "10.0.0.9", "10.0.0.8")],
            ),
            (
                "overlap",
                vec![
                    config("10.0.0.0/24"),
                    part("10.0.0.0/16", "10.0.0.3", "10.0.0.4"),
                ],
            ),
            ("families", vec![config("10.0.0.0/24"), config("fd00::/64")]),
            ("empty", vec![]),
        ] {
            assert!(RangeSet::new(&configs).is_err(), "{name}");
        }
        let gateway = Some("fd00::1".parse().unwrap());
        assert!(
            RangeSet::new(&[RangeConfig {
                gateway,
                ..config("10.0.0.0/24")
            }])
            .is_err()
        );
    }

    #[test]
    fn the_largest_ranges_do_not_overflow() {
        assert_eq!(order_first("0.0.0.0/0"), "0.0.0.2");
        assert_eq!(order_first("::/0"), "::2");
        let set = RangeSet::new(&[config("::/0")]).unwrap();
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe";
        assert_eq!(
            addresses(&set, Some(last.parse().unwrap())).take(2).count(),
            2
        );
    }

    fn order_first(subnet: &str) -> String {
        let set = RangeSet::new(&[config(subnet)]).unwrap();
        addresses(&set, None).next().unwrap().to_string()
    }

    proptest! {
        #[test]
        fn prop_every_address_comes_once_wherever_the_search_begins(
            prefix in 22u8..=30, last in 0u32..1024,
        ) {
            let set = RangeSet::new(&[config(&format!("10.0.0.0/{prefix}"))]).unwrap();
            let last = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + last));
            let all: Vec<_> = addresses(&set, Some(last)).collect();
            let unique: HashSet<_> = all.iter().collect();
            prop_assert_eq!(unique.len(), all.len());
            // Without network, gateway and broadcast.
            prop_assert_eq!(all.len(), (1usize << (32 - prefix)) - 3);
            if set.find(last).is_some_and(|range| range.gateway() != last) {
                prop_assert_eq!(all.last(), Some(&last));
            }
        }
    }
}
