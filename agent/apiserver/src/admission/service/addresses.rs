//! ClusterIPs: one of each family that the Service has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;

use super::{IP_PREFIX, RANDOM_PICKS, families, invalid, ip_key, taken};
use crate::failure::Failure;
use crate::object::{self, at, meta, random_below, text};
use crate::server::Core;

/// Gives the Service an address of each of its families, unless it has or asks for one.
pub(super) async fn fill(core: &Core, service: &mut Value) -> Result<(), Failure> {
    if text(service, &["spec", "type"]) == "ExternalName"
        || text(service, &["spec", "clusterIP"]) == "None"
    {
        return Ok(());
    }
    let list = at(service, &["spec", "clusterIPs"]).and_then(Value::as_array);
    let mut ips = list.cloned().unwrap_or_default();
    let wanted = families::of(service);
    for family in wanted.iter().skip(ips.len()) {
        let ranges = &core.options.service_cidrs;
        let Some(cidr) = ranges.iter().find(|cidr| families::name(cidr) == family) else {
            break;
        };
        let ip = free(core, service, *cidr).await?;
        ips.push(ip.to_string().into());
    }
    let spec = object::section(service, "spec");
    spec.insert(
        "clusterIP".to_owned(),
        ips.first().cloned().unwrap_or_default(),
    );
    spec.insert("clusterIPs".to_owned(), json!(ips));
    Ok(())
}

/// Refuses an address that is not to be had.
pub(super) async fn check(
    core: &Core,
    service: &Value,
    ip: &str,
    key: &str,
) -> Result<(), Failure> {
    let refuse = |why: String| {
        let why = format!("failed to allocate IP {ip}: {why}");
        Err(invalid(
            service,
            &[FieldError::invalid("spec.clusterIPs", json!([ip]), why)],
        ))
    };
    let Ok(parsed) = ip.parse::<IpAddr>() else {
        return refuse(format!("{ip} is not an IP address"));
    };
    let ranges = &core.options.service_cidrs;
    let Some(cidr) = ranges
        .iter()
        .find(|cidr| cidr.is_ipv4() == parsed.is_ipv4())
    else {
        let family = if parsed.is_ipv4() { "IPv4" } else { "IPv6" };
        return refuse(format!("{family} is not configured on this cluster"));
    };
    if !(cidr.contains(parsed) && is_usable(*cidr, parsed)) {
        return refuse(format!(
            "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}"
        ));
    }
    if core.store.get(key).await?.0.is_some() {
        return refuse("provided IP is already allocated".to_owned());
    }
    Ok(())
}

/// Network and broadcast addresses are not handed out.
fn is_usable(cidr: IpNetwork, ip: IpAddr) -> bool {
    match cidr {
        IpNetwork::V4(cidr) => ip != cidr.network() && ip != cidr.broadcast(),
        IpNetwork::V6(cidr) => ip != cidr.network(),
    }
}

/// Of an IPv6 range only the first addresses are given out, as many as upstream gives out.
fn size(cidr: IpNetwork) -> u64 {
    match cidr {
        IpNetwork::V4(cidr) => u64::from(cidr.size()),
        IpNetwork::V6(cidr) => u64::try_from(cidr.size()).unwrap_or(u64::MAX).min(1 << 16),
    }
}

fn nth(cidr: IpNetwork, offset: u64) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).unwrap_or_default();
            Ipv4Addr::from(u32::from(base).wrapping_add(offset)).into()
        }
        IpAddr::V6(base) => {
            Ipv6Addr::from(u128::from(base).wrapping_add(u128::from(offset))).into()
        }
    }
}

/// The lower part of a range is for addresses that somebody asks for by number, as upstream splits it.
fn static_band(size: u64) -> u64 {
    if size <= 16 {
        0
    } else {
        (size / 16).clamp(16, 256)
    }
}

async fn free(core: &Core, service: &Value, cidr: IpNetwork) -> Result<IpAddr, Failure> {
    let size = size(cidr);
    let band = static_band(size);
    let usable = |offset: &u64| is_usable(cidr, nth(cidr, *offset));
    for _ in 0..RANDOM_PICKS {
        let offset = band + random_below(size - band);
        let ip = nth(cidr, offset);
        if usable(&offset) && core.store.get(&ip_key(&ip.to_string())).await?.0.is_none() {
            return Ok(ip);
        }
    }
    let taken = taken(core, IP_PREFIX).await?;
    (band..size)
        .chain(0..band)
        .filter(usable)
        .map(|offset| nth(cidr, offset))
        .find(|ip| !taken.contains(&ip.to_string()))
        .ok_or_else(|| {
            let why = "failed to allocate a serviceIP: range is full";
            ApiStatus::internal(format!("{}: {why}", meta(service, "name"))).into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_a_range_are_not_handed_out() {
        let cidr: IpNetwork = "10.96.0.0/29".parse().unwrap();
        let usable: Vec<_> = (0..size(cidr))
            .filter(|o| is_usable(cidr, nth(cidr, *o)))
            .collect();
        assert_eq!(usable, [1, 2, 3, 4, 5, 6]);
        assert_eq!(static_band(65536), 256);
        assert_eq!(static_band(16), 0);
        let six: IpNetwork = "fd00::/64".parse().unwrap();
        assert_eq!(size(six), 65536);
        assert!(!is_usable(six, nth(six, 0)));
    }
}
