//! NetworkPolicies as users write them: the well-known recipes on a real cluster.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    Cluster, eventually,
    scene::{Case, PATIENCE, Scene, has, play, pod, runs, script_pod},
};

const CASES: &[Case] = &[
    ("front-end", deny_all_then_allow_the_front_end),
    (
        "way-out",
        deny_all_that_goes_out_then_allow_dns_and_a_service,
    ),
    ("namespaces", other_namespaces_are_told_by_their_labels),
    ("early", a_pod_is_never_without_the_policies_that_are_there),
    ("words", kubectl_shows_policies_and_refuses_bad_ones),
    ("look", skiff_policy_tells_who_may_talk_to_whom),
];

#[test]
fn policies_are_enforced() -> Result<()> {
    let mut cluster = Cluster::up("policy")?;
    play(&cluster, CASES)?;
    policies_outlive_the_daemon(&mut cluster)?;
    cluster.down()
}

/// Answers each connection to 8080.
const SERVER: &str = r#"
import socketserver
class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"hello")
socketserver.ThreadingTCPServer(("", 8080), Tcp).serve_forever()
"#;

/// Connects once and prints how that went.
const KNOCK: &str = r#"
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    print(s.recv(100).decode())
except socket.timeout:
    print("silence")
except socket.gaierror:
    print("nameless")
except OSError as e:
    print(e)
"#;

fn server(name: &str) -> Value {
    let ports = json!([{"name": "talk", "containerPort": 8080}]);
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

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

fn service(app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": app},
        "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn address(scene: &Scene<'_>, pod: &str) -> Result<String> {
    let ready = scene.ready(pod)?;
    Ok(ready["status"]["podIP"]
        .as_str()
        .context("no address")?
        .to_owned())
}

/// Waits until a pod's knock at a host and port ends so.
fn hears(scene: &Scene<'_>, from: &str, host: &str, port: &str, what: &str) -> Result<()> {
    let knock = || scene.exec(from, &["python3", "-c", KNOCK, host, port]);
    let title = format!("{what:?} for {from} from {host}:{port}");
    eventually(&title, PATIENCE, knock, |said| said.trim() == what).map(drop)
}

fn deny_all_then_allow_the_front_end(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([
        server("api"),
        client("front"),
        client("other"),
        service("api")
    ]))?;
    let api = address(scene, "api")?;
    scene.ready("front")?;
    scene.ready("other")?;
    hears(scene, "other", &api, "8080", "hello")?;
    scene.apply(&policy(
        "default-deny",
        &json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    ))?;
    hears(scene, "other", &api, "8080", "silence")?;
    hears(scene, "front", "api", "80", "silence")?;
    let allow = json!({
        "podSelector": {"matchLabels": {"app": "api"}},
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "front"}}}],
            "ports": [{"port": "talk"}],
        }],
    });
    scene.apply(&policy("allow-front", &allow))?;
    hears(scene, "front", &api, "8080", "hello")?;
    hears(scene, "front", "api", "80", "hello")?;
    hears(scene, "other", &api, "8080", "silence")?;
    // Its node still probes it, though nobody allows that.
    let ready = scene.ready("api")?;
    ensure!(ready["status"]["containerStatuses"][0]["restartCount"] == 0);
    // Another pod becomes the front end.
    scene.run(&["label", "pod", "other", "app=front", "--overwrite"])?;
    hears(scene, "other", "api", "80", "hello")?;
    scene.run(&["delete", "netpol", "default-deny", "allow-front"])?;
    scene.run(&["label", "pod", "other", "app=other", "--overwrite"])?;
    hears(scene, "other", "api", "80", "hello")
}

fn deny_all_that_goes_out_then_allow_dns_and_a_service(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([
        server("web"),
        server("db"),
        client("me"),
        service("web"),
        service("db")
    ]))?;
    let web = address(scene, "web")?;
    address(scene, "db")?;
    scene.ready("me")?;
    hears(scene, "me", "web", "80", "hello")?;
    let about_me = json!({"matchLabels": {"app": "me"}});
    let deny = json!({"podSelector": about_me, "policyTypes": ["Egress"]});
    scene.apply(&policy("deny-out", &deny))?;
    hears(scene, "me", &web, "8080", "silence")?;
    hears(scene, "me", "web", "80", "nameless")?;
    let dns = json!({
        "podSelector": about_me,
        "policyTypes": ["Egress"],
        "egress": [{
            "to": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }],
            "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
        }],
    });
    scene.apply(&policy("allow-dns", &dns))?;
    hears(scene, "me", "web", "80", "silence")?;
    let allow = json!({
        "podSelector": about_me,
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
    });
    scene.apply(&policy("allow-web", &allow))?;
    hears(scene, "me", "web", "80", "hello")?;
    hears(scene, "me", "db", "80", "silence")
}

