//! What a container learns from its environment.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::scene::{Case, Scene, pod, runs};

pub(crate) const CASES: &[Case] = &[
    ("env", the_environment_comes_from_everywhere),
    ("args", variables_are_expanded_in_commands),
];

fn from(kind: &str, value: Value) -> Value {
    json!({ kind: value })
}

/// One variable of every kind.
fn variables() -> Value {
    let field = |path: &str| from("fieldRef", json!({"fieldPath": path}));
    let resource = |name: &str| from("resourceFieldRef", json!({"resource": name}));
    json!([
        {"name": "PLAIN", "value": "plain"},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "password"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": true}}},
        {"name": "POD", "valueFrom": field("metadata.name")},
        {"name": "NAMESPACE", "valueFrom": field("metadata.namespace")},
        {"name": "UID_", "valueFrom": field("metadata.uid")},
        {"name": "APP", "valueFrom": field("metadata.labels['app']")},
        {"name": "POD_IP", "valueFrom": field("status.podIP")},
        {"name": "HOST_IP", "valueFrom": field("status.hostIP")},
        {"name": "NODE", "valueFrom": field("spec.nodeName")},
        {"name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
        {"name": "MEMORY", "valueFrom": resource("limits.memory")},
        {"name": "CPU", "valueFrom": resource("requests.cpu")},
        {"name": "BOTH", "value": "$(PLAIN)-$(COLOR)"},
        {"name": "ESCAPED", "value": "$$(PLAIN)"},
        {"name": "LATER", "value": "$(AFTER)"},
        {"name": "AFTER", "value": "after"},
    ])
}

fn the_environment_comes_from_everywhere(scene: &Scene<'_>) -> Result<()> {
    scene.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
        "--from-literal=SIZE=big",
    ])?;
    scene.run(&[
        "create",
        "secret",
        "generic",
        "secret",
        "--from-literal=password=s3cret",
    ])?;
    scene.run(&["create", "service", "clusterip", "my-shop", "--tcp=80:8080"])?;
    let main = runs(
        "c",
        &["sleep", "infinity"],
        json!({
            "env": variables(),
            "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "SET_"}, {"secretRef": {"name": "secret"}}],
            "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "150m"}},
        }),
    );
    scene.apply(&pod("p", json!({"containers": [main]})))?;
    let ready = scene.ready("p")?;
    let shown = scene.exec("p", &["env"])?;
    let shop = scene.get(&["service", "my-shop"])?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("not a string");
    for (name, value) in [
        ("PLAIN", "plain"),
        ("COLOR", "blue"),
        ("PASSWORD", "s3cret"),
        ("password", "s3cret"),
        ("SET_color", "blue"),
        ("SET_SIZE", "big"),
        ("POD", "p"),
        ("NAMESPACE", "env"),
        ("UID_", &text(&ready["metadata"]["uid"])?),
        ("APP", "p"),
        ("POD_IP", &text(&ready["status"]["podIP"])?),
        ("HOST_IP", &text(&ready["status"]["hostIP"])?),
        ("NODE", scene.cluster().name()),
        ("ACCOUNT", "default"),
        ("MEMORY", "67108864"),
        ("CPU", "1"),
        ("BOTH", "plain-blue"),
        ("ESCAPED", "$(PLAIN)"),
        ("LATER", "$(AFTER)"),
        ("HOSTNAME", "p"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("MY_SHOP_SERVICE_HOST", &text(&shop["spec"]["clusterIP"])?),
        ("MY_SHOP_SERVICE_PORT", "80"),
        ("MY_SHOP_PORT_80_TCP_PROTO", "tcp"),
    ] {
        let line = format!("{name}={value}");
        ensure!(
            shown.lines().any(|found| found == line),
            "{line} is missing in:\n{shown}"
        );
    }
    ensure!(!shown.contains("MAYBE"), "{shown}");
    ensure!(
        shown.lines().any(|line| line.starts_with("PATH=")),
        "{shown}"
    );
    Ok(())
}

fn variables_are_expanded_in_commands(scene: &Scene<'_>) -> Result<()> {
    let main = json!({
        "command": ["sh", "-c", "printf '%s|' \"$@\"; echo; exec sleep infinity", "$(WHO)"],
        "args": ["$(WHO)", "$(UNKNOWN)", "$$(WHO)", "$WHO"],
        "env": [{"name": "WHO", "value": "me"}],
        "workingDir": "/tmp/made/for/this",
    });
    scene.apply(&pod("p", json!({"containers": [runs("c", &[], main)]})))?;
    scene.ready("p")?;
    let said = skiff_test_harness::eventually(
        "its words",
        skiff_test_harness::scene::PATIENCE,
        || scene.logs("p", &[]),
        |log| !log.is_empty(),
    )?;
    ensure!(said == "me|$(UNKNOWN)|$(WHO)|$WHO|\n", "{said}");
    ensure!(scene.exec("p", &["pwd"])? == "/tmp/made/for/this\n");
    Ok(())
}
