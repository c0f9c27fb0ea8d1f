//! Stable names for what is picked at random.

use std::{collections::HashMap, net::Ipv6Addr, path::Path};

use serde_json::Value;

use super::read::{Sections, name};

/// Replaces random names by stable ones, in everything that one run left behind.
#[derive(Debug, Default)]
pub struct Names {
    /// Random to stable.
    known: HashMap<String, String>,
    /// Namespaces in the order in which [`super::capture`] is told of them.
    spaces: Vec<String>,
}

impl Names {
    /// For a node and these pods.
    #[must_use]
    pub fn new(pods: &[&str]) -> Self {
        let mut spaces = vec!["node".to_owned()];
        spaces.extend(pods.iter().map(|pod| (*pod).to_owned()));
        Self {
            known: HashMap::new(),
            spaces,
        }
    }

    /// A path that is another one in every run.
    pub fn path(&mut self, path: &Path, stable: &str) {
        self.known
            .insert(path.to_string_lossy().into_owned(), stable.to_owned());
    }

    /// Learns the node's ends of veths, and the addresses of all links but bridges.
    pub(super) fn learn(&mut self, sections: &[Sections]) {
        let links: Vec<Vec<Value>> = sections
            .iter()
            .map(|sections| sections.json("links"))
            .collect();
        let Some((node, pods)) = links.split_first() else {
            return;
        };
        for (pod, links) in self.spaces.iter().skip(1).zip(pods) {
            for link in links
                .iter()
                .filter(|link| link["linkinfo"]["info_kind"] == "veth")
            {
                let end = node.iter().find(|end| end["ifindex"] == link["link_index"]);
                let stable = format!("veth({pod}/{})", name(link));
                if let Some(end) = end {
                    self.known.insert(name(end), stable);
                }
            }
        }
        for (space, links) in self.spaces.iter().zip(&links) {
            for link in links {
                let kind = &link["linkinfo"]["info_kind"];
                let Some(mac) = link["address"].as_str() else {
                    continue;
                };
                if kind == "bridge" || link["link_type"] != "ether" {
                    continue;
                }
                let own = name(link);
                let stable = self.known.get(&own).filter(|_| space == "node");
                let stable = stable.map_or_else(|| format!("{space}/{own}"), String::clone);
                self.known.insert(mac.to_owned(), format!("mac({stable})"));
            }
        }
    }

    /// The document with stable names. Hardware addresses in `configured` stay as they are.
    #[must_use]
    pub fn apply(&self, document: &Value, configured: &str) -> Value {
        match document {
            Value::String(text) => Value::String(self.text(text, configured)),
            Value::Array(list) => list
                .iter()
                .map(|value| self.apply(value, configured))
                .collect(),
            Value::Object(object) => object
                .iter()
                .map(|(key, value)| (self.text(key, configured), self.apply(value, configured)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str, configured: &str) -> String {
        let part_of_word =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '/');
        if let Some(stable) = self.known.get(text).filter(|_| !configured.contains(text)) {
            return stable.clone();
        }
        // Words of a line, and the parts of a path such as a sysctl's.
        let mut out = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let word = rest.find(|c| !part_of_word(c)).unwrap_or(rest.len());
            if word == 0 {
                let next = rest.find(part_of_word).unwrap_or(rest.len());
                out.push_str(&rest[..next]);
                rest = &rest[next..];
                continue;
            }
            out.push_str(&self.word(&rest[..word], configured));
            rest = &rest[word..];
        }
        out
    }

    fn word(&self, word: &str, configured: &str) -> String {
        if let Some(stable) = self.known.get(word).filter(|_| !configured.contains(word)) {
            return stable.clone();
        }
        let (address, length) = word.split_once('/').unwrap_or((word, ""));
        if is_derived_link_local(address) {
            let length = if length.is_empty() {
                String::new()
            } else {
                format!("/{length}")
            };
            return format!("fe80::(own){length}");
        }
        let parts: Vec<&str> = word
            .split('/')
            .map(|part| {
                let stable = self.known.get(part).filter(|_| !configured.contains(part));
                stable.map_or(part, String::as_str)
            })
            .collect();
        parts.join("/")
    }
}

/// Whether an address was made of a hardware address.
fn is_derived_link_local(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok_and(|address| {
        let bytes = address.octets();
        bytes.starts_with(&[0xfe, 0x80]) && bytes[11..13] == [0xff, 0xfe]
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_replaced_in_lines_paths_and_keys() {
        let mut names = Names::new(&["a"]);
        names
            .known
            .insert("veth12ab".to_owned(), "veth(a/eth0)".to_owned());
        names
            .known
            .insert("aa:bb:cc:00:11:22".to_owned(), "mac(a/eth0)".to_owned());
        names.path(Path::new("/run/netns/x-1"), "netns(a)");
        let document = json!({
            "net/ipv4/conf/veth12ab/arp_notify": "0",
            "route": "10.0.0.2 dev veth12ab scope link",
            "sandbox": "/run/netns/x-1",
            "mac": ["aa:bb:cc:00:11:22", "02:00:00:00:00:01"],
            "other": "veth12abc",
            "own": "local fe80::a8bb:ccff:fe00:1122/64 dev eth0",
        });
        assert_eq!(
            names.apply(&document, "02:00:00:00:00:01"),
            json!({
                "net/ipv4/conf/veth(a/eth0)/arp_notify": "0",
                "route": "10.0.0.2 dev veth(a/eth0) scope link",
                "sandbox": "netns(a)",
                "mac": ["mac(a/eth0)", "02:00:00:00:00:01"],
                "other": "veth12abc",
                "own": "local fe80::(own)/64 dev eth0",
            })
        );
    }
}
