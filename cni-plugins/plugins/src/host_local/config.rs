//! The `ipam` object of a configuration and the addresses that a runtime asks for.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use skiff_cni::{
    ipam::{RangeConfig, RangeSet},
    skel::Call,
    types::{CniError, Dns, NetworkName, Route, code},
};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) network: NetworkName,
    pub(super) data_dir: PathBuf,
    pub(super) sets: Vec<RangeSet>,
    pub(super) routes: Vec<Route>,
    pub(super) dns: Dns,
    pub(super) requested: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Document {
    ipam: Option<IpamObject>,
    #[serde(rename = "runtimeConfig", default)]
    runtime: RuntimeObject,
    #[serde(default)]
    args: ArgsObject,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IpamObject {
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    ranges: Vec<Vec<RangeConfig>>,
    /// One range in the older form.
    subnet: Option<IpNetwork>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeObject {
    #[serde(default)]
    ips: Vec<Address>,
    #[serde(default)]
    ip_ranges: Vec<Vec<RangeConfig>>,
}

#[derive(Default, Deserialize)]
struct ArgsObject {
    #[serde(default)]
    cni: CniArgs,
}

#[derive(Default, Deserialize)]
struct CniArgs {
    #[serde(default)]
    ips: Vec<Address>,
}

/// An address with or without the length of its subnet; only the address counts.
#[derive(Deserialize)]
#[serde(transparent)]
struct Address(IpNetwork);

impl Config {
    /// For ADD and STATUS: everything is checked.
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let ipam = document
            .ipam
            .ok_or_else(|| CniError::config("\"ipam\" is missing"))?;
        let sets = range_sets(&ipam, &document.runtime.ip_ranges)?;
        let mut requested: Vec<IpAddr> = Vec::new();
        for (key, value) in &call.args {
            if key == "IP" {
                let address: IpNetwork = value.parse().map_err(|error| {
                    CniError::environment(format!("CNI_ARGS: IP={value}: {error}"))
                })?;
                requested.push(address.ip());
            }
        }
        let from_json = document.args.cni.ips.iter().chain(&document.runtime.ips);
        requested.extend(from_json.map(|address| address.0.ip()));
        requested.dedup();
        Ok(Self {
            network: call.conf.name.clone(),
            data_dir: data_dir(ipam.data_dir)?,
            sets,
            routes: ipam.routes,
            dns: ipam
                .resolv_conf
                .as_deref()
                .map(read_resolv_conf)
                .transpose()?
                .unwrap_or_default(),
            requested,
        })
    }

    /// For DEL, CHECK and GC: what an address is given back with must not depend on the ranges of today.
    pub(super) fn for_removal(call: &Call) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        struct Removal {
            ipam: Option<Folder>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Folder {
            data_dir: Option<PathBuf>,
        }
        let removal: Removal = call.conf.decode()?;
        let ipam = removal
            .ipam
            .ok_or_else(|| CniError::config("\"ipam\" is missing"))?;
        Ok(Self {
            network: call.conf.name.clone(),
            data_dir: data_dir(ipam.data_dir)?,
            sets: Vec::new(),
            routes: Vec::new(),
            dns: Dns::default(),
            requested: Vec::new(),
        })
    }

    /// A requested address that no range has.
    pub(super) fn requested_outside(&self) -> Option<IpAddr> {
        self.requested
            .iter()
            .copied()
            .find(|ip| !self.sets.iter().any(|set| set.find(*ip).is_some()))
    }
}

fn data_dir(configured: Option<PathBuf>) -> Result<PathBuf, CniError> {
    let dir = configured
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    if dir.is_relative() {
        return Err(CniError::config("ipam.dataDir must be an absolute path"));
    }
    Ok(dir)
}

fn range_sets(
    ipam: &IpamObject,
    from_runtime: &[Vec<RangeConfig>],
) -> Result<Vec<RangeSet>, CniError> {
    let wrong = |error: skiff_cni::ipam::IpamError| CniError::config(format!("ipam: {error}"));
    let mut configs: Vec<Vec<RangeConfig>> = Vec::new();
    if let Some(subnet) = ipam.subnet {
        configs.push(vec![RangeConfig {
            subnet,
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
        }]);
    }
    configs.extend_from_slice(from_runtime);
    configs.extend_from_slice(&ipam.ranges);
    let sets: Vec<RangeSet> = configs
        .iter()
        .map(|set| RangeSet::new(set))
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if sets.is_empty() {
        return Err(CniError::config("ipam: no range is given"));
    }
    for (index, set) in sets.iter().enumerate() {
        if let Some(other) = sets.iter().take(index).find(|other| other.overlaps(set)) {
            return Err(CniError::config(format!(
                "ipam: range sets {other} and {set} overlap"
            )));
        }
    }
    Ok(sets)
}

fn read_resolv_conf(path: &Path) -> Result<Dns, CniError> {
    let text = fs::read_to_string(path).map_err(|error| {
        CniError::from_error(
            code::CONFIG,
            format!("cannot read ipam.resolvConf {}", path.display()),
            &error,
        )
    })?;
    Ok(parse_resolv_conf(&text))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let dns =
            parse_resolv_conf("# c\nnameserver 10.0.0.1\nsearch a b\noptions ndots:5\ndomain x\n");
        assert_eq!(dns.nameservers, ["10.0.0.1"]);
        assert_eq!(
            (dns.search.len(), &*dns.options[0], &*dns.domain),
            (2, "ndots:5", "x")
        );
    }
}
