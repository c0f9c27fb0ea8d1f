//! Tests of patches.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::resource::{Kind, Registry};

fn patched(kind: Kind, how: PatchType, object: &Value, patch: &Value) -> Result<Value, PatchError> {
    apply(Registry::of(kind).unwrap(), how, object, patch)
}

fn strategic(kind: Kind, object: &Value, patch: &Value) -> Value {
    patched(kind, PatchType::StrategicMerge, object, patch).unwrap()
}

fn live_deployment() -> Value {
    json!({
        "metadata": {"name": "web", "annotations": {"a": "1", "b": "2"}},
        "spec": {
            "replicas": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"spec": {
                "containers": [
                    {
                        "name": "web",
                        "image": "web:v1",
                        "imagePullPolicy": "IfNotPresent",
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "ports": [
                            {"containerPort": 80, "protocol": "TCP"},
                            {"containerPort": 443, "protocol": "TCP"},
                        ],
                    },
                    {"name": "injected", "image": "sidecar:v1"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [{"key": "a"}],
            }},
        },
    })
}

/// What kubectl sends when env B was deleted, A changed, port 443 removed, and the image changed.
#[test]
fn a_second_apply() {
    let patch = json!({
        "metadata": {"annotations": {"a": "3", "b": null}},
        "spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "web"}],
            "containers": [{
                "name": "web",
                "image": "web:v2",
                "$setElementOrder/env": [{"name": "A"}],
                "env": [{"name": "A", "value": "9"}, {"name": "B", "$patch": "delete"}],
                "$setElementOrder/ports": [{"containerPort": 80}],
                "ports": [{"containerPort": 443, "$patch": "delete"}],
            }],
        }}},
    });
    let mut expected = live_deployment();
    expected["metadata"]["annotations"] = json!({"a": "3"});
    let web = &mut expected["spec"]["template"]["spec"]["containers"][0];
    web["image"] = "web:v2".into();
    web["env"] = json!([{"name": "A", "value": "9"}]);
    web["ports"] = json!([{"containerPort": 80, "protocol": "TCP"}]);
    assert_eq!(
        strategic(Kind::Deployment, &live_deployment(), &patch),
        expected
    );
}

#[test]
fn strategy_with_retain_keys() {
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let result = strategic(Kind::Deployment, &live_deployment(), &patch);
    assert_eq!(result["spec"]["strategy"], json!({"type": "Recreate"}));
    let patch =
        json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    let error = patched(
        Kind::Deployment,
        PatchType::StrategicMerge,
        &live_deployment(),
        &patch,
    );
    assert!(matches!(error, Err(PatchError::Malformed(_))));
}

#[test]
fn a_volume_changes_its_source() {
    let patch = json!({"spec": {"template": {"spec": {
        "$setElementOrder/volumes": [{"name": "v"}],
        "volumes": [{"name": "v", "$retainKeys": ["configMap", "name"], "configMap": {"name": "c"}, "emptyDir": null}],
    }}}});
    let result = strategic(Kind::Deployment, &live_deployment(), &patch);
    assert_eq!(
        result["spec"]["template"]["spec"]["volumes"],
        json!([{"name": "v", "configMap": {"name": "c"}}])
    );
}

