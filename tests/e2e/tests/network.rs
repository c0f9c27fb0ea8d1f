//! Services, cluster DNS and the way out, seen from programs in pods and on the node.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skiff_netns::NetNs;
use skiff_test_harness::{
    Cluster, eventually, leftovers,
    scene::{Case, PATIENCE, Scene, has, play, pod, runs, script_pod},
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
const SERVER: &str = r#"
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
const ASK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.getpeername()[0], s.recv(200).decode())
"#;

/// Prints the error and how long it took to fail.
const TRY: &str = r#"
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

fn server(name: &str) -> Value {
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

fn client(name: &str) -> Value {
    script_pod(name, "exec sleep infinity")
}

/// A Service for the pods with label `app: APP`.
fn service(name: &str, app: &str, more: Value) -> Value {
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

fn pod_ip(pod: &Value) -> Result<String> {
    text(&pod["status"]["podIP"])
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("not a string")?.to_owned())
}

fn cluster_ip(scene: &Scene<'_>, service: &str) -> Result<String> {
    text(&scene.get(&["service", service])?["spec"]["clusterIP"])
}

/// Words of what a program in a pod prints.
fn words(scene: &Scene<'_>, from: &str, program: &str, args: &[&str]) -> Result<Vec<String>> {
    let said = scene.exec(from, &[&["python3", "-c", program], args].concat())?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

/// Asks until the service proxy has followed: the answer.
fn answer(scene: &Scene<'_>, from: &str, host: &str, port: &str) -> Result<Vec<String>> {
    eventually(
        &format!("an answer from {host}:{port}"),
        PATIENCE,
        || words(scene, from, ASK, &[host, port]),
        |_| true,
    )
}

/// What the node's Service proxy tells Prometheus.
fn metrics(cluster: &Cluster) -> Result<String> {
    let node = NetNs::open(format!("/run/netns/{}", cluster.name()))?;
    let mut stream = node.run(|| TcpStream::connect("127.0.0.1:10249"))??;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// `skiff service`, `skiff trace` and the metrics name Services, pods and backends.
fn operators_see_services_and_decisions_by_name(scene: &Scene<'_>) -> Result<()> {
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

fn pods_see_each_other_by_their_own_addresses(scene: &Scene<'_>) -> Result<()> {
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

fn pods_reach_each_other_around_the_bridge(scene: &Scene<'_>) -> Result<()> {
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

fn a_service_has_its_names(scene: &Scene<'_>) -> Result<()> {
    let other = Scene::open(scene.cluster(), "names-other")?;
    scene.apply(&json!([
        server("web"),
        client("me"),
        service("shop", "web", json!({}))
    ]))?;
    other.apply(&client("me"))?;
    let web = scene.ready("web")?;
    let (me, stranger) = (scene.ready("me")?, other.ready("me")?);
    let vip = cluster_ip(scene, "shop")?;
    let expected = [vip.clone(), "web".to_owned(), pod_ip(&me)?];
    for name in [
        "shop",
        "shop.names",
        "shop.names.svc",
        "shop.names.svc.cluster.local",
        "shop.names.svc.cluster.local.",
        &vip,
    ] {
        let said = answer(scene, "me", name, "80")?;
        ensure!(said == expected, "{name}: {said:?}");
    }
    let said = answer(&other, "me", "shop.names", "80")?;
    ensure!(
        said == [vip.as_str(), "web", &pod_ip(&stranger)?],
        "{said:?}"
    );
    // The short name is of the pod's own namespace.
    let look_up = "import socket, sys\ntry: print(socket.gethostbyname(sys.argv[1]))\nexcept socket.gaierror as e: print(e.errno)";
    let unknown = words(&other, "me", look_up, &["shop"])?;
    // EAI_NONAME, or EAI_AGAIN if nobody can be asked about the bare name in the end.
    ensure!(unknown == ["-2"] || unknown == ["-3"], "{unknown:?}");
    let unknown = words(
        &other,
        "me",
        look_up,
        &["shop.names-other.svc.cluster.local."],
    )?;
    ensure!(unknown == ["-2"], "{unknown:?}");
    // The pod's own name resolves to its own address.
    let own = scene.python(
        "web",
        "import socket; print(socket.gethostbyname(socket.gethostname()))",
    )?;
    ensure!(own.trim() == pod_ip(&web)?, "{own}");
    Ok(())
}

fn addresses(scene: &Scene<'_>, from: &str, name: &str) -> Result<BTreeSet<String>> {
    let program = "import socket, sys\nfor a in socket.getaddrinfo(sys.argv[1], None, socket.AF_INET, socket.SOCK_STREAM): print(a[4][0])";
    Ok(words(scene, from, program, &[name])?.into_iter().collect())
}

/// A DNS question as resolvers send it, and of the answer every record: owner, type, data.
const QUERY: &str = r#"
import socket, struct, sys
def name(m, i):
    labels, end = [], None
    while m[i]:
        if m[i] >= 192:
            end = end or i + 2
            i = struct.unpack("!H", m[i:i+2])[0] & 0x3fff
        else:
            labels.append(m[i+1:i+1+m[i]].decode()); i += 1 + m[i]
    return ".".join(labels), end or i + 1
q = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0)
q += b"".join(bytes([len(l)]) + l.encode() for l in sys.argv[1].split(".")) + b"\0" + struct.pack("!HH", int(sys.argv[2]), 1)
server = [l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver")][0]
if sys.argv[3] == "tcp":
    s = socket.create_connection((server, 53), 5)
    s.sendall(struct.pack("!H", len(q)) + q)
    f = s.makefile("rb"); m = f.read(struct.unpack("!H", f.read(2))[0])
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect((server, 53))
    s.send(q); m = s.recv(4096)
_, flags, _, answers, _, _ = struct.unpack("!HHHHHH", m[:12])
print("rcode", flags & 15)
_, i = name(m, 12)
i += 4
for _ in range(answers):
    owner, i = name(m, i)
    kind, _, _, length = struct.unpack("!HHIH", m[i:i+10]); i += 10
    if kind == 1: print(owner, "A", socket.inet_ntoa(m[i:i+4]))
    elif kind == 33: print(owner, "SRV", struct.unpack("!H", m[i+4:i+6])[0], name(m, i+6)[0])
    else: print(owner, kind)
    i += length
"#;

fn query(scene: &Scene<'_>, name: &str, kind: &str, transport: &str) -> Result<Vec<String>> {
    let said = scene.exec("me", &["python3", "-c", QUERY, name, kind, transport])?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn a_headless_service_names_its_pods(scene: &Scene<'_>) -> Result<()> {
    let headless = json!({"clusterIP": "None", "selector": {"team": "web"}});
    let mut servers = [server("one"), server("two")];
    for pod in &mut servers {
        pod["metadata"]["labels"]["team"] = json!("web");
    }
    scene.apply(&json!([
        servers[0],
        servers[1],
        client("me"),
        service("team", "", headless)
    ]))?;
    let one = pod_ip(&scene.ready("one")?)?;
    let two = pod_ip(&scene.ready("two")?)?;
    scene.ready("me")?;
    let both: BTreeSet<_> = [one.clone(), two].into();
    eventually(
        "both pods",
        PATIENCE,
        || addresses(scene, "me", "team"),
        |found| *found == both,
    )?;
    let full = "team.headless.svc.cluster.local";
    for transport in ["udp", "tcp"] {
        let answer = query(scene, &format!("_talk._tcp.{full}"), "33", transport)?;
        ensure!(
            answer.first().is_some_and(|line| line == "rcode 0"),
            "{answer:?}"
        );
        let records: Vec<_> = answer
            .iter()
            .filter(|line| line.contains(" SRV 8080 "))
            .collect();
        ensure!(records.len() == 2, "{answer:?}");
        // Each names a host that has an address.
        for record in records {
            let host = record.split(' ').next_back().context("an empty record")?;
            let answer = query(scene, host, "1", transport)?;
            ensure!(
                answer
                    .iter()
                    .any(|line| both.iter().any(|ip| line.ends_with(ip))),
                "{host}: {answer:?}"
            );
        }
    }
    scene.delete_pod("two", &[])?;
    let left: BTreeSet<_> = [one].into();
    eventually(
        "one pod",
        PATIENCE,
        || addresses(scene, "me", "team"),
        |found| *found == left,
    )?;
    Ok(())
}

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

fn udp_answers_come_from_the_service(scene: &Scene<'_>) -> Result<()> {
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

fn a_node_port_answers_on_the_node_and_in_pods(scene: &Scene<'_>) -> Result<()> {
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
fn fails_at_once(scene: &Scene<'_>, host: &str, errors: &[&str]) -> Result<()> {
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

fn a_service_without_endpoints_refuses(scene: &Scene<'_>) -> Result<()> {
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

fn a_client_keeps_its_backend(scene: &Scene<'_>) -> Result<()> {
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

fn a_service_without_selector_has_the_endpoints_it_is_given(scene: &Scene<'_>) -> Result<()> {
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

fn a_target_port_may_be_a_name(scene: &Scene<'_>) -> Result<()> {
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

fn a_pod_reaches_itself_through_its_service(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([server("web"), service("shop", "web", json!({}))]))?;
    scene.ready("web")?;
    let vip = cluster_ip(scene, "shop")?;
    let said = answer(scene, "web", "shop", "80")?;
    ensure!(said[..2] == [vip.as_str(), "web"], "{said:?}");
    Ok(())
}

fn only_ready_pods_get_connections(scene: &Scene<'_>) -> Result<()> {
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

fn an_unknown_service_address_fails_at_once(scene: &Scene<'_>) -> Result<()> {
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

fn traffic_to_the_outside_has_the_nodes_address(scene: &Scene<'_>) -> Result<()> {
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

fn names_that_nobody_knows_fail_quickly(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&client("me"))?;
    scene.ready("me")?;
    let look_up = r#"
import socket, sys, time
start = time.monotonic()
try:
    socket.gethostbyname(sys.argv[1]); print("found", 0)
except socket.gaierror as e: print(e.errno, time.monotonic() - start)
"#;
    // The cluster's own zone: known not to exist (EAI_NONAME), at once.
    let said = words(
        scene,
        "me",
        look_up,
        &["nothing.foreign-names.svc.cluster.local."],
    )?;
    ensure!(said.first().is_some_and(|word| word == "-2"), "{said:?}");
    let answer = query(scene, "nothing.foreign-names.svc.cluster.local", "1", "udp")?;
    ensure!(answer == ["rcode 3"], "{answer:?}");
    // Elsewhere: the node has no way out, so its resolver says so (or has none) instead of keeping silent.
    let said = words(scene, "me", look_up, &["www.example.org."])?;
    let [error, seconds] = said.as_slice() else {
        bail!("{said:?}");
    };
    ensure!(error == "-3" || error == "-2", "{said:?}");
    ensure!(seconds.parse::<f64>()? < 10.0, "{said:?}");
    Ok(())
}

fn the_api_is_a_service_too(scene: &Scene<'_>) -> Result<()> {
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
