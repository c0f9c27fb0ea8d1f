//! A pod as the scheduler needs it: parsed once, when it is seen.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint, Toleration, TopologySpreadConstraint};
use kube::core::{Selector, SelectorExt};
use skiff_client::Key;

use crate::affinity::{NodeTerm, PodTerm};
use crate::resources::{Resources, pod_requests};

/// Protocol, port and address of a host port; the empty address stands for all.
pub(crate) type HostPort = (String, i32, String);

/// A `DoNotSchedule` spread constraint.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub(crate) topology_key: String,
    pub(crate) max_skew: i64,
    selector: Option<Selector>,
}

impl Spread {
    fn new(source: &TopologySpreadConstraint) -> Option<Spread> {
        (source.when_unsatisfiable == "DoNotSchedule").then(|| Spread {
            topology_key: source.topology_key.clone(),
            max_skew: i64::from(source.max_skew),
            selector: source
                .label_selector
                .clone()
                .and_then(|s| Selector::try_from(s).ok()),
        })
    }

    pub(crate) fn counts(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

/// What the scheduler knows of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) priority: i32,
    pub(crate) created: Timestamp,
    pub(crate) requests: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) node_selector: BTreeMap<String, String>,
    pub(crate) required_nodes: Option<Vec<NodeTerm>>,
    pub(crate) preferred_nodes: Vec<(i64, NodeTerm)>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) affinity: Vec<PodTerm>,
    pub(crate) anti_affinity: Vec<PodTerm>,
    pub(crate) spread: Vec<Spread>,
    /// Pods with the same number have the same controller.
    pub(crate) controller: Option<u64>,
    /// What a failure was last reported as, so that it is reported once.
    pub(crate) reported: Option<String>,
}

impl PodInfo {
    pub(crate) fn new(pod: &Pod) -> PodInfo {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let meta = &pod.metadata;
        let key = Key::of(pod);
        let affinity = spec.affinity.as_ref();
        let nodes = affinity.and_then(|a| a.node_affinity.as_ref());
        let required = nodes.and_then(|n| {
            n.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let preferred = nodes.and_then(|n| {
            n.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let near = affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            });
        let apart = affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            });
        let owner = meta
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.controller == Some(true));
        PodInfo {
            uid: meta.uid.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            requests: pod_requests(spec),
            host_ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_nodes: required
                .map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
            preferred_nodes: preferred
                .into_iter()
                .flatten()
                .map(|p| (i64::from(p.weight), NodeTerm::new(&p.preference)))
                .collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            affinity: near
                .into_iter()
                .flatten()
                .map(|t| PodTerm::new(t, &key.namespace))
                .collect(),
            anti_affinity: apart
                .into_iter()
                .flatten()
                .map(|t| PodTerm::new(t, &key.namespace))
                .collect(),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .filter_map(Spread::new)
                .collect(),
            controller: owner.map(|owner| {
                let mut hasher = DefaultHasher::new();
                owner.uid.hash(&mut hasher);
                hasher.finish()
            }),
            reported: None,
            key,
        }
    }

    /// Where other pods are matters to it.
    pub(crate) fn looks_at_others(&self) -> bool {
        !self.affinity.is_empty() || !self.spread.is_empty()
    }

    pub(crate) fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|t| tolerates(t, taint))
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    let ports = ports.filter_map(|p| {
        let number = p.host_port.filter(|n| *n > 0)?;
        let address = p.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::");
        let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((protocol, number, address.unwrap_or_default()))
    });
    ports.collect()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same_effect = toleration
        .effect
        .as_deref()
        .is_none_or(|e| e.is_empty() || e == taint.effect);
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let same_key = key == taint.key || (key.is_empty() && exists);
    let same_value = exists
        || toleration.value.as_deref().unwrap_or_default()
            == taint.value.as_deref().unwrap_or_default();
    same_effect && same_key && same_value
}

/// Whether the pod waits for this scheduler.
pub(crate) fn wants_scheduling(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().is_none_or(str::is_empty)
        && spec
            .scheduler_name
            .as_deref()
            .is_none_or(|n| n.is_empty() || n == "default-scheduler")
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
        && !is_finished(pod)
}

pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
