//! Whatever a runtime may get wrong, at every plugin and every command: an answer as the specification wants it, and
//! nothing left behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::{Value, json};
use skiff_tests_cni::{Bench, TestNetns, raw::RawCall};

const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// A node with one pod, and its own name for the network: a folder of leases that is not given is not the machine's.
struct Place {
    bench: Bench,
    pod: TestNetns,
    network: String,
}

impl Place {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            pod: TestNetns::new("pod"),
            network: format!("skiff-t-bad-{}", std::process::id()),
        }
    }

    /// Every plugin that `--install` makes a link for.
    fn plugins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.bench.plugins()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert!(names.len() > 5, "{names:?}");
        names
    }

    fn ipam(&self) -> Value {
        json!({
            "type": "host-local", "dataDir": self.bench.dir.path().join("networks"),
            "ranges": [[{
                "subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10", "rangeEnd": "10.99.0.100",
                "gateway": "10.99.0.1",
            }]],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.99.0.1"}],
        })
    }

    /// A configuration with as many keys as the plugin has.
    fn conf(&self, plugin: &str) -> Value {
        let keys = match plugin {
            "bridge" => json!({
                "bridge": "br0", "isGateway": true, "isDefaultGateway": true, "forceAddress": false, "ipMasq": false,
                "mtu": 1400, "hairpinMode": false, "promiscMode": false, "vlan": 0,
                "preserveDefaultVlan": true, "macspoofchk": false, "enabledad": false,
                "disableContainerInterface": false, "portIsolation": false, "ipMasqBackend": "iptables",
                "ipam": self.ipam(), "runtimeConfig": {"mac": "02:00:00:00:00:05"},
            }),
            "host-local" => json!({"ipam": self.ipam()}),
            "loopback" => json!({}),
            "ptp" => json!({
                "ipMasq": false, "ipMasqBackend": "iptables", "mtu": 1400, "ipam": self.ipam(),
                "dns": {"nameservers": ["10.99.0.1"]},
            }),
            "vxlan" => json!({
                "vni": 7, "port": 8472, "mtu": 1400, "isDefaultGateway": true, "ipMasq": false,
                "underlay": {"address": "192.0.2.1"},
                "nodes": [{"name": "a", "underlay": ["192.0.2.1"], "podCIDRs": ["10.99.0.0/24"]}],
                "ipam": self.ipam(),
            }),
            "portmap" => json!({
                "snat": true, "markMasqBit": 13, "backend": "iptables",
                "conditionsV4": ["-m", "comment", "--comment", "x"], "conditionsV6": [],
                "runtimeConfig": {"portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                ]},
                "prevResult": self.previous(),
            }),
            "tuning" => json!({
                "sysctl": {"net.ipv4.conf.all.log_martians": "1"}, "mac": "02:00:00:00:00:06", "mtu": 1400,
                "promisc": false, "allmulti": false, "txQLen": 500,
                "dataDir": self.bench.dir.path().join("tuning"), "args": {"cni": {"mac": "02:00:00:00:00:06"}},
                "runtimeConfig": {"mac": "02:00:00:00:00:06"}, "prevResult": self.previous(),
            }),
            "bandwidth" => json!({
                "ingressRate": 1_000_000, "ingressBurst": 100_000, "egressRate": 1_000_000, "egressBurst": 100_000,
                "nonShapedSubnets": ["10.0.0.0/8"], "shapedSubnets": [],
                "runtimeConfig": {"bandwidth": {
                    "ingressRate": 1_000_000, "ingressBurst": 100_000,
                    "egressRate": 1_000_000, "egressBurst": 100_000,
                }},
                "prevResult": self.previous(),
            }),
            "firewall" => json!({
                "backend": "iptables", "iptablesAdminChainName": "CNI-ADMIN", "firewalldZone": "trusted",
                "ingressPolicy": "open", "prevResult": self.previous(),
            }),
            other => panic!("no configuration for the plugin {other}"),
        };
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": self.network, "type": plugin,
            "cni.dev/valid-attachments": [],
        });
        for (key, value) in keys.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// What a plugin before may have answered; nothing of it exists.
    fn previous(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": self.pod.path()}],
            "ips": [{"address": "10.99.0.10/24", "gateway": "10.99.0.1", "interface": 1}],
        })
    }

    fn call(&self, plugin: &str, command: &str) -> RawCall {
        RawCall::new(self.bench.plugins(), plugin)
            .command(command)
            .env("CNI_NETNS", self.pod.path())
    }

    fn run(&self, call: &RawCall, what: &str) -> Option<u64> {
        call.run(&self.bench.node).code(what)
    }

    /// A call that must succeed.
    #[track_caller]
    fn expect_ok(&self, call: &RawCall, what: &str) {
        let answer = call.run(&self.bench.node);
        let code = answer.code(what);
        let stdout = String::from_utf8_lossy(&answer.stdout);
        assert_eq!(code, None, "{what}: {stdout}");
    }

    /// No link, no rule and no lease; bridges and overlays stay, as they belong to the node.
    #[track_caller]
    fn assert_clean(&self, what: &str) {
        assert_eq!(self.pod.links(), [""; 0], "{what}");
        assert_eq!(self.bench.veths(), [""; 0], "{what}");
        let rules = self.bench.node.sh("iptables-save");
        assert!(!rules.contains("c1"), "{what}: {rules}");
        assert_eq!(self.leases(), [""; 0], "{what}");
    }

    fn leases(&self) -> Vec<String> {
        let folder = self.bench.dir.path().join("networks").join(&self.network);
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect()
    }
}