fn other_namespaces_are_told_by_their_labels(scene: &Scene<'_>) -> Result<()> {
    let other = Scene::open(scene.cluster(), "namespaces-other")?;
    scene.apply(&server("web"))?;
    other.apply(&client("me"))?;
    let web = address(scene, "web")?;
    other.ready("me")?;
    let spec = json!({
        "podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]}],
    });
    scene.apply(&policy("from-blue", &spec))?;
    hears(&other, "me", &web, "8080", "silence")?;
    let namespace = other.namespace();
    let kubectl = scene.cluster().kubectl();
    kubectl.run(&["label", "namespace", namespace, "team=blue"])?;
    hears(&other, "me", &web, "8080", "hello")?;
    kubectl.run(&["label", "namespace", namespace, "team-"])?;
    hears(&other, "me", &web, "8080", "silence")
}

/// Tries from its first moment on, so often.
const TRY_AT_ONCE: &str = r#"
import socket, sys
for _ in range(3):
    try:
        socket.create_connection((sys.argv[1], 8080), 1)
        print("reached")
    except OSError:
        print("denied")
"#;

fn a_pod_is_never_without_the_policies_that_are_there(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([server("web"), client("known")]))?;
    let web = address(scene, "web")?;
    scene.ready("known")?;
    let spec = json!({
        "podSelector": {"matchLabels": {"closed": "yes"}},
        "policyTypes": ["Egress"],
    });
    scene.apply(&policy("closed", &spec))?;
    // It is in force from now on.
    scene.run(&["label", "pod", "known", "closed=yes"])?;
    hears(scene, "known", &web, "8080", "silence")?;
    for number in 0..3 {
        let name = format!("new-{number}");
        let container = runs("c", &["python3", "-c", TRY_AT_ONCE, &web], json!({}));
        let mut new = pod(
            &name,
            json!({"containers": [container], "restartPolicy": "Never"}),
        );
        new["metadata"]["labels"]["closed"] = json!("yes");
        scene.apply(&new)?;
        scene.phase(&name, "Succeeded")?;
        let log = scene.logs(&name, &[])?;
        ensure!(log == "denied\ndenied\ndenied\n", "{log}");
    }
    Ok(())
}

fn kubectl_shows_policies_and_refuses_bad_ones(scene: &Scene<'_>) -> Result<()> {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
            "ports": [{"port": 80, "endPort": 90}]}],
        "egress": [{}],
    });
    scene.apply(&policy("p", &spec))?;
    let table = scene.run(&["get", "networkpolicies"])?;
    has(&table, "POD-SELECTOR")?;
    has(&table, "app=web")?;
    let whole = scene.get(&["netpol", "p"])?;
    ensure!(
        whole["spec"]["policyTypes"] == json!(["Ingress", "Egress"]),
        "{whole:#}"
    );
    ensure!(whole["metadata"]["generation"] == 1);
    let told = scene.run(&["describe", "netpol", "p"])?;
    for part in [
        "PodSelector:     app=web",
        "10.0.0.0/8",
        "Except: 10.1.0.0/16",
        "Policy Types: Ingress, Egress",
    ] {
        has(&told, part)?;
    }
    let patch = r#"{"spec":{"policyTypes":["Ingress"]}}"#;
    scene.run(&["patch", "netpol", "p", "--type=merge", "-p", patch])?;
    ensure!(scene.get(&["netpol", "p"])?["metadata"]["generation"] == 2);
    has(
        &scene.run(&["explain", "netpol.spec.ingress.ports.endPort"])?,
        "endPort",
    )?;
    let bad = policy(
        "bad",
        &json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}),
    );
    let refused = scene.feed(&["create", "-f", "-"], bad.to_string().as_bytes())?;
    ensure!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    has(
        &said,
        "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\"",
    )?;
    scene.run(&["delete", "netpol", "p"]).map(drop)
}

