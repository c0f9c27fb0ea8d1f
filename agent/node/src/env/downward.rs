//! The downward API: fields of the pod and resources of its containers as text.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use skiff_spec::parse_millis;

use super::EnvError;

/// What the node can give to pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Allocatable {
    /// Thousandths of a cpu.
    pub(crate) cpu_millis: i64,
    /// Bytes of memory.
    pub(crate) memory: i64,
    /// Bytes of disk.
    pub(crate) ephemeral_storage: i64,
}

/// The value of a field path such as `metadata.name` or `metadata.labels['app']`.
pub(crate) fn field_value(
    pod: &Pod,
    path: &str,
    pod_ips: &[IpAddr],
    host_ips: &[IpAddr],
) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let host_network = spec.is_some_and(|spec| spec.host_network == Some(true));
    let ips = if host_network { host_ips } else { pod_ips };
    let join = |ips: &[IpAddr]| {
        ips.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    let one = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(pairs(meta.labels.iter().flatten())),
        "metadata.annotations" => Some(pairs(meta.annotations.iter().flatten())),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.podIP" => Some(one(ips)),
        "status.podIPs" => Some(join(ips)),
        "status.hostIP" => Some(one(host_ips)),
        "status.hostIPs" => Some(join(host_ips)),
        _ => {
            let (map, key) = path
                .split_once("['")
                .and_then(|(map, rest)| Some((map, rest.strip_suffix("']")?)))
                .ok_or_else(|| EnvError::Field(path.to_owned()))?;
            let map = match map {
                "metadata.labels" => meta.labels.as_ref(),
                "metadata.annotations" => meta.annotations.as_ref(),
                _ => return Err(EnvError::Field(path.to_owned())),
            };
            map.and_then(|map| map.get(key)).cloned()
        }
    };
    Ok(value.unwrap_or_default())
}

fn pairs<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    map.map(|(key, value)| format!("{key}={value:?}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The value of a `resourceFieldRef`; `own` is the container it stands in, if it stands in one.
pub(crate) fn resource_value(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: Allocatable,
) -> Result<String, EnvError> {
    let unsupported = || EnvError::Resource(selector.resource.clone());
    let container = match selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        None => own,
        Some(name) => pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .find(|c| c.name == name),
    };
    let resources = container.ok_or_else(unsupported)?.resources.as_ref();
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let map = match list {
        "limits" => limits,
        "requests" => resources
            .and_then(|resources| resources.requests.as_ref())
            .or(limits),
        _ => return Err(unsupported()),
    };
    let quantity: Option<&Quantity> = map.and_then(|map| map.get(name));
    let is_limit = list == "limits";
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|divisor| parse_millis(&divisor.0).ok());
    let divisor = divisor.filter(|millis| *millis > 0).unwrap_or(1000);
    let fallback = match name {
        "cpu" => allocatable.cpu_millis,
        "memory" => allocatable.memory.saturating_mul(1000),
        "ephemeral-storage" => allocatable.ephemeral_storage.saturating_mul(1000),
        _ if name.starts_with("hugepages-") => 0,
        _ => return Err(unsupported()),
    };
    let millis = match quantity {
        Some(quantity) => parse_millis(&quantity.0).ok().ok_or_else(unsupported)?,
        None if is_limit => fallback,
        None => 0,
    };
    // Upstream rounds up.
    Ok(millis
        .saturating_add(divisor - 1)
        .div_euclid(divisor)
        .to_string())
}
