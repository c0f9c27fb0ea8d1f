//! Cidrs of addresses, as typed: one of IPv4, and perhaps one of IPv6 beside it.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// `10.96.0.0/16` or `10.96.0.0/16,fd00:96::/112`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cidrs {
    pub(crate) v4: Ipv4Network,
    pub(crate) v6: Option<Ipv6Network>,
}

impl Cidrs {
    /// Both, IPv4 first.
    pub(crate) fn all(&self) -> Vec<IpNetwork> {
        let v6 = self.v6.map(IpNetwork::from);
        std::iter::once(self.v4.into()).chain(v6).collect()
    }

    /// Whether they have addresses in common.
    pub(crate) fn overlap(&self, other: &Self) -> bool {
        let six = self.v6.zip(other.v6);
        self.v4.overlaps(other.v4) || six.is_some_and(|(one, other)| one.overlaps(other))
    }

    /// Refuses ranges that are too small, or that are not written as networks.
    pub(crate) fn check(&self, flag: &str, longest_v4: u8, longest_v6: u8) -> Result<()> {
        for range in self.all() {
            let longest = if range.is_ipv4() {
                longest_v4
            } else {
                longest_v6
            };
            if range.prefix() > longest || range.network() != range.ip() {
                bail!(
                    "--{flag} {range} must be a network address with a prefix of at most {longest}"
                );
            }
        }
        Ok(())
    }
}

impl FromStr for Cidrs {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, second) = match text.split_once(',') {
            Some((first, second)) => (first, Some(second)),
            None => (text, None),
        };
        let v4 = first.trim().parse().context("the first must be of IPv4")?;
        let v6 = second.map(|second| second.trim().parse()).transpose();
        let v6 = v6.context("the second must be of IPv6")?;
        Ok(Self { v4, v6 })
    }
}

impl fmt::Display for Cidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.v4)?;
        self.v6.map_or(Ok(()), |v6| write!(f, ",{v6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ipv4_may_have_one_of_ipv6_beside_it() {
        for good in ["10.96.0.0/16", "10.96.0.0/16,fd00:96::/112"] {
            let ranges: Cidrs = good.parse().unwrap();
            assert_eq!(ranges.to_string(), good);
            ranges.check("service-cidr", 28, 124).unwrap();
        }
        for bad in [
            "",
            "fd00::/112",
            "fd00::/112,10.96.0.0/16",
            "10.0.0.0/8,10.1.0.0/16",
            "10.0.0.0/8,fd00::/112,fd01::/112",
        ] {
            bad.parse::<Cidrs>().unwrap_err();
        }
    }

    #[test]
    fn ranges_are_large_enough_networks_that_have_nothing_in_common() {
        let ranges = |text: &str| text.parse::<Cidrs>().unwrap();
        for bad in ["10.96.0.1/16", "10.96.0.0/29", "10.96.0.0/16,fd00::/126"] {
            ranges(bad).check("service-cidr", 28, 124).unwrap_err();
        }
        let pods = ranges("10.244.0.0/16,fd00:244::/48");
        assert!(!pods.overlap(&ranges("10.96.0.0/16,fd00:96::/112")));
        assert!(pods.overlap(&ranges("10.244.9.0/24")));
        assert!(pods.overlap(&ranges("10.96.0.0/16,fd00:244::1:0/112")));
    }
}
