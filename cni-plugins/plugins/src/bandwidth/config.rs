//! The plugin's keys.

use ipnetwork::IpNetwork;
use serde::Deserialize;
use skiff_cni::{
    netlink::{Shaped, TokenBucket},
    skel::Call,
    types::CniError,
};

/// The largest burst in bits: 4 GB.
const BURST_MAX: u64 = u32::MAX as u64 * 8;

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// On what the container receives.
    pub(super) ingress: Option<TokenBucket>,
    /// On what it sends.
    pub(super) egress: Option<TokenBucket>,
    shaped: Vec<IpNetwork>,
    unshaped: Vec<IpNetwork>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
    shaped_subnets: Option<Vec<String>>,
    unshaped_subnets: Option<Vec<String>>,
}

impl Entry {
    fn is_given(&self) -> bool {
        self.ingress_rate.is_some()
            || self.ingress_burst.is_some()
            || self.egress_rate.is_some()
            || self.egress_burst.is_some()
            || self.shaped_subnets.is_some()
            || self.unshaped_subnets.is_some()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    runtime_config: RuntimeObject,
}

#[derive(Default, Deserialize)]
struct RuntimeObject {
    bandwidth: Option<Entry>,
}

impl Config {
    pub(super) fn new(call: &Call) -> Result<Self, CniError> {
        let fixed: Entry = call.conf.decode()?;
        // One key in the configuration itself, and what the runtime asks for does not count.
        let entry = if fixed.is_given() {
            fixed
        } else {
            let document: Document = call.conf.decode()?;
            document.runtime_config.bandwidth.unwrap_or_default()
        };
        let shaped = subnets("shapedSubnets", entry.shaped_subnets)?;
        let unshaped = subnets("unshapedSubnets", entry.unshaped_subnets)?;
        if !shaped.is_empty() && !unshaped.is_empty() {
            return Err(CniError::config(
                "\"shapedSubnets\" and \"unshapedSubnets\" exclude each other",
            ));
        }
        Ok(Self {
            ingress: bucket("ingress", entry.ingress_rate, entry.ingress_burst)?,
            egress: bucket("egress", entry.egress_rate, entry.egress_burst)?,
            shaped,
            unshaped,
        })
    }

    pub(super) fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }

    pub(super) fn shaped(&self) -> Shaped<'_> {
        if !self.shaped.is_empty() {
            Shaped::Only(&self.shaped)
        } else if !self.unshaped.is_empty() {
            Shaped::Except(&self.unshaped)
        } else {
            Shaped::All
        }
    }
}

fn bucket(
    direction: &str,
    rate: Option<u64>,
    burst: Option<u64>,
) -> Result<Option<TokenBucket>, CniError> {
    let wrong = |what: &str| Err(CniError::config(format!("{direction}{what}")));
    match (rate.unwrap_or(0), burst.unwrap_or(0)) {
        (0, 0) => Ok(None),
        (_, 0) => wrong("Rate needs a burst beside it"),
        (0, _) => wrong("Burst needs a rate beside it"),
        (_, burst) if burst >= BURST_MAX => wrong("Burst is more than 4 GB"),
        (rate, burst) => match TokenBucket::new(rate, burst) {
            Some(bucket) => Ok(Some(bucket)),
            None => wrong("Rate and burst are too small for a packet ever to pass"),
        },
    }
}

fn subnets(key: &str, texts: Option<Vec<String>>) -> Result<Vec<IpNetwork>, CniError> {
    let parse = |text: String| {
        // A lone address is none: whether its subnet is meant cannot be known.
        text.contains('/')
            .then(|| text.parse().ok())
            .flatten()
            .ok_or_else(|| CniError::config(format!("{key}: {text:?} is not a subnet")))
    };
    texts.unwrap_or_default().into_iter().map(parse).collect()
}
