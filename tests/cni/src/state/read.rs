//! Reads a namespace with the usual tools, all in one shell, and picks what is worth comparing.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::TestNetns;

/// The quick part, enough to see whether the namespace has settled.
const LINKS: &str = r"
section() { printf '\n### %s\n' $1; }
section links; ip -j -d link
section addresses; ip -j -d addr
";

/// The rest. Most namespaces have no firewall: looking is quicker than saving nothing.
const REST: &str = r#"
section() { printf '\n### %s\n' $1; }
section inet; ip -d -4 -batch - <<END
route show table all
rule
neigh show nud permanent
neigh show proxy
END
section inet6; ip -d -6 -batch - <<END
route show table all
rule
neigh show nud permanent
neigh show proxy
END
section vlans; bridge -j vlan
section qdiscs; tc qdisc
section nftables; ruleset=$(nft -j list ruleset); echo "$ruleset"
case "$ruleset$(cat /proc/net/ip_tables_names 2>/dev/null)" in
    *table*) section iptables; iptables-save ;;
esac
case "$ruleset$(cat /proc/net/ip6_tables_names 2>/dev/null)" in
    *table*) section ip6tables; ip6tables-save ;;
esac
true
"#;

/// What plugins may tune.
const SYSCTLS: &str = "/proc/sys/net";

/// Told elsewhere, picked by the kernel, or counting time.
const LINK_NOISE: &[&str] = &[
    "address",
    "ifindex",
    "ifname",
    "link",
    "link_index",
    "link_netnsid",
    "linkinfo",
    "permaddr",
];
const BRIDGE_NOISE: &[&str] = &[
    "bridge_id",
    "gc_timer",
    "hello_timer",
    "root_id",
    "tcn_timer",
    "topology_change_timer",
];
const PORT_NOISE: &[&str] = &[
    "bridge_id",
    "designated_port",
    "forward_delay_timer",
    "hold_timer",
    "id",
    "message_age_timer",
    "no",
    "root_id",
];

/// What the tools printed, by section, and the sysctls.
#[derive(Debug)]
pub(super) struct Sections {
    printed: HashMap<String, String>,
    sysctls: Map<String, Value>,
}

impl Sections {
    /// Links and addresses only.
    pub(super) fn links_of(netns: &TestNetns) -> Self {
        let mut sections = Self {
            printed: HashMap::new(),
            sysctls: Map::new(),
        };
        sections.add(&netns.sh(LINKS));
        sections
    }

    /// Reads everything else.
    pub(super) fn complete(&mut self, netns: &TestNetns) {
        self.add(&netns.sh(REST));
        self.sysctls = netns.run(sysctls);
    }

    fn add(&mut self, text: &str) {
        for section in text.split("\n### ").skip(1) {
            let (name, body) = section.split_once('\n').unwrap();
            self.printed.insert(name.to_owned(), body.to_owned());
        }
    }

    /// A section as it was printed.
    pub(super) fn text(&self, section: &str) -> &str {
        self.printed.get(section).map_or("", String::as_str)
    }

    /// A section of iproute2's JSON.
    pub(super) fn json(&self, section: &str) -> Vec<Value> {
        match self.text(section).trim() {
            "" => Vec::new(),
            text => serde_json::from_str(text).unwrap(),
        }
    }

    /// The lines of a section, blanks made single.
    pub(super) fn lines(&self, section: &str) -> Vec<String> {
        let lines = self.text(section).lines();
        lines
            .map(single_blanks)
            .filter(|line| !line.is_empty())
            .collect()
    }

    /// Links by name.
    pub(super) fn links(&self) -> Value {
        let mut links = Map::new();
        for link in self.json("links") {
            let mut told = without(&link, LINK_NOISE);
            if let Value::Object(told) = &mut told {
                let mut flags: Vec<&str> = strings(&link["flags"]);
                flags.sort_unstable();
                told.insert("flags".to_owned(), json!(flags.join(" ")));
                let info = &link["linkinfo"];
                told.insert("kind".to_owned(), info["info_kind"].clone());
                told.insert("data".to_owned(), without(&info["info_data"], BRIDGE_NOISE));
                told.insert(
                    "port".to_owned(),
                    without(&info["info_slave_data"], PORT_NOISE),
                );
                // A bridge takes the lowest of its ports' addresses unless it is given one.
                if info["info_kind"] != "bridge" {
                    told.insert("address".to_owned(), link["address"].clone());
                }
            }
            links.insert(name(&link), told);
        }
        Value::Object(links)
    }

