use k8s_openapi::ByteString;
use serde_json::json;

use super::*;

fn pod(container: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "dev", "uid": "u1", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "default", "containers": [container]},
    }))
    .unwrap()
}

fn resolve(pod: &Pod, sources: &Sources) -> Result<BTreeMap<String, String>, EnvError> {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    resolve_env(pod, container, sources).map(|vars| vars.into_iter().collect())
}

fn sources() -> Sources {
    let map: ConfigMap =
        serde_json::from_value(json!({"data": {"color": "red", "a=b": "skipped"}})).unwrap();
    let secret = Secret {
        data: Some([("pass".to_owned(), ByteString(b"s3".to_vec()))].into()),
        ..Secret::default()
    };
    let service = |namespace: &str, name: &str, ip: &str| -> Arc<Service> {
        let value = json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": ip, "ports": [{"name": "http-main", "port": 80, "protocol": "TCP"}]},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    };
    Sources {
        config_maps: [("cfg".to_owned(), map)].into(),
        secrets: [("sec".to_owned(), secret)].into(),
        services: vec![
            service("dev", "azure-vote-back", "10.96.0.7"),
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "other", "10.96.0.9"),
            service("dev", "headless", "None"),
        ],
        pod_ips: vec!["10.244.0.5".parse().unwrap()],
        host_ips: vec!["192.0.2.1".parse().unwrap()],
        allocatable: Allocatable {
            cpu_millis: 2000,
            memory: 1 << 30,
            ephemeral_storage: 0,
        },
    }
}

#[test]
fn services_are_told_in_every_form() {
    let vars = resolve(&pod(json!({"name": "c"})), &sources()).unwrap();
    assert_eq!(vars["AZURE_VOTE_BACK_SERVICE_HOST"], "10.96.0.7");
    assert_eq!(vars["AZURE_VOTE_BACK_SERVICE_PORT"], "80");
    assert_eq!(vars["AZURE_VOTE_BACK_SERVICE_PORT_HTTP_MAIN"], "80");
    assert_eq!(vars["AZURE_VOTE_BACK_PORT"], "tcp://10.96.0.7:80");
    assert_eq!(vars["AZURE_VOTE_BACK_PORT_80_TCP_ADDR"], "10.96.0.7");
    assert_eq!(vars["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
    assert!(!vars.contains_key("OTHER_SERVICE_HOST"));
    assert!(!vars.contains_key("HEADLESS_SERVICE_HOST"));
}

#[test]
fn without_service_links_only_kubernetes_is_told() {
    let mut pod = pod(json!({"name": "c"}));
    pod.spec.as_mut().unwrap().enable_service_links = Some(false);
    let vars = resolve(&pod, &sources()).unwrap();
    assert!(vars.contains_key("KUBERNETES_SERVICE_HOST"));
    assert!(!vars.contains_key("AZURE_VOTE_BACK_SERVICE_HOST"));
}

#[test]
fn every_source_is_read_and_later_ones_win() {
    let pod = pod(json!({
        "name": "c",
        "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cfg"}}, {"secretRef": {"name": "sec"}},
                    {"configMapRef": {"name": "gone", "optional": true}}],
        "env": [
            {"name": "pass", "value": "over"},
            {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "color"}}},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pass"}}},
            {"name": "MISSING", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "x", "optional": true}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
            {"name": "CPU_LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "URL", "value": "$(COLOR)-$(P_color)-$(KUBERNETES_SERVICE_HOST)-$(LATER)-$$(COLOR)"},
            {"name": "LATER", "value": "1"},
            {"name": "KUBERNETES_SERVICE_PORT", "value": "mine"},
        ],
    }));
    let vars = resolve(&pod, &sources()).unwrap();
    let expected = [
        ("P_color", "red"),
        ("pass", "over"),
        ("COLOR", "red"),
        ("SECRET", "s3"),
        ("IP", "10.244.0.5"),
        ("APP", "web"),
        ("MEM", "64"),
        ("CPU", "1"),
        ("CPU_LIMIT", "2"),
        ("URL", "red-red-10.96.0.1-$(LATER)-$(COLOR)"),
        ("KUBERNETES_SERVICE_PORT", "mine"),
    ];
    for (name, value) in expected {
        assert_eq!(vars.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!vars.contains_key("MISSING"));
    assert!(!vars.contains_key("P_a=b"));
}

#[test]
fn what_is_missing_is_named() {
    for (container, message) in [
        (
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "gone"}}]}),
            "configmap \"gone\" not found",
        ),
        (
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}),
            "couldn't find key k in Secret dev/sec",
        ),
        (
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
            "unsupported fieldPath: spec.foo",
        ),
    ] {
        assert_eq!(
            resolve(&pod(container), &sources())
                .unwrap_err()
                .to_string(),
            message
        );
    }
}

#[test]
fn references_name_every_object() {
    let pod = pod(json!({
        "name": "c",
        "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
    }));
    let found = references(&pod.spec.as_ref().unwrap().containers[0]);
    assert_eq!(found.config_maps, ["a".to_owned(), "c".to_owned()].into());
    assert_eq!(found.secrets, ["b".to_owned()].into());
}
