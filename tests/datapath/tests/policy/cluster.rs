//! Pods, policies as users write them, and who reaches whom.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skiff_ebpf_loader::{Datapath, PodPaths, Policies};
use skiff_netns::NetNs;
use skiff_service_proxy::policy::{PodInfo, PolicyInfo, Tracker};
use skiff_tests_datapath::{
    NODE, Pod, Probe, TestNode, addr_v6, bridge, ip,
    protocol::{Answer, Command as Say, How},
};

/// The bridge's own address: pods' way out.
pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// Long enough for whoever is let through, also on a busy machine.
const LONG: u64 = 5_000;
/// So long is waited for an answer that must not come. That the packet was dropped is told by a counter besides.
const SHORT: u64 = 250;

/// A node whose pods have servers.
pub(crate) struct Cluster {
    pub(crate) pods: Vec<Pod>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) tracker: Tracker,
    /// None while the daemon is away.
    pub(crate) daemon: Option<Daemon>,
    pub(crate) world: Probe,
    pub(crate) node: TestNode,
}

pub(crate) struct Daemon {
    pub(crate) policies: Policies,
    pub(crate) paths: PodPaths,
    pub(crate) datapath: Datapath,
}

/// Where pods listen with TCP and UDP.
pub(crate) const PORTS: [u16; 2] = [80, 8080];

impl Cluster {
    /// So many pods in the namespace `test`, the n-th labelled `app: n`, with servers at [`PORTS`]. `direct`: the way between
    /// them is around the bridge.
    pub(crate) fn new(count: u8, direct: bool) -> Result<Self> {
        let node = TestNode::new(PROGRAM)?;
        bridge(&node)?;
        let pods = (0..count).map(|number| new_pod(&node, number));
        let mut pods: Vec<Pod> = pods.collect::<Result<_>>()?;
        for pod in &mut pods {
            pod.port.direct = direct;
        }
        route_to_world(&node, &pods)?;
        let daemon = Daemon::start(&node)?;
        attach(&node, &daemon.paths, &pods.iter().collect::<Vec<_>>())?;
        let probes = pods.iter().map(serve);
        let mut cluster = Self {
            probes: probes.collect::<Result<_>>()?,
            pods,
            tracker: Tracker::new(None),
            daemon: Some(daemon),
            world: node.outsider()?,
            node,
        };
        cluster.namespace("test", &json!({"kind": "test"}))?;
        for number in 0..usize::from(count) {
            cluster.label(number, &json!({"app": number.to_string()}))?;
        }
        cluster.sync()?;
        Ok(cluster)
    }

    pub(crate) fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("no daemon")
    }

    pub(crate) fn namespace(&mut self, name: &str, labels: &Value) -> Result<()> {
        let labels = serde_json::from_value(labels.clone())?;
        self.tracker.set_namespace(name, Some(labels));
        Ok(())
    }

    /// Gives a pod other labels.
    pub(crate) fn label(&mut self, number: usize, labels: &Value) -> Result<()> {
        self.place(number, "test", labels)
    }

    /// Puts a pod into a namespace.
    pub(crate) fn place(&mut self, number: usize, namespace: &str, labels: &Value) -> Result<()> {
        let pod = &self.pods[number];
        let name: Arc<str> = number.to_string().into();
        let object = json!({
            "metadata": {"uid": &*name, "labels": labels},
            "spec": {"containers": [{
                "name": "c",
                "ports": [{"name": "web", "containerPort": 80 + 8000 * (number % 2)}],
            }]},
            "status": {"podIPs": [{"ip": pod.addr}, {"ip": v6_of(pod)}]},
        });
        let info = PodInfo::of(&serde_json::from_value(object)?);
        for other in ["test", "other"] {
            let here = (other == namespace).then(|| info.clone()).flatten();
            self.tracker
                .set_pod((other.into(), Arc::clone(&name)), here);
        }
        Ok(())
    }

    /// Applies the spec of a policy in the namespace `test`; null deletes it.
    pub(crate) fn policy(&mut self, name: &str, spec: &Value) -> Result<()> {
        let object = json!({"metadata": {"namespace": "test"}, "spec": spec});
        let policy = serde_json::from_value(object)?;
        let policy = (!spec.is_null()).then(|| PolicyInfo::of(&policy));
        self.tracker
            .set_policy(("test".into(), name.into()), policy);
        self.sync()
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        let change = self.tracker.change();
        self.daemon()?.policies.apply(&change)?;
        Ok(())
    }

    fn dropped(&mut self) -> Result<u64> {
        let counters = self.daemon()?.datapath.counters()?;
        Ok(counters.policy_ingress + counters.policy_egress + counters.policy_unknown)
    }

    /// Fails unless pod `from` reaches that port of pod `to`, or (`reaches` false) is denied it.
    pub(crate) fn expect(&mut self, from: usize, to: usize, at: At, reaches: bool) -> Result<()> {
        let pod = &self.pods[to];
        let host: IpAddr = if at.v6 { v6_of(pod) } else { pod.addr.into() };
        let addr = SocketAddr::new(host, at.port);
        self.expect_at(Some(from), addr, at, None, reaches)
            .with_context(|| format!("{from} to {to}, {at:?}"))
    }

    /// As [`Self::expect`], from the world (one of its addresses) or from a pod to any address.
    pub(crate) fn expect_at(
        &mut self,
        from: Option<usize>,
        addr: SocketAddr,
        at: At,
        source: Option<IpAddr>,
        reaches: bool,
    ) -> Result<()> {
        let before = self.dropped()?;
        let probe = match from {
            Some(number) => &mut self.probes[number],
            None => &mut self.world,
        };
        let answer = probe.tell(&Say::Ask {
            how: if at.udp { How::Udp } else { How::Tcp },
            addr,
            from: source,
            times: 1,
            patience_ms: if reaches { LONG } else { SHORT },
        })?;
        let dropped = self.dropped()? - before;
        ensure!(
            answer.total() == u32::from(reaches),
            "{answer:?}, {dropped} dropped"
        );
        ensure!(
            reaches || dropped > 0,
            "{answer:?}, but nothing was dropped"
        );
        Ok(())
    }

    /// As a daemon that ends.
    pub(crate) fn stop(&mut self) {
        self.daemon = None;
    }

    /// As a daemon that starts and finds what there is.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.daemon = Some(Daemon::start(&self.node)?);
        let pods: Vec<&Pod> = self.pods.iter().collect();
        let daemon = self.daemon.as_ref().context("no daemon")?;
        attach(&self.node, &daemon.paths, &pods)
    }
}

