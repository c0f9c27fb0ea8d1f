//! The firewall in a form fit to be compared: chains by name, rules in their order, no counters and handles.

use serde_json::{Map, Value, json};

/// `iptables-save` as `{table: {chain: {policy, rules}}}`. Chains of the kernel's own that hold nothing are left out.
pub(super) fn iptables(saved: &str) -> Value {
    let mut tables = Map::new();
    let mut table = Map::new();
    let mut name = String::new();
    for line in saved.lines() {
        if let Some(started) = line.strip_prefix('*') {
            started.clone_into(&mut name);
            table = Map::new();
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let (chain, policy) = (words.next().unwrap(), words.next().unwrap());
            table.insert(chain.to_owned(), json!({"policy": policy, "rules": []}));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            if let Some(rules) = table
                .get_mut(chain)
                .and_then(|chain| chain["rules"].as_array_mut())
            {
                rules.push(json!(rule));
            }
        } else if line == "COMMIT" {
            sort_unordered(&mut table);
            table.retain(|_, chain| chain["policy"] != "ACCEPT" || chain["rules"] != json!([]));
            if !table.is_empty() {
                tables.insert(name.clone(), Value::Object(std::mem::take(&mut table)));
            }
        }
    }
    Value::Object(tables)
}

/// The reference walks a map to fill this chain: its order is random, and says nothing, as no two rules match the same
/// packet.
const UNORDERED: &str = "CNI-HOSTPORT-DNAT";

fn sort_unordered(table: &mut Map<String, Value>) {
    if let Some(rules) = table
        .get_mut(UNORDERED)
        .and_then(|chain| chain["rules"].as_array_mut())
    {
        rules.sort_by_key(Value::to_string);
    }
}

/// The tables that iptables keeps in nftables; told by [`iptables`] already.
const OF_IPTABLES: &[&str] = &["filter", "mangle", "nat", "raw", "security"];

/// `nft -j list ruleset` as `{"family table": {chain or set: {.., rules}}}`.
pub(super) fn nftables(listed: &str) -> Value {
    let listed: Value = serde_json::from_str(listed.trim()).unwrap_or(Value::Null);
    let mut tables = Map::new();
    for object in listed["nftables"].as_array().map_or(&[][..], Vec::as_slice) {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        let text = |key: &str| body[key].as_str().unwrap_or_default();
        let table_name = if kind == "table" {
            text("name")
        } else {
            text("table")
        };
        if kind == "metainfo"
            || (text("family").starts_with("ip") && OF_IPTABLES.contains(&table_name))
        {
            continue;
        }
        let table = tables
            .entry(format!("{} {table_name}", text("family")))
            .or_insert_with(|| json!({}));
        match kind.as_str() {
            "table" => {}
            "rule" => {
                let rules = &mut table[text("chain")]["rules"];
                let mut rule = json!({"expr": quiet(&body["expr"])});
                if let Some(comment) = body.get("comment") {
                    rule["comment"] = comment.clone();
                }
                match rules.as_array_mut() {
                    Some(rules) => rules.push(rule),
                    None => *rules = json!([rule]),
                }
            }
            _ => {
                let mut told = body.clone();
                if let Some(told) = told.as_object_mut() {
                    told.retain(|key, _| {
                        !matches!(key.as_str(), "family" | "table" | "name" | "handle")
                    });
                    told.insert("object".to_owned(), json!(kind));
                }
                table[text("name")] = told;
            }
        }
    }
    Value::Object(tables)
}

/// Expressions without what they counted.
fn quiet(value: &Value) -> Value {
    match value {
        Value::Object(object) => object
            .iter()
            .map(|(key, value)| {
                let value = if key == "counter" {
                    json!("counter")
                } else {
                    quiet(value)
                };
                (key.clone(), value)
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(quiet).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_chains_of_the_kernel_are_left_out() {
        let saved = "*nat\n:PREROUTING ACCEPT [3:180]\n:POSTROUTING ACCEPT [0:0]\n:CNI-X - [0:0]\n\
                     -A POSTROUTING -s 10.0.0.2/32 -j CNI-X\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(
            iptables(saved),
            json!({"nat": {
                "CNI-X": {"policy": "-", "rules": []},
                "POSTROUTING": {"policy": "ACCEPT", "rules": ["-s 10.0.0.2/32 -j CNI-X"]},
            }})
        );
    }

    #[test]
    fn rules_of_nftables_keep_their_order_and_lose_their_counters() {
        let listed = json!({"nftables": [
            {"metainfo": {"version": "1"}},
            {"table": {"family": "ip", "name": "nat", "handle": 1}},
            {"table": {"family": "inet", "name": "cni", "handle": 2}},
            {"chain": {"family": "inet", "table": "cni", "name": "post", "handle": 1, "hook": "postrouting"}},
            {"rule": {"family": "inet", "table": "cni", "chain": "post", "handle": 3, "comment": "c",
                "expr": [{"counter": {"packets": 1, "bytes": 2}}, {"masquerade": null}]}},
        ]});
        assert_eq!(
            nftables(&listed.to_string()),
            json!({"inet cni": {"post": {
                "object": "chain", "hook": "postrouting",
                "rules": [{"comment": "c", "expr": [{"counter": "counter"}, {"masquerade": null}]}],
            }}})
        );
    }
}
