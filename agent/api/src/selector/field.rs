//! Field selectors: `metadata.name=web,status.phase!=Running`.

use std::fmt;

use serde_json::Value;

use super::SelectorError;
use crate::object::{at, text};
use crate::resource::{Kind, Resource};

/// A parsed field selector: all terms must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Parses the query parameter for a resource; the empty string selects everything.
    ///
    /// # Errors
    /// If it is malformed or names a field that this kind does not support.
    pub fn parse(resource: &Resource, text: &str) -> Result<FieldSelector, SelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(text) {
            let Some((field, equal, value)) = split_term(term) else {
                return Err(SelectorError::new(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            let value = unescape(value)?;
            if !is_supported(resource, field) {
                return Err(unsupported(resource.id, field));
            }
            terms.push(Term {
                field: field.to_owned(),
                equal,
                value,
            });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must have, if the selector says so: lets a list by `metadata.name` read one key.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            let found = lookup(object, &term.field);
            found.matches(&term.value) == term.equal
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let operator = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}", term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// A field's value as selectors see it: everything is text, absent is empty.
enum Found<'a> {
    Text(&'a str),
    Number(i64),
}

impl Found<'_> {
    fn matches(&self, wanted: &str) -> bool {
        match self {
            Found::Text(text) => *text == wanted,
            Found::Number(number) => wanted.parse() == Ok(*number),
        }
    }
}

fn lookup<'a>(object: &'a Value, field: &str) -> Found<'a> {
    let mut value = Some(object);
    for key in field.split('.') {
        value = value.and_then(|v| v.get(key));
    }
    match value {
        Some(Value::String(found)) => Found::Text(found),
        Some(Value::Bool(true)) => Found::Text("true"),
        Some(Value::Bool(false)) => Found::Text("false"),
        Some(Value::Number(number)) => Found::Number(number.as_i64().unwrap_or_default()),
        // Zero values of fields that are not strings, and names that differ from the path.
        _ => match field {
            "spec.unschedulable" | "spec.hostNetwork" => Found::Text("false"),
            "status.replicas" => Found::Number(0),
            "status.podIP" => Found::Text(
                at(object, &["status", "podIPs"])
                    .and_then(|ips| ips.get(0)?.get("ip")?.as_str())
                    .unwrap_or_default(),
            ),
            "source" => Found::Text(event_source(object)),
            // Namespaces answer to this name, too.
            "name" => Found::Text(text(object, &["metadata", "name"])),
            _ => Found::Text(""),
        },
    }
}

/// Upstream selects events by `source.component`, or by the reporting component if that is empty.
fn event_source(object: &Value) -> &str {
    let component = |path: &[&str]| {
        at(object, path)
            .and_then(Value::as_str)
            .filter(|s| !s.is_empty())
    };
    component(&["source", "component"])
        .or_else(|| component(&["reportingComponent"]))
        .or_else(|| component(&["reportingController"]))
        .unwrap_or_default()
}

fn is_supported(resource: &Resource, field: &str) -> bool {
    if field == "metadata.name" || (field == "metadata.namespace" && resource.namespaced) {
        return true;
    }
    match resource.id {
        Kind::Pod => matches!(
            field,
            "spec.nodeName"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.serviceAccountName"
                | "spec.hostNetwork"
                | "status.phase"
                | "status.podIP"
                | "status.podIPs"
                | "status.nominatedNodeName"
        ),
        Kind::Node => field == "spec.unschedulable",
        Kind::Namespace => matches!(field, "status.phase" | "name"),
        Kind::Secret => field == "type",
        Kind::Service => matches!(field, "spec.clusterIP" | "spec.type"),
        Kind::ReplicaSet => field == "status.replicas",
        Kind::CoreEvent => matches!(
            field,
            "involvedObject.kind"
                | "involvedObject.namespace"
                | "involvedObject.name"
                | "involvedObject.uid"
                | "involvedObject.apiVersion"
                | "involvedObject.resourceVersion"
                | "involvedObject.fieldPath"
                | "reason"
                | "reportingComponent"
                | "source"
                | "type"
        ),
        Kind::Event => matches!(
            field,
            "regarding.kind"
                | "regarding.namespace"
                | "regarding.name"
                | "regarding.uid"
                | "regarding.apiVersion"
                | "regarding.resourceVersion"
                | "regarding.fieldPath"
                | "reason"
                | "reportingController"
                | "type"
        ),
        _ => false,
    }
}

/// Kinds with fields of their own have other words than those with names only.
fn unsupported(kind: Kind, field: &str) -> SelectorError {
    SelectorError::new(match kind {
        Kind::ConfigMap
        | Kind::ServiceAccount
        | Kind::Endpoints
        | Kind::EndpointSlice
        | Kind::Lease
        | Kind::NetworkPolicy
        | Kind::Deployment => format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ),
        _ => format!("field label not supported: {field}"),
    })
}

/// Splits at commas that are not escaped; empty terms are skipped, as upstream does.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let comma = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        comma
    })
    .filter(|term| !term.is_empty())
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find(['=', '!'])?;
    let (field, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, false, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((field, true, value))
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => {
                    let message =
                        format!("invalid field selector: invalid escape sequence: \\{next}");
                    return Err(SelectorError::new(message));
                }
                None => {
                    return Err(SelectorError::new(
                        "invalid field selector: unterminated escape sequence",
                    ));
                }
            },
            '=' => {
                let message =
                    format!("invalid field selector: unescaped character in value: {value:?}");
                return Err(SelectorError::new(message));
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}
