//! Volumes of every kind that a node without storage drivers has.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    eventually,
    scene::{Case, PATIENCE, Scene, has, pod, runs},
};

pub(crate) const CASES: &[Case] = &[
    ("empty-dir", an_empty_dir_is_shared),
    ("config-map", a_config_map_is_files_that_follow_it),
    ("secret", a_secret_is_files_in_memory_with_modes),
    ("host-path", a_host_path_is_the_nodes_own),
    ("projected", sources_are_projected_into_one_folder),
    ("downward", a_pods_labels_are_files_that_follow_them),
    ("hosts", etc_hosts_and_resolv_conf_are_the_pods),
];

/// A pod whose container sleeps and has the volume `v` at /v.
fn sleeper(volume: Value, mount: Value) -> Value {
    let mut at = json!({"name": "v", "mountPath": "/v"});
    merge(&mut at, mount);
    let mut volume = volume;
    volume["name"] = json!("v");
    let main = runs("c", &["sleep", "infinity"], json!({"volumeMounts": [at]}));
    pod("p", json!({"containers": [main], "volumes": [volume]}))
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

fn an_empty_dir_is_shared(scene: &Scene<'_>) -> Result<()> {
    let mounts = json!({"volumeMounts": [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]});
    let (a, b) = (
        runs("a", &["sleep", "infinity"], mounts.clone()),
        runs("b", &["sleep", "infinity"], mounts),
    );
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
    ]);
    scene.apply(&pod("p", json!({"containers": [a, b], "volumes": volumes})))?;
    scene.ready("p")?;
    let (in_a, in_b) = (
        ["exec", "p", "-c", "a", "--", "sh", "-c"],
        ["exec", "p", "-c", "b", "--", "sh", "-c"],
    );
    let run = |container: [&str; 7], script: &str| scene.run(&[&container[..], &[script]].concat());
    for dir in ["/disk", "/memory"] {
        run(in_a, &format!("echo from a >{dir}/file"))?;
        ensure!(run(in_b, &format!("cat {dir}/file"))? == "from a\n");
    }
    ensure!(run(in_a, "stat -f -c %T /memory")?.trim() == "tmpfs");
    ensure!(run(in_a, "stat -c %a /disk")?.trim() == "777");
    // More than fits is refused.
    let error =
        scene.fails(&[&in_a[..], &["head -c 9000000 /dev/zero >/memory/large"]].concat())?;
    has(&error, "No space left on device")
}

fn a_config_map_is_files_that_follow_it(scene: &Scene<'_>) -> Result<()> {
    scene.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
        "--from-literal=size=big",
    ])?;
    let volumes = json!([
        {"name": "all", "configMap": {"name": "settings"}},
        {"name": "some", "configMap": {"name": "settings", "items": [{"key": "size", "path": "deep/size.txt", "mode": 0o640}]}},
        {"name": "optional", "configMap": {"name": "none", "optional": true}},
    ]);
    let main = runs(
        "c",
        &["sleep", "infinity"],
        json!({"volumeMounts": [
            {"name": "all", "mountPath": "/all"},
            {"name": "some", "mountPath": "/some"},
            {"name": "optional", "mountPath": "/optional"},
            {"name": "all", "mountPath": "/etc/color", "subPath": "color"},
        ]}),
    );
    scene.apply(&pod("p", json!({"containers": [main], "volumes": volumes})))?;
    scene.ready("p")?;
    ensure!(scene.sh("p", "cd /all; echo *; cat color")? == "color size\nblue");
    ensure!(
        scene.sh(
            "p",
            "cd /some; cat deep/size.txt; stat -L -c ' %a' deep/size.txt"
        )? == "big 640\n"
    );
    ensure!(scene.exec("p", &["cat", "/etc/color"])? == "blue");
    has(
        &scene.fails(&["exec", "p", "--", "touch", "/all/new"])?,
        "Read-only file system",
    )?;
    scene.run(&[
        "patch",
        "configmap",
        "settings",
        "-p",
        r#"{"data": {"color": "red", "shape": "round"}}"#,
    ])?;
    eventually(
        "the change",
        PATIENCE,
        || scene.sh("p", "cd /all; echo *; cat color"),
        |seen| seen == "color shape size\nred",
    )?;
    // As upstream: a subPath does not follow.
    ensure!(scene.exec("p", &["cat", "/etc/color"])? == "blue");
    scene.run(&["create", "configmap", "none", "--from-literal=late=yes"])?;
    eventually(
        "the late one",
        PATIENCE,
        || scene.sh("p", "cat /optional/late"),
        |seen| seen == "yes",
    )?;
    Ok(())
}

