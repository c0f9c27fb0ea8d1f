use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::types::IpConfig;

struct Fake;

impl Plugin for Fake {
    fn add(&self, _call: &Call, _target: &Target) -> Result<CniResult, CniError> {
        let address = "10.0.0.2/24".parse().unwrap();
        Ok(CniResult {
            ips: vec![IpConfig {
                interface: None,
                address,
                gateway: None,
            }],
            ..CniResult::default()
        })
    }
    fn del(&self, _call: &Call, _target: &Target) -> Result<(), CniError> {
        Ok(())
    }
    fn check(&self, _call: &Call, _target: &Target) -> Result<(), CniError> {
        Ok(())
    }
    fn gc(&self, _call: &Call) -> Result<(), CniError> {
        Ok(())
    }
    fn status(&self, _call: &Call) -> Result<(), CniError> {
        Err(CniError::new(code::UNAVAILABLE, "no"))
    }
}

fn env(command: &str, change: &[(&str, &str)]) -> Environment {
    let mut vars = BTreeMap::from([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/nowhere/netns"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    vars.extend(change.iter().copied());
    Environment::from_vars(
        vars.into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    )
}

/// An empty variable counts as none.
fn without(command: &str, missing: &str) -> Environment {
    env(command, &[(missing, "")])
}

fn conf(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "fake"})
}

