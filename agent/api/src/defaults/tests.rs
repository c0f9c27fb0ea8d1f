//! Tests of defaulting.

use serde_json::json;

use super::*;

fn defaulted(kind: Kind, mut object: Value) -> Value {
    apply(kind, &mut object);
    let once = object.clone();
    apply(kind, &mut object);
    assert_eq!(object, once, "defaulting twice changes nothing");
    object
}

#[test]
fn a_small_pod_gets_upstreams_defaults() {
    let pod = defaulted(
        Kind::Pod,
        json!({"spec": {"containers": [{"name": "a", "image": "nginx",
            "ports": [{"containerPort": 80}],
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "readinessProbe": {"httpGet": {"port": 80}},
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]}}),
    );
    let toleration = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    assert_eq!(
        pod["spec"],
        json!({
            "containers": [{
                "name": "a",
                "image": "nginx",
                "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}],
                "readinessProbe": {
                    "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1,
                    "periodSeconds": 10,
                    "successThreshold": 1,
                    "failureThreshold": 3,
                },
                "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"},
                    "requests": {"cpu": "500m", "memory": "1Gi"},
                },
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
            "securityContext": {},
            "serviceAccount": "default",
            "serviceAccountName": "default",
            "terminationGracePeriodSeconds": 30,
            "tolerations": [
                toleration("node.kubernetes.io/not-ready"),
                toleration("node.kubernetes.io/unreachable"),
            ],
        })
    );
    assert_eq!(pod["status"]["phase"], "Pending");
}

#[test]
fn pull_policy_follows_the_tag() {
    let cases = [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/nginx:1.2", "IfNotPresent"),
        ("nginx:v1", "IfNotPresent"),
        ("nginx@sha256:abc", "IfNotPresent"),
    ];
    for (image, policy) in cases {
        let pod = defaulted(
            Kind::Pod,
            json!({"spec": {"containers": [{"image": image}]}}),
        );
        assert_eq!(
            pod["spec"]["containers"][0]["imagePullPolicy"], policy,
            "{image}"
        );
    }
}

#[test]
fn what_is_given_stays() {
    let spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": false,
        "serviceAccountName": "robot",
        "hostNetwork": true,
        "containers": [{"image": "a:1", "imagePullPolicy": "Never", "ports": [{"containerPort": 53, "protocol": "UDP"}]}],
        "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x", "defaultMode": 256}}, {"name": "s", "secret": {"secretName": "y"}}],
        "tolerations": [{"operator": "Exists"}],
    });
    let pod = defaulted(Kind::Pod, json!({"spec": spec}));
    let spec = &pod["spec"];
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["terminationGracePeriodSeconds"], 0);
    assert_eq!(spec["enableServiceLinks"], false);
    assert_eq!(spec["serviceAccount"], "robot");
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "Never");
    assert_eq!(
        spec["containers"][0]["ports"][0],
        json!({"containerPort": 53, "hostPort": 53, "protocol": "UDP"})
    );
    assert_eq!(spec["volumes"][0], json!({"name": "v", "emptyDir": {}}));
    assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 256);
    assert_eq!(spec["volumes"][2]["secret"]["defaultMode"], 420);
    assert_eq!(
        spec["tolerations"].as_array().unwrap().len(),
        1,
        "one that tolerates everything"
    );
}

