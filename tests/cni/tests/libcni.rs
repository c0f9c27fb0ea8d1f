//! `skiff cni` end to end, with our plugins and with the reference's, and the runner below it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Deserializer, Value, json};
use skiff_tests_cni::{Bench, TestNetns};

/// Debian's package of the reference plugins (1.1.1, which speaks 1.0.0 and older).
const REFERENCE: &str = "/usr/lib/cni";

/// The executable, built beside this test.
fn skiff() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("skiff");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p skiff",
        path.display()
    );
    path
}

/// `skiff cni` in a node, with the folders of a bench.
struct Tool<'a> {
    bench: &'a Bench,
    plugins: PathBuf,
}

/// What it printed, and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    json: Vec<Value>,
    errors: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{self:?}");
        self.json
    }

    /// The code of the only error.
    #[track_caller]
    fn error(&self) -> u64 {
        assert_eq!((self.code, self.json.len()), (1, 1), "{self:?}");
        self.json[0]["code"].as_u64().unwrap()
    }
}

impl<'a> Tool<'a> {
    fn new(bench: &'a Bench, plugins: &Path) -> Self {
        fs::create_dir_all(bench.dir.path().join("net.d")).unwrap();
        let plugins = plugins.to_owned();
        Self { bench, plugins }
    }

