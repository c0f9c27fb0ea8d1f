//! Liveness, readiness and startup probes.

use anyhow::{Result, ensure};
use serde_json::json;
use skiff_test_harness::scene::{Case, Scene, condition, container, pod, runs, script};

pub(crate) const CASES: &[Case] = &[
    ("liveness", a_failed_liveness_probe_restarts_the_container),
    ("readiness", a_failed_readiness_probe_restarts_nothing),
    ("startup", a_startup_probe_keeps_the_others_back),
    ("http-probe", an_http_probe_goes_by_the_status_code),
];

fn a_failed_liveness_probe_restarts_the_container(scene: &Scene<'_>) -> Result<()> {
    let mut main = script("c", "exec sleep infinity");
    main["livenessProbe"] = json!({
        "exec": {"command": ["sh", "-c", "test ! -e /tmp/sick || { echo feeling unwell; exit 1; }"]},
        "periodSeconds": 1, "failureThreshold": 2,
    });
    scene.apply(&pod("p", json!({"containers": [main]})))?;
    let first = scene.ready("p")?;
    scene.exec("p", &["touch", "/tmp/sick"])?;
    let second = scene.pod("p", "a restart", |pod| {
        container(pod, "c")["restartCount"] == 1 && condition(pod, "Ready") == "True"
    })?;
    let last = &container(&second, "c")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 137, "{second:#}");
    ensure!(
        last["containerID"] == container(&first, "c")["containerID"],
        "{second:#}"
    );
    // The pod itself is the same: its sandbox is kept.
    ensure!(
        first["status"]["podIP"] == second["status"]["podIP"],
        "{second:#}"
    );
    scene.event("p", "Unhealthy", "Liveness probe failed: feeling unwell")?;
    scene.event(
        "p",
        "Killing",
        "Container c failed liveness probe, will be restarted",
    )?;
    Ok(())
}

fn a_failed_readiness_probe_restarts_nothing(scene: &Scene<'_>) -> Result<()> {
    let mut main = script("c", "exec sleep infinity");
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/open"]}, "periodSeconds": 1, "failureThreshold": 1});
    main["readinessProbe"] = probe;
    scene.apply(&pod("p", json!({"containers": [main]})))?;
    scene.event("p", "Unhealthy", "Readiness probe failed")?;
    scene.exec("p", &["touch", "/tmp/open"])?;
    scene.ready("p")?;
    scene.exec("p", &["rm", "/tmp/open"])?;
    let shut = scene.pod("p", "unready", |pod| condition(pod, "Ready") == "False")?;
    ensure!(container(&shut, "c")["restartCount"] == 0, "{shut:#}");
    ensure!(container(&shut, "c")["started"] == true, "{shut:#}");
    Ok(())
}

fn a_startup_probe_keeps_the_others_back(scene: &Scene<'_>) -> Result<()> {
    let probe = |failures: u32| json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": failures});
    let mut slow = script("c", "sleep 3; touch /tmp/up; exec sleep infinity");
    slow["startupProbe"] = probe(60);
    // Would kill it in its first second.
    slow["livenessProbe"] = probe(1);
    let mut never = script("c", "exec sleep infinity");
    never["startupProbe"] = probe(2);
    let never = pod(
        "never",
        json!({"restartPolicy": "Never", "containers": [never]}),
    );
    scene.apply(&json!([pod("slow", json!({"containers": [slow]})), never]))?;
    scene.pod("slow", "running, not started", |pod| {
        container(pod, "c")["state"]["running"].is_object()
            && container(pod, "c")["started"] == false
    })?;
    let ready = scene.ready("slow")?;
    ensure!(container(&ready, "c")["restartCount"] == 0, "{ready:#}");
    ensure!(container(&ready, "c")["started"] == true, "{ready:#}");
    scene.event("never", "Killing", "Container c failed startup probe")?;
    scene.phase("never", "Failed")?;
    Ok(())
}

fn an_http_probe_goes_by_the_status_code(scene: &Scene<'_>) -> Result<()> {
    let server = [
        "python3",
        "-m",
        "http.server",
        "--directory",
        "/srv",
        "8000",
    ];
    let main = runs(
        "c",
        &server,
        json!({
            "ports": [{"name": "http", "containerPort": 8000}],
            "readinessProbe": {"httpGet": {"path": "/healthy", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1},
            "volumeMounts": [{"name": "v", "mountPath": "/srv"}],
        }),
    );
    scene.apply(&pod(
        "p",
        json!({"containers": [main], "volumes": [{"name": "v", "emptyDir": {}}]}),
    ))?;
    scene.event(
        "p",
        "Unhealthy",
        "Readiness probe failed: HTTP probe failed with statuscode: 404",
    )?;
    scene.exec("p", &["touch", "/srv/healthy"])?;
    scene.ready("p")?;
    scene.exec("p", &["rm", "/srv/healthy"])?;
    scene.pod("p", "unready", |pod| condition(pod, "Ready") == "False")?;
    Ok(())
}
