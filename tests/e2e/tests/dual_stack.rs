//! A cluster whose pods and Services have addresses of both families.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    Cluster, eventually,
    scene::{Case, PATIENCE, Scene, play, pod, runs, script_pod},
};

const CASES: &[Case] = &[
    ("both", pods_and_services_are_reached_by_both_families),
    ("policies", services_change_between_one_family_and_two),
];

#[test]
fn pods_and_services_have_addresses_of_both_families() -> Result<()> {
    let cluster = Cluster::up_with(
        "dual-stack",
        &[
            ("SKIFF_CLUSTER_CIDR", "10.244.0.0/16,fd00:244::/48"),
            ("SKIFF_SERVICE_CIDR", "10.96.0.0/16,fd00:96::/112"),
        ],
    )?;
    play(&cluster, CASES)?;
    cluster.down()
}

/// Says on 8080 of all addresses whom it talks to.
const SERVER: &str = r#"
import socket, socketserver
class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.client_address[0].encode())
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
Server(("::", 8080), Tcp).serve_forever()
"#;

/// Connects to an address and prints the peer's and its own, as the peer sees it.
const ASK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.getpeername()[0], s.recv(200).decode())
"#;

/// Prints the addresses of a name.
const RESOLVE: &str = r#"
import socket, sys
print(*sorted({info[4][0] for info in socket.getaddrinfo(sys.argv[1], 80)}))
"#;

/// What is in a list, as addresses: IPv4 and IPv6.
fn addresses(list: &Value, pick: impl Fn(&Value) -> &Value) -> Result<(IpAddr, IpAddr)> {
    let list = list.as_array().context("no list")?;
    let ips = list.iter().filter_map(|item| pick(item).as_str());
    let ips: Vec<IpAddr> = ips.map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ips.len() == 2, "{list:?}");
    ensure!(ips[0].is_ipv4() && ips[1].is_ipv6(), "{list:?}");
    Ok((ips[0], ips[1]))
}

fn service(policy: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "ipFamilyPolicy": policy, "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}],
    }})
}

fn pods_and_services_are_reached_by_both_families(scene: &Scene<'_>) -> Result<()> {
    let probe = json!({"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    let web = pod(
        "web",
        json!({"containers": [runs("c", &["python3", "-c", SERVER], probe)]}),
    );
    scene.apply(&json!([web, script_pod("me", "exec sleep infinity")]))?;
    scene.apply(&service("RequireDualStack"))?;
    let (web, me) = (scene.ready("web")?, scene.ready("me")?);
    let web = addresses(&web["status"]["podIPs"], |entry| &entry["ip"])?;
    let me = addresses(&me["status"]["podIPs"], |entry| &entry["ip"])?;
    let vips = scene.get(&["service", "web"])?;
    let vips = addresses(&vips["spec"]["clusterIPs"], |entry| entry)?;
    for (asked, port, own) in [
        (web.0, "8080", me.0),
        (web.1, "8080", me.1),
        (vips.0, "80", me.0),
        (vips.1, "80", me.1),
    ] {
        let said = eventually(
            &format!("an answer from {asked}"),
            PATIENCE,
            || scene.exec("me", &["python3", "-c", ASK, &asked.to_string(), port]),
            |_| true,
        )?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let seen = words.get(1).map(|ip| ip.trim_start_matches("::ffff:"));
        ensure!(words.first() == Some(&&*asked.to_string()), "{said}");
        ensure!(seen == Some(&own.to_string()), "{said}, not {own}");
    }
    // The node reaches pods and Services as pods do.
    for (ip, port) in [(web.1, "8080"), (vips.1, "80")] {
        let script = format!("cat </dev/tcp/{ip}/{port}");
        scene.cluster().node_exec(&["bash", "-c", &script])?;
    }
    let names = scene.exec("me", &["python3", "-c", RESOLVE, "web"])?;
    let expected = format!("{} {}", vips.0, vips.1);
    ensure!(names.trim() == expected, "{names}, not {expected}");
    Ok(())
}

fn services_change_between_one_family_and_two(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&service("SingleStack"))?;
    let spec = |scene: &Scene<'_>| anyhow::Ok(scene.get(&["service", "web"])?["spec"].clone());
    let single = spec(scene)?;
    ensure!(single["ipFamilies"] == json!(["IPv4"]), "{single}");
    scene.apply(&service("PreferDualStack"))?;
    let dual = spec(scene)?;
    let (four, _) = addresses(&dual["clusterIPs"], |entry| entry)?;
    ensure!(single["clusterIP"] == json!(four.to_string()), "{dual}");
    scene.apply(&service("SingleStack"))?;
    let again = spec(scene)?;
    ensure!(again["clusterIPs"] == single["clusterIPs"], "{again}");
    Ok(())
}
