use serde_json::{Value, json};

use super::*;
use crate::{skel::Command, types::NetConf};

fn call(version: CniVersion, change: &Value, args: &[(&str, &str)]) -> Call {
    let mut conf = json!({"name": "net", "type": "host-local"});
    for (key, value) in change.as_object().unwrap() {
        conf[key] = value.clone();
    }
    let Value::Object(raw) = conf else {
        unreachable!()
    };
    Call {
        command: Command::Add,
        conf: NetConf::from_value(version, raw).unwrap(),
        args: args
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        path: Vec::new(),
    }
}

fn config(change: &Value) -> Result<HostLocalConfig, CniError> {
    HostLocalConfig::new(&call(CniVersion::LATEST, change, &[]))
}

fn sets(config: &HostLocalConfig) -> Vec<String> {
    config.sets.iter().map(|(set, _)| set.to_string()).collect()
}

#[test]
fn ranges_of_the_runtime_come_before_the_older_form_and_the_list() {
    let config = config(&json!({
        "ipam": {"subnet": "10.1.0.0/29", "ranges": [[{"subnet": "10.2.0.0/29"}]]},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/29"}]]},
    }))
    .unwrap();
    assert_eq!(
        sets(&config),
        [
            "10.3.0.1-10.3.0.6",
            "10.1.0.1-10.1.0.6",
            "10.2.0.1-10.2.0.6"
        ]
    );
    assert_eq!(
        config.folder.data_dir,
        PathBuf::from("/var/lib/cni/networks")
    );
}

#[test]
fn empty_and_null_count_as_not_given() {
    let config = config(&json!({
        "ipam": {
            "subnet": "10.1.0.0/29", "gateway": "", "rangeStart": "", "rangeEnd": null,
            "ranges": null, "routes": null, "dataDir": "", "resolvConf": "",
        },
        "args": null, "runtimeConfig": {"ips": null},
    }))
    .unwrap();
    assert_eq!(sets(&config), ["10.1.0.1-10.1.0.6"]);
    assert_eq!((config.resolv_conf, config.routes.len()), (None, 0));
}

#[test]
fn addresses_are_asked_for_in_three_ways() {
    let change = json!({
        "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]},
        "args": {"cni": {"ips": ["10.2.0.7", "10.1.0.5"]}},
        "runtimeConfig": {"ips": ["fd00::9/64", "10.1.0.5/24"]},
    });
    let call = call(CniVersion::LATEST, &change, &[("IP", "10.1.0.5")]);
    let asked: Vec<_> = HostLocalConfig::new(&call)
        .unwrap()
        .sets
        .iter()
        .map(|(_, ip)| ip.unwrap().to_string())
        .collect();
    assert_eq!(asked, ["10.1.0.5", "10.2.0.7", "fd00::9"]);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let subnet = json!({"subnet": "10.1.0.0/24"});
    for (name, change, expected) in [
        ("no ipam", json!({}), 7),
        ("null ipam", json!({"ipam": null}), 7),
        ("no range", json!({"ipam": {"ranges": []}}), 7),
        ("empty set", json!({"ipam": {"ranges": [[]]}}), 7),
        (
            "overlap",
            json!({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}}),
            7,
        ),
        (
            "relative folder",
            json!({"ipam": {"subnet": "10.1.0.0/24", "dataDir": "x"}}),
            7,
        ),
        ("subnet of wrong type", json!({"ipam": {"subnet": 7}}), 6),
        (
            "subnet that is none",
            json!({"ipam": {"subnet": "10.1.0.0/33"}}),
            6,
        ),
        (
            "route without destination",
            json!({"ipam": {"subnet": "10.1.0.0/24", "routes": [{}]}}),
            6,
        ),
        (
            "address of no range",
            json!({"ipam": subnet, "runtimeConfig": {"ips": ["10.9.0.1"]}}),
            102,
        ),
        (
            "two addresses of one set",
            json!({"ipam": subnet, "runtimeConfig": {"ips": ["10.1.0.8", "10.1.0.9"]}}),
            102,
        ),
    ] {
        let error = config(&change).unwrap_err();
        assert_eq!(error.code, expected, "{name}: {error}");
    }
    let two =
        json!({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}});
    let old = HostLocalConfig::new(&call(CniVersion::V0_2_0, &two, &[]));
    assert_eq!(old.unwrap_err().code, 7);
    let bad = call(CniVersion::LATEST, &json!({"ipam": subnet}), &[("IP", "x")]);
    assert_eq!(HostLocalConfig::new(&bad).unwrap_err().code, 4);
}

#[test]
fn resolv_conf_is_read() {
    let dns = parse_resolv_conf(
        "# c\n; c\nnameserver 10.0.0.1\nsearch a b\noptions ndots:5\ndomain x\ndomain\nnameserver\n",
    );
    assert_eq!(dns.nameservers, ["10.0.0.1"]);
    assert_eq!(
        (dns.search.len(), &*dns.options[0], &*dns.domain),
        (2, "ndots:5", "x")
    );
}

#[test]
fn what_is_no_plain_file_is_not_read() {
    for path in ["/", "/dev/zero", "/nowhere"] {
        assert_eq!(
            read_resolv_conf(Path::new(path)).unwrap_err().code,
            code::CONFIG,
            "{path}"
        );
    }
}
