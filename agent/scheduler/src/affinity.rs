//! Node selectors and pod affinity terms, compiled once per pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm};
use kube::core::{Selector, SelectorExt};

type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// Cannot be understood: matches nothing.
    Never,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
}

impl Requirement {
    fn new(source: &NodeSelectorRequirement) -> Requirement {
        let values = source.values.clone().unwrap_or_default();
        let number = || values.first().and_then(|v| v.parse().ok());
        let operator = match source.operator.as_str() {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => number().map_or(Operator::Never, Operator::Gt),
            "Lt" => number().map_or(Operator::Never, Operator::Lt),
            _ => Operator::Never,
        };
        Requirement {
            key: source.key.clone(),
            operator,
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(limit) => number().is_some_and(|n| n > *limit),
            Operator::Lt(limit) => number().is_some_and(|n| n < *limit),
            Operator::Never => false,
        }
    }
}

/// One term of a node selector: all its requirements hold. The empty term matches nothing.
#[derive(Clone, Debug)]
pub(crate) struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    pub(crate) fn new(source: &NodeSelectorTerm) -> NodeTerm {
        NodeTerm {
            labels: source
                .match_expressions
                .iter()
                .flatten()
                .map(Requirement::new)
                .collect(),
            fields: source
                .match_fields
                .iter()
                .flatten()
                .map(Requirement::new)
                .collect(),
        }
    }

    pub(crate) fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        self.labels
            .iter()
            .all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
            && self
                .fields
                .iter()
                .all(|r| r.matches((r.key == "metadata.name").then_some(name)))
    }
}

/// A required pod (anti)affinity term.
#[derive(Clone, Debug)]
pub(crate) struct PodTerm {
    pub(crate) topology_key: String,
    namespaces: Vec<String>,
    /// A namespace selector is there: taken as "any namespace".
    all_namespaces: bool,
    /// None selects no pod.
    selector: Option<Selector>,
}

impl PodTerm {
    pub(crate) fn new(source: &PodAffinityTerm, own_namespace: &str) -> PodTerm {
        let mut namespaces = source.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && source.namespace_selector.is_none() {
            namespaces.push(own_namespace.to_owned());
        }
        PodTerm {
            topology_key: source.topology_key.clone(),
            namespaces,
            all_namespaces: source.namespace_selector.is_some(),
            selector: source
                .label_selector
                .clone()
                .and_then(|s| Selector::try_from(s).ok()),
        }
    }

    pub(crate) fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        (self.all_namespaces || self.namespaces.iter().any(|n| n == namespace))
            && self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators() {
        let labels: Labels = [("n", "5"), ("zone", "a")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect();
        let table = [
            ("zone", "In", vec!["a", "b"], true),
            ("zone", "In", vec!["b"], false),
            ("zone", "NotIn", vec!["b"], true),
            ("none", "NotIn", vec!["b"], true),
            ("none", "Exists", vec![], false),
            ("none", "DoesNotExist", vec![], true),
            ("n", "Gt", vec!["4"], true),
            ("n", "Lt", vec!["5"], false),
            ("zone", "Gt", vec!["1"], false),
            ("n", "Bogus", vec!["5"], false),
        ];
        for (key, operator, values, expected) in table {
            let term = NodeTerm::new(&NodeSelectorTerm {
                match_expressions: Some(vec![NodeSelectorRequirement {
                    key: key.to_owned(),
                    operator: operator.to_owned(),
                    values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
                }]),
                match_fields: None,
            });
            assert_eq!(
                term.matches("node", &labels),
                expected,
                "{key} {operator} {values:?}"
            );
        }
        assert!(!NodeTerm::new(&NodeSelectorTerm::default()).matches("node", &labels));
    }
}
