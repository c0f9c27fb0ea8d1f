//! Tests of the table, the strategies and the conversion of events.

use std::collections::HashSet;

use serde_json::json;

use super::*;

fn of(kind: Kind) -> &'static Resource {
    Registry::of(kind).unwrap()
}

#[test]
fn the_table_is_consistent() {
    let mut seen = HashSet::new();
    for resource in Registry::iter() {
        assert!(seen.insert((resource.group, resource.version, resource.plural)));
        let api_version = if resource.group.is_empty() {
            resource.version.to_owned()
        } else {
            format!("{}/{}", resource.group, resource.version)
        };
        assert_eq!(resource.api_version, api_version);
        assert_eq!(resource.list_kind, format!("{}List", resource.kind));
        assert_eq!(resource.singular, resource.kind.to_lowercase());
        assert!(resource.storage_prefix.starts_with("/registry/"));
        assert!(resource.storage_prefix.ends_with('/'));
        assert!(std::ptr::eq(of(resource.id), resource));
        let found = Registry::get(resource.group, resource.version, resource.plural).unwrap();
        assert!(std::ptr::eq(found, resource));
        let found = Registry::by_api_version(resource.api_version, resource.kind).unwrap();
        assert!(std::ptr::eq(found, resource));
    }
    let groups: Vec<_> = Registry::group_versions().collect();
    let unique: HashSet<_> = groups.iter().collect();
    assert_eq!(
        groups.len(),
        unique.len(),
        "each group and version stands together in the table"
    );
}

#[test]
fn every_resource_decodes_its_own_kind_and_no_other() {
    for resource in Registry::iter() {
        let object = json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": "a"}});
        let decoded = resource.decode(&object, Strictness::Strict).unwrap();
        assert_eq!(decoded.value["kind"], resource.kind);
        assert_eq!(decoded.value["apiVersion"], resource.api_version);
        let wrong = json!({"apiVersion": resource.api_version, "kind": "Other"});
        assert!(resource.decode(&wrong, Strictness::Ignore).is_err());
    }
}

#[test]
fn storage_keys() {
    assert_eq!(
        of(Kind::Pod).storage_key("dev", "web"),
        "/registry/pods/dev/web"
    );
    assert_eq!(of(Kind::Node).storage_key("", "n1"), "/registry/nodes/n1");
    assert_eq!(
        of(Kind::Pod).storage_list_prefix(Some("dev")),
        "/registry/pods/dev/"
    );
    assert_eq!(of(Kind::Pod).storage_list_prefix(None), "/registry/pods/");
    assert_eq!(
        of(Kind::Node).storage_list_prefix(Some("x")),
        "/registry/nodes/"
    );
    assert_eq!(
        of(Kind::Event).storage_key("a", "b"),
        of(Kind::CoreEvent).storage_key("a", "b")
    );
}

#[test]
fn names_print_with_their_group() {
    assert_eq!(
        of(Kind::Deployment).group_resource().to_string(),
        "deployments.apps"
    );
    assert_eq!(of(Kind::Pod).group_resource().to_string(), "pods");
    assert_eq!(
        of(Kind::Deployment).group_kind().to_string(),
        "Deployment.apps"
    );
}

#[test]
fn events_survive_the_way_through_storage() {
    let event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "dev"},
        "regarding": {"kind": "Pod", "name": "web"},
        "note": "hello",
        "reportingController": "skiff",
        "deprecatedCount": 2,
        "eventTime": "2026-01-01T00:00:00.000000Z",
    });
    let mut stored = event.clone();
    of(Kind::Event).to_storage(&mut stored);
    assert_eq!(stored["apiVersion"], "v1");
    assert_eq!(stored["involvedObject"]["name"], "web");
    assert_eq!(stored["message"], "hello");
    assert_eq!(stored["count"], 2);
    let mut core = stored.clone();
    of(Kind::CoreEvent).from_storage(&mut core);
    assert_eq!(core, stored);
    of(Kind::CoreEvent)
        .decode(&core, Strictness::Strict)
        .unwrap();
    of(Kind::Event).from_storage(&mut stored);
    assert_eq!(stored, event);
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "dev", "uid": "u1", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "5", "labels": {"a": "1"}},
        "spec": {"replicas": 1},
        "status": {"replicas": 1},
    })
}

