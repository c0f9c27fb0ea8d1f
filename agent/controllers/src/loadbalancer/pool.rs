//! Which Service has which address of the configured ranges. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use k8s_openapi::api::core::v1::Service;
use skiff_client::Key;

/// The ranges, and what is given out of them.
#[derive(Debug, Default)]
pub(super) struct Pool {
    ranges: Vec<IpNetwork>,
    held: HashMap<IpAddr, Key>,
}

/// Why a Service gets no address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoAddress {
    /// All are given out.
    Exhausted,
    /// No range has addresses of the Service's families.
    NoRange,
    /// `spec.loadBalancerIP` is in no range.
    Outside(IpAddr),
    /// `spec.loadBalancerIP` is another Service's.
    Taken(IpAddr, Key),
}

impl std::fmt::Display for NoAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exhausted => f.write_str("all addresses of the pool are in use"),
            Self::NoRange => f.write_str("the pool has no addresses of the Service's families"),
            Self::Outside(ip) => write!(f, "loadBalancerIP {ip} is not in the pool"),
            Self::Taken(ip, by) => write!(f, "loadBalancerIP {ip} is in use by {by}"),
        }
    }
}

impl Pool {
    pub(super) fn new(ranges: Vec<IpNetwork>) -> Self {
        Self {
            ranges,
            held: HashMap::new(),
        }
    }

    /// Whether there is a pool at all.
    pub(super) fn is_configured(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Notes an address that a Service had before we were started. The first to say so has it.
    pub(super) fn adopt(&mut self, key: &Key, ip: IpAddr) {
        if self.contains(ip) {
            self.held.entry(ip).or_insert_with(|| key.clone());
        }
    }

    /// What the Service has.
    pub(super) fn held_by(&self, key: &Key) -> Vec<IpAddr> {
        let held = self.held.iter().filter(|(_, holder)| *holder == key);
        held.map(|(ip, _)| *ip).collect()
    }

    /// Takes it back.
    pub(super) fn release(&mut self, key: &Key) {
        self.held.retain(|_, holder| holder != key);
    }

    /// The Service's addresses, one of each of its families that the pool has. What it has it keeps, unless it asks for
    /// another.
    pub(super) fn assign(
        &mut self,
        key: &Key,
        service: &Service,
    ) -> Result<Vec<IpAddr>, NoAddress> {
        let spec = service.spec.as_ref();
        let families = spec.and_then(|spec| spec.ip_families.as_deref());
        let families = match families.unwrap_or_default() {
            [] => vec![false],
            some => some.iter().map(|family| family == "IPv6").collect(),
        };
        let asked = spec.and_then(|spec| spec.load_balancer_ip.as_deref());
        let asked: Option<IpAddr> = asked.and_then(|ip| ip.parse().ok());
        let mut wanted = Vec::new();
        for six in families {
            if let Some(ip) = asked.filter(|ip| ip.is_ipv6() == six) {
                self.check(key, ip)?;
                wanted.push(ip);
            } else if self.ranges.iter().any(|range| range.is_ipv6() == six) {
                let ip = self.kept(key, six).or_else(|| self.free(six));
                wanted.push(ip.ok_or(NoAddress::Exhausted)?);
            }
        }
        if wanted.is_empty() {
            return Err(NoAddress::NoRange);
        }
        self.release(key);
        for ip in &wanted {
            self.held.insert(*ip, key.clone());
        }
        Ok(wanted)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(ip))
    }

    fn check(&self, key: &Key, ip: IpAddr) -> Result<(), NoAddress> {
        if !self.contains(ip) {
            return Err(NoAddress::Outside(ip));
        }
        match self.held.get(&ip) {
            Some(holder) if holder != key => Err(NoAddress::Taken(ip, holder.clone())),
            _ => Ok(()),
        }
    }

    fn kept(&self, key: &Key, six: bool) -> Option<IpAddr> {
        let mut own = self.held_by(key).into_iter();
        own.find(|ip| ip.is_ipv6() == six)
    }

    /// The first that nobody has. At most one more is looked at than are given out.
    fn free(&self, six: bool) -> Option<IpAddr> {
        let ranges = self.ranges.iter().filter(|range| range.is_ipv6() == six);
        ranges
            .flat_map(|range| usable(*range))
            .find(|ip| !self.held.contains_key(ip))
    }
}

/// All addresses but those that a network keeps for itself.
fn usable(range: IpNetwork) -> Box<dyn Iterator<Item = IpAddr>> {
    match range {
        IpNetwork::V4(range) => {
            let edges = move |ip: &_| is_edge_v4(range, *ip);
            Box::new(range.iter().filter(move |ip| !edges(ip)).map(IpAddr::V4))
        }
        IpNetwork::V6(range) => {
            let edges = move |ip: &_| is_edge_v6(range, *ip);
            Box::new(range.iter().filter(move |ip| !edges(ip)).map(IpAddr::V6))
        }
    }
}

