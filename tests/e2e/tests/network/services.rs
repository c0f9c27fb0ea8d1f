//! Services of every kind, and what they refuse.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use skiff_test_harness::{
    eventually,
    scene::{PATIENCE, Scene, has, pod, runs},
};

use crate::{SERVER, TRY, answer, client, cluster_ip, pod_ip, server, service, text, words};

/// One datagram over a socket that is connected or not; prints where the answer came from, the peer, the answer.
const DATAGRAM: &str = r#"
import socket, sys
to = (sys.argv[1], 53)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
if sys.argv[2] == "connected":
    s.connect(to); s.send(b"hello"); peer = s.getpeername()
    said, source = s.recvfrom(200)
else:
    s.sendto(b"hello", to); peer = to
    said, source = s.recvfrom(200)
print(*source, *peer, said.decode())
"#;

pub(crate) fn udp_answers_come_from_the_service(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([
        server("web"),
        client("me"),
        service("shop", "web", json!({}))
    ]))?;
    scene.ready("web")?;
    let me = pod_ip(&scene.ready("me")?)?;
    let vip = cluster_ip(scene, "shop")?;
    answer(scene, "me", &vip, "80")?;
    for way in ["connected", "unconnected"] {
        let said = words(scene, "me", DATAGRAM, &[&vip, way])?;
        let expected = [&vip, "53", &vip, "53", "web", &me, "hello"];
        ensure!(said == expected, "{way}: {said:?}");
    }
    Ok(())
}

pub(crate) fn a_node_port_answers_on_the_node_and_in_pods(scene: &Scene<'_>) -> Result<()> {
    let node_port = json!({"type": "NodePort"});
    scene.apply(&json!([
        server("web"),
        client("me"),
        service("shop", "web", node_port)
    ]))?;
    scene.ready("web")?;
    let node = text(&scene.ready("me")?["status"]["hostIP"])?;
    let ports = &scene.get(&["service", "shop"])?["spec"]["ports"];
    let port = ports[0]["nodePort"].as_u64().context("no node port")?;
    ensure!((30_000..=32_767).contains(&port), "{port}");
    let said = answer(scene, "me", &node, &port.to_string())?;
    ensure!(said[..2] == [node.as_str(), "web"], "{said:?}");
    for host in [node.as_str(), "127.0.0.1"] {
        let read = format!("cat </dev/tcp/{host}/{port}");
        has(&scene.cluster().node_exec(&["bash", "-c", &read])?, "web ")?;
    }
    // A pod's loopback is its own.
    let refused = words(scene, "me", TRY, &["127.0.0.1", &port.to_string()])?;
    ensure!(
        refused.first().is_some_and(|word| word == "ECONNREFUSED"),
        "{refused:?}"
    );
    scene.run(&["delete", "service", "shop"])?;
    eventually(
        "the port's end",
        PATIENCE,
        || words(scene, "me", TRY, &[&node, &port.to_string()]),
        |said| said.first().is_some_and(|word| word == "ECONNREFUSED"),
    )?;
    Ok(())
}

/// The error of a connection from the node, and how long it took.
fn try_from_node(scene: &Scene<'_>, host: &str, port: u16) -> Result<(String, Duration)> {
    let start = Instant::now();
    let read = format!("timeout 20 bash -c 'cat </dev/tcp/{host}/{port}'");
    let Err(error) = scene.cluster().node_exec(&["bash", "-c", &read]) else {
        bail!("{host}:{port} answered");
    };
    Ok((format!("{error:#}"), start.elapsed()))
}

/// A connection from a pod fails with one of these errors, in less than a second.
pub(crate) fn fails_at_once(scene: &Scene<'_>, host: &str, errors: &[&str]) -> Result<()> {
    let said = words(scene, "me", TRY, &[host, "80"])?;
    let [error, seconds] = said.as_slice() else {
        bail!("{said:?}");
    };
    ensure!(
        errors.contains(&error.as_str()),
        "{host}: {error} after {seconds}"
    );
    ensure!(
        seconds.parse::<f64>()? < 1.0,
        "{host}: {error} after {seconds}"
    );
    Ok(())
}

