//! What a node and its pods look like to the kernel: one JSON document per moment, fit to be compared.
//!
//! Everything is told that a plugin can change: links with their kind, flags and port attributes, VLANs, addresses,
//! routes of all tables, rules, permanent neighbours, queueing disciplines and filters, the firewall of both
//! families and every sysctl under `net`. What the kernel or a plugin picks at random is told by a stable name of
//! ours ([`Names`]): the node's ends of veths, hardware addresses, link-local addresses, paths of namespaces.

mod firewall;
mod names;
mod read;
mod settle;

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

pub use self::names::Names;
use self::read::Sections;
use crate::TestNetns;

/// The state of the node (`node`) and of each pod, by name. Waits until links and addresses have settled, and
/// teaches `names` what they are called.
#[must_use]
pub fn capture(node: &TestNetns, pods: &[(&str, &TestNetns)], names: &mut Names) -> Value {
    let mut spaces = vec![("node", node)];
    spaces.extend_from_slice(pods);
    let sections = settle::settled(&spaces);
    names.learn(&sections);
    let mut all = Map::new();
    for ((name, netns), sections) in spaces.iter().zip(&sections) {
        all.insert((*name).to_owned(), state_of(netns, sections));
    }
    Value::Object(all)
}

/// Teaches `names` what there is now, without waiting and without telling it.
pub fn learn(node: &TestNetns, pods: &[(&str, &TestNetns)], names: &mut Names) {
    let spaces = std::iter::once(node).chain(pods.iter().map(|(_, netns)| *netns));
    let sections: Vec<Sections> = spaces.map(Sections::links_of).collect();
    names.learn(&sections);
}

/// What is told of one namespace. `inet` and `inet6` are routes of all tables, rules and permanent neighbours.
fn state_of(netns: &TestNetns, sections: &Sections) -> Value {
    json!({
        "links": sections.links(),
        "addresses": sections.addresses(),
        "vlans": sections.vlans(),
        "inet": counted(sections.lines("inet")),
        "inet6": counted(sections.lines("inet6")),
        "qdiscs": counted(sections.lines("qdiscs")),
        "filters": counted(read::filters(netns, sections)),
        "iptables": firewall::iptables(sections.text("iptables")),
        "ip6tables": firewall::iptables(sections.text("ip6tables")),
        "nftables": firewall::nftables(sections.text("nftables")),
        "sysctls": sections.sysctls(),
    })
}

/// Lines whose order says nothing, each with how often it is there.
fn counted(lines: impl IntoIterator<Item = String>) -> Value {
    let mut counted = Map::new();
    for line in lines {
        let count = counted.get(&line).and_then(Value::as_u64).unwrap_or(0);
        counted.insert(line, json!(count + 1));
    }
    Value::Object(counted)
}

/// Where two documents differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// Keys from the top, joined by ` > `.
    pub path: String,
    /// What the first has there.
    pub left: Option<Value>,
    /// What the second has there.
    pub right: Option<Value>,
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A link that is missing is a long story.
        let show = |value: &Option<Value>| -> String {
            let text = value.as_ref().map_or("-".to_owned(), Value::to_string);
            text.chars().take(300).collect()
        };
        write!(
            f,
            "{}\n      {}\n      {}",
            self.path,
            show(&self.left),
            show(&self.right)
        )
    }
}

/// Every place where two documents differ, each as deep down as it can be told.
#[must_use]
pub fn differences(left: &Value, right: &Value) -> Vec<Deviation> {
    let mut found = Vec::new();
    compare(String::new(), Some(left), Some(right), &mut found);
    found
}

/// One line per deviation and its two sides.
#[must_use]
pub fn show(deviations: &[Deviation]) -> String {
    let mut text = String::new();
    for deviation in deviations {
        writeln!(text, "    {deviation}").unwrap();
    }
    text
}

fn compare(path: String, left: Option<&Value>, right: Option<&Value>, found: &mut Vec<Deviation>) {
    if left == right {
        return;
    }
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path} > {key}")
        }
    };
    match (left, right) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            for (key, value) in left {
                compare(below(key), Some(value), right.get(key), found);
            }
            for (key, value) in right.iter().filter(|(key, _)| !left.contains_key(*key)) {
                compare(below(key), None, Some(value), found);
            }
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) if left.len() == right.len() => {
            for (index, (left, right)) in left.iter().zip(right).enumerate() {
                compare(below(&index.to_string()), Some(left), Some(right), found);
            }
        }
        _ => found.push(Deviation {
            path,
            left: left.cloned(),
            right: right.cloned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_as_deep_down_as_they_are() {
        let left = json!({"a": {"b": 1, "c": [1, 2]}, "only": true});
        let right = json!({"a": {"b": 2, "c": [1, 3]}, "new": {"x": 1}});
        let paths: Vec<String> = differences(&left, &right)
            .into_iter()
            .map(|deviation| deviation.path)
            .collect();
        assert_eq!(paths, ["a > b", "a > c > 1", "only", "new"]);
        assert!(differences(&left, &left).is_empty());
    }

    #[test]
    fn lists_of_other_length_are_one_difference() {
        let found = differences(&json!({"a": [1]}), &json!({"a": [1, 2]}));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "a");
    }
}