fn is_edge_v4(range: Ipv4Network, ip: std::net::Ipv4Addr) -> bool {
    range.prefix() < 31 && (ip == range.network() || ip == range.broadcast())
}

/// The subnet routers' anycast address.
fn is_edge_v6(range: Ipv6Network, ip: std::net::Ipv6Addr) -> bool {
    range.prefix() < 127 && ip == range.network()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(ranges: &[&str]) -> Pool {
        Pool::new(ranges.iter().map(|range| range.parse().unwrap()).collect())
    }

    fn service(families: &[&str], asked: &str) -> Service {
        let asked = Some(asked).filter(|ip| !ip.is_empty());
        serde_json::from_value(json!({"spec": {"ipFamilies": families, "loadBalancerIP": asked}}))
            .unwrap()
    }

    fn texts(result: Result<Vec<IpAddr>, NoAddress>) -> Vec<String> {
        let ips = result.unwrap();
        ips.iter().map(ToString::to_string).collect()
    }

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn each_service_has_its_own_address_and_keeps_it() {
        let mut pool = pool(&["192.0.2.0/30"]);
        let plain = service(&["IPv4"], "");
        assert_eq!(texts(pool.assign(&key("a"), &plain)), ["192.0.2.1"]);
        assert_eq!(texts(pool.assign(&key("b"), &plain)), ["192.0.2.2"]);
        assert_eq!(texts(pool.assign(&key("a"), &plain)), ["192.0.2.1"]);
        assert_eq!(pool.assign(&key("c"), &plain), Err(NoAddress::Exhausted));
        pool.release(&key("a"));
        assert!(pool.held_by(&key("a")).is_empty());
        assert_eq!(texts(pool.assign(&key("c"), &plain)), ["192.0.2.1"]);
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_if_it_is_in_the_pool_and_free() {
        let mut pool = pool(&["192.0.2.0/24", "fd00::/120"]);
        let asks = |ip: &str| service(&["IPv4"], ip);
        assert_eq!(
            texts(pool.assign(&key("a"), &asks("192.0.2.77"))),
            ["192.0.2.77"]
        );
        let outside = "198.51.100.1".parse().unwrap();
        assert_eq!(
            pool.assign(&key("b"), &asks("198.51.100.1")),
            Err(NoAddress::Outside(outside))
        );
        let taken = "192.0.2.77".parse().unwrap();
        assert_eq!(
            pool.assign(&key("b"), &asks("192.0.2.77")),
            Err(NoAddress::Taken(taken, key("a")))
        );
        // Another one gives the first back.
        assert_eq!(
            texts(pool.assign(&key("a"), &asks("192.0.2.78"))),
            ["192.0.2.78"]
        );
        assert_eq!(
            texts(pool.assign(&key("b"), &asks("192.0.2.77"))),
            ["192.0.2.77"]
        );
    }

    #[test]
    fn dual_stack_services_get_an_address_of_each_family_that_the_pool_has() {
        let mut both = pool(&["192.0.2.0/29", "fd00::/120"]);
        let dual = service(&["IPv6", "IPv4"], "");
        assert_eq!(
            texts(both.assign(&key("a"), &dual)),
            ["fd00::1", "192.0.2.1"]
        );
        let six = service(&["IPv6", "IPv4"], "fd00::9");
        assert_eq!(
            texts(both.assign(&key("a"), &six)),
            ["fd00::9", "192.0.2.1"]
        );
        let mut four = pool(&["192.0.2.0/29"]);
        assert_eq!(texts(four.assign(&key("a"), &dual)), ["192.0.2.1"]);
        let only_six = service(&["IPv6"], "");
        assert_eq!(four.assign(&key("b"), &only_six), Err(NoAddress::NoRange));
    }

    #[test]
    fn addresses_of_before_the_start_are_not_given_to_another() {
        let mut pool = pool(&["192.0.2.0/29"]);
        pool.adopt(&key("a"), "192.0.2.1".parse().unwrap());
        pool.adopt(&key("b"), "192.0.2.1".parse().unwrap());
        pool.adopt(&key("b"), "203.0.113.1".parse().unwrap());
        let plain = service(&["IPv4"], "");
        assert_eq!(texts(pool.assign(&key("b"), &plain)), ["192.0.2.2"]);
        assert_eq!(texts(pool.assign(&key("a"), &plain)), ["192.0.2.1"]);
    }

    #[test]
    fn tiny_ranges_are_used_whole() {
        let mut pool = pool(&["192.0.2.4/32", "192.0.2.8/31"]);
        let plain = service(&["IPv4"], "");
        let mut given = Vec::new();
        for name in ["a", "b", "c"] {
            given.extend(texts(pool.assign(&key(name), &plain)));
        }
        assert_eq!(given, ["192.0.2.4", "192.0.2.8", "192.0.2.9"]);
    }
}