pub(crate) fn a_service_without_endpoints_refuses(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([client("me"), service("shop", "nobody", json!({}))]))?;
    scene.ready("me")?;
    let vip = cluster_ip(scene, "shop")?;
    eventually(
        "the Service to refuse",
        PATIENCE,
        || fails_at_once(scene, &vip, &["ECONNREFUSED"]),
        |()| true,
    )?;
    let (error, took) = try_from_node(scene, &vip, 80)?;
    has(&error, "Connection refused")?;
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

pub(crate) fn a_client_keeps_its_backend(scene: &Scene<'_>) -> Result<()> {
    let mut servers = [server("one"), server("two"), server("three")];
    for pod in &mut servers {
        pod["metadata"]["labels"]["app"] = json!("web");
    }
    scene.apply(&json!([
        servers[0],
        servers[1],
        servers[2],
        client("me"),
        service("sticky", "web", json!({"sessionAffinity": "ClientIP"})),
        service("free", "web", json!({})),
    ]))?;
    for name in ["one", "two", "three", "me"] {
        scene.ready(name)?;
    }
    let many = "import socket, sys\nfor _ in range(40):\n  s = socket.create_connection((sys.argv[1], 80), 10); print(s.recv(200).decode().split()[0])";
    let served = |name: &str| -> Result<BTreeSet<String>> {
        Ok(words(scene, "me", many, &[name])?.into_iter().collect())
    };
    // All three are in the tables as soon as the Service without affinity reaches them.
    eventually(
        "all three",
        PATIENCE,
        || served("free"),
        |hosts| hosts.len() == 3,
    )?;
    let hosts = served("sticky")?;
    ensure!(hosts.len() == 1, "{hosts:?}");
    // Another connection much later, and by another process, still goes there.
    ensure!(served("sticky")? == hosts);
    // When the backend is gone, another one takes over.
    let gone = hosts.first().context("nobody served")?;
    scene.delete_pod(gone, &[])?;
    let next = eventually(
        "another",
        PATIENCE,
        || served("sticky"),
        |next| *next != hosts && next.len() == 1,
    )?;
    ensure!(next.is_disjoint(&hosts), "{next:?}");
    Ok(())
}

pub(crate) fn a_service_without_selector_has_the_endpoints_it_is_given(
    scene: &Scene<'_>,
) -> Result<()> {
    let ports = json!([{"name": "talk", "port": 80}]);
    scene.apply(&json!([server("web"), client("me"), {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": {"ports": ports},
    }]))?;
    let web = pod_ip(&scene.ready("web")?)?;
    scene.ready("me")?;
    scene.apply(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "outside-1", "labels": {"kubernetes.io/service-name": "outside"}},
        "addressType": "IPv4",
        "ports": [{"name": "talk", "port": 8080}],
        "endpoints": [{"addresses": [web]}],
    }))?;
    let said = answer(scene, "me", "outside", "80")?;
    ensure!(said.get(1).is_some_and(|host| host == "web"), "{said:?}");
    scene.run(&["delete", "endpointslice", "outside-1"])?;
    let vip = cluster_ip(scene, "outside")?;
    eventually(
        "the endpoint to go",
        PATIENCE,
        || fails_at_once(scene, &vip, &["ECONNREFUSED"]),
        |()| true,
    )?;
    Ok(())
}

pub(crate) fn a_target_port_may_be_a_name(scene: &Scene<'_>) -> Result<()> {
    let ports = json!({"ports": [{"port": 80, "targetPort": "talk"}]});
    scene.apply(&json!([
        server("web"),
        client("me"),
        service("shop", "web", ports)
    ]))?;
    scene.ready("web")?;
    scene.ready("me")?;
    let said = answer(scene, "me", "shop", "80")?;
    ensure!(said.get(1).is_some_and(|host| host == "web"), "{said:?}");
    Ok(())
}

