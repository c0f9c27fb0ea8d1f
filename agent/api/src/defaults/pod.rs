//! Defaults of Pods and pod templates.

use serde_json::{Map, Value, json};

use super::{default_protocol, each};
use crate::object::{at, ensure_map, map_mut, set_default, set_default_zero, text};

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// A Pod: the spec, and what only Pods get (upstream does the last part in admission).
pub(super) fn pod(object: &mut Value) {
    if let Some(spec) = ensure_map(object, &["spec"]) {
        set_default(spec, "enableServiceLinks", true);
        set_default_zero(spec, "serviceAccountName", "default");
        set_default(spec, "priority", 0);
        set_default_zero(spec, "preemptionPolicy", "PreemptLowerPriority");
    }
    default_tolerations(object);
    if let Some(spec) = object.get_mut("spec") {
        for list in ["containers", "initContainers"] {
            each(spec, list, requests_from_limits);
        }
        pod_spec(spec);
    }
    if let Some(status) = ensure_map(object, &["status"]) {
        set_default_zero(status, "phase", "Pending");
    }
}

/// The template of a workload at `spec.template`.
pub(super) fn template(object: &mut Value) {
    ensure_map(object, &["spec", "template", "metadata"]);
    ensure_map(object, &["spec", "template", "spec"]);
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    let host_network = at(spec, &["hostNetwork"]) == Some(&Value::Bool(true));
    let account = match (
        text(spec, &["serviceAccountName"]),
        text(spec, &["serviceAccount"]),
    ) {
        ("", deprecated) => deprecated.to_owned(),
        (name, _) => name.to_owned(),
    };
    if let Some(map) = spec.as_object_mut() {
        set_default_zero(map, "dnsPolicy", "ClusterFirst");
        set_default_zero(map, "restartPolicy", "Always");
        set_default(map, "securityContext", json!({}));
        set_default(map, "terminationGracePeriodSeconds", 30);
        set_default_zero(map, "schedulerName", "default-scheduler");
        if !account.is_empty() {
            map.insert("serviceAccountName".to_owned(), account.clone().into());
            map.insert("serviceAccount".to_owned(), account.into());
        }
        // Upstream takes a negative period for "at once, but orderly".
        if map
            .get("terminationGracePeriodSeconds")
            .and_then(Value::as_i64)
            .is_some_and(|s| s < 0)
        {
            map.insert("terminationGracePeriodSeconds".to_owned(), 1.into());
        }
    }
    for list in CONTAINER_LISTS {
        each(spec, list, |c| container(c, host_network));
    }
    each(spec, "volumes", volume);
}

fn container(object: &mut Value, host_network: bool) {
    let pull = pull_policy(text(object, &["image"]));
    if let Some(map) = object.as_object_mut() {
        set_default_zero(map, "imagePullPolicy", pull);
        set_default_zero(map, "terminationMessagePath", "/dev/termination-log");
        set_default_zero(map, "terminationMessagePolicy", "File");
        set_default(map, "resources", json!({}));
    }
    each(object, "ports", |port| {
        default_protocol(port);
        let number = port.get("containerPort").cloned().unwrap_or_default();
        if let (true, Some(port)) = (host_network, port.as_object_mut()) {
            set_default_zero(port, "hostPort", number);
        }
    });
    each(object, "env", |env| {
        field_reference(env, &["valueFrom", "fieldRef"])
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = map_mut(object, &[name]) {
            set_default_zero(probe, "timeoutSeconds", 1);
            set_default_zero(probe, "periodSeconds", 10);
            set_default_zero(probe, "successThreshold", 1);
            set_default_zero(probe, "failureThreshold", 3);
            if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut) {
                set_default(grpc, "service", "");
            }
        }
        http_get(object, &[name, "httpGet"]);
    }
    for hook in ["postStart", "preStop"] {
        http_get(object, &["lifecycle", hook, "httpGet"]);
    }
}

/// `Always` for the tag `latest` or none, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        None | Some((_, "latest" | "")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn http_get(object: &mut Value, path: &[&str]) {
    if let Some(get) = map_mut(object, path) {
        set_default_zero(get, "path", "/");
        set_default_zero(get, "scheme", "HTTP");
    }
}

fn field_reference(object: &mut Value, path: &[&str]) {
    if let Some(reference) = map_mut(object, path) {
        set_default_zero(reference, "apiVersion", "v1");
    }
}

fn volume(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    if !map
        .iter()
        .any(|(key, value)| key != "name" && !value.is_null())
    {
        map.insert("emptyDir".to_owned(), Value::Object(Map::new()));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = map.get_mut(source).and_then(Value::as_object_mut) {
            set_default(source, "defaultMode", 0o644);
        }
    }
    if let Some(host_path) = map.get_mut("hostPath").and_then(Value::as_object_mut) {
        set_default(host_path, "type", "");
    }
    if let Some(downward) = map.get_mut("downwardAPI") {
        each(downward, "items", |item| {
            field_reference(item, &["fieldRef"])
        });
    }
    if let Some(projected) = map.get_mut("projected") {
        each(projected, "sources", |source| {
            if let Some(token) = map_mut(source, &["serviceAccountToken"]) {
                set_default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                each(downward, "items", |item| {
                    field_reference(item, &["fieldRef"])
                });
            }
        });
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = at(container, &["resources", "limits"])
        .and_then(Value::as_object)
        .cloned()
    else {
        return;
    };
    if let Some(requests) = ensure_map(container, &["resources", "requests"]) {
        for (name, limit) in limits {
            set_default(requests, &name, limit);
        }
    }
}

/// Every Pod tolerates a node that is not ready or unreachable for five minutes.
fn default_tolerations(object: &mut Value) {
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = crate::object::items(object, &["spec", "tolerations"])
            .iter()
            .any(|t| {
                let effect = text(t, &["effect"]);
                let own = text(t, &["key"]);
                (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
        if tolerated {
            continue;
        }
        let Some(spec) = ensure_map(object, &["spec"]) else {
            return;
        };
        let list = spec.entry("tolerations").or_insert(Value::Null);
        if list.is_null() {
            *list = Value::Array(Vec::new());
        }
        if let Some(list) = list.as_array_mut() {
            list.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }));
        }
    }
}