    fn put(&self, file: &str, list: &Value) {
        let path = self.bench.dir.path().join("net.d").join(file);
        fs::write(path, list.to_string()).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let dir = self.bench.dir.path();
        let mut command = Command::new(skiff());
        command
            .arg("cni")
            .args(args)
            .env("NETCONFPATH", dir.join("net.d"))
            .env("CNI_PATH", &self.plugins)
            .arg("--cache-dir")
            .arg(dir.join("cache"))
            .arg("--node-netns")
            .arg(self.bench.node.path());
        for name in [
            "CNI_IFNAME",
            "CNI_CONTAINERID",
            "CNI_ARGS",
            "CAP_ARGS",
            "CNI_NETNS",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn say(&self, args: &[&str]) -> Said {
        said(&self.command(args).output().unwrap())
    }

    fn cached(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.bench.dir.path().join("cache/results")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

#[track_caller]
fn said(output: &Output) -> Said {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let values = Deserializer::from_slice(&output.stdout).into_iter();
    let json: Result<Vec<Value>, _> = values.collect();
    Said {
        code: output.status.code().unwrap(),
        json: json.unwrap_or_else(|error| panic!("{error}: {output:?}")),
        errors,
    }
}

/// The bench's bridge as a list.
fn list(bench: &Bench, version: &str) -> Value {
    let mut bridge = bench.bridge_conf();
    for key in ["cniVersion", "name"] {
        bridge.as_object_mut().unwrap().remove(key);
    }
    bridge["capabilities"] = json!({"mac": true});
    json!({"cniVersion": version, "name": "net", "plugins": [bridge, {"type": "loopback"}]})
}

fn path(netns: &TestNetns) -> &str {
    netns.path().to_str().unwrap()
}

/// ADD, CHECK, DEL and what is between them.
fn comes_and_goes(plugins: Option<&Path>, version: &str) {
    let bench = Bench::new();
    let tool = Tool::new(&bench, plugins.unwrap_or(bench.plugins()));
    tool.put("10-net.conflist", &list(&bench, version));
    let pod = TestNetns::new("pod");
    tool.say(&["status"]).ok();
    // Nothing was tried: the second would undo the first.
    assert_eq!(tool.say(&["add", path(&pod), path(&pod)]).error(), 4);
    let one_id = ["add", "--container-id", "c", path(&pod), "/run/netns/other"];
    assert_eq!(tool.say(&one_id).error(), 4);
    assert!(tool.cached().is_empty());

    let added = tool.say(&["add", path(&pod)]).ok();
    assert_eq!(added[0]["cniVersion"], version);
    assert_eq!(added[0]["ips"][0]["address"], "10.99.0.2/24");
    assert!(pod.sh("ip -o addr show eth0").contains("10.99.0.2/24"));
    assert_eq!((bench.veths().len(), tool.cached().len()), (1, 1));
    assert!(
        tool.cached()[0].starts_with("net-cnitool-"),
        "{:?}",
        tool.cached()
    );
    assert_eq!(tool.say(&["check", path(&pod)]).ok(), [] as [Value; 0]);
    pod.sh("ip addr flush dev eth0");
    assert_eq!(tool.say(&["check", path(&pod)]).code, 1);

    // The list has changed meanwhile; what ADD ran is what DEL runs.
    let other = json!({"cniVersion": version, "name": "net", "plugins": [{"type": "loopback"}]});
    tool.put("10-net.conflist", &other);
    assert_eq!(tool.say(&["del", path(&pod)]).ok(), [] as [Value; 0]);
    tool.say(&["del", path(&pod)]).ok();
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
    assert!(tool.cached().is_empty());
}

#[test]
fn a_namespace_comes_and_goes_with_our_plugins() {
    comes_and_goes(None, "1.1.0");
    comes_and_goes(None, "0.4.0");
}

#[test]
fn a_namespace_comes_and_goes_with_the_references_plugins() {
    comes_and_goes(Some(Path::new(REFERENCE)), "1.0.0");
    comes_and_goes(Some(Path::new(REFERENCE)), "0.4.0");
}

#[test]
fn older_plugins_are_met_at_their_version_if_the_list_offers_it() {
    let bench = Bench::new();
    let tool = Tool::new(&bench, Path::new(REFERENCE));
    let mut list = list(&bench, "1.1.0");
    tool.put("10-net.conflist", &list);
    let pod = TestNetns::new("pod");
    assert_eq!(tool.say(&["add", path(&pod)]).error(), 1);

    list["cniVersions"] = json!(["0.4.0", "1.0.0", "1.1.0"]);
    tool.put("10-net.conflist", &list);
    tool.say(&["status"]).ok();
    tool.say(&["add", path(&pod)]).ok();
    tool.say(&["check", path(&pod)]).ok();
    tool.say(&["gc"]).ok();
    assert_eq!(bench.veths().len(), 1);
    tool.say(&["del", path(&pod)]).ok();
    assert_eq!((bench.veths().len(), tool.cached().len()), (0, 0));
}

#[test]
fn several_namespaces_are_served_at_once() {
    let bench = Bench::new();
    let tool = Tool::new(&bench, bench.plugins());
    tool.put("10-net.conflist", &list(&bench, "1.1.0"));
    let pods: Vec<TestNetns> = (0..8).map(|_| TestNetns::new("pod")).collect();
    let paths: Vec<&str> = pods.iter().map(path).collect();
    let results = tool.say(&[&["add"], paths.as_slice()].concat()).ok();
    let ips = results
        .iter()
        .map(|json| json["ips"][0]["address"].clone().to_string());
    let ips: std::collections::BTreeSet<String> = ips.collect();
    assert_eq!((ips.len(), bench.veths().len()), (8, 8));
    tool.say(&[&["check"], paths.as_slice()].concat()).ok();
    // One that fails keeps none of the others from being served, and says which it is.
    let missing = [paths[0], "/run/netns/skiff-t-none", paths[1]];
    let said = tool.say(&[&["check"], missing.as_slice()].concat());
    assert_eq!(said.error(), 3);
    assert!(
        said.json[0]["msg"]
            .as_str()
            .unwrap()
            .starts_with("/run/netns/skiff-t-none: ")
    );
    tool.say(&[&["del"], paths.as_slice()].concat()).ok();
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
}

#[test]
fn the_environment_is_that_of_cnitool() {
    let bench = Bench::new();
    let tool = Tool::new(&bench, bench.plugins());
    tool.put("10-net.conflist", &list(&bench, "1.0.0"));
    tool.put(
        "20-other.conf",
        &json!({"cniVersion": "1.0.0", "name": "other", "type": "loopback"}),
    );
    let pod = TestNetns::new("pod");
    // Not the first of two networks: which one must be said.
    let said = tool.say(&["add", path(&pod)]);
    assert_eq!(said.error(), 7);
    assert!(
        said.json[0]["msg"].as_str().unwrap().contains("net, other"),
        "{said:?}"
    );

    let mut add = tool.command(&["add", "--network", "net", path(&pod)]);
    add.env("CNI_IFNAME", "net0")
        .env("CNI_CONTAINERID", "box")
        .env("CNI_ARGS", "IgnoreUnknown=1;FOO=bar")
        .env("CAP_ARGS", r#"{"mac":"02:00:00:00:00:07","ignored":1}"#);
    let added = said_ok(&mut add);
    assert_eq!(added[0]["interfaces"][2]["mac"], "02:00:00:00:00:07");
    assert_eq!(pod.links(), ["net0"]);
    assert_eq!(tool.cached(), ["net-box-net0"]);
    let cached = fs::read(bench.dir.path().join("cache/results/net-box-net0")).unwrap();
    let cached: Value = serde_json::from_slice(&cached).unwrap();
    assert_eq!(
        cached["cniArgs"],
        json!([["IgnoreUnknown", "1"], ["FOO", "bar"]])
    );
    assert_eq!(cached["capabilityArgs"]["mac"], "02:00:00:00:00:07");
    // By its name under /run/netns, and by flags.
    let name = pod.path().file_name().unwrap().to_str().unwrap();
    let flags = ["-n", "net", "-i", "net0", "--container-id", "box"];
    for verb in ["check", "del"] {
        tool.say(&[&[verb], flags.as_slice(), &[name]].concat())
            .ok();
    }
    assert!(bench.veths().is_empty() && tool.cached().is_empty());
}

#[track_caller]
fn said_ok(command: &mut Command) -> Vec<Value> {
    said(&command.output().unwrap()).ok()
}

#[test]
fn garbage_is_what_no_namespace_in_use_owns() {
    let bench = Bench::new();
    let tool = Tool::new(&bench, bench.plugins());
    tool.put("10-net.conflist", &list(&bench, "1.1.0"));
    let pods: Vec<TestNetns> = (0..3).map(|_| TestNetns::new("pod")).collect();
    let paths: Vec<&str> = pods.iter().map(path).collect();
    tool.say(&[&["add"], paths.as_slice()].concat()).ok();
    tool.say(&["gc"]).ok();
    assert_eq!(tool.cached().len(), 3);
    skiff_netns::delete_pinned(pods[0].path()).unwrap();
    tool.say(&["gc"]).ok();
    assert_eq!((tool.cached().len(), bench.leases().len()), (2, 2));
    tool.say(&["gc", paths[1]]).ok();
    assert_eq!((tool.cached().len(), bench.leases().len()), (1, 1));
    assert_eq!(bench.veths().len(), 1);
    tool.say(&["check", paths[1]]).ok();
}

#[test]
fn what_is_wrong_is_told_as_the_specification_wants() {
    let bench = Bench::new();
    let tool = Tool::new(&bench, bench.plugins());
    let pod = TestNetns::new("pod");
    let add = |more: &[&str]| tool.say(&[&["add", path(&pod)], more].concat());
    assert_eq!(add(&[]).error(), 7);
    assert_eq!(add(&["--conf-dir", "/nowhere"]).error(), 5);
    tool.put("10-net.conflist", &list(&bench, "1.1.0"));
    assert_eq!(add(&["--network", "other"]).error(), 7);
    assert_eq!(add(&["--capabilities", "[]"]).error(), 6);
    assert_eq!(add(&["--args", "FOO"]).error(), 4);
    assert_eq!(add(&["--ifname", "../x"]).error(), 4);
    assert_eq!(add(&["--container-id", "a/b"]).error(), 4);
    assert_eq!(add(&["--plugin-path", "/nowhere"]).error(), 105);
    assert_eq!(
        tool.say(&["status", "--plugin-path", "/nowhere"]).error(),
        105
    );
    assert_eq!(tool.say(&["add", "/run/netns/skiff-t-none"]).error(), 4);
    tool.put("10-net.conflist", &list(&bench, "0.3.1"));
    assert_eq!(tool.say(&["check", path(&pod)]).error(), 1);
    tool.put("10-net.conflist", &list(&bench, "7"));
    assert_eq!(add(&[]).error(), 1);
    fs::write(bench.dir.path().join("net.d/10-net.conflist"), "{").unwrap();
    assert_eq!(add(&[]).error(), 6);
    assert_eq!((bench.node.links().len(), tool.cached().len()), (0, 0));

    let usage = tool.say(&["add"]);
    assert_eq!(usage.code, 2);
    assert!(usage.errors.contains("NETNS"), "{}", usage.errors);
}
