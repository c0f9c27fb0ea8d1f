//! Ports of the node that pods ask for (`hostPort`), and limits of their bandwidth.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    Cluster, eventually,
    scene::{Case, PATIENCE, Scene, has, play, pod, runs, script_pod},
};

const CASES: &[Case] = &[
    ("host-port", a_host_port_answers_until_the_pod_is_gone),
    ("host-ip", a_host_port_may_be_bound_to_one_address),
    ("host-udp", a_host_port_may_be_udp),
    ("bandwidth", a_pods_bandwidth_is_limited),
    ("bad-limit", a_limit_that_is_none_is_told),
];

#[test]
fn pods_get_the_nodes_ports_and_limits_that_they_ask_for() -> Result<()> {
    let cluster = Cluster::up("host-ports")?;
    play(&cluster, CASES)?;
    eventually(
        "the last rule's end",
        PATIENCE,
        || cluster.node_exec(&["iptables-save", "-t", "nat"]),
        |rules| !rules.contains("to-destination"),
    )?;
    cluster.down()
}

/// Says its name over TCP (8080), and over UDP (8081) what it was told.
const SERVER: &str = r#"
import socket, socketserver, threading
me = socket.gethostname()
class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(me.encode())
class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        said, sock = self.request
        sock.sendto(me.encode() + b" " + said, self.client_address)
udp = socketserver.ThreadingUDPServer(("", 8081), Udp)
threading.Thread(target=udp.serve_forever, daemon=True).start()
socketserver.ThreadingTCPServer(("", 8080), Tcp).serve_forever()
"#;

fn server(name: &str, port: &Value) -> Value {
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let more = json!({"ports": [port], "readinessProbe": probe});
    pod(
        name,
        json!({"containers": [runs("c", &["python3", "-c", SERVER], more)]}),
    )
}

/// What the node hears on a TCP port.
fn from_node(scene: &Scene<'_>, host: &str, port: u16) -> Result<String> {
    let read = format!("timeout 5 bash -c 'cat </dev/tcp/{host}/{port}'");
    scene.cluster().node_exec(&["bash", "-c", &read])
}

fn node_address(scene: &Scene<'_>, pod: &str) -> Result<String> {
    let ready = scene.ready(pod)?;
    let host = ready["status"]["hostIP"].as_str();
    Ok(host.context("no hostIP")?.to_owned())
}

fn a_host_port_answers_until_the_pod_is_gone(scene: &Scene<'_>) -> Result<()> {
    let port = json!({"containerPort": 8080, "hostPort": 18080});
    let client = script_pod("me", "exec sleep infinity");
    scene.apply(&json!([server("web", &port), client]))?;
    scene.ready("me")?;
    let node = node_address(scene, "web")?;
    for host in [node.as_str(), "127.0.0.1"] {
        has(&from_node(scene, host, 18080)?, "web")?;
    }
    let ask = format!(
        "import socket; print(socket.create_connection(('{node}', 18080), 5).recv(99).decode())"
    );
    // From another pod, and from the pod itself.
    has(&scene.python("me", &ask)?, "web")?;
    has(&scene.python("web", &ask)?, "web")?;
    scene.delete_pod("web", &[])?;
    eventually(
        "the port's end",
        PATIENCE,
        || Ok(from_node(scene, &node, 18080).is_err()),
        |ended| *ended,
    )?;
    // The same port again, for another pod.
    scene.apply(&server("next", &port))?;
    scene.ready("next")?;
    has(&from_node(scene, &node, 18080)?, "next")?;
    scene.delete_pod("next", &[])
}

fn a_host_port_may_be_bound_to_one_address(scene: &Scene<'_>) -> Result<()> {
    let port = json!({"containerPort": 8080, "hostPort": 18082, "hostIP": "127.0.0.1"});
    scene.apply(&server("web", &port))?;
    let node = node_address(scene, "web")?;
    has(&from_node(scene, "127.0.0.1", 18082)?, "web")?;
    ensure!(from_node(scene, &node, 18082).is_err(), "{node} answers");
    scene.delete_pod("web", &[])
}

fn a_host_port_may_be_udp(scene: &Scene<'_>) -> Result<()> {
    let port = json!({"containerPort": 8081, "hostPort": 18083, "protocol": "UDP"});
    scene.apply(&server("web", &port))?;
    let node = node_address(scene, "web")?;
    let ask = format!("exec 3<>/dev/udp/{node}/18083; echo hello >&3; timeout 5 head -n 1 <&3");
    has(
        &scene.cluster().node_exec(&["bash", "-c", &ask])?,
        "web hello",
    )?;
    scene.delete_pod("web", &[])
}

fn a_pods_bandwidth_is_limited(scene: &Scene<'_>) -> Result<()> {
    let mut limited = script_pod("limited", "exec sleep infinity");
    limited["metadata"]["annotations"] = json!({
        "kubernetes.io/ingress-bandwidth": "8M",
        "kubernetes.io/egress-bandwidth": "16M",
    });
    scene.apply(&limited)?;
    scene.ready("limited")?;
    let shapers = || scene.cluster().node_exec(&["tc", "qdisc", "show"]);
    let text = shapers()?;
    for rate in ["rate 8Mbit", "rate 16Mbit"] {
        has(&text, rate)?;
    }
    scene.delete_pod("limited", &[])?;
    eventually("the shapers' end", PATIENCE, shapers, |text| {
        !text.contains("Mbit")
    })?;
    Ok(())
}

fn a_limit_that_is_none_is_told(scene: &Scene<'_>) -> Result<()> {
    let mut limited = script_pod("limited", "exec sleep infinity");
    limited["metadata"]["annotations"] = json!({"kubernetes.io/egress-bandwidth": "fast"});
    scene.apply(&limited)?;
    scene.event(
        "limited",
        "FailedCreatePodSandBox",
        "kubernetes.io/egress-bandwidth",
    )?;
    scene.delete_pod("limited", &["--grace-period=0", "--force"])
}