/// Does `work` with every plugin, each on a node of its own.
fn for_each_plugin(work: impl Fn(&Place, &str) + Sync) {
    let plugins = Place::new().plugins();
    thread::scope(|scope| {
        for plugin in &plugins {
            let work = &work;
            scope.spawn(move || {
                let place = Place::new();
                work(&place, plugin);
                place.assert_clean(plugin);
            });
        }
    });
}

#[test]
fn stdin_of_every_kind() {
    for_each_plugin(|place, plugin| {
        let good = place.conf(plugin);
        let text = good.to_string();
        let changed = |key: &str, value: Value| {
            let mut conf = good.clone();
            conf[key] = value;
            conf.to_string()
        };
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let table = [
            ("empty", Vec::new(), 6),
            ("truncated", text[..text.len() / 2].into(), 6),
            ("a byte short", text[..text.len() - 1].into(), 6),
            ("two objects", format!("{text}{text}").into(), 6),
            (
                "10 MB",
                format!("{{\"a\":\"{}\"}}", "x".repeat(10 << 20)).into(),
                6,
            ),
            ("deeply nested", nested(100_000).into(), 6),
            (
                "deeply nested without an end",
                "[".repeat(100_000).into(),
                6,
            ),
            ("deeply nested objects", "{\"a\":".repeat(100_000).into(), 6),
            ("not UTF-8", b"{\"name\": \"\xff\xfe\"}".to_vec(), 6),
            ("zeros", vec![0; 4096], 6),
            ("a list", b"[]".to_vec(), 6),
            ("null", b"null".to_vec(), 6),
            (
                "unknown version",
                changed("cniVersion", json!("0.9.9")).into(),
                1,
            ),
            (
                "version of the future",
                changed("cniVersion", json!("2.0.0")).into(),
                1,
            ),
            (
                "version with a blank",
                changed("cniVersion", json!(" 1.0.0")).into(),
                1,
            ),
            (
                "version of wrong type",
                changed("cniVersion", json!(1)).into(),
                6,
            ),
            (
                "hostile name",
                changed("name", json!("../../etc")).into(),
                6,
            ),
            ("name of wrong type", changed("name", json!(7)).into(), 6),
            ("no name", changed("name", Value::Null).into(), 7),
            ("a number too large", changed("mtu", json!(1e300)).into(), 0),
        ];
        for (name, stdin, expected) in &table {
            for command in COMMANDS {
                let what = format!("{plugin} {command}: {name}");
                let call = place.call(plugin, command).stdin(stdin.clone());
                let code = place.run(&call, &what);
                if command == "VERSION" {
                    assert_eq!(code, None, "{what}");
                } else if *expected > 0 {
                    assert_eq!(code, Some(*expected), "{what}");
                }
                if command == "ADD" && code.is_none() {
                    let del = place.call(plugin, "DEL").stdin(text.clone());
                    assert_eq!(place.run(&del, &what), None, "{what}");
                }
            }
        }
    });
}