#[test]
fn a_deployment_gets_strategy_and_template_defaults() {
    let deployment = defaulted(
        Kind::Deployment,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "b:1"}]}}}}),
    );
    let spec = &deployment["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["revisionHistoryLimit"], 10);
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    let template = &spec["template"]["spec"];
    assert_eq!(template["restartPolicy"], "Always");
    assert_eq!(template["containers"][0]["imagePullPolicy"], "IfNotPresent");
    for only_in_pods in [
        "tolerations",
        "serviceAccountName",
        "enableServiceLinks",
        "priority",
    ] {
        assert!(template.get(only_in_pods).is_none(), "{only_in_pods}");
    }
    let zero = defaulted(
        Kind::Deployment,
        json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}),
    );
    assert_eq!(zero["spec"]["replicas"], 0);
    assert_eq!(zero["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn services_get_defaults_by_type() {
    let cluster = defaulted(Kind::Service, json!({"spec": {"ports": [{"port": 80}]}}));
    assert_eq!(
        cluster["spec"],
        json!({
            "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        })
    );
    let balancer = defaulted(
        Kind::Service,
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": "http"}]}}),
    );
    let spec = &balancer["spec"];
    assert_eq!(spec["externalTrafficPolicy"], "Cluster");
    assert_eq!(spec["allocateLoadBalancerNodePorts"], true);
    assert_eq!(
        spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
        10800
    );
    assert_eq!(spec["ports"][0]["targetPort"], "http");
    let external = defaulted(
        Kind::Service,
        json!({"spec": {"type": "ExternalName", "externalName": "x"}}),
    );
    assert!(external["spec"].get("internalTrafficPolicy").is_none());
}

#[test]
fn other_kinds() {
    let namespace = defaulted(Kind::Namespace, json!({"metadata": {"name": "dev"}}));
    assert_eq!(
        namespace["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "dev"
    );
    assert_eq!(namespace["status"]["phase"], "Active");

    let secret = defaulted(
        Kind::Secret,
        json!({"data": {"a": "eA=="}, "stringData": {"b": "hello", "a": "y"}}),
    );
    assert_eq!(
        secret,
        json!({"type": "Opaque", "data": {"a": "eQ==", "b": "aGVsbG8="}})
    );

    let node = defaulted(Kind::Node, json!({"status": {"capacity": {"cpu": "2"}}}));
    assert_eq!(node["status"]["allocatable"]["cpu"], "2");

    let slice = defaulted(Kind::EndpointSlice, json!({"ports": [{"port": 80}]}));
    assert_eq!(
        slice["ports"][0],
        json!({"name": "", "port": 80, "protocol": "TCP"})
    );

    let endpoints = defaulted(
        Kind::Endpoints,
        json!({"subsets": [{"ports": [{"port": 80}]}]}),
    );
    assert_eq!(endpoints["subsets"][0]["ports"][0]["protocol"], "TCP");
}

#[test]
fn odd_shapes_do_no_harm() {
    for kind in [
        Kind::Pod,
        Kind::Service,
        Kind::Deployment,
        Kind::Secret,
        Kind::Namespace,
    ] {
        for object in [
            json!({}),
            json!([]),
            json!(null),
            json!({"spec": []}),
            json!({"spec": {"containers": [1], "ports": "x", "template": 3}}),
        ] {
            defaulted(kind, object);
        }
    }
}

#[test]
fn network_policies_are_about_what_comes_in_and_about_what_their_rules_are() {
    let types = |spec: Value| {
        let policy = defaulted(Kind::NetworkPolicy, json!({"spec": spec}));
        policy["spec"]["policyTypes"].clone()
    };
    assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
    assert_eq!(types(json!({"egress": []})), json!(["Ingress"]));
    assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
    assert_eq!(types(json!({"policyTypes": ["Egress"]})), json!(["Egress"]));
    let policy = defaulted(
        Kind::NetworkPolicy,
        json!({"spec": {"ingress": [{"ports": [{"port": 80}, {"protocol": "UDP"}]}], "egress": [{"ports": [{}]}]}}),
    );
    let protocol = |path: &str| policy.pointer(path).cloned();
    assert_eq!(
        protocol("/spec/ingress/0/ports/0/protocol"),
        Some("TCP".into())
    );
    assert_eq!(
        protocol("/spec/ingress/0/ports/1/protocol"),
        Some("UDP".into())
    );
    assert_eq!(
        protocol("/spec/egress/0/ports/0/protocol"),
        Some("TCP".into())
    );
}
