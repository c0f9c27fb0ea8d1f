//! `nft`: scripts in, tables out. Each call is one process and one transaction.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{FirewallError, FirewallLock, lock::replan, process};

const PROGRAM: &str = "nft";

/// Applies a script; all of it or nothing.
///
/// # Errors
/// [`FirewallError::Refused`] with what nft said.
pub fn apply(script: &str) -> Result<(), FirewallError> {
    process::run(PROGRAM, &["-f", "-"], script).map(drop)
}

/// Changes a table: by the first of the `guesses` that fits, or else by what `plan` says after a look (`None` if there is
/// no such table), made anew while somebody else changes the table. Says whether there was anything to change.
///
/// # Errors
/// [`FirewallError`]; the last plan's refusal if none fits.
pub fn change(
    family: &str,
    name: &str,
    guesses: &[String],
    plan: impl Fn(Option<&Table>) -> String,
) -> Result<bool, FirewallError> {
    // Who owns an element is known by a look only: even a guess must not come between another's look and change.
    let _lock = FirewallLock::acquire()?;
    for guess in guesses {
        match apply(guess) {
            Err(error) if error.is_refusal() => {}
            done => return done.map(|()| true),
        }
    }
    replan(|| {
        let script = plan(Table::list(family, name)?.as_ref());
        Ok((!script.is_empty()).then(|| apply(&script)))
    })
}

/// The objects that `nft -j list ARGS` prints, such as `["table", "inet", "filter"]`; `None` if there are none of that
/// name.
///
/// # Errors
/// [`FirewallError`].
pub fn list_json(args: &[&str]) -> Result<Option<Vec<Value>>, FirewallError> {
    let words: Vec<&str> = ["-j", "list"]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    let printed = match process::run(PROGRAM, &words, "") {
        Ok(printed) => printed,
        Err(FirewallError::Refused { reason, .. }) if reason.contains("No such file") => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut json: Value =
        serde_json::from_slice(&printed).map_err(|source| FirewallError::Output {
            program: PROGRAM,
            source,
        })?;
    match json.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(Some(objects)),
        _ => Ok(Some(Vec::new())),
    }
}

/// A table: what is in it by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Names of its chains.
    pub chains: BTreeSet<String>,
    /// Names of its sets and maps.
    pub sets: BTreeSet<String>,
    /// What is in the sets and maps.
    pub elements: Vec<Element>,
    /// The chains' rules in order.
    pub rules: Vec<Rule>,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The set.
    pub set: String,
    /// As it is written in a script, such as `tcp . 80`.
    pub key: String,
    /// What the map has for it, such as `goto chain`; empty for a set.
    pub value: String,
    /// Its comment, if any.
    pub comment: String,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain.
    pub chain: String,
    /// By which it is deleted.
    pub handle: u64,
    /// Its comment, if any.
    pub comment: String,
}

impl Table {
    /// Reads a table, such as `("inet", "filter")`; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn list(family: &str, name: &str) -> Result<Option<Self>, FirewallError> {
        Ok(list_json(&["table", family, name])?.map(|objects| Self::from_objects(&objects)))
    }

    /// Puts together the objects that [`list_json`] gave for one table.
    #[must_use]
    pub fn from_objects(objects: &[Value]) -> Self {
        let mut table = Self::default();
        for object in objects {
            if let Some(chain) = object.get("chain") {
                table.chains.insert(text(chain, "name"));
            } else if let Some(set) = object.get("map").or_else(|| object.get("set")) {
                let name = text(set, "name");
                for element in set
                    .get("elem")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    table.elements.push(Element::read(&name, element));
                }
                table.sets.insert(name);
            } else if let Some(rule) = object.get("rule") {
                table.rules.push(Rule {
                    chain: text(rule, "chain"),
                    handle: rule
                        .get("handle")
                        .and_then(Value::as_u64)
                        .unwrap_or_default(),
                    comment: text(rule, "comment"),
                });
            }
        }
        table
    }

    /// The element of a set with this key.
    #[must_use]
    pub fn element(&self, set: &str, key: &str) -> Option<&Element> {
        self.elements
            .iter()
            .find(|element| element.set == set && element.key == key)
    }
}

impl Element {
    /// A map's element is a pair; one with a comment is wrapped.
    fn read(set: &str, element: &Value) -> Self {
        let (key, value) = match element.as_array().map(Vec::as_slice) {
            Some([key, value]) => (key, written(value)),
            _ => (element, String::new()),
        };
        let wrapped = key.get("elem");
        Self {
            set: set.to_owned(),
            key: written(
                wrapped
                    .and_then(|wrapped| wrapped.get("val"))
                    .unwrap_or(key),
            ),
            value,
            comment: wrapped
                .map(|wrapped| text(wrapped, "comment"))
                .unwrap_or_default(),
        }
    }
}

fn text(object: &Value, key: &str) -> String {
    object
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// A key or value as a script has it.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Object(object) => match object.iter().next() {
            Some((kind, Value::Array(parts))) if kind == "concat" => {
                let parts: Vec<String> = parts.iter().map(written).collect();
                parts.join(" . ")
            }
            Some((kind, prefix)) if kind == "prefix" => {
                let part = |key| prefix.get(key).map(written).unwrap_or_default();
                format!("{}/{}", part("addr"), part("len"))
            }
            Some((verdict, Value::Object(inner))) => {
                format!(
                    "{verdict} {}",
                    inner.get("target").map(written).unwrap_or_default()
                )
            }
            Some((verdict, _)) => verdict.clone(),
            None => String::new(),
        },
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_put_together() {
        let objects = json!([
            {"metainfo": {"json_schema_version": 1}},
            {"table": {"family": "inet", "name": "t", "handle": 1}},
            {"map": {"name": "m", "elem": [
                [{"elem": {"val": "10.0.0.2", "comment": "x"}}, {"goto": {"target": "c"}}],
                [{"concat": ["tcp", 80]}, {"concat": ["10.0.0.2", 8080]}],
            ]}},
            {"set": {"name": "s", "elem": ["10.0.0.3", {"elem": {"val": {"concat": [
                {"prefix": {"addr": "10.0.0.0", "len": 24}}, "b"]}, "comment": "y"}}]}},
            {"set": {"name": "empty"}},
            {"chain": {"name": "c", "handle": 2}},
            {"rule": {"chain": "c", "handle": 7, "comment": "z", "expr": []}},
        ]);
        let table = Table::from_objects(objects.as_array().unwrap());
        let element = |set: &str, key: &str| {
            let found = table.element(set, key).unwrap();
            (found.value.clone(), found.comment.clone())
        };
        assert_eq!(element("m", "10.0.0.2"), ("goto c".into(), "x".into()));
        assert_eq!(
            element("m", "tcp . 80"),
            ("10.0.0.2 . 8080".into(), String::new())
        );
        assert_eq!(element("s", "10.0.0.3"), (String::new(), String::new()));
        assert_eq!(element("s", "10.0.0.0/24 . b"), (String::new(), "y".into()));
        assert_eq!(table.sets.len(), 3);
        assert!(table.chains.contains("c"));
        assert_eq!(table.rules[0].handle, 7);
    }
}