#[test]
fn environments_of_every_kind() {
    let scratch = tempfile::tempdir().unwrap();
    let long = "a".repeat(100_000);
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let pipe = scratch.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let not_text = OsStr::from_bytes(b"c\xff");
    let text = OsStr::new;
    // What ADD and DEL answer, where that is certain.
    let table: Vec<(&str, &OsStr, Option<u64>, Option<u64>)> = vec![
        ("CNI_COMMAND", text(""), Some(4), Some(4)),
        ("CNI_COMMAND", text("add"), Some(4), Some(4)),
        ("CNI_COMMAND", text("ADD\n"), Some(4), Some(4)),
        ("CNI_CONTAINERID", text(""), Some(4), Some(4)),
        ("CNI_CONTAINERID", text("../x"), Some(4), Some(4)),
        ("CNI_CONTAINERID", text("a/b"), Some(4), Some(4)),
        ("CNI_CONTAINERID", text("-rf"), Some(4), Some(4)),
        ("CNI_CONTAINERID", text("a\nb"), Some(4), Some(4)),
        ("CNI_CONTAINERID", text("a\u{1}"), Some(4), Some(4)),
        ("CNI_CONTAINERID", not_text, Some(4), Some(4)),
        ("CNI_CONTAINERID", text(&long), None, None),
        ("CNI_IFNAME", text(""), Some(4), Some(4)),
        ("CNI_IFNAME", text("../x"), Some(4), Some(4)),
        ("CNI_IFNAME", text("."), Some(4), Some(4)),
        ("CNI_IFNAME", text("sixteen-letters-"), Some(4), Some(4)),
        ("CNI_IFNAME", text("eth0:1"), Some(4), Some(4)),
        ("CNI_IFNAME", text("a b"), Some(4), Some(4)),
        ("CNI_IFNAME", text("a\u{7f}"), Some(4), Some(4)),
        ("CNI_IFNAME", not_text, Some(4), Some(4)),
        ("CNI_NETNS", text("relative"), Some(4), Some(4)),
        ("CNI_NETNS", text("/proc/thread-self/ns/net"), Some(4), None),
        ("CNI_NETNS", text("/nowhere"), None, None),
        ("CNI_NETNS", text("/proc/self/ns/uts"), None, None),
        ("CNI_NETNS", text("/dev/null"), None, None),
        ("CNI_NETNS", text("/"), None, None),
        ("CNI_NETNS", file.as_os_str(), None, None),
        ("CNI_NETNS", pipe.as_os_str(), None, None),
        ("CNI_PATH", text(""), Some(4), Some(4)),
        ("CNI_PATH", text("/nowhere"), None, None),
        ("CNI_PATH", text("..:.:"), None, None),
        ("CNI_ARGS", text("IP"), Some(4), Some(4)),
        ("CNI_ARGS", text("IP=10.99.0.10/99"), None, None),
        ("CNI_ARGS", text(";;=;"), None, None),
        ("CNI_ARGS", text(&long), Some(4), Some(4)),
    ];
    for_each_plugin(|place, plugin| {
        let conf = place.conf(plugin).to_string();
        for (key, value, add, del) in &table {
            let shown = value.to_string_lossy();
            for command in COMMANDS {
                let what = format!("{plugin} {command}: {key}={shown:.40}");
                let call = place
                    .call(plugin, command)
                    .env(key, value)
                    .stdin(conf.clone());
                let code = place.run(&call, &what);
                let expected = match command {
                    "ADD" => *add,
                    "DEL" => *del,
                    _ => None,
                };
                if expected.is_some() {
                    assert_eq!(code, expected, "{what}");
                }
                if command == "DEL" && *key == "CNI_NETNS" && del.is_none() {
                    assert_eq!(code, None, "{what}");
                }
                if command == "ADD" && code.is_none() {
                    let undo = place
                        .call(plugin, "DEL")
                        .env(key, value)
                        .stdin(conf.clone());
                    place.run(&undo, &what);
                    let undo = place.call(plugin, "DEL").stdin(conf.clone());
                    place.run(&undo, &what);
                }
            }
        }
    });
}