#[test]
fn lists_merge_by_their_key_or_are_replaced() {
    let cases: &[(Kind, Value, Value, Value)] = &[
        (
            Kind::Service,
            json!({"spec": {"ports": [{"port": 80, "nodePort": 30000}, {"port": 443}]}}),
            json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
            json!({"spec": {"ports": [{"port": 80, "nodePort": 30000, "targetPort": 8080}, {"port": 443}]}}),
        ),
        (
            Kind::Pod,
            json!({"spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}}),
            json!({"spec": {"tolerations": [{"key": "c"}]}}),
            json!({"spec": {"tolerations": [{"key": "c"}]}}),
        ),
        (
            Kind::Pod,
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Initialized", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]}}),
        ),
        (
            Kind::Pod,
            json!({"metadata": {"ownerReferences": [{"uid": "1", "name": "a"}]}}),
            json!({"metadata": {"ownerReferences": [{"uid": "1", "$patch": "delete"}]}}),
            json!({"metadata": {"ownerReferences": []}}),
        ),
        (
            Kind::ConfigMap,
            json!({"metadata": {"finalizers": ["a/b", "c/d"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"], "$setElementOrder/finalizers": ["e/f", "c/d"], "finalizers": ["e/f"]}}),
            json!({"metadata": {"finalizers": ["e/f", "c/d"]}}),
        ),
        (
            Kind::Pod,
            json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "c"}]}}),
        ),
        (
            Kind::Pod,
            json!({"spec": {"securityContext": {"runAsUser": 1, "fsGroup": 2}}}),
            json!({"spec": {"securityContext": {"$patch": "replace", "fsGroup": 3}}}),
            json!({"spec": {"securityContext": {"fsGroup": 3}}}),
        ),
        (
            Kind::ConfigMap,
            json!({"data": {"a": "1", "b": "2"}}),
            json!({"data": {"$patch": "delete"}}),
            json!({"data": {}}),
        ),
        (
            Kind::Pod,
            json!({"spec": {}}),
            json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X", "$patch": "delete"}, {"name": "Y", "value": null}]}], "nodeName": null}}),
            json!({"spec": {"containers": [{"name": "a", "env": [{"name": "Y"}]}]}}),
        ),
        (
            Kind::ServiceAccount,
            json!({"secrets": [{"name": "a"}], "imagePullSecrets": [{"name": "x"}]}),
            json!({"secrets": [{"name": "b"}], "imagePullSecrets": [{"name": "y"}]}),
            json!({"secrets": [{"name": "b"}, {"name": "a"}], "imagePullSecrets": [{"name": "y"}]}),
        ),
    ];
    for (kind, object, patch, expected) in cases {
        let result = strategic(*kind, object, patch);
        assert_eq!(result, *expected, "{patch}");
    }
}

#[test]
fn element_order_places_what_only_the_server_has() {
    let object =
        json!({"spec": {"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}});
    let names = |value: &Value| -> Vec<String> {
        let list = value["spec"]["containers"].as_array().unwrap();
        list.iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let order = |names: &[&str]| -> Value { names.iter().map(|n| json!({"name": n})).collect() };
    let patch = json!({"spec": {"$setElementOrder/containers": order(&["b", "a"])}});
    assert_eq!(
        names(&strategic(Kind::Pod, &object, &patch)),
        ["server", "b", "a"]
    );
    let patch = json!({"spec": {"$setElementOrder/containers": order(&["a", "new", "b"]), "containers": [{"name": "new"}]}});
    assert_eq!(
        names(&strategic(Kind::Pod, &object, &patch)),
        ["a", "new", "server", "b"]
    );
    let patch = json!({"spec": {"$setElementOrder/containers": order(&["a"]), "containers": [{"name": "new"}]}});
    let error = patched(Kind::Pod, PatchType::StrategicMerge, &object, &patch).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("doesn't match $setElementOrder list"),
        "{error}"
    );
}

#[test]
fn malformed_strategic_patches_are_refused() {
    let object = live_deployment();
    for patch in [
        json!([]),
        json!("x"),
        json!({"$patch": "explode"}),
        json!({"$patch": 5}),
        json!({"metadata": {"ownerReferences": [{"name": "no uid"}]}, "spec": {"template": {"spec": {"containers": [{"image": "no name"}]}}}}),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "$patch": "explode"}]}}}}),
        json!({"spec": {"template": {"spec": {"containers": ["web"]}}}}),
        json!({"spec": {"template": {"spec": {"$setElementOrder/containers": "x"}}}}),
        json!({"spec": {"template": {"spec": {"$setElementOrder/tolerations": []}}}}),
        json!({"spec": {"$retainKeys": "x"}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}),
    ] {
        let result = patched(Kind::Deployment, PatchType::StrategicMerge, &object, &patch);
        assert!(
            matches!(result, Err(PatchError::Malformed(_))),
            "{patch}: {result:?}"
        );
    }
}

#[test]
fn merge_patch_replaces_lists() {
    let patch = json!({"metadata": {"annotations": {"a": null}}, "spec": {"template": {"spec": {"tolerations": []}}}});
    let result = patched(
        Kind::Deployment,
        PatchType::Merge,
        &live_deployment(),
        &patch,
    )
    .unwrap();
    let mut expected = live_deployment();
    expected["metadata"]["annotations"] = json!({"b": "2"});
    expected["spec"]["template"]["spec"]["tolerations"] = json!([]);
    assert_eq!(result, expected);
}