fn a_secret_is_files_in_memory_with_modes(scene: &Scene<'_>) -> Result<()> {
    scene.run(&[
        "create",
        "secret",
        "generic",
        "keys",
        "--from-literal=key=s3cret",
    ])?;
    let mut manifest = sleeper(
        json!({"secret": {"secretName": "keys", "defaultMode": 0o400}}),
        json!({}),
    );
    manifest["spec"]["securityContext"] = json!({"fsGroup": 4321});
    scene.apply(&manifest)?;
    scene.ready("p")?;
    ensure!(scene.sh("p", "cat /v/key; stat -f -c ' %T' /v")? == "s3cret tmpfs\n");
    // The group may read what belongs to it.
    ensure!(scene.sh("p", "stat -L -c '%a %g' /v/key")? == "440 4321\n");
    Ok(())
}

fn a_host_path_is_the_nodes_own(scene: &Scene<'_>) -> Result<()> {
    let dir = scene.cluster().data_dir().join("exchange-host-path");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("from-node"), "node")?;
    let volume = json!({"hostPath": {"path": dir, "type": "Directory"}});
    scene.apply(&sleeper(volume, json!({})))?;
    scene.ready("p")?;
    ensure!(scene.sh("p", "cat /v/from-node; echo pod >/v/from-pod")? == "node");
    ensure!(std::fs::read_to_string(dir.join("from-pod"))? == "pod\n");
    let volume = json!({"hostPath": {"path": dir.join("missing"), "type": "Directory"}});
    let mut second = sleeper(volume, json!({}));
    second["metadata"]["name"] = json!("second");
    scene.apply(&second)?;
    scene.event("second", "FailedMount", "hostPath type check failed")?;
    Ok(())
}

fn sources_are_projected_into_one_folder(scene: &Scene<'_>) -> Result<()> {
    scene.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
    ])?;
    scene.run(&[
        "create",
        "secret",
        "generic",
        "keys",
        "--from-literal=key=s3cret",
    ])?;
    let volume = json!({"projected": {"sources": [
        {"configMap": {"name": "settings"}},
        {"secret": {"name": "keys", "items": [{"key": "key", "path": "private/key", "mode": 0o600}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]}});
    scene.apply(&sleeper(volume, json!({"readOnly": true})))?;
    scene.ready("p")?;
    ensure!(
        scene.sh(
            "p",
            "cd /v; cat color private/key name; stat -L -c ' %a' private/key"
        )? == "blues3cretp 600\n"
    );
    Ok(())
}

fn a_pods_labels_are_files_that_follow_them(scene: &Scene<'_>) -> Result<()> {
    let volume = json!({"downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "memory", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}},
    ]}});
    let mut manifest = sleeper(volume, json!({}));
    manifest["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "64Mi"}});
    scene.apply(&manifest)?;
    scene.ready("p")?;
    ensure!(scene.sh("p", "cat /v/labels; echo; cat /v/memory")? == "app=\"p\"\n64");
    scene.run(&["label", "pod", "p", "tier=back"])?;
    eventually(
        "the label",
        PATIENCE,
        || scene.sh("p", "cat /v/labels"),
        |seen| seen == "app=\"p\"\ntier=\"back\"",
    )?;
    Ok(())
}

fn etc_hosts_and_resolv_conf_are_the_pods(scene: &Scene<'_>) -> Result<()> {
    let main = runs("c", &["sleep", "infinity"], json!({}));
    let spec = json!({
        "containers": [main],
        "hostname": "me", "subdomain": "team",
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["old.example", "older.example"]}],
        "dnsConfig": {"searches": ["example.org"], "options": [{"name": "timeout", "value": "3"}]},
    });
    scene.apply(&pod("p", spec))?;
    let ready = scene.ready("p")?;
    let hosts = scene.exec("p", &["cat", "/etc/hosts"])?;
    let ip = ready["status"]["podIP"].as_str().unwrap_or_default();
    has(
        &hosts,
        &format!("{ip}\tme.team.hosts.svc.cluster.local\tme"),
    )?;
    has(&hosts, "192.0.2.7\told.example\tolder.example")?;
    let resolv = scene.exec("p", &["cat", "/etc/resolv.conf"])?;
    has(
        &resolv,
        "search hosts.svc.cluster.local svc.cluster.local cluster.local example.org",
    )?;
    has(&resolv, "nameserver 10.96.0.10")?;
    has(&resolv, "options ndots:5 timeout:3")?;
    ensure!(
        scene
            .exec("p", &["cat", "/proc/sys/kernel/hostname"])?
            .trim()
            == "me"
    );
    Ok(())
}