    /// Addresses by link.
    pub(super) fn addresses(&self) -> Value {
        let mut links = Map::new();
        for link in self.json("addresses") {
            let mut addresses = Map::new();
            for address in link["addr_info"].as_array().unwrap() {
                let key = format!(
                    "{}/{}",
                    address["local"].as_str().unwrap_or("?"),
                    address["prefixlen"]
                );
                addresses.insert(key, without(address, &["local", "prefixlen"]));
            }
            links.insert(name(&link), Value::Object(addresses));
        }
        Value::Object(links)
    }

    /// VLANs by port.
    pub(super) fn vlans(&self) -> Value {
        let ports = self.json("vlans");
        ports
            .into_iter()
            .map(|port| (name(&port), port["vlans"].clone()))
            .collect::<Map<_, _>>()
            .into()
    }

    /// Sysctls by key.
    pub(super) fn sysctls(&self) -> Value {
        Value::Object(self.sysctls.clone())
    }
}

/// All that can be read, of the namespace of this thread.
fn sysctls() -> Map<String, Value> {
    let mut found = Map::new();
    // What netfilter has there counts packets.
    let mut folders: Vec<PathBuf> = ["bridge", "core", "ipv4", "ipv6"]
        .iter()
        .map(|area| Path::new(SYSCTLS).join(area))
        .collect();
    while let Some(folder) = folders.pop() {
        // Not every kernel has each of them.
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if let Ok(value) = fs::read_to_string(entry.path()) {
                let path = entry.path();
                let key = path.strip_prefix(SYSCTLS).unwrap();
                nest(&mut found, key, json!(single_blanks(&value)));
            }
        }
    }
    found
}

/// A folder is an object, so that a link that is missing is one difference.
fn nest(tree: &mut Map<String, Value>, key: &Path, value: Value) {
    let mut parts = key.iter();
    let Some(first) = parts.next() else {
        return;
    };
    let (first, rest) = (first.to_string_lossy().into_owned(), parts.as_path());
    if rest.as_os_str().is_empty() {
        tree.insert(first, value);
    } else if let Some(below) = tree
        .entry(first)
        .or_insert_with(|| json!({}))
        .as_object_mut()
    {
        nest(below, rest, value);
    }
}

/// The filters of every link that has a classful or ingress qdisc.
pub(super) fn filters(netns: &TestNetns, sections: &Sections) -> Vec<String> {
    let mut script = String::new();
    for line in sections.lines("qdiscs") {
        let words: Vec<&str> = line.split(' ').collect();
        let link = words.iter().position(|word| *word == "dev");
        let Some(link) = link.and_then(|at| words.get(at + 1)) else {
            continue;
        };
        if matches!(words.get(1), Some(&"ingress" | &"clsact")) {
            script += &format!("tc filter show dev {link} ingress | sed 's/^/{link} ingress: /'\n");
        } else if matches!(words.get(1), Some(&("htb" | "tbf" | "prio"))) {
            script += &format!("tc filter show dev {link} | sed 's/^/{link}: /'\n");
        }
    }
    // An action's index is the machine's count of actions.
    let told =
        |line: &String| !line.is_empty() && !line.ends_with(':') && !line.contains(": index ");
    netns
        .sh(&script)
        .lines()
        .map(single_blanks)
        .filter(told)
        .collect()
}

fn single_blanks(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn name(link: &Value) -> String {
    link["ifname"].as_str().unwrap().to_owned()
}

pub(super) fn strings(list: &Value) -> Vec<&str> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(Value::as_str).collect()
}

fn without(object: &Value, noise: &[&str]) -> Value {
    let Value::Object(object) = object else {
        return Value::Null;
    };
    let kept = object
        .iter()
        .filter(|(key, _)| !noise.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone()))
        .collect::<Map<_, _>>()
        .into()
}
