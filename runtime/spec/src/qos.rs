//! Class of service of a pod, and what the kernel's out-of-memory killer makes of it.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::resources::{limit, request};

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has equal requests and limits of CPU and memory.
    Guaranteed,
    /// Some container has a request or limit.
    Burstable,
    /// None has.
    BestEffort,
}

impl QosClass {
    /// As the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod. Quantities that cannot be parsed count as absent: validation is the API server's.
#[must_use]
pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else {
        return QosClass::BestEffort;
    };
    let all = || {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    };
    let amount = |value: Option<i64>| value.filter(|amount| *amount > 0);
    let both = |container: &Container, name: &str| {
        (
            amount(request(container, name).ok().flatten()),
            amount(limit(container, name).ok().flatten()),
        )
    };
    let says_nothing = |c: &Container| {
        ["cpu", "memory"]
            .iter()
            .all(|name| both(c, name) == (None, None))
    };
    let guaranteed = |c: &Container| {
        ["cpu", "memory"].iter().all(|name| match both(c, name) {
            (request, Some(limit)) => request.is_none_or(|request| request == limit),
            _ => false,
        })
    };
    if all().all(says_nothing) {
        QosClass::BestEffort
    } else if all().all(guaranteed) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// The score of one container: the more of the node's memory it asks for, the later it is killed.
#[must_use]
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: u64) -> i32 {
    let critical = pod.spec.as_ref().is_some_and(|spec| {
        spec.priority_class_name.as_deref() == Some("system-node-critical")
            || spec
                .priority
                .is_some_and(|priority| priority >= 2_000_001_000)
    });
    if critical {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let asked = request(container, "memory")
                .ok()
                .flatten()
                .unwrap_or_default()
                .max(0);
            let capacity = i128::from(node_memory_bytes.max(1));
            let score = 1000 - 1000 * i128::from(asked) / capacity;
            // Never as safe as a guaranteed one, never as doomed as one without requests.
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}