#[test]
fn creation_resets_what_is_the_servers() {
    let mut object = deployment();
    object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    object["metadata"]["managedFields"] = json!([]);
    of(Kind::Deployment).prepare_for_create(&mut object);
    assert_eq!(object["metadata"]["generation"], 1);
    assert_eq!(object["status"], json!({}));
    assert!(object["metadata"].get("deletionTimestamp").is_none());
    assert!(object["metadata"].get("managedFields").is_none());

    let mut pod = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]},
        "status": {"phase": "Running", "podIP": "1.2.3.4"}});
    of(Kind::Pod).prepare_for_create(&mut pod);
    assert_eq!(
        pod["status"],
        json!({"phase": "Pending", "qosClass": "Guaranteed"})
    );

    let mut node = json!({"status": {"capacity": {"cpu": "1"}}});
    of(Kind::Node).prepare_for_create(&mut node);
    assert_eq!(
        node["status"]["capacity"]["cpu"], "1",
        "the node agent registers with its status"
    );

    let mut namespace = json!({"metadata": {"name": "dev"}});
    of(Kind::Namespace).prepare_for_create(&mut namespace);
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(namespace["status"]["phase"], "Active");
}

#[test]
fn updates_bump_the_generation_when_the_spec_changes_only() {
    let old = deployment();
    let mut new = deployment();
    new["metadata"] =
        json!({"name": "web", "namespace": "dev", "labels": {"a": "2"}, "generation": 99});
    new["status"] = json!({"replicas": 7});
    let mut unchanged = new.clone();
    of(Kind::Deployment).prepare_for_update(&mut unchanged, &old);
    assert_eq!(unchanged["metadata"]["generation"], 3);
    assert_eq!(unchanged["metadata"]["uid"], "u1");
    assert_eq!(
        unchanged["metadata"]["creationTimestamp"],
        "2026-01-01T00:00:00Z"
    );
    assert_eq!(unchanged["metadata"]["labels"]["a"], "2");
    assert_eq!(unchanged["status"], old["status"]);
    new["spec"]["replicas"] = 2.into();
    of(Kind::Deployment).prepare_for_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 4);
}

#[test]
fn status_updates_change_status_only() {
    let old = deployment();
    let mut new = deployment();
    new["spec"]["replicas"] = 9.into();
    new["status"]["replicas"] = 2.into();
    new["metadata"]["labels"]["a"] = "2".into();
    new["metadata"]["annotations"] = json!({"x": "y"});
    of(Kind::Deployment).prepare_for_status_update(&mut new, &old);
    let mut expected = old.clone();
    expected["status"]["replicas"] = 2.into();
    expected["metadata"]["annotations"] = json!({"x": "y"});
    assert_eq!(new, expected);
}

#[test]
fn empty_and_absent_lists_are_the_same_but_empty_maps_are_not() {
    assert!(same(Some(&json!({"a": []})), Some(&json!({}))));
    assert!(same(
        Some(&json!({"a": null, "b": 1})),
        Some(&json!({"b": 1}))
    ));
    assert!(!same(Some(&json!({"emptyDir": {}})), Some(&json!({}))));
    assert!(!same(Some(&json!([1])), Some(&json!([2]))));
    assert!(!same(Some(&json!({})), Some(&json!({"a": 1}))));
}

fn service(kind: &str, ip: &str, node_port: Option<i64>) -> Value {
    let mut port = json!({"port": 80, "protocol": "TCP", "targetPort": 80});
    if let Some(node_port) = node_port {
        port["nodePort"] = node_port.into();
    }
    let mut service = json!({"metadata": {"name": "web"}, "spec": {"type": kind, "ports": [port]}});
    if !ip.is_empty() {
        service["spec"]["clusterIP"] = ip.into();
        service["spec"]["clusterIPs"] = json!([ip]);
    }
    service
}

#[test]
fn service_updates_keep_allocated_values() {
    let old = service("NodePort", "10.96.0.7", Some(30001));
    let mut new = service("NodePort", "", None);
    of(Kind::Service).prepare_for_update(&mut new, &old);
    assert_eq!(new["spec"]["clusterIP"], "10.96.0.7");
    assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.7"]));
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);

    let mut chosen = service("NodePort", "10.96.0.7", Some(30002));
    of(Kind::Service).prepare_for_update(&mut chosen, &old);
    assert_eq!(chosen["spec"]["ports"][0]["nodePort"], 30002);
}

#[test]
fn services_lose_what_their_new_type_does_not_have() {
    let mut old = service("LoadBalancer", "10.96.0.7", Some(30001));
    old["spec"]["externalTrafficPolicy"] = "Cluster".into();
    old["spec"]["allocateLoadBalancerNodePorts"] = true.into();
    let mut new = old.clone();
    new["spec"]["type"] = "ClusterIP".into();
    of(Kind::Service).prepare_for_update(&mut new, &old);
    assert_eq!(new, service("ClusterIP", "10.96.0.7", None));

    let mut external = old.clone();
    external["spec"]["type"] = "ExternalName".into();
    external["spec"]["externalName"] = "example.com".into();
    of(Kind::Service).prepare_for_update(&mut external, &old);
    assert!(external["spec"].get("clusterIP").is_none());
    assert!(external["spec"].get("clusterIPs").is_none());
}
