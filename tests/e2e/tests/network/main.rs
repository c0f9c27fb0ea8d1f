//! Services, cluster DNS and the way out, seen from programs in pods and on the node.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

mod look;
mod names;
mod services;
mod ways;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skiff_netns::NetNs;
use skiff_test_harness::{
    Cluster, eventually, leftovers,
    scene::{Case, PATIENCE, Scene, play, pod, runs, script_pod},
};

use crate::{
    look::operators_see_services_and_decisions_by_name,
    names::{
        a_headless_service_names_its_pods, a_service_has_its_names,
        names_that_nobody_knows_fail_quickly,
    },
    services::{
        a_client_keeps_its_backend, a_node_port_answers_on_the_node_and_in_pods,
        a_pod_reaches_itself_through_its_service, a_service_without_endpoints_refuses,
        a_service_without_selector_has_the_endpoints_it_is_given, a_target_port_may_be_a_name,
        an_unknown_service_address_fails_at_once, only_ready_pods_get_connections,
        the_api_is_a_service_too, udp_answers_come_from_the_service,
    },
    ways::{
        pods_reach_each_other_around_the_bridge, pods_see_each_other_by_their_own_addresses,
        traffic_to_the_outside_has_the_nodes_address,
    },
};

const CASES: &[Case] = &[
    ("pod-to-pod", pods_see_each_other_by_their_own_addresses),
    ("direct", pods_reach_each_other_around_the_bridge),
    ("names", a_service_has_its_names),
    ("headless", a_headless_service_names_its_pods),
    ("udp", udp_answers_come_from_the_service),
    ("node-port", a_node_port_answers_on_the_node_and_in_pods),
    ("no-endpoints", a_service_without_endpoints_refuses),
    ("affinity", a_client_keeps_its_backend),
    (
        "manual",
        a_service_without_selector_has_the_endpoints_it_is_given,
    ),
    ("named-port", a_target_port_may_be_a_name),
    ("hairpin", a_pod_reaches_itself_through_its_service),
    ("readiness", only_ready_pods_get_connections),
    ("unknown-address", an_unknown_service_address_fails_at_once),
    ("foreign-names", names_that_nobody_knows_fail_quickly),
    ("api", the_api_is_a_service_too),
    ("look", operators_see_services_and_decisions_by_name),
];

#[test]
fn services_names_and_the_way_out() -> Result<()> {
    let cluster = Cluster::up("network")?;
    play(&cluster, CASES)?;
    // Alone: it gives the node a way out.
    play(
        &cluster,
        &[("way-out", traffic_to_the_outside_has_the_nodes_address)],
    )?;
    // Only the machine's own network is looked at: no node has this name.
    let traces = leftovers("skiff-t-no-such-node")?;
    ensure!(
        traces.is_empty(),
        "in the machine's own network: {traces:#?}"
    );
    cluster.down()
}

/// Says over TCP (8080) and UDP (8081, with what it was told) who it is and whom it talks to.
pub(crate) const SERVER: &str = r#"
import socket, socketserver, threading
me = socket.gethostname()
class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(f"{me} {self.client_address[0]}".encode())
class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        said, sock = self.request
        sock.sendto(f"{me} {self.client_address[0]} ".encode() + said, self.client_address)
udp = socketserver.ThreadingUDPServer(("", 8081), Udp)
threading.Thread(target=udp.serve_forever, daemon=True).start()
socketserver.ThreadingTCPServer(("", 8080), Tcp).serve_forever()
"#;

/// Connects and prints the peer's address and what it says.
pub(crate) const ASK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.getpeername()[0], s.recv(200).decode())
"#;

/// Prints the error and how long it took to fail.
pub(crate) const TRY: &str = r#"
import errno, socket, sys, time
start = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
    print("connected", 0)
except socket.timeout:
    print("TIMEOUT", 20)
except OSError as e:
    print(errno.errorcode[e.errno], time.monotonic() - start)
"#;

pub(crate) fn server(name: &str) -> Value {
    let ports = json!([
        {"name": "talk", "containerPort": 8080},
        {"name": "chat", "containerPort": 8081, "protocol": "UDP"},
    ]);
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let more = json!({"ports": ports, "readinessProbe": probe});
    pod(
        name,
        json!({"containers": [runs("c", &["python3", "-c", SERVER], more)]}),
    )
}

pub(crate) fn client(name: &str) -> Value {
    script_pod(name, "exec sleep infinity")
}

/// A Service for the pods with label `app: APP`.
pub(crate) fn service(name: &str, app: &str, more: Value) -> Value {
    let mut spec = json!({
        "selector": {"app": app},
        "ports": [
            {"name": "talk", "port": 80, "targetPort": 8080},
            {"name": "chat", "port": 53, "targetPort": 8081, "protocol": "UDP"},
        ],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn pod_ip(pod: &Value) -> Result<String> {
    text(&pod["status"]["podIP"])
}

pub(crate) fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("not a string")?.to_owned())
}

pub(crate) fn cluster_ip(scene: &Scene<'_>, service: &str) -> Result<String> {
    text(&scene.get(&["service", service])?["spec"]["clusterIP"])
}

/// Words of what a program in a pod prints.
pub(crate) fn words(
    scene: &Scene<'_>,
    from: &str,
    program: &str,
    args: &[&str],
) -> Result<Vec<String>> {
    let said = scene.exec(from, &[&["python3", "-c", program], args].concat())?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

/// Asks until the service proxy has followed: the answer.
pub(crate) fn answer(scene: &Scene<'_>, from: &str, host: &str, port: &str) -> Result<Vec<String>> {
    eventually(
        &format!("an answer from {host}:{port}"),
        PATIENCE,
        || words(scene, from, ASK, &[host, port]),
        |_| true,
    )
}

/// What the node's Service proxy tells Prometheus.
pub(crate) fn metrics(cluster: &Cluster) -> Result<String> {
    let node = NetNs::open(format!("/run/netns/{}", cluster.name()))?;
    let mut stream = node.run(|| TcpStream::connect("127.0.0.1:10249"))??;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}