/// The paths of all keys of an object and of what is inside.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object
            .iter()
            .map(|(key, value)| (key.replace('/', "~1"), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let path = format!("{path}/{key}");
        paths(child, &path, found);
        found.push(path);
    }
}

#[test]
fn each_key_with_a_value_of_each_type() {
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!("../x\u{1}"),
        json!([[[{}]]]),
        json!({"a": {"b": 1}}),
    ];
    for_each_plugin(|place, plugin| {
        let good = place.conf(plugin);
        let mut keys = Vec::new();
        paths(&good, "", &mut keys);
        for key in keys {
            for (number, value) in values.iter().enumerate() {
                let mut conf = good.clone();
                *conf.pointer_mut(&key).unwrap() = value.clone();
                if is_folder_of_the_machine(&conf) {
                    continue;
                }
                let second = ["CHECK", "STATUS"][number % 2];
                for command in ["ADD", second, "DEL"] {
                    let what = format!("{plugin} {command}: {key} is {value}");
                    let call = place.call(plugin, command).stdin(conf.to_string());
                    place.run(&call, &what);
                }
                let what = format!("{plugin}: {key} is {value}");
                let undo = place.call(plugin, "DEL").stdin(good.to_string());
                place.expect_ok(&undo, &what);
            }
            place.assert_clean(&format!("{plugin}: {key}"));
        }
    });
}

/// Whether a plugin would write into a folder that the test did not make.
fn is_folder_of_the_machine(conf: &Value) -> bool {
    let of_ipam = conf
        .get("ipam")
        .is_some_and(|ipam| ipam["type"] == "host-local" || conf["type"] == "host-local");
    (of_ipam && !conf["ipam"]["dataDir"].is_string())
        || (conf["type"] == "tuning" && !conf["dataDir"].is_string())
}

#[test]
fn a_namespace_that_vanishes_midway() {
    let place = Place::new();
    for plugin in place.plugins() {
        let conf = place.conf(&plugin);
        for round in 0..8 {
            let pod = TestNetns::new("pod");
            let call = place
                .call(&plugin, "ADD")
                .env("CNI_NETNS", pod.path())
                .stdin(conf.to_string());
            let path = pod.path().to_owned();
            let what = format!("{plugin}, round {round}");
            thread::scope(|scope| {
                let add = scope.spawn(|| place.run(&call, &what));
                drop(pod);
                add.join().unwrap();
            });
            let del = place
                .call(&plugin, "DEL")
                .env("CNI_NETNS", &path)
                .stdin(conf.to_string());
            place.expect_ok(&del, &what);
        }
        place.assert_clean(&plugin);
    }
}

#[test]
fn names_that_are_taken() {
    let place = Place::new();
    place.pod.sh("ip link add eth0 type veth peer name other");
    for plugin in ["bridge", "ptp"] {
        let conf = place.conf(plugin).to_string();
        let add = place.call(plugin, "ADD").stdin(conf.clone());
        assert!(place.run(&add, plugin).is_some(), "{plugin}");
        assert_eq!(place.pod.links().len(), 2, "{plugin}");
        assert_eq!(place.bench.veths(), [""; 0], "{plugin}");
        assert_eq!(place.leases(), [""; 0], "{plugin}");
    }
    // The host's end has a name that follows from container and link.
    let place = Place::new();
    let taken = skiff_cni::host_veth_name(&"c1".parse().unwrap(), &"eth0".parse().unwrap(), 0);
    let node = &place.bench.node;
    node.sh(&format!(
        "ip link add {taken} type veth peer name foreign && ip link set {taken} alias precious"
    ));
    for plugin in ["bridge", "ptp"] {
        let conf = place.conf(plugin).to_string();
        for command in ["ADD", "DEL"] {
            let call = place.call(plugin, command).stdin(conf.clone());
            place.run(&call, plugin);
            let link = node.sh(&format!("ip link show {taken}"));
            assert!(
                link.contains("alias precious"),
                "{plugin} {command}: {link}"
            );
        }
        assert_eq!(place.pod.links(), [""; 0], "{plugin}");
        assert_eq!(place.leases(), [""; 0], "{plugin}");
        assert_eq!(place.bench.veths(), [&*taken], "{plugin}");
    }
}

