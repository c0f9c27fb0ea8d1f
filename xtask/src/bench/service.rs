//! New connections through a ClusterIP against the same pod's own address.

use anyhow::{Context, Result};

use super::{BenchCluster, Better, Figure, cpu, median};
use crate::command;

/// Connections in one run.
const CONNECTIONS: u32 = 20_000;
/// Runs of each kind, taken in turns.
const RUNS: usize = 5;

/// Server, Service and client; the binaries come from the machine.
fn manifest(bin_dir: &str) -> String {
    let pod = |name: &str, command: &str| {
        format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
             spec:\n\
             \x20 containers:\n\
             \x20 - name: load\n\
             \x20   image: mcr.microsoft.com/azuredocs/azure-vote-front:v1\n\
             \x20   command: {command}\n\
             \x20   volumeMounts: [{{name: bin, mountPath: /bench, readOnly: true}}]\n\
             \x20 volumes: [{{name: bin, hostPath: {{path: {bin_dir}}}}}]\n\
             ---\n"
        )
    };
    pod("load-server", "[/bench/xtask, load, serve, '7000']")
        + &pod("load-client", "[sleep, infinity]")
        + "apiVersion: v1\n\
           kind: Service\n\
           metadata: {name: load}\n\
           spec: {selector: {app: load-server}, ports: [{port: 7000}]}\n"
}

/// Rate and CPU time per connection.
pub(super) fn connections(cluster: &BenchCluster) -> Result<Vec<Figure>> {
    let own = std::env::current_exe()?;
    let bin_dir = own.parent().context("this executable has no folder")?;
    let file = cluster.instance.run_dir().join("load.yaml");
    std::fs::write(&file, manifest(&bin_dir.display().to_string()))?;
    let kubectl = || cluster.instance.kubectl();
    command::output(kubectl().args(["apply", "-f"]).arg(&file))?;
    command::output(kubectl().args([
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        "pod/load-server",
        "pod/load-client",
    ]))?;
    let field = |kind: &str, path: &str| {
        command::output(kubectl().args(["get", kind, "-o", &format!("jsonpath={{{path}}}")]))
    };
    let targets = [
        format!("{}:7000", field("service/load", ".spec.clusterIP")?),
        format!("{}:7000", field("pod/load-server", ".status.podIP")?),
    ];
    let mut seconds: [Vec<f64>; 2] = Default::default();
    let mut busy: [Vec<f64>; 2] = Default::default();
    // The first round warms up and is not counted.
    for round in 0..=RUNS {
        for ((target, seconds), busy) in targets.iter().zip(&mut seconds).zip(&mut busy) {
            let before = cpu::busy_seconds()?;
            let took = command::output(kubectl().args([
                "exec",
                "load-client",
                "--",
                "/bench/xtask",
                "load",
                "connect",
                target,
                &CONNECTIONS.to_string(),
            ]))?;
            if round > 0 {
                seconds.push(took.trim().parse()?);
                busy.push(cpu::busy_seconds()? - before);
            }
        }
    }
    command::output(kubectl().args(["delete", "--wait=false", "-f"]).arg(&file))?;
    let [via_service, direct] = seconds.map(|runs| f64::from(CONNECTIONS) / median(&runs));
    let [cpu_service, cpu_direct] = busy.map(|runs| median(&runs) * 1e6 / f64::from(CONNECTIONS));
    Ok(vec![
        Figure::new(
            "svc-cps@1",
            (via_service, "1/s"),
            ("direct to the pod", direct),
            Better::Higher,
        ),
        Figure::new(
            "svc-conn-cpu@1",
            (cpu_service, "us"),
            ("direct to the pod", cpu_direct),
            Better::Lower,
        ),
    ])
}
