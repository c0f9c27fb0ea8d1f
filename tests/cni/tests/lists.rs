//! The lists that Podman, kind and k3s ship, run by our runner, with packets through them.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use skiff_cni::{
    libcni::{Attachment, CniRunner, Conflist},
    types::CniResult,
};
use skiff_netns::NodeNetns;
use skiff_tests_cni::{Bench, TestNetns};

const PATIENCE: Duration = Duration::from_secs(5);

/// A node that forwards nothing by itself, and a host beyond it which knows only the node's own address.
struct Scene {
    bench: Bench,
    outside: TestNetns,
    runner: CniRunner,
    list: Conflist,
    pod: TestNetns,
    before: String,
}

impl Scene {
    fn new(list: &Value) -> Self {
        let bench = Bench::new();
        let outside = TestNetns::new("out");
        let name = outside.path().file_name().unwrap().to_str().unwrap();
        bench.node.sh(&format!(
            "ip link add up0 type veth peer name up0 netns {name} && ip link set up0 up \
             && ip addr add 192.0.2.1/24 dev up0 && ip link set lo up"
        ));
        outside.sh("ip link set up0 up && ip addr add 192.0.2.2/24 dev up0");
        let mut list = list.clone();
        for plugin in list["plugins"].as_array_mut().unwrap() {
            if plugin.get("ipam").is_some() {
                plugin["ipam"]["dataDir"] = json!(bench.dir.path().join("networks"));
            }
            if plugin["type"] == "tuning" {
                plugin["dataDir"] = json!(bench.dir.path().join("tuning"));
            }
        }
        let runner = CniRunner::new(
            vec![bench.plugins().to_owned()],
            bench.dir.path().join("cache"),
            NodeNetns::open(bench.node.path()).unwrap(),
        );
        let before = state(&bench);
        Self {
            list: Conflist::parse(list.to_string().as_bytes()).unwrap(),
            pod: TestNetns::new("pod"),
            bench,
            outside,
            runner,
            before,
        }
    }

    fn attachment(&self, capabilities: &Value) -> Attachment {
        Attachment {
            container_id: "a".parse().unwrap(),
            netns: self.pod.path().to_owned(),
            ifname: "eth0".parse().unwrap(),
            args: Vec::new(),
            capability_args: capabilities.as_object().unwrap().clone(),
        }
    }

    /// Attaches, checks, lets `use_it` use it, detaches and detaches again.
    async fn live(&self, capabilities: &Value, use_it: impl Fn(&Self, &CniResult)) {
        let attachment = self.attachment(capabilities);
        let result = self.runner.add(&self.list, &attachment).await.unwrap();
        self.runner.check(&self.list, &attachment).await.unwrap();
        use_it(self, &result);
        self.runner.del(&self.list, &attachment).await.unwrap();
        self.runner.del(&self.list, &attachment).await.unwrap();
        assert_eq!(state(&self.bench), self.before);
        assert!(self.pod.links().is_empty());
        assert_eq!(
            std::fs::read_dir(self.bench.dir.path().join("tuning")).map_or(0, Iterator::count),
            0
        );
    }
}

/// What a container leaves if it leaves something: links but for bridges, routes, queues, rules that name an address.
fn state(bench: &Bench) -> String {
    let addresses = "grep -oE '10\\.(42|88|244)\\.[0-9]+\\.[0-9]+/32|fd[0-9a-f]*::[0-9a-f]+/128|bwp[0-9a-f]*|:CNI-DN-.*'";
    bench.node.sh(&format!(
        "ip -o link | grep -v 'cni-podman0\\|cni0' | cut -d: -f2; tc qdisc | grep -v noqueue; \
         (iptables-save; ip6tables-save; nft list ruleset 2>/dev/null; ip route) | {addresses} || true"
    ))
}

/// Connects and reads a word; returns whom the listener saw.
fn visit(from: &TestNetns, to: SocketAddr, listener: &TcpListener) -> IpAddr {
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (stream, peer) = listener.accept().unwrap();
            drop(stream);
            peer.ip()
        });
        let mut stream = from
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        server.join().unwrap()
    })
}

fn ports() -> Value {
    json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
}

/// The container sees the world from behind the node's address, and the world sees its port.
fn reach_out_and_be_reached(scene: &Scene, result: &CniResult) {
    let listen =
        |netns: &TestNetns, address: &str| netns.run(|| TcpListener::bind(address)).unwrap();
    let world = listen(&scene.outside, "192.0.2.2:7");
    let seen = visit(&scene.pod, "192.0.2.2:7".parse().unwrap(), &world);
    assert_eq!(seen.to_string(), "192.0.2.1");
    let own = result.ips.first().unwrap().address.ip();
    let served = listen(&scene.pod, &format!("{own}:80"));
    let seen = visit(&scene.outside, "192.0.2.1:8080".parse().unwrap(), &served);
    assert_eq!(seen.to_string(), "192.0.2.2");
}

#[tokio::test]
async fn podmans_list() {
    let scene = Scene::new(&json!({
        "cniVersion": "0.4.0", "name": "podman",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            // The list does not say it; but a firewalld that the machine may have is none of ours.
            {"type": "firewall", "backend": "iptables"},
            {"type": "tuning", "capabilities": {"mac": true}},
        ],
    }));
    // Without the firewall plugin nothing would go out; what is mapped is let in by the administrator.
    scene.bench.node.sh(
        "iptables -P FORWARD DROP && iptables -A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
    );
    let mut capabilities = ports();
    capabilities["mac"] = json!("02:00:00:00:00:77");
    scene
        .live(&capabilities, |scene, result| {
            reach_out_and_be_reached(scene, result);
            assert!(
                scene
                    .pod
                    .sh("ip link show eth0")
                    .contains("02:00:00:00:00:77")
            );
            let inside = result.interfaces.iter().find(|i| i.name == "eth0").unwrap();
            assert_eq!(inside.mac, "02:00:00:00:00:77");
        })
        .await;
}

#[tokio::test]
async fn kinds_list() {
    let scene = Scene::new(&json!({
        "cniVersion": "0.4.0", "name": "kindnet",
        "plugins": [
            {
                "type": "ptp", "ipMasq": true, "mtu": 1500,
                "ipam": {
                    "type": "host-local", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:10:244::/64"}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    }));
    scene.live(&ports(), reach_out_and_be_reached).await;
}

#[tokio::test]
async fn k3s_list() {
    let scene = Scene::new(&json!({
        "cniVersion": "1.0.0", "name": "cbr0",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "hairpinMode": true, "forceAddress": true,
                "isDefaultGateway": true, "ipMasq": true, "mtu": 1450,
                "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}]],
                    "routes": [{"dst": "10.42.0.0/16"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    }));
    let mut capabilities = ports();
    capabilities["bandwidth"] = json!({
        "ingressRate": 8_000_000, "ingressBurst": 1_600_000,
        "egressRate": 8_000_000, "egressBurst": 1_600_000,
    });
    scene
        .live(&capabilities, |scene, result| {
            reach_out_and_be_reached(scene, result);
            let queues = scene.bench.node.sh("tc qdisc");
            assert_eq!(
                queues.matches("rate 8Mbit burst 200000b").count(),
                2,
                "{queues}"
            );
            assert!(result.interfaces.iter().any(|i| i.name.starts_with("bwp")));
        })
        .await;
}
