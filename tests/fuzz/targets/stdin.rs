//! A whole call: `command NUL container NUL interface NUL args NUL stdin`, as far as a configuration is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use skiff_cni::{
    ipam::{HostLocalConfig, LeaseFolder},
    skel::{self, Call, Environment, Plugin, Target},
    types::{CniError, CniResult, CniVersion, IpConfig},
};
use skiff_cni_plugins::read_config;

/// Reads a plugin's configuration and answers as if it had served it.
struct Reader;

/// Reads it as ADD does, and as DEL does, which takes all that ADD takes.
fn read(call: &Call) -> [Result<(), CniError>; 2] {
    let read = read_config(call).unwrap_or([Ok(()), Ok(())]);
    if let [Ok(()), Err(error)] = &read {
        panic!("DEL of what ADD accepts: {error}");
    }
    read
}

fn check_names(target: &Target) {
    for name in [target.container_id.as_str(), target.ifname.as_str()] {
        assert!(!name.is_empty() && !name.contains(['/', '\0', '\n']) && name != "..");
    }
    assert!(target.ifname.as_str().len() <= 15);
    assert!(target.netns.as_ref().is_none_or(|path| path.is_absolute()));
}

impl Plugin for Reader {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        check_names(target);
        let [added, _] = read(call);
        added?;
        if call.conf.plugin_type.as_str() != "host-local" {
            return Ok(CniResult::default());
        }
        let config = HostLocalConfig::new(call)?;
        let folder = LeaseFolder::new(call).expect("DEL of what ADD accepts");
        assert_eq!(folder, config.folder);
        assert!(folder.data_dir.is_absolute() && !config.sets.is_empty());
        let mut ips = Vec::new();
        for (index, (set, requested)) in config.sets.iter().enumerate() {
            assert!(!set.to_string().is_empty());
            let mut others = config.sets.iter().take(index);
            assert!(!others.any(|(other, _)| other.overlaps(set)));
            let Some(ip) = requested else { continue };
            let range = set.find(*ip).expect("a requested address of the range");
            assert!(range.subnet().contains(*ip) && range.contains(*ip));
            let address = format!("{ip}/{}", range.subnet().prefix());
            ips.push(IpConfig {
                interface: None,
                address: address.parse().expect("an address"),
                gateway: Some(range.gateway()),
            });
        }
        Ok(CniResult {
            ips,
            routes: config.routes,
            ..CniResult::default()
        })
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        check_names(target);
        let [_, removed] = read(call);
        removed
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        check_names(target);
        assert!(call.conf.prev_result.is_some() && call.conf.version.has_check());
        let [added, _] = read(call);
        added
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        assert!(call.conf.valid_attachments.is_some() && call.conf.version.has_gc());
        let [_, removed] = read(call);
        removed
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let [added, _] = read(call);
        added
    }
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(5, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let mut variables: Vec<(String, String)> = Vec::new();
    for key in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS"] {
        let value = String::from_utf8_lossy(part()).into_owned();
        variables.push((key.to_owned(), value));
    }
    for (key, value) in [("CNI_NETNS", "/nowhere/netns"), ("CNI_PATH", "/nowhere")] {
        variables.push((key.to_owned(), value.to_owned()));
    }
    let is_version = variables[0].1 == "VERSION";
    let environment = Environment::from_vars(variables);
    let mut stdout = Vec::new();
    let exit = skel::run(&Reader, &environment, part(), &mut stdout);
    if stdout.is_empty() {
        assert_eq!(exit, 0, "an error without a word");
        return;
    }
    let answer: Value = serde_json::from_slice(&stdout).expect("JSON on stdout");
    let version = answer["cniVersion"].as_str().expect("a version");
    assert!(version.parse::<CniVersion>().is_ok());
    if exit == 0 {
        assert!(answer.get("code").is_none());
        if !is_version {
            CniResult::from_json(&answer).expect("a result");
        }
    } else {
        assert!(!is_version);
        let error = CniError::from_json(&answer).expect("an error");
        assert!(
            matches!(error.code, 1..=7 | 11 | 50 | 51 | 100..),
            "{error}"
        );
        assert!(!error.msg.is_empty());
    }
});
