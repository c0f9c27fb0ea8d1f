//! Packets' ways: to pods, to the node and out of it.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skiff_netns::NetNs;
use skiff_test_harness::scene::{Scene, has};

use crate::{ASK, TRY, client, pod_ip, server, services::fails_at_once, text, words};

pub(crate) fn pods_see_each_other_by_their_own_addresses(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([server("web"), client("me")]))?;
    let (web, me) = (pod_ip(&scene.ready("web")?)?, pod_ip(&scene.ready("me")?)?);
    let said = words(scene, "me", ASK, &[&web, "8080"])?;
    ensure!(said == [web.as_str(), "web", &me], "{said:?}");
    // From the node to the pod and from the pod to the node.
    let said = scene
        .cluster()
        .node_exec(&["bash", "-c", &format!("cat </dev/tcp/{web}/8080")])?;
    has(&said, "web 10.244.0.1")?;
    let node = text(&scene.ready("me")?["status"]["hostIP"])?;
    let refused = words(scene, "me", TRY, &[&node, "1"])?;
    ensure!(
        refused.first().is_some_and(|word| word == "ECONNREFUSED"),
        "{refused:?}"
    );
    Ok(())
}

/// Packets that the node has sent through its end of a pod's veth pair.
fn sent_to_pod(scene: &Scene<'_>, pod: &str) -> Result<u64> {
    let number = scene.exec(pod, &["cat", "/sys/class/net/eth0/iflink"])?;
    let number: u64 = number.trim().parse()?;
    let links = scene.cluster().node_exec(&["ip", "-j", "-s", "link"])?;
    let links: Value = serde_json::from_str(&links)?;
    let mut links = links.as_array().into_iter().flatten();
    links
        .find(|link| link["ifindex"] == number)
        .and_then(|link| link["stats64"]["tx"]["packets"].as_u64())
        .context("the node has no end of the pod's link")
}

pub(crate) fn pods_reach_each_other_around_the_bridge(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([server("web"), client("me")]))?;
    let web = pod_ip(&scene.ready("web")?)?;
    scene.ready("me")?;
    // Addresses have been resolved then, which takes the bridge.
    words(scene, "me", ASK, &[&web, "8080"])?;
    let before = sent_to_pod(scene, "web")?;
    let times = 100;
    words(scene, "me", &ASK.repeat(times), &[&web, "8080"])?;
    let sent = sent_to_pod(scene, "web")? - before;
    // A request is four packets or more to the server. Probes come from the node and take the bridge.
    ensure!(sent < 200, "{sent} packets took the bridge");
    Ok(())
}

/// A network beside the node's, joined to it by one link; both go with its namespace.
struct Outside {
    name: String,
}

impl Outside {
    fn new(node: &str) -> Result<Self> {
        let outside = Self {
            name: format!("{node}-out"),
        };
        outside.remove();
        ip(&["netns", "add", &outside.name])?;
        let name = outside.name.as_str();
        ip(&[
            "-n", name, "link", "add", "node0", "type", "veth", "peer", "name", "out0", "netns",
            node,
        ])?;
        ip(&["-n", name, "address", "add", "192.0.2.2/24", "dev", "node0"])?;
        ip(&["-n", node, "address", "add", "192.0.2.1/24", "dev", "out0"])?;
        for (namespace, link) in [(name, "lo"), (name, "node0"), (node, "out0")] {
            ip(&["-n", namespace, "link", "set", link, "up"])?;
        }
        ip(&["-n", node, "route", "add", "default", "via", "192.0.2.2"])?;
        Ok(outside)
    }

    fn remove(&self) {
        Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output()
            .ok();
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output()?;
    ensure!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

pub(crate) fn traffic_to_the_outside_has_the_nodes_address(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&client("me"))?;
    scene.ready("me")?;
    let outside = Outside::new(scene.cluster().name())?;
    let namespace = NetNs::open(format!("/run/netns/{}", outside.name))?;
    let listener = namespace.run(|| TcpListener::bind("192.0.2.2:8080"))??;
    let server = thread::spawn(move || -> Result<()> {
        for _ in 0..2 {
            let (mut stream, peer) = listener.accept()?;
            stream.write_all(format!("outside {}", peer.ip()).as_bytes())?;
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    });
    let said = words(scene, "me", ASK, &["192.0.2.2", "8080"])?;
    ensure!(said == ["192.0.2.2", "outside", "192.0.2.1"], "{said:?}");
    let said = scene
        .cluster()
        .node_exec(&["bash", "-c", "cat </dev/tcp/192.0.2.2/8080"])?;
    ensure!(said == "outside 192.0.2.1", "{said}");
    server.join().ok().context("the server panicked")??;
    // With a way out, addresses of the cluster still do not take it.
    for address in ["10.96.200.200", "10.244.99.99"] {
        fails_at_once(
            scene,
            address,
            &["EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "EACCES"],
        )?;
    }
    Ok(())
}