fn skiff_policy_tells_who_may_talk_to_whom(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&json!([server("web"), client("front"), client("other")]))?;
    let web = address(scene, "web")?;
    scene.ready("front")?;
    scene.ready("other")?;
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": "front"}}}],
            "ports": [{"port": "talk"}],
        }],
    });
    scene.apply(&policy("front-only", &spec))?;
    hears(scene, "other", &web, "8080", "silence")?;
    hears(scene, "front", &web, "8080", "hello")?;
    let says = |args: &[&str]| scene.cluster().skiff_says(args);
    let name = |pod: &str| format!("{}/{pod}", scene.namespace());
    let listed = says(&["policy", "list"])?;
    let line = listed.lines().find(|l| l.starts_with(&name("front-only")));
    has(line.context("not listed")?, &name("web"))?;
    has(&says(&["policy", "identities"])?, &name("web"))?;
    let shown = says(&["policy", "show", &name("web")])?;
    for part in [
        name("front-only"),
        name("front"),
        "8080/TCP".to_owned(),
        "policies are enforced".to_owned(),
    ] {
        has(&shown, &part)?;
    }
    for (from, port, verdict) in [
        ("front", "8080", "allowed"),
        ("front", "8080/udp", "denied"),
        ("other", "8080", "denied"),
        ("other", "icmp", "denied"),
    ] {
        let json = says(&[
            "policy",
            "check",
            &name(from),
            &name("web"),
            port,
            "-o",
            "json",
        ])?;
        let json: Value = serde_json::from_str(&json)?;
        ensure!(json["verdict"] == verdict, "{from} {port}: {json:#}");
    }
    let told = says(&["policy", "check", &name("front"), &web, "8080"])?;
    has(&told, "8080/TCP")?;
    let unknown = (scene.cluster()).skiff(&["policy", "check", "nobody", &web, "80"])?;
    ensure!(!{ unknown }.output()?.status.success());
    Ok(())
}

/// A client that sleeps for so many seconds: by that it is found among the machine's processes.
fn sleeper(name: &str, seconds: &str) -> Value {
    script_pod(name, &format!("exec sleep {seconds}"))
}

/// The process id of a [`sleeper`].
fn pid_of(seconds: &str) -> Result<String> {
    let wanted = format!("sleep\0{seconds}\0");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("cmdline")).is_ok_and(|line| line == wanted) {
            let name = path.file_name().context("no name")?;
            return Ok(name.to_string_lossy().into_owned());
        }
    }
    bail!("nobody sleeps for {seconds} seconds")
}

const FRONT: &str = "1000001";
const OTHER: &str = "1000002";

fn policies_outlive_the_daemon(cluster: &mut Cluster) -> Result<()> {
    let web = {
        let scene = Scene::open(cluster, "restart")?;
        scene.apply(&json!([
            server("web"),
            sleeper("front", FRONT),
            sleeper("other", OTHER)
        ]))?;
        let allow = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "front"}}}]}],
        });
        scene.apply(&policy("front", &allow))?;
        let web = address(&scene, "web")?;
        scene.ready("front")?;
        scene.ready("other")?;
        hears(&scene, "other", &web, "8080", "silence")?;
        hears(&scene, "front", &web, "8080", "hello")?;
        // The pods stay.
        std::mem::forget(scene);
        web
    };
    let pids = [pid_of(FRONT)?, pid_of(OTHER)?];
    let check = |when: &str| -> Result<()> {
        for (pid, expected) in pids.iter().zip(["hello", "silence"]) {
            let connect = format!("timeout 2 cat </dev/tcp/{web}/8080 || echo silence");
            let connect = format!("timeout 2 bash -c '{connect}' || echo silence");
            let output = Command::new("nsenter")
                .args(["-t", pid, "-n", "bash", "-c", &connect])
                .output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(
                said.starts_with(expected),
                "{when}: {said} instead of {expected}"
            );
        }
        Ok(())
    };
    check("before")?;
    let command = cluster.kill_daemon()?;
    check("without a daemon")?;
    cluster.start_daemon(&command)?;
    for _ in 0..3 {
        check("after it has come back")?;
    }
    let delete = ["delete", "namespace", "restart", "--wait=false"];
    cluster.kubectl().run(&delete).map(drop)
}
