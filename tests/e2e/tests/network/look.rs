//! What whoever runs a node sees.

use std::{collections::BTreeSet, io::Read as _};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    eventually,
    scene::{PATIENCE, Scene, has},
};

use crate::{ASK, answer, client, cluster_ip, metrics, server, service, words};

/// `skiff service`, `skiff trace` and the metrics name Services, pods and backends.
pub(crate) fn operators_see_services_and_decisions_by_name(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&server("one"))?;
    scene.apply(&client("asker"))?;
    scene.apply(&service("web", "one", json!({})))?;
    scene.ready("one")?;
    scene.ready("asker")?;
    let ip = cluster_ip(scene, "web")?;
    answer(scene, "asker", &ip, "80")?;
    let output = |args: &[&str]| scene.cluster().skiff_says(args);
    let name = format!("{}/web", scene.namespace());
    let listed = output(&["service", "list"])?;
    let line = listed
        .lines()
        .find(|line| line.starts_with(&format!("{ip}:80 ")));
    has(line.context("not listed")?, &format!("{name}:talk"))?;
    let json: Value =
        serde_json::from_str(&output(&["service", "backends", &name, "-o", "json"])?)?;
    let pods: BTreeSet<&str> = json
        .as_array()
        .context("no array")?
        .iter()
        .filter_map(|backend| backend["pod"].as_str())
        .collect();
    ensure!(
        pods == [&*format!("{}/one", scene.namespace())].into(),
        "{json}"
    );
    has(&output(&["service", "conntrack"])?, &name)?;
    has(&output(&["service", "tables"])?, "LB_SERVICES")?;
    let page = metrics(scene.cluster())?;
    let counted = format!(
        "skiff_service_connections_total{{namespace={:?},service=\"web\"}} ",
        scene.namespace()
    );
    let line = page.lines().find_map(|line| line.strip_prefix(&counted));
    let connections: u64 = line.with_context(|| page.clone())?.parse()?;
    ensure!(connections > 0, "{page}");

    let listen = ["trace", "--address", &ip, "--port", "80", "-n", "1"];
    let mut trace = (scene.cluster().skiff(&listen)?)
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    // It may not listen yet: asked again until it has heard of it.
    eventually(
        "the trace to end",
        PATIENCE,
        || {
            words(scene, "asker", ASK, &[&ip, "80"])?;
            Ok(trace.try_wait()?)
        },
        Option::is_some,
    )?;
    let mut said = String::new();
    trace
        .stdout
        .take()
        .context("no stdout")?
        .read_to_string(&mut said)?;
    has(&said, &format!("{}/asker connect TCP", scene.namespace()))?;
    has(&said, &format!("{name}:talk"))?;
    has(&said, &format!("({}/one)", scene.namespace()))
}
