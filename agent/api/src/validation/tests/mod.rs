//! Tests of validation: each case is a change to a valid object and what has to be said about it.

use serde_json::{Value, json};

use super::*;
use crate::decode::Strictness;
use crate::resource::Registry;

mod objects;
mod pods;
mod policies;
mod services;
mod workloads;

fn valid(kind: Kind) -> Value {
    let resource = Registry::of(kind).unwrap();
    let metadata = if resource.namespaced {
        json!({"name": "x", "namespace": "dev"})
    } else {
        json!({"name": "x"})
    };
    let pod_spec = json!({
        "containers": [{
            "name": "a",
            "image": "web:v1",
            "ports": [{"name": "http", "containerPort": 80}],
            "env": [{"name": "A", "value": "1"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"port": "http"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }],
        "volumes": [{"name": "v", "emptyDir": {}}],
    });
    let workload = json!({
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": pod_spec},
    });
    let mut object = match kind {
        Kind::Pod => json!({"spec": pod_spec}),
        Kind::Deployment | Kind::ReplicaSet => json!({"spec": workload}),
        Kind::Service => {
            json!({"spec": {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
        }
        Kind::EndpointSlice => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": "http", "port": 80}]})
        }
        Kind::Endpoints => {
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]})
        }
        Kind::ConfigMap => json!({"data": {"a": "1"}}),
        Kind::Secret => json!({"data": {"a": "eA=="}}),
        Kind::CoreEvent => {
            json!({"involvedObject": {"kind": "Pod", "name": "a", "namespace": "dev"}})
        }
        Kind::Event => json!({"regarding": {"kind": "Pod", "name": "a", "namespace": "dev"}}),
        Kind::Lease => json!({"spec": {"leaseDurationSeconds": 40}}),
        Kind::Node => {
            json!({"spec": {"podCIDRs": ["10.244.0.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]}})
        }
        Kind::NetworkPolicy => json!({"spec": {
            "podSelector": {"matchLabels": {"app": "x"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    {"podSelector": {"matchLabels": {"app": "y"}}, "namespaceSelector": {}},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                ],
                "ports": [{"port": "http"}, {"protocol": "UDP", "port": 53, "endPort": 60}],
            }],
            "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}, {}],
        }}),
        Kind::Namespace | Kind::ServiceAccount => json!({}),
    };
    object["metadata"] = metadata;
    finish(kind, &object)
}

fn finish(kind: Kind, object: &Value) -> Value {
    let resource = Registry::of(kind).unwrap();
    let mut object = resource.decode(object, Strictness::Strict).unwrap().value;
    resource.default(&mut object);
    object
}

/// Sets the value at a JSON pointer, or removes it when the value is null.
fn set(object: &mut Value, pointer: &str, value: &Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/");
    let parent = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no {pointer}"));
    match parent {
        Value::Array(list) => {
            let index: usize = key.parse().unwrap();
            if index == list.len() {
                list.push(value.clone())
            } else {
                list[index] = value.clone()
            }
        }
        Value::Object(map) if value.is_null() => drop(map.remove(&key)),
        Value::Object(map) => drop(map.insert(key, value.clone())),
        other => panic!("{pointer}: {other}"),
    }
}

fn errors_after(kind: Kind, pointer: &str, value: &Value) -> Vec<String> {
    let mut object = valid(kind);
    set(&mut object, pointer, value);
    let object = finish(kind, &object);
    let resource = Registry::of(kind).unwrap();
    resource
        .validate(&object)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn check(kind: Kind, cases: &[(&str, Value, &[&str])]) {
    for (pointer, value, expected) in cases {
        let errors = errors_after(kind, pointer, value);
        assert_eq!(
            errors.len(),
            expected.len(),
            "{pointer} = {value}: {errors:#?}"
        );
        for (error, expected) in errors.iter().zip(*expected) {
            assert!(
                error.starts_with(expected),
                "{pointer} = {value}:\n{error}\n{expected}"
            );
        }
    }
}

#[test]
fn valid_objects_of_every_kind_pass() {
    for resource in Registry::iter() {
        let object = valid(resource.id);
        assert_eq!(resource.validate(&object), [], "{:?}", resource.id);
        assert_eq!(
            resource.validate_update(&object, &object),
            [],
            "{:?}",
            resource.id
        );
        assert_eq!(
            resource.validate_status_update(&object, &object),
            [],
            "{:?}",
            resource.id
        );
    }
}

fn update(kind: Kind, pointer: &str, before: &Value, after: &Value) -> Vec<String> {
    let (mut old, mut new) = (valid(kind), valid(kind));
    for (object, value) in [(&mut old, before), (&mut new, after)] {
        set(object, pointer, value);
        *object = finish(kind, object);
    }
    let resource = Registry::of(kind).unwrap();
    resource
        .validate_update(&new, &old)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn odd_shapes_get_an_answer() {
    for resource in Registry::iter() {
        for object in [
            json!({}),
            json!([]),
            json!(null),
            json!({"spec": 5, "metadata": "x"}),
            json!({"spec": {"containers": [null, 1], "ports": [[]], "template": []}}),
        ] {
            assert!(!resource.validate(&object).is_empty(), "{:?}", resource.id);
            resource.validate_update(&object, &json!({}));
            let mut prepared = object.clone();
            resource.prepare_for_create(&mut prepared);
            resource.prepare_for_update(&mut prepared, &object);
            resource.prepare_for_status_update(&mut prepared, &object);
            crate::table::table(
                resource,
                [&object],
                json!({}),
                crate::table::IncludeObject::Object,
                true,
                jiff::Timestamp::UNIX_EPOCH,
            );
        }
    }
}
