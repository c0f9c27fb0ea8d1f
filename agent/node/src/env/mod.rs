//! The environment of a container: service variables, `envFrom`, `env` with its sources. Pure; the objects
//! that it refers to are fetched before, by the names that [`references`] tells.

mod downward;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};

pub(crate) use self::downward::{Allocatable, field_value, resource_value};
pub(crate) use skiff_spec::expand;

/// Why a container's environment cannot be made. The text is what the user sees beside
/// `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvError {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// "configmap" or "secret".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// "ConfigMap" or "Secret".
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
    },
    /// The field cannot be had this way.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// The resource cannot be had this way.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// A secret's value is no text.
    #[error("value of key {key} in Secret {name} is not valid UTF-8")]
    NotText {
        /// The key.
        key: String,
        /// Name of the secret.
        name: String,
    },
}

/// What a container's environment can refer to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sources {
    /// ConfigMaps of the pod's namespace, by name.
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets of the pod's namespace, by name.
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub(crate) services: Vec<Arc<Service>>,
    /// The pod's addresses.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// The node's addresses.
    pub(crate) host_ips: Vec<IpAddr>,
    /// What the node can give, for limits that are not set.
    pub(crate) allocatable: Allocatable,
}

/// Names of the ConfigMaps and Secrets that a container's environment refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    /// ConfigMaps.
    pub(crate) config_maps: BTreeSet<String>,
    /// Secrets.
    pub(crate) secrets: BTreeSet<String>,
}

/// What [`resolve_env`] will look up.
pub(crate) fn references(container: &Container) -> References {
    let mut found = References::default();
    for source in container.env_from.iter().flatten() {
        found
            .config_maps
            .extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        found
            .secrets
            .extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|var| var.value_from.as_ref())
    {
        found
            .config_maps
            .extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        found
            .secrets
            .extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    found
}

/// The container's environment in order, each name once; later sources win.
///
/// # Errors
/// [`EnvError`] if something that is not optional is missing.
pub(crate) fn resolve_env(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut result = Ordered::default();
    for (name, value) in from_objects(pod, container, sources)? {
        result.set(name, value);
    }
    let service_vars = service_env(pod, &sources.services);
    let mut explicit = Ordered::default();
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, |name| {
                explicit
                    .get(name)
                    .or_else(|| result.get(name))
                    .or_else(|| service_vars.get(name))
                    .cloned()
            })),
            (_, Some(source)) => value_from(pod, container, source, sources)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            explicit.set(var.name.clone(), value);
        }
    }
    for (name, value) in explicit.into_vec() {
        result.set(name, value);
    }
    // Services never override what the user wrote.
    for (name, value) in service_vars {
        if result.get(&name).is_none() {
            result.set(name, value);
        }
    }
    Ok(result.into_vec())
}

fn from_objects(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut vars = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    let data = map.data.iter().flatten();
                    vars.extend(data.map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(not_found("configmap", &reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let value = text(&value.0, key, &reference.name)?;
                        vars.push((format!("{prefix}{key}"), value));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(not_found("secret", &reference.name)),
            }
        }
    }
    vars.retain(|(name, _)| is_valid_name(name));
    tracing::trace!(
        pod = pod.metadata.name.as_deref(),
        vars = vars.len(),
        "envFrom"
    );
    Ok(vars)
}

/// Upstream skips what cannot be a variable's name.
fn is_valid_name(name: &str) -> bool {
    let printable = name
        .bytes()
        .all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=');
    !name.is_empty() && printable
}

fn not_found(kind: &'static str, name: &str) -> EnvError {
    EnvError::NotFound {
        kind,
        name: name.to_owned(),
    }
}

fn text(bytes: &[u8], key: &str, name: &str) -> Result<String, EnvError> {
    let text = std::str::from_utf8(bytes).map_err(|_invalid| EnvError::NotText {
        key: key.to_owned(),
        name: name.to_owned(),
    })?;
    Ok(text.to_owned())
}

fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let Some(map) = sources.config_maps.get(&selector.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(not_found("configmap", &selector.name))
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::NoKey {
                key: selector.key.clone(),
                kind: "ConfigMap",
                namespace: namespace(),
                name: selector.name.clone(),
            }),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let Some(secret) = sources.secrets.get(&selector.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(not_found("secret", &selector.name))
            };
        };
        return match secret
            .data
            .as_ref()
            .and_then(|data| data.get(&selector.key))
        {
            Some(value) => text(&value.0, &selector.key, &selector.name).map(Some),
            None if optional => Ok(None),
            None => Err(EnvError::NoKey {
                key: selector.key.clone(),
                kind: "Secret",
                namespace: namespace(),
                name: selector.name.clone(),
            }),
        };
    }
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, &sources.pod_ips, &sources.host_ips).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(pod, Some(container), resource, sources.allocatable).map(Some);
    }
    Ok(Some(String::new()))
}

/// `{SVC}_SERVICE_HOST` and its kin, of the pod's namespace if it wants them, of `default/kubernetes` always.
fn service_env(pod: &Pod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let links = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let mut vars = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let of = meta.namespace.as_deref().unwrap_or("default");
        let is_kubernetes = of == "default" && name == "kubernetes";
        if is_kubernetes || (links && of == namespace) {
            add_service(&mut vars, name, service);
        }
    }
    vars
}

fn add_service(vars: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec
        .cluster_ip
        .as_deref()
        .filter(|ip| !ip.is_empty() && *ip != "None")
    else {
        return;
    };
    let prefix = name.to_uppercase().replace('-', "_");
    vars.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port;
        if index == 0 {
            vars.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
        }
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let port_name = port_name.to_uppercase().replace('-', "_");
            vars.insert(
                format!("{prefix}_SERVICE_PORT_{port_name}"),
                number.to_string(),
            );
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            vars.insert(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        vars.insert(format!("{port_prefix}_PROTO"), lower);
        vars.insert(format!("{port_prefix}_PORT"), number.to_string());
        vars.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
        vars.insert(port_prefix, url);
    }
}

/// A map that keeps the order of first insertion.
#[derive(Default)]
struct Ordered {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<&String> {
        self.values.get(name)
    }

    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_vec(mut self) -> Vec<(String, String)> {
        let order = std::mem::take(&mut self.order);
        order
            .into_iter()
            .filter_map(|name| self.values.remove_entry(&name))
            .collect()
    }
}