#[test]
fn json_patch_applies_or_says_why_not() {
    let json = |patch: Value| {
        patched(
            Kind::Deployment,
            PatchType::Json,
            &live_deployment(),
            &patch,
        )
    };
    let result = json(json!([
        {"op": "test", "path": "/spec/replicas", "value": 2},
        {"op": "replace", "path": "/spec/replicas", "value": 5},
        {"op": "remove", "path": "/metadata/annotations/a"},
    ]))
    .unwrap();
    assert_eq!(result["spec"]["replicas"], 5);
    assert_eq!(result["metadata"]["annotations"], json!({"b": "2"}));
    let failed = json(json!([{"op": "test", "path": "/spec/replicas", "value": 3}])).unwrap_err();
    assert_eq!(
        failed,
        PatchError::NotApplicable("testing value /spec/replicas failed: test failed".to_owned())
    );
    let missing = json(json!([{"op": "remove", "path": "/spec/nope"}])).unwrap_err();
    assert!(matches!(missing, PatchError::NotApplicable(_)));
    let bad = json(json!([{"op": "dance"}])).unwrap_err();
    assert!(matches!(bad, PatchError::Malformed(_)));
    let no_object = json(json!([{"op": "replace", "path": "", "value": 5}])).unwrap_err();
    assert!(matches!(no_object, PatchError::NotApplicable(_)));
}

#[test]
fn json_patch_cannot_blow_up_an_object() {
    let doubling: Value = (0..60)
        .map(|n| json!({"op": "copy", "from": "/spec", "path": format!("/spec/c{n}")}))
        .collect();
    let error = patched(
        Kind::Deployment,
        PatchType::Json,
        &live_deployment(),
        &doubling,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("accumulated size increase"),
        "{error}"
    );
    let many: Value = (0..=MAX_OPERATIONS)
        .map(|_| json!({"op": "test", "path": "", "value": 1}))
        .collect();
    assert!(matches!(
        patched(Kind::Deployment, PatchType::Json, &live_deployment(), &many),
        Err(PatchError::Malformed(_))
    ));
}

#[test]
fn media_types() {
    for (text, expected) in PatchType::MEDIA_TYPES.iter().zip([
        PatchType::Json,
        PatchType::Merge,
        PatchType::StrategicMerge,
    ]) {
        assert_eq!(PatchType::from_media_type(text), Some(expected));
        assert_eq!(
            PatchType::from_media_type(&format!("{text}; charset=utf-8")),
            Some(expected)
        );
    }
    assert_eq!(
        PatchType::from_media_type("application/apply-patch+yaml"),
        None
    );
}

fn pod() -> impl Strategy<Value = Value> {
    let env = prop::collection::btree_map("[A-C]", "[0-9]", 0..3);
    let container = ("[a-d]", "[x-z]", env);
    prop::collection::vec(container, 0..4).prop_map(|containers| {
        let mut seen = Vec::new();
        let list: Vec<Value> = containers
            .into_iter()
            .filter(|(name, ..)| {
                !seen.contains(name) && {
                    seen.push(name.clone());
                    true
                }
            })
            .map(|(name, image, env)| {
                let env: Vec<Value> = env
                    .iter()
                    .map(|(k, v)| json!({"name": k, "value": v}))
                    .collect();
                json!({"name": name, "image": image, "env": env})
            })
            .collect();
        json!({"spec": {"containers": list}})
    })
}

proptest! {
    #[test]
    fn prop_patching_with_a_whole_object_sets_all_of_it(old in pod(), new in pod()) {
        let result = strategic(Kind::Pod, &old, &new);
        let again = strategic(Kind::Pod, &result, &new);
        prop_assert_eq!(&again, &result, "a patch changes nothing the second time");
        let containers = result["spec"]["containers"].as_array().unwrap();
        for wanted in new["spec"]["containers"].as_array().unwrap() {
            let found: Vec<_> = containers.iter().filter(|c| c["name"] == wanted["name"]).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0]["image"], &wanted["image"]);
            for env in wanted["env"].as_array().unwrap() {
                prop_assert!(found[0]["env"].as_array().unwrap().contains(env));
            }
        }
    }
}
