//! Whether a pod fits on the node. The scheduler asked before; this is the last word.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use skiff_spec::{parse_bytes, parse_millis};

use crate::env::Allocatable;
use crate::plan::{Rejection, is_sidecar};

/// What a pod asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    cpu_millis: i64,
    memory: i64,
}

/// What admitted pods take, by UID.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    pods: BTreeMap<String, Requests>,
}

impl Admission {
    /// Takes the pod in if it fits.
    pub(crate) fn admit(
        &mut self,
        uid: &str,
        pod: &Pod,
        capacity: Allocatable,
        max_pods: u32,
    ) -> Result<(), Rejection> {
        if self.pods.contains_key(uid) {
            return Ok(());
        }
        let requests = requests(pod);
        let used = self
            .pods
            .values()
            .fold(Requests::default(), |sum, pod| Requests {
                cpu_millis: sum.cpu_millis + pod.cpu_millis,
                memory: sum.memory + pod.memory,
            });
        let count = i64::try_from(self.pods.len()).unwrap_or(i64::MAX);
        check("pods", 1, count, i64::from(max_pods))?;
        check(
            "cpu",
            requests.cpu_millis,
            used.cpu_millis,
            capacity.cpu_millis,
        )?;
        check("memory", requests.memory, used.memory, capacity.memory)?;
        self.pods.insert(uid.to_owned(), requests);
        Ok(())
    }

    /// Takes the pod in unasked: it runs already.
    pub(crate) fn adopt(&mut self, uid: &str, pod: &Pod) {
        self.pods.insert(uid.to_owned(), requests(pod));
    }

    /// Gives back what the pod took.
    pub(crate) fn release(&mut self, uid: &str) {
        self.pods.remove(uid);
    }
}

fn check(resource: &str, requested: i64, used: i64, capacity: i64) -> Result<(), Rejection> {
    if requested == 0 || used.saturating_add(requested) <= capacity {
        return Ok(());
    }
    Err(Rejection {
        reason: format!("OutOf{resource}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    })
}

fn container_requests(container: &Container) -> Requests {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let get = |name: &str| {
        requests
            .and_then(|map| map.get(name))
            .map(|quantity| quantity.0.as_str())
    };
    Requests {
        cpu_millis: get("cpu")
            .and_then(|text| parse_millis(text).ok())
            .unwrap_or(0),
        memory: get("memory")
            .and_then(|text| parse_bytes(text).ok())
            .unwrap_or(0),
    }
}

/// The larger of what the containers take together and what each init container takes beside the sidecars
/// started before it.
pub(crate) fn requests(pod: &Pod) -> Requests {
    let Some(spec) = &pod.spec else {
        return Requests::default();
    };
    let mut sidecars = Requests::default();
    let mut largest = Requests::default();
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container);
        let now = Requests {
            cpu_millis: sidecars.cpu_millis + own.cpu_millis,
            memory: sidecars.memory + own.memory,
        };
        largest.cpu_millis = largest.cpu_millis.max(now.cpu_millis);
        largest.memory = largest.memory.max(now.memory);
        if is_sidecar(container) {
            sidecars = now;
        }
    }
    let mut sum = sidecars;
    for container in &spec.containers {
        let own = container_requests(container);
        sum.cpu_millis += own.cpu_millis;
        sum.memory += own.memory;
    }
    Requests {
        cpu_millis: sum.cpu_millis.max(largest.cpu_millis),
        memory: sum.memory.max(largest.memory),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(cpu: &str, init_cpu: &str) -> Pod {
        serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": init_cpu}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}],
        }}))
        .unwrap()
    }

    #[test]
    fn the_node_takes_what_fits() {
        let capacity = Allocatable {
            cpu_millis: 1000,
            memory: 1 << 30,
            ephemeral_storage: 0,
        };
        let mut admission = Admission::default();
        admission
            .admit("a", &pod("600m", "0"), capacity, 2)
            .unwrap();
        admission
            .admit("a", &pod("600m", "0"), capacity, 2)
            .unwrap();
        let refused = admission
            .admit("b", &pod("100m", "500m"), capacity, 2)
            .unwrap_err();
        assert_eq!(refused.reason, "OutOfcpu");
        assert_eq!(
            refused.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000"
        );
        admission
            .admit("c", &pod("100m", "0"), capacity, 2)
            .unwrap();
        assert_eq!(
            admission
                .admit("d", &pod("0", "0"), capacity, 2)
                .unwrap_err()
                .reason,
            "OutOfpods"
        );
        admission.release("a");
        admission.admit("d", &pod("0", "0"), capacity, 2).unwrap();
    }
}