pub(crate) fn a_pod_reaches_itself_through_its_service(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([server("web"), service("shop", "web", json!({}))]))?;
    scene.ready("web")?;
    let vip = cluster_ip(scene, "shop")?;
    let said = answer(scene, "web", "shop", "80")?;
    ensure!(said[..2] == [vip.as_str(), "web"], "{said:?}");
    Ok(())
}

pub(crate) fn only_ready_pods_get_connections(scene: &Scene<'_>) -> Result<()> {
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/open"]}, "periodSeconds": 1, "failureThreshold": 1});
    let more = json!({"readinessProbe": probe});
    let web = pod(
        "web",
        json!({"containers": [runs("c", &["python3", "-c", SERVER], more)]}),
    );
    scene.apply(&json!([
        web,
        client("me"),
        service("shop", "web", json!({}))
    ]))?;
    scene.ready("me")?;
    scene.pod("web", "running", |pod| pod["status"]["phase"] == "Running")?;
    let ready = |wanted: bool| {
        scene.follow(
            "endpointslices",
            "metadata.namespace=readiness",
            "ready",
            |slice| slice["endpoints"][0]["conditions"]["ready"] == wanted,
        )
    };
    ready(false)?;
    let vip = cluster_ip(scene, "shop")?;
    let refuses = || {
        let refuse = || fails_at_once(scene, &vip, &["ECONNREFUSED"]);
        eventually("refusal", PATIENCE, refuse, |()| true)
    };
    refuses()?;
    scene.exec("web", &["touch", "/tmp/open"])?;
    ready(true)?;
    answer(scene, "me", &vip, "80")?;
    scene.exec("web", &["rm", "/tmp/open"])?;
    ready(false)?;
    refuses()
}

pub(crate) fn an_unknown_service_address_fails_at_once(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&client("me"))?;
    scene.ready("me")?;
    let unreachable = ["EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "EACCES"];
    // Nobody has these: one in the Service range, one in the pods' range of another node.
    for address in ["10.96.200.200", "10.244.99.99"] {
        fails_at_once(scene, address, &unreachable)?;
        let (error, took) = try_from_node(scene, address, 80)?;
        ensure!(took < Duration::from_secs(5), "{error} after {took:?}");
    }
    // The kernel sends an ICMP error every two seconds to one address, so this asks again as UDP clients do. Without
    // IP_RECVERR (11) it reports none but "port unreachable" to a UDP socket.
    let datagram = r#"
import errno, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
s.setsockopt(socket.IPPROTO_IP, 11, 1)
s.connect((sys.argv[1], 53))
for _ in range(6):
    try:
        s.send(b"x"); s.recv(1); print("answered"); break
    except socket.timeout: pass
    except OSError as e: print(errno.errorcode[e.errno]); break
else: print("TIMEOUT")
"#;
    let said = words(scene, "me", datagram, &["10.96.200.200"])?;
    ensure!(
        said.first()
            .is_some_and(|word| unreachable.contains(&word.as_str())),
        "{said:?}"
    );
    Ok(())
}

pub(crate) fn the_api_is_a_service_too(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&client("me"))?;
    scene.ready("me")?;
    let https = r#"
import ssl, socket, http.client, os
c = http.client.HTTPSConnection("kubernetes.default", int(os.environ["KUBERNETES_SERVICE_PORT"]), context=ssl._create_unverified_context(), timeout=10)
c.request("GET", "/version"); r = c.getresponse(); print(c.sock.getpeername()[0] if c.sock else "", r.status)
"#;
    let said = scene.python("me", https)?;
    // Without credentials a pod is refused, or told no more than the version.
    ensure!(
        ["200", "401", "403"]
            .iter()
            .any(|status| said.contains(status)),
        "{said}"
    );
    has(&said, "10.96.0.1")
}