#[test]
fn a_range_that_is_exhausted() {
    let place = Place::new();
    for plugin in ["bridge", "ptp", "host-local"] {
        let mut conf = place.conf(plugin);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/30"}]]);
        conf["ipam"]["routes"] = json!([]);
        conf["bridge"] = json!("br1");
        let other = TestNetns::new("pod");
        let first = place
            .call(plugin, "ADD")
            .env("CNI_CONTAINERID", "first")
            .env("CNI_NETNS", other.path())
            .stdin(conf.to_string());
        place.expect_ok(&first, plugin);
        let second = place.call(plugin, "ADD").stdin(conf.to_string());
        assert_eq!(place.run(&second, plugin), Some(101), "{plugin}");
        assert_eq!(place.pod.links(), [""; 0], "{plugin}");
        assert_eq!(place.leases(), ["10.98.0.2"], "{plugin}");
        assert_eq!(place.run(&first.command("DEL"), plugin), None, "{plugin}");
        place.assert_clean(plugin);
    }
}

#[test]
fn a_lock_that_somebody_holds() {
    let place = Place::new();
    let folder = place.bench.dir.path().join("networks").join(&place.network);
    fs::create_dir_all(&folder).unwrap();
    let file = File::create(folder.join("lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    thread::scope(|scope| {
        for (plugin, command) in [
            ("host-local", "ADD"),
            ("host-local", "DEL"),
            ("host-local", "GC"),
            ("bridge", "ADD"),
        ] {
            let place = &place;
            scope.spawn(move || {
                let what = format!("{plugin} {command}");
                let call = place
                    .call(plugin, command)
                    .stdin(place.conf(plugin).to_string());
                assert_eq!(place.run(&call, &what), Some(11), "{what}");
            });
        }
    });
    drop(lock);
    place.assert_clean("locked");
}

#[test]
fn a_folder_of_leases_full_of_traps() {
    let place = Place::new();
    let folder: PathBuf = place.bench.dir.path().join("networks").join(&place.network);
    let victim = place.bench.dir.path().join("victim");
    fs::create_dir_all(folder.join("10.99.0.10")).unwrap();
    fs::write(&victim, "precious").unwrap();
    let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
    link(&victim, "10.99.0.11");
    link(Path::new("/nowhere"), "10.99.0.12");
    link(&victim, "last_reserved_ip.0");
    mkfifo(&folder.join("10.99.0.13"), Mode::S_IRWXU).unwrap();
    fs::write(folder.join("10.99.0.14"), "").unwrap();
    fs::write(folder.join("10.99.0.15"), [0xff; 5000]).unwrap();
    fs::write(folder.join(OsStr::from_bytes(b"\xff\n")), "c1\r\neth0").unwrap();
    fs::write(folder.join("10.99.0.016"), "c1\r\neth0").unwrap();
    let conf = place.conf("host-local").to_string();
    for command in ["ADD", "GC", "STATUS", "DEL", "DEL"] {
        let call = place.call("host-local", command).stdin(conf.clone());
        assert_eq!(place.run(&call, command), None, "{command}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
    assert!(folder.join("10.99.0.10").is_dir());
    assert!(folder.join("10.99.0.016").exists());
    // A lock that cannot be one.
    fs::remove_file(folder.join("lock")).unwrap();
    fs::create_dir(folder.join("lock")).unwrap();
    for command in ["ADD", "DEL", "GC", "CHECK"] {
        let mut conf = place.conf("host-local");
        conf["prevResult"] = place.previous();
        let call = place.call("host-local", command).stdin(conf.to_string());
        assert_eq!(place.run(&call, command), Some(5), "{command}");
    }
}
