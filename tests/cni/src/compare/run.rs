//! Makes a case happen, in a node and pods of its own.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Case, Step};
use crate::{
    Answer, TestNetns,
    runtime::{Attachment, Runtime},
    state::{self, Deviation, Names},
};

impl Case {
    /// Runs it with `plugins` in fresh namespaces; tells all answers and states, with stable names.
    #[must_use]
    pub fn transcript(&self, plugins: &Path) -> Value {
        self.transcript_by(|_| plugins)
    }

    /// The same with other plugins for each step, by its number.
    pub fn transcript_by<'p>(&self, plugins: impl Fn(usize) -> &'p Path) -> Value {
        let scene = Scene::new(self);
        let mut runtime = Runtime::new(&scene.node, &scene.lists);
        let mut names = scene.names();
        let mut told = Map::new();
        let mut seen = Value::Null;
        for (number, step) in self.steps.iter().enumerate() {
            let plugins = plugins(number);
            let (title, value) = match step {
                Step::Node(command) => ("node".to_owned(), shell(&scene.node, command)),
                Step::Pod(pod, command) => ((*pod).to_owned(), shell(&scene.pods[pod], command)),
                Step::Look(title) => {
                    seen = scene.look(&mut names);
                    ((*title).to_owned(), seen.clone())
                }
                Step::Untouched => {
                    let changes = state::differences(&seen, &scene.look(&mut names));
                    ("untouched".to_owned(), changed(changes))
                }
                Step::Status => ("STATUS".to_owned(), answer(&runtime.status(plugins, 0))),
                Step::Gc(valid) => {
                    let valid: Vec<&Attachment> = valid
                        .iter()
                        .map(|index| &self.attachments[*index])
                        .collect();
                    ("GC".to_owned(), answer(&runtime.gc(plugins, 0, &valid)))
                }
                Step::Add(index)
                | Step::Refuse(index)
                | Step::Check(index)
                | Step::Miss(index)
                | Step::Del(index) => {
                    let attachment = &self.attachments[*index];
                    let command = match step {
                        Step::Add(_) | Step::Refuse(_) => "ADD",
                        Step::Check(_) | Step::Miss(_) => "CHECK",
                        _ => "DEL",
                    };
                    let netns = scene.pods[attachment.pod].path();
                    let mut given = runtime.call(plugins, command, attachment, netns);
                    scene.hide_bridge_addresses(&mut given.json);
                    if command == "ADD" {
                        state::learn(&scene.node, &scene.pods(), &mut names);
                    }
                    let title = format!("{command} {} {}", attachment.pod, attachment.ifname);
                    (title, answer(&given))
                }
            };
            told.insert(format!("{number} {title}"), value);
        }
        names.apply(&Value::Object(told), &self.configured())
    }

    fn configured(&self) -> String {
        format!("{:?} {:?} {:?}", self.lists, self.attachments, self.steps)
    }
}

/// The namespaces and the folder of one run.
struct Scene {
    node: TestNetns,
    pods: BTreeMap<&'static str, TestNetns>,
    dir: TempDir,
    lists: Vec<Value>,
}

impl Scene {
    fn new(case: &Case) -> Self {
        let dir = TempDir::with_prefix("skiff-t-cni-").unwrap();
        let path = dir.path().to_str().unwrap();
        let lists = case.lists.iter().map(|list| place(list, path)).collect();
        let mut pods = BTreeMap::new();
        for attachment in &case.attachments {
            pods.entry(attachment.pod).or_insert_with(|| fresh("pod"));
        }
        Self {
            node: fresh("node"),
            pods,
            dir,
            lists,
        }
    }

    fn names(&self) -> Names {
        let pods: Vec<&str> = self.pods.keys().copied().collect();
        let mut names = Names::new(&pods);
        names.path(self.dir.path(), "$DIR");
        for (pod, netns) in &self.pods {
            names.path(netns.path(), &format!("netns({pod})"));
        }
        names
    }

    fn pods(&self) -> Vec<(&str, &TestNetns)> {
        let pods = self.pods.iter();
        pods.map(|(name, netns)| (*name, netns)).collect()
    }

    fn look(&self, names: &mut Names) -> Value {
        let mut state = state::capture(&self.node, &self.pods(), names);
        state["files"] = files(self.dir.path());
        state
    }

    /// A bridge takes the lowest address of its ports: which one that is differs from run to run.
    fn hide_bridge_addresses(&self, result: &mut Value) {
        let Some(interfaces) = result.get_mut("interfaces").and_then(Value::as_array_mut) else {
            return;
        };
        let bridges: Value =
            serde_json::from_str(&self.node.sh("ip -j link show type bridge")).unwrap();
        for interface in interfaces {
            let bridge = bridges.as_array().and_then(|bridges| {
                bridges
                    .iter()
                    .find(|bridge| bridge["ifname"] == interface["name"])
            });
            if bridge.is_some_and(|bridge| bridge["address"] == interface["mac"]) {
                interface["mac"] = json!("its own");
            }
        }
    }
}

/// A namespace in which IPv6 addresses are usable at once, whatever a plugin asks of it.
fn fresh(role: &str) -> TestNetns {
    let netns = TestNetns::new(role);
    netns.run(|| {
        for (key, value) in [("dad_transmits", "0"), ("router_solicitation_delay", "0")] {
            fs::write(format!("/proc/sys/net/ipv6/conf/default/{key}"), value).unwrap();
        }
    });
    netns
}

fn place(value: &Value, dir: &str) -> Value {
    serde_json::from_str(&value.to_string().replace("$DIR", dir)).unwrap()
}

/// The outcome: success with the result, or the error's code. Messages are for people.
fn answer(given: &Answer) -> Value {
    if !given.ok {
        return json!({"outcome": given.code(), "message": given.json["msg"]});
    }
    let mut result = given.json.clone();
    // Newer versions of the reference leave out what says nothing.
    if let Some(object) = result.as_object_mut() {
        object.retain(|key, value| key != "dns" || *value != json!({}));
    }
    if result.is_null() {
        return json!({ "outcome": OK });
    }
    json!({"outcome": OK, "result": result})
}

/// The outcome of a shell command.
fn shell(netns: &TestNetns, command: &str) -> Value {
    match netns.try_sh(command) {
        Ok(_) => json!({"outcome": OK}),
        Err(message) => json!({"outcome": "failed", "message": message}),
    }
}

pub(super) const OK: &str = "ok";

/// Before and after by path.
fn changed(changes: Vec<Deviation>) -> Value {
    let changes = changes
        .into_iter()
        .filter(|change| !is_bookkeeping(&change.path));
    changes
        .map(|change| (change.path, json!([change.left, change.right])))
        .collect::<Map<_, _>>()
        .into()
}

/// Where host-local looks next is no trace of an ADD that failed.
pub(super) fn is_bookkeeping(path: &str) -> bool {
    path.contains("files > ") && (path.contains("/last_reserved_ip.") || path.ends_with("/lock"))
}

/// Every file below a folder, with its text. What our host-local keeps beside the leases is its own affair.
fn files(dir: &Path) -> Value {
    let mut found = Map::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with(".skiff") {
                folders.push(path);
            } else if path.is_file() {
                let name = path
                    .strip_prefix(dir)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                found.insert(name, json!(fs::read_to_string(&path).unwrap_or_default()));
            }
        }
    }
    Value::Object(found)
}