fn answer(environment: &Environment, stdin: &[u8]) -> (u8, Option<Value>) {
    let mut stdout = Vec::new();
    let exit = run(&Fake, environment, stdin, &mut stdout);
    let json = (!stdout.is_empty()).then(|| serde_json::from_slice(&stdout).unwrap());
    (exit, json)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_calls_get_the_specifications_code() {
    let good = conf("1.1.0").to_string();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(10 << 20));
    let table: Vec<(&str, Environment, String, u32)> = vec![
        ("no command", without("ADD", "CNI_COMMAND"), good.clone(), 4),
        ("unknown command", env("FLY", &[]), good.clone(), 4),
        (
            "no container id",
            without("ADD", "CNI_CONTAINERID"),
            good.clone(),
            4,
        ),
        ("no netns", without("ADD", "CNI_NETNS"), good.clone(), 4),
        ("no ifname", without("DEL", "CNI_IFNAME"), good.clone(), 4),
        ("no path", without("GC", "CNI_PATH"), good.clone(), 4),
        (
            "path as ifname",
            env("ADD", &[("CNI_IFNAME", "../x")]),
            good.clone(),
            4,
        ),
        (
            "long ifname",
            env("DEL", &[("CNI_IFNAME", "sixteen-letters-")]),
            good.clone(),
            4,
        ),
        (
            "path as container id",
            env("DEL", &[("CNI_CONTAINERID", "a/../b")]),
            good.clone(),
            4,
        ),
        (
            "relative netns",
            env("ADD", &[("CNI_NETNS", "netns")]),
            good.clone(),
            4,
        ),
        (
            "args without value",
            env("ADD", &[("CNI_ARGS", "IP")]),
            good.clone(),
            4,
        ),
        ("empty stdin", env("ADD", &[]), String::new(), 6),
        (
            "truncated stdin",
            env("ADD", &[]),
            good[..good.len() - 3].to_owned(),
            6,
        ),
        ("not an object", env("ADD", &[]), "[]".to_owned(), 6),
        ("deeply nested", env("ADD", &[]), deep, 6),
        ("10 MB", env("ADD", &[]), huge, 6),
        (
            "unknown version",
            env("ADD", &[]),
            conf("0.9.9").to_string(),
            1,
        ),
        (
            "version of wrong type",
            env("ADD", &[]),
            json!({"cniVersion": 1}).to_string(),
            6,
        ),
        (
            "CHECK before 0.4.0",
            env("CHECK", &[]),
            conf("0.3.1").to_string(),
            1,
        ),
        (
            "GC before 1.1.0",
            env("GC", &[]),
            conf("1.0.0").to_string(),
            1,
        ),
        (
            "STATUS before 1.1.0",
            env("STATUS", &[]),
            conf("1.0.0").to_string(),
            1,
        ),
        (
            "CHECK without prevResult",
            env("CHECK", &[]),
            good.clone(),
            7,
        ),
        ("GC without attachments", env("GC", &[]), good.clone(), 7),
        (
            "no name",
            env("ADD", &[]),
            json!({"cniVersion": "1.0.0", "type": "t"}).to_string(),
            7,
        ),
        (
            "no type",
            env("ADD", &[]),
            json!({"cniVersion": "1.0.0", "name": "n"}).to_string(),
            7,
        ),
        (
            "hostile name",
            env("ADD", &[]),
            json!({"cniVersion": "1.0.0", "name": "../../etc", "type": "t"}).to_string(),
            6,
        ),
        ("STATUS of the plugin", env("STATUS", &[]), good.clone(), 50),
        (
            "own netns",
            env("ADD", &[("CNI_NETNS", "/proc/thread-self/ns/net")]),
            good,
            4,
        ),
    ];
    for (name, environment, stdin, expected) in table {
        let (exit, json) = answer(&environment, stdin.as_bytes());
        let json = json.unwrap_or_else(|| panic!("{name}: no output"));
        assert_eq!(
            (exit, json["code"].as_u64()),
            (1, Some(expected.into())),
            "{name}: {json}"
        );
        assert!(
            json["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
            "{name}"
        );
        assert!(json["cniVersion"].is_string(), "{name}");
    }
}

#[test]
fn add_answers_in_the_version_asked_for() {
    for version in CniVersion::ALL {
        let stdin = conf(version.as_str()).to_string();
        let (exit, json) = answer(&env("ADD", &[]), stdin.as_bytes());
        assert_eq!(exit, 0);
        assert_eq!(json.unwrap()["cniVersion"], version.as_str());
    }
}

#[test]
fn commands_without_result_print_nothing() {
    let stdin = conf("1.1.0").to_string();
    assert_eq!(
        answer(&without("DEL", "CNI_NETNS"), stdin.as_bytes()),
        (0, None)
    );
}

#[test]
fn version_lists_all_and_needs_no_other_variable() {
    let environment = Environment::from_vars([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]);
    let (exit, json) = answer(&environment, br#"{"cniVersion": "0.4.0"}"#);
    let json = json.unwrap();
    assert_eq!(exit, 0);
    assert_eq!(json["cniVersion"], "0.4.0");
    assert_eq!(
        json["supportedVersions"].as_array().unwrap().len(),
        CniVersion::ALL.len()
    );
}

#[test]
fn version_answers_whatever_is_on_stdin() {
    let environment = Environment::from_vars([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]);
    let deep = "[".repeat(100_000);
    for stdin in [
        "",
        "null",
        "{",
        "[]",
        r#"{"cniVersion": 1}"#,
        r#"{"cniVersion": "9.9"}"#,
        &deep,
    ] {
        let (exit, json) = answer(&environment, stdin.as_bytes());
        let json = json.unwrap();
        assert_eq!(
            (exit, &json["cniVersion"]),
            (0, &json!("1.1.0")),
            "{stdin:.20}"
        );
        assert_eq!(json["supportedVersions"][0], "0.1.0");
    }
}

#[test]
fn no_version_means_the_first() {
    for conf in [
        json!({"name": "net", "type": "fake"}),
        json!({"cniVersion": "", "name": "net", "type": "fake"}),
        json!({"cniVersion": null, "name": "net", "type": "fake"}),
    ] {
        let (exit, json) = answer(&env("ADD", &[]), conf.to_string().as_bytes());
        let json = json.unwrap();
        assert_eq!((exit, &json["cniVersion"]), (0, &json!("0.1.0")));
        assert_eq!(json["ip4"]["ip"], "10.0.0.2/24");
    }
}

#[test]
fn del_leaves_the_hosts_own_namespace_alone() {
    struct Spy;
    impl Plugin for Spy {
        fn add(&self, _call: &Call, _target: &Target) -> Result<CniResult, CniError> {
            Ok(CniResult::default())
        }
        fn del(&self, _call: &Call, target: &Target) -> Result<(), CniError> {
            match target.netns {
                None => Ok(()),
                Some(_) => Err(CniError::config("has a namespace")),
            }
        }
        fn check(&self, _call: &Call, _target: &Target) -> Result<(), CniError> {
            Ok(())
        }
        fn gc(&self, _call: &Call) -> Result<(), CniError> {
            Ok(())
        }
        fn status(&self, _call: &Call) -> Result<(), CniError> {
            Ok(())
        }
    }
    let stdin = conf("1.1.0").to_string();
    let own = [("CNI_NETNS", "/proc/thread-self/ns/net")];
    let del = |environment| run(&Spy, &environment, stdin.as_bytes(), Vec::new());
    assert_eq!(del(env("DEL", &own)), 0);
    assert_eq!(del(env("DEL", &[])), 1);
    assert_eq!(del(env("DEL", &[own[0], ("CNI_NETNS_OVERRIDE", "1")])), 1);
}
