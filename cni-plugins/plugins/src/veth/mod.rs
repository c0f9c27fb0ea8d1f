//! What the plugins that attach a container by a veth pair have in common, `bridge` and `ptp`.
//!
//! ADD checks everything before it changes anything, and undoes what it did in reverse order if a later step fails
//! ([`Adding`]). DEL and GC need neither the container's namespace nor a cached result: the host's end has a name that
//! follows from container and link, and says whose it is ([`HostEnd`]).

mod add;
mod config;
mod del;
mod end;
mod rules;
mod spoof;

use std::net::IpAddr;

pub(crate) use add::{Adding, PairSpec, on_node};
pub(crate) use config::{IpamObject, Removal, masquerade_backend, mtu};
pub(crate) use del::{del, gc};
pub(crate) use end::HostEnd;
pub(crate) use spoof::SpoofCheck;

/// A hardware address that follows from an IP address: whoever gets the address again has the same, and no neighbour's
/// table goes stale. The prefix is that of Kubernetes' own network plugins.
pub(crate) fn mac_of(ip: IpAddr) -> [u8; 6] {
    let [.., a, b, c, d] = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_follow_from_ip_addresses() {
        let v4 = mac_of("10.244.0.5".parse().unwrap());
        assert_eq!(v4, [0x0a, 0x58, 10, 244, 0, 5]);
        let v6 = mac_of("fd00::1:2".parse().unwrap());
        assert_eq!(v6, [0x0a, 0x58, 0, 1, 0, 2]);
    }
}
