//! Tests of printing.

use serde_json::json;

use super::*;
use crate::resource::Registry;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn row_of(kind: Kind, object: &Value) -> Vec<String> {
    let table = table(
        Registry::of(kind).unwrap(),
        [object],
        json!({}),
        IncludeObject::None,
        true,
        now(),
    );
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(
        cells.len(),
        table["columnDefinitions"].as_array().unwrap().len()
    );
    cells
        .iter()
        .map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))
        .collect()
}

fn metadata() -> Value {
    json!({"name": "x", "namespace": "dev", "creationTimestamp": "2026-01-01T00:00:00Z"})
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn pods_show_upstreams_status() {
    let running = json!({"state": {"running": {}}, "ready": true, "restartCount": 0});
    let crashing = json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "ready": false, "restartCount": 3,
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}});
    let ended = |code: i64, reason: &str| json!({"state": {"terminated": {"exitCode": code, "reason": reason}}, "restartCount": 0});
    let named = |name: &str, mut status: Value| {
        status["name"] = name.into();
        status
    };
    let one = json!([{"name": "a"}]);
    let cases = [
        (
            "pending",
            json!({"spec": {"containers": one}, "status": {"phase": "Pending"}}),
            "0/1",
            "Pending",
            "0",
        ),
        (
            "running",
            json!({"spec": {"containers": one}, "status": {"phase": "Running", "containerStatuses": [running]}}),
            "1/1",
            "Running",
            "0",
        ),
        (
            "crashing",
            json!({"spec": {"containers": one}, "status": {"phase": "Running", "containerStatuses": [crashing]}}),
            "0/1",
            "CrashLoopBackOff",
            "3 (5m ago)",
        ),
        (
            "completed",
            json!({"spec": {"containers": one}, "status": {"phase": "Succeeded", "containerStatuses": [ended(0, "Completed")]}}),
            "0/1",
            "Completed",
            "0",
        ),
        (
            "exit code",
            json!({"spec": {"containers": one}, "status": {"phase": "Failed", "containerStatuses": [ended(3, "")]}}),
            "0/1",
            "ExitCode:3",
            "0",
        ),
        (
            "signal",
            json!({"spec": {"containers": one}, "status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9, "exitCode": 137}}}]}}),
            "0/1",
            "Signal:9",
            "0",
        ),
        (
            "evicted",
            json!({"spec": {"containers": one}, "status": {"phase": "Failed", "reason": "Evicted"}}),
            "0/1",
            "Evicted",
            "0",
        ),
        (
            "init running",
            json!({"spec": {"containers": one, "initContainers": [{"name": "i"}, {"name": "j"}]}, "status": {"phase": "Pending",
            "initContainerStatuses": [named("i", ended(0, "Completed")), named("j", json!({"state": {"running": {}}}))],
            "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            "0/1",
            "Init:1/2",
            "0",
        ),
        (
            "init failed",
            json!({"spec": {"containers": one, "initContainers": [{"name": "i"}]}, "status": {"phase": "Pending",
            "initContainerStatuses": [named("i", ended(1, "Error"))]}}),
            "0/1",
            "Init:Error",
            "0",
        ),
        (
            "init back-off",
            json!({"spec": {"containers": one, "initContainers": [{"name": "i"}]}, "status": {"phase": "Pending",
            "initContainerStatuses": [named("i", crashing.clone())]}}),
            "0/1",
            "Init:CrashLoopBackOff",
            "3 (5m ago)",
        ),
        (
            "sidecar",
            json!({"spec": {"containers": one, "initContainers": [{"name": "s", "restartPolicy": "Always"}]}, "status": {"phase": "Running",
            "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
            "containerStatuses": [running]}}),
            "2/2",
            "Running",
            "1",
        ),
        (
            "terminating",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:59:00Z"}, "spec": {"containers": one}, "status": {"phase": "Running", "containerStatuses": [running]}}),
            "1/1",
            "Terminating",
            "0",
        ),
        (
            "half done",
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Running",
            "containerStatuses": [ended(0, "Completed"), running], "conditions": [{"type": "Ready", "status": "False"}]}}),
            "1/2",
            "NotReady",
            "0",
        ),
        (
            "gated",
            json!({"spec": {"containers": one}, "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}}),
            "0/1",
            "SchedulingGated",
            "0",
        ),
    ];
    for (name, pod, ready, status, restarts) in cases {
        let row = row_of(Kind::Pod, &pod);
        assert_eq!(
            [&row[1], &row[2], &row[3]],
            [ready, status, restarts],
            "{name}"
        );
    }
}

#[test]
fn pods_show_where_they_run() {
    let pod = json!({"metadata": metadata(), "spec": {"nodeName": "n1", "containers": [{}], "readinessGates": [{"conditionType": "g"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "g", "status": "True"}]}});
    let row = row_of(Kind::Pod, &pod);
    assert_eq!(
        row,
        [
            "x", "0/1", "Running", "0", "60m", "10.0.0.1", "n1", "<none>", "1/1"
        ]
    );
}

#[test]
fn services() {
    let service = |spec: Value, status: Value| {
        row_of(
            Kind::Service,
            &json!({"metadata": metadata(), "spec": spec, "status": status}),
        )
    };
    let row = service(
        json!({"type": "NodePort", "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"], "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
        json!({}),
    );
    assert_eq!(
        row,
        [
            "x",
            "NodePort",
            "10.96.0.2",
            "<none>",
            "80:30080/TCP,53/UDP",
            "60m",
            "a=1,b=2"
        ]
    );
    let row = service(
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.2"}),
        json!({}),
    );
    assert_eq!(row[3..5], ["<pending>", "<none>"]);
    let row = service(
        json!({"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]}),
        json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "h"}]}}),
    );
    assert_eq!(row[3], "1.2.3.4,h,9.9.9.9");
    let row = service(
        json!({"type": "ExternalName", "externalName": "example.com"}),
        json!({}),
    );
    assert_eq!(row[2..4], ["<none>", "example.com"]);
}

#[test]
fn endpoints_are_abbreviated() {
    let addresses: Vec<Value> = (1..=5)
        .map(|n| json!({"ip": format!("10.0.0.{n}")}))
        .collect();
    let object = json!({"metadata": metadata(), "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
    let row = row_of(Kind::Endpoints, &object);
    assert_eq!(row[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    assert_eq!(row_of(Kind::Endpoints, &json!({}))[1], "<none>");
    let slice = json!({"metadata": metadata(), "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
    assert_eq!(
        row_of(Kind::EndpointSlice, &slice),
        ["x", "IPv4", "80", "10.0.0.1,10.0.0.2", "60m"]
    );
    assert_eq!(
        row_of(Kind::EndpointSlice, &json!({}))[2..4],
        ["<unset>", "<unset>"]
    );
    let policy = json!({"metadata": metadata(), "spec": {"podSelector": {"matchLabels": {"b": "x", "a": "y"}}}});
    assert_eq!(
        row_of(Kind::NetworkPolicy, &policy),
        ["x", "a=y,b=x", "60m"]
    );
    assert_eq!(row_of(Kind::NetworkPolicy, &json!({}))[1], "<none>");
}

#[test]
fn workloads_and_nodes() {
    let deployment = json!({"metadata": metadata(), "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}},
        "template": {"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}}},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1, "replicas": 3}});
    assert_eq!(
        row_of(Kind::Deployment, &deployment),
        ["x", "2/3", "3", "1", "60m", "a,b", "i:1,j", "app=x"]
    );
    assert_eq!(
        row_of(Kind::ReplicaSet, &deployment),
        ["x", "3", "3", "2", "60m", "a,b", "i:1,j", "app=x"]
    );
    let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "skiff://0.1"}}});
    assert_eq!(
        row_of(Kind::Node, &node),
        [
            "n",
            "Ready,SchedulingDisabled",
            "control-plane,worker",
            "<unknown>",
            "v1.36.0",
            "10.0.0.1",
            "<none>",
            "Debian",
            "6.1",
            "skiff://0.1"
        ]
    );
}

#[test]
fn small_kinds() {
    assert_eq!(
        row_of(
            Kind::Namespace,
            &json!({"metadata": metadata(), "status": {"phase": "Active"}})
        ),
        ["x", "Active", "60m"]
    );
    assert_eq!(
        row_of(
            Kind::ConfigMap,
            &json!({"metadata": metadata(), "data": {"a": "1"}, "binaryData": {"b": ""}})
        ),
        ["x", "2", "60m"]
    );
    assert_eq!(
        row_of(
            Kind::Secret,
            &json!({"metadata": metadata(), "type": "Opaque", "data": {"a": ""}})
        ),
        ["x", "Opaque", "1", "60m"]
    );
    assert_eq!(
        row_of(Kind::ServiceAccount, &json!({"metadata": metadata()})),
        ["x", "0", "60m"]
    );
    assert_eq!(
        row_of(
            Kind::Lease,
            &json!({"metadata": metadata(), "spec": {"holderIdentity": "me"}})
        ),
        ["x", "me", "60m"]
    );
}

#[test]
fn both_event_versions_print_alike() {
    let core = json!({"metadata": metadata(), "type": "Normal", "reason": "Pulled", "message": " done\n", "count": 4,
        "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}"},
        "source": {"component": "kubelet", "host": "n1"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:30Z"});
    let expected = [
        "30s",
        "Normal",
        "Pulled",
        "pod/web",
        "spec.containers{a}",
        "kubelet, n1",
        "done",
        "60m",
        "4",
        "x",
    ];
    assert_eq!(row_of(Kind::CoreEvent, &core), expected);
    let mut new = core;
    Registry::of(Kind::Event).unwrap().from_storage(&mut new);
    assert_eq!(row_of(Kind::Event, &new), expected);
    let fresh = json!({"metadata": metadata(), "eventTime": "2026-01-01T00:59:00.000000Z", "regarding": {"kind": "Node"}});
    let row = row_of(Kind::Event, &fresh);
    assert_eq!([&row[0], &row[3], &row[8]], ["60s", "node", "1"]);
}

#[test]
fn rows_carry_what_was_asked_for() {
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(), "status": {"phase": "Succeeded"}});
    let resource = Registry::of(Kind::Pod).unwrap();
    let make = |include, columns| {
        table(
            resource,
            [&object],
            json!({"resourceVersion": "7"}),
            include,
            columns,
            now(),
        )
    };
    let full = make(IncludeObject::Metadata, true);
    assert_eq!(full["kind"], "Table");
    assert_eq!(full["metadata"]["resourceVersion"], "7");
    let row = &full["rows"][0];
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(row["object"]["metadata"], metadata());
    assert!(row["object"].get("status").is_none());
    assert_eq!(row["conditions"][0]["type"], "Completed");
    assert_eq!(
        make(IncludeObject::Object, false)["rows"][0]["object"],
        object
    );
    assert!(make(IncludeObject::Object, false)["columnDefinitions"].is_null());
    assert!(
        make(IncludeObject::None, true)["rows"][0]
            .get("object")
            .is_none()
    );
    assert_eq!(IncludeObject::parse(""), Some(IncludeObject::Metadata));
    assert_eq!(IncludeObject::parse("All"), None);
}
