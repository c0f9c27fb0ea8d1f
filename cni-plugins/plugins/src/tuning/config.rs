//! The plugin's keys.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use skiff_cni::{
    skel::Call,
    types::{CniError, IfName},
};

use super::{
    allowlist,
    link::{LinkSettings, parse_mac},
    sysctl::Sysctl,
};

const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) sysctls: Vec<Sysctl>,
    pub(super) link: LinkSettings,
    pub(super) data_dir: PathBuf,
}

/// What the configuration itself and `args.cni` have in common.
#[derive(Default, Deserialize)]
struct Keys {
    sysctl: Option<BTreeMap<String, String>>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<i64>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    runtime_config: RuntimeObject,
    args: Option<ArgsObject>,
}

#[derive(Default, Deserialize)]
struct RuntimeObject {
    #[serde(default)]
    mac: String,
}

#[derive(Deserialize)]
struct ArgsObject {
    cni: Option<Keys>,
}

impl Config {
    /// Of two that name the same thing, `args.cni` counts more than `runtimeConfig`, that more than `CNI_ARGS`, and
    /// that more than the configuration itself.
    pub(super) fn new(call: &Call, ifname: &IfName) -> Result<Self, CniError> {
        let fixed: Keys = call.conf.decode()?;
        let document: Document = call.conf.decode()?;
        let args = document.args.and_then(|args| args.cni).unwrap_or_default();
        let from_environment = call.args.iter().rfind(|(key, _)| key == "MAC");
        let mac = args
            .mac
            .or_else(|| given(document.runtime_config.mac))
            .or_else(|| from_environment.and_then(|(_, mac)| given(mac.clone())))
            .or(fixed.mac)
            .and_then(given);
        let promisc = args.promisc.or(fixed.promisc).unwrap_or(false);
        let link = LinkSettings {
            mac: mac.as_deref().map(hardware_address).transpose()?,
            // What is not asked for is left as it is.
            promisc: promisc.then_some(true),
            mtu: mtu(args.mtu.or(fixed.mtu).unwrap_or(0))?,
            allmulti: args.allmulti.or(fixed.allmulti),
            tx_queue_len: args
                .tx_queue_len
                .or(fixed.tx_queue_len)
                .map(queue_len)
                .transpose()?,
        };
        let mut sysctl = fixed.sysctl.unwrap_or_default();
        sysctl.extend(args.sysctl.unwrap_or_default());
        Ok(Self {
            sysctls: sysctls(&sysctl, ifname)?,
            link,
            data_dir: data_dir(call)?,
        })
    }

    /// Whether ADD would take the configuration; which link it is about does not matter.
    pub(super) fn for_status(call: &Call) -> Result<(), CniError> {
        let ifname = "eth0".parse();
        let ifname = ifname.map_err(|error| CniError::config(format!("{error}")))?;
        Self::new(call, &ifname).map(drop)
    }
}

/// Where backups are. DEL and GC need nothing else, so that a changed configuration does not keep them from undoing.
pub(super) fn data_dir(call: &Call) -> Result<PathBuf, CniError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        #[serde(default)]
        data_dir: String,
    }
    let document: Document = call.conf.decode()?;
    match document.data_dir.as_str() {
        "" => Ok(PathBuf::from(DEFAULT_DATA_DIR)),
        dir if Path::new(dir).is_absolute() => Ok(PathBuf::from(dir)),
        dir => Err(CniError::config(format!(
            "dataDir {dir:?} is not an absolute path"
        ))),
    }
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn sysctls(given: &BTreeMap<String, String>, ifname: &IfName) -> Result<Vec<Sysctl>, CniError> {
    allowlist::check(given.keys().map(String::as_str))?;
    let mut sysctls: Vec<Sysctl> = Vec::new();
    for (key, value) in given {
        let sysctl = Sysctl::new(key, value, ifname)?;
        if let Some(same) = sysctls.iter().find(|same| same.is_same_setting(&sysctl)) {
            let msg = format!("sysctl {:?} and {key:?} are the same setting", same.key());
            return Err(CniError::config(msg));
        }
        sysctls.push(sysctl);
    }
    Ok(sysctls)
}

fn hardware_address(text: &str) -> Result<Vec<u8>, CniError> {
    // The kernel refuses a group address, and one of zeros, for a single link.
    parse_mac(text)
        .filter(|mac| mac.first().is_some_and(|first| first & 1 == 0))
        .filter(|mac| mac.iter().any(|byte| *byte != 0))
        .ok_or_else(|| CniError::config(format!("mac {text:?} is not a link's hardware address")))
}

fn mtu(mtu: i64) -> Result<Option<u32>, CniError> {
    match u32::try_from(mtu) {
        Ok(0) => Ok(None),
        Ok(mtu @ 68..=65_535) => Ok(Some(mtu)),
        _ => Err(CniError::config(format!(
            "mtu {mtu} is not between 68 and 65535"
        ))),
    }
}

fn queue_len(length: i64) -> Result<u32, CniError> {
    // The kernel's numbers have a sign.
    u32::try_from(length)
        .ok()
        .filter(|length| i32::try_from(*length).is_ok())
        .ok_or_else(|| CniError::config(format!("txQLen {length} is not a queue's length")))
}
