//! Amounts of what nodes have and pods ask for, as plain integers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_api::quantity::Quantity as Amount;

/// CPU in thousandths, the rest in bytes or pieces.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Resources {
    pub(crate) cpu: i64,
    pub(crate) memory: i64,
    pub(crate) ephemeral: i64,
    /// Extended resources and huge pages, few if any.
    pub(crate) extended: BTreeMap<String, i64>,
}

impl Resources {
    pub(crate) fn parse(list: Option<&BTreeMap<String, Quantity>>) -> Resources {
        let mut parsed = Resources::default();
        for (name, quantity) in list.into_iter().flatten() {
            // Validation let it through, so it parses; what does not counts as nothing.
            let amount = Amount::parse(&quantity.0).unwrap_or(Amount::ZERO);
            match name.as_str() {
                "cpu" => parsed.cpu = amount.milli_value(),
                "memory" => parsed.memory = amount.value(),
                "ephemeral-storage" => parsed.ephemeral = amount.value(),
                "pods" => {}
                _ => {
                    parsed.extended.insert(name.clone(), amount.value());
                }
            }
        }
        parsed
    }

    pub(crate) fn add(&mut self, other: &Resources) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral = self.ephemeral.saturating_add(other.ephemeral);
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Resources) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral -= other.ephemeral;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() -= amount;
        }
    }

    /// The larger of each.
    fn raise_to(&mut self, other: &Resources) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.extended {
            let most = self.extended.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// What a pod needs at once: its containers and sidecars together, or the hungriest moment of its
/// initialisation; and its overhead.
pub(crate) fn pod_requests(spec: &PodSpec) -> Resources {
    let requests =
        |c: &Container| Resources::parse(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&requests(container));
    }
    let mut sidecars = Resources::default();
    let mut init_peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut moment = requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&moment);
            sidecars.add(&moment);
            moment = sidecars.clone();
        } else {
            moment.add(&sidecars);
        }
        init_peak.raise_to(&moment);
    }
    total.raise_to(&init_peak);
    let pod_level = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let Some(list) = pod_level {
        let level = Resources::parse(Some(list));
        if list.contains_key("cpu") {
            total.cpu = level.cpu;
        }
        if list.contains_key("memory") {
            total.memory = level.memory;
        }
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::parse(Some(overhead)));
    }
    total
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ResourceRequirements;

    use super::*;

    fn container(cpu: &str, restart: Option<&str>) -> Container {
        Container {
            resources: Some(ResourceRequirements {
                requests: Some(BTreeMap::from([(
                    "cpu".to_owned(),
                    Quantity(cpu.to_owned()),
                )])),
                ..ResourceRequirements::default()
            }),
            restart_policy: restart.map(str::to_owned),
            ..Container::default()
        }
    }

    #[test]
    fn the_hungriest_moment_counts() {
        let mut spec = PodSpec {
            containers: vec![container("100m", None), container("0.2", None)],
            init_containers: Some(vec![container("1", None)]),
            ..PodSpec::default()
        };
        assert_eq!(pod_requests(&spec).cpu, 1000);
        spec.init_containers = Some(vec![
            container("50m", Some("Always")),
            container("320m", None),
        ]);
        assert_eq!(pod_requests(&spec).cpu, 370);
        spec.init_containers = Some(vec![container("50m", Some("Always"))]);
        assert_eq!(pod_requests(&spec).cpu, 350);
    }
}