impl Daemon {
    fn start(node: &TestNode) -> Result<Self> {
        let datapath = node.open()?;
        Ok(Self {
            policies: datapath.policies()?,
            paths: datapath.pods()?,
            datapath,
        })
    }
}

/// What is knocked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) port: u16,
    pub(crate) udp: bool,
    pub(crate) v6: bool,
}

pub(crate) fn tcp(port: u16) -> At {
    At {
        port,
        udp: false,
        v6: false,
    }
}

pub(crate) fn udp(port: u16) -> At {
    At {
        udp: true,
        ..tcp(port)
    }
}

pub(crate) fn v6(at: At) -> At {
    At { v6: true, ..at }
}

pub(crate) fn serve(pod: &Pod) -> Result<Probe> {
    let mut probe = pod.probe()?;
    let hosts: [IpAddr; 2] = [pod.addr.into(), v6_of(pod)];
    for addr in hosts
        .into_iter()
        .flat_map(|host| PORTS.map(|port| SocketAddr::new(host, port)))
    {
        let name = pod.addr.to_string();
        probe.tell(&Say::UdpServe {
            addr,
            name: name.clone(),
        })?;
        probe.tell(&Say::TcpServe { addr, name })?;
    }
    Ok(probe)
}

pub(crate) fn say(probe: &mut Probe, command: &Say) -> Result<Answer> {
    probe.tell(command)
}

/// The node forwards between its pods and what is beyond it.
fn route_to_world(node: &TestNode, pods: &[Pod]) -> Result<()> {
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    sh(&node.netns, forward)?;
    for pod in pods {
        // Known beforehand, so that no test waits for neighbours to be found.
        let mac = pod.port.mac.map(|byte| format!("{byte:02x}")).join(":");
        let addr = pod.addr.to_string();
        ip(
            &node.netns,
            &["neigh", "replace", &addr, "lladdr", &mac, "dev", "br0"],
        )?;
    }
    let via = NODE.to_string();
    let pods = format!("{BRIDGE}/24");
    let pods = pods.replace(".1/", ".0/");
    // The world's way back is its default route, made by the node.
    ip(&node.pod_netns, &["route", "replace", &pods, "via", &via])
}

pub(crate) fn sh(netns: &Path, script: &str) -> Result<()> {
    let status = std::process::Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["sh", "-c", script])
        .status()?;
    ensure!(status.success(), "{script}");
    Ok(())
}

/// The n-th pod: 10.77.0.2 is the first one.
pub(crate) fn new_pod(node: &TestNode, number: u8) -> Result<Pod> {
    let pod = Pod::new(node, number + 2)?;
    let (v6, via) = (format!("{}/64", v6_of(&pod)), BRIDGE.to_string());
    ip(&pod.netns, &["address", "add", &v6, "dev", "eth0", "nodad"])?;
    ip(&pod.netns, &["route", "add", "default", "via", &via])?;
    Ok(pod)
}

fn v6_of(pod: &Pod) -> IpAddr {
    let [.., number] = pod.addr.octets();
    addr_v6(number)
}

/// Attaches the programs to pods' links.
pub(crate) fn attach(node: &TestNode, paths: &PodPaths, pods: &[&Pod]) -> Result<()> {
    let netns = NetNs::open(&node.netns)?;
    for pod in pods {
        netns.run(|| paths.attach(&pod.port))??;
    }
    Ok(())
}

/// Pings from the node itself; true if an answer comes.
pub(crate) fn node_pings(node: &TestNode, to: Ipv4Addr) -> Result<bool> {
    let status = std::process::Command::new("nsenter")
        .arg(format!("--net={}", node.netns.display()))
        .args(["busybox", "ping", "-q", "-c", "1", "-W", "1"])
        .arg(to.to_string())
        .stdout(std::process::Stdio::null())
        .status()?;
    Ok(status.success())
}
