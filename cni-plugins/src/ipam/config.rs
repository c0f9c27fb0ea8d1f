//! host-local's configuration: the `ipam` object and the addresses that a runtime asks for.

use std::{
    fs::File,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::{RangeConfig, RangeSet, range::optional_address};
use crate::{
    skel::Call,
    types::{CniError, CniVersion, Dns, NetworkName, Route, code},
};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// No file for a resolver is longer.
const MAX_RESOLV_CONF: u64 = 1 << 20;

/// The checked configuration of an ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLocalConfig {
    /// Where the leases are.
    pub folder: LeaseFolder,
    /// Each gives one address, with the one that was asked for out of it.
    pub sets: Vec<(RangeSet, Option<IpAddr>)>,
    /// Handed on in the result.
    pub routes: Vec<Route>,
    /// A file whose content is handed on in the result.
    pub resolv_conf: Option<PathBuf>,
}

/// Where the leases of a network are. DEL, CHECK and GC need nothing else: how an address is given back must not
/// depend on the ranges of today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseFolder {
    /// The folder of all networks.
    pub data_dir: PathBuf,
    /// The network.
    pub network: NetworkName,
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
    data_dir: PathBuf,
    #[serde(default)]
    resolv_conf: PathBuf,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    ranges: Vec<Vec<RangeConfig>>,
    /// One range in the older form.
    subnet: Option<IpNetwork>,
    #[serde(default, deserialize_with = "optional_address")]
    range_start: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_address")]
    range_end: Option<IpAddr>,
    #[serde(default, deserialize_with = "optional_address")]
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

impl LeaseFolder {
    /// Reads what DEL, CHECK and GC need.
    ///
    /// # Errors
    /// Code 6 or 7.
    pub fn new(call: &Call) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        struct Removal {
            ipam: Option<Folder>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Folder {
            #[serde(default)]
            data_dir: PathBuf,
        }
        let removal: Removal = call.conf.decode()?;
        let ipam = removal.ipam.ok_or_else(missing_ipam)?;
        Self::of(ipam.data_dir, call)
    }

    fn of(configured: PathBuf, call: &Call) -> Result<Self, CniError> {
        let data_dir = if configured.as_os_str().is_empty() {
            PathBuf::from(DEFAULT_DATA_DIR)
        } else {
            configured
        };
        if data_dir.is_relative() {
            return Err(CniError::config("ipam.dataDir must be an absolute path"));
        }
        Ok(Self {
            data_dir,
            network: call.conf.name.clone(),
        })
    }
}

impl HostLocalConfig {
    /// Reads and checks the whole configuration; nothing of the machine is looked at.
    ///
    /// # Errors
    /// Code 4, 6 or 7, or [`code::EXISTS`] for an address that cannot be had.
    pub fn new(call: &Call) -> Result<Self, CniError> {
        let document: Document = call.conf.decode()?;
        let ipam = document.ipam.ok_or_else(missing_ipam)?;
        let requested = requested(call, &document.args.cni.ips, &document.runtime.ips)?;
        let sets = range_sets(&ipam, &document.runtime.ip_ranges)?;
        check_families(&sets, call.conf.version)?;
        Ok(Self {
            folder: LeaseFolder::of(ipam.data_dir, call)?,
            sets: assign(sets, requested)?,
            routes: ipam.routes,
            resolv_conf: Some(ipam.resolv_conf).filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

fn missing_ipam() -> CniError {
    CniError::config("\"ipam\" is missing")
}

/// What the runtime asks for, each address once: from `CNI_ARGS`, `args.cni.ips` and the capability `ips`.
fn requested(
    call: &Call,
    args: &[Address],
    capability: &[Address],
) -> Result<Vec<IpAddr>, CniError> {
    let mut requested: Vec<IpAddr> = Vec::new();
    for (_, value) in call.args.iter().filter(|(key, _)| key == "IP") {
        let address: IpNetwork = value
            .parse()
            .map_err(|error| CniError::environment(format!("CNI_ARGS: IP={value}: {error}")))?;
        requested.push(address.ip().to_canonical());
    }
    let configured = args.iter().chain(capability);
    requested.extend(configured.map(|address| address.0.ip().to_canonical()));
    let mut seen = Vec::new();
    requested.retain(|ip| {
        let new = !seen.contains(ip);
        seen.push(*ip);
        new
    });
    Ok(requested)
}

/// The ranges of the runtime come first, then the one of the older form, then the list: their order is that of the
/// result and of the files that remember what was given away last.
fn range_sets(
    ipam: &IpamObject,
    from_runtime: &[Vec<RangeConfig>],
) -> Result<Vec<RangeSet>, CniError> {
    let mut configs: Vec<Vec<RangeConfig>> = from_runtime.to_vec();
    if let Some(subnet) = ipam.subnet {
        configs.push(vec![RangeConfig {
            subnet,
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
        }]);
    }
    configs.extend_from_slice(&ipam.ranges);
    if configs.is_empty() {
        return Err(CniError::config("ipam: no IP ranges specified"));
    }
    let mut sets: Vec<RangeSet> = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let set = RangeSet::new(config).map_err(|error| {
            CniError::config(format!("ipam: invalid range set {index}: {error}"))
        })?;
        if let Some(other) = sets.iter().find(|other| other.overlaps(&set)) {
            return Err(CniError::config(format!(
                "ipam: range set {index} ({set}) overlaps with {other}"
            )));
        }
        sets.push(set);
    }
    Ok(sets)
}

/// Results before 0.3.0 have room for one address of each family.
fn check_families(sets: &[RangeSet], version: CniVersion) -> Result<(), CniError> {
    let ipv4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if version < CniVersion::V0_3_0 && (ipv4 > 1 || sets.len() - ipv4 > 1) {
        return Err(CniError::config(format!(
            "CNI version {version} does not support more than 1 address per family"
        )));
    }
    Ok(())
}

/// Gives each set the first address out of it that is asked for. None may be left over.
fn assign(
    sets: Vec<RangeSet>,
    mut requested: Vec<IpAddr>,
) -> Result<Vec<(RangeSet, Option<IpAddr>)>, CniError> {
    let assigned = sets
        .into_iter()
        .map(|set| {
            let at = requested.iter().position(|ip| set.find(*ip).is_some());
            (set, at.map(|at| requested.remove(at)))
        })
        .collect();
    if requested.is_empty() {
        return Ok(assigned);
    }
    let left: Vec<String> = requested.iter().map(IpAddr::to_string).collect();
    Err(CniError::new(
        code::EXISTS,
        format!(
            "ipam: failed to allocate all requested IPs: no range set has {}",
            left.join(", ")
        ),
    ))
}

/// Reads a `resolv.conf`.
///
/// # Errors
/// Code 7 if it cannot be read.
pub fn read_resolv_conf(path: &Path) -> Result<Dns, CniError> {
    let read = || {
        // Not a pipe, which would keep its reader waiting.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let mut text = Vec::new();
        File::open(path)?
            .take(MAX_RESOLV_CONF)
            .read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| {
        CniError::from_error(
            code::CONFIG,
            format!("cannot read ipam.resolvConf {}", path.display()),
            &error,
        )
    })?;
    Ok(parse_resolv_conf(&String::from_utf8_lossy(&text)))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned).peekable();
        let keyword = words.next();
        if words.peek().is_none() {
            continue;
        }
        match keyword.as_deref() {
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
#[path = "config_tests.rs"]
mod tests;
