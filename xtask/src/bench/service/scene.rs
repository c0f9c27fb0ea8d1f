//! Two pods at the bridge of a node: network namespaces, and processes in them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    super::{site, wait_until},
    Bench,
};

/// The address that clients use.
pub(super) const VIP: &str = "10.96.0.10";
/// The server's own.
pub(super) const SERVER: &str = "10.88.0.3";
const BRIDGE: &str = "br0";
const NODE: &str = "10.88.0.1";
/// The number and the address of each pod's link: the client's, the server's.
const PODS: [(u32, &str, &str); 2] = [
    (102, "10.88.0.2", "0a:58:0a:58:00:02"),
    (103, SERVER, "0a:58:0a:58:00:03"),
];
/// Each way of serving has a port, of the Service and of the pod.
pub(super) const WAYS: [(&str, u16); 3] = [("greet", 7001), ("echo", 7002), ("sink", 7003)];

/// A process that takes orders: a line in, a line out.
pub(super) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts it in `netns`, and in `cgroup` from its first instruction. It says one line when it is ready.
    pub(super) fn start(netns: &Path, cgroup: Option<&Path>, command: &Command) -> Result<Self> {
        // A process inherits its parent's cgroup: the shell enters it, then becomes the program.
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"[ -z "$0" ] || echo $$ > "$0"; exec "$@""#]);
        shell.arg(cgroup.map_or_else(PathBuf::new, |cgroup| cgroup.join("cgroup.procs")));
        shell.arg(command.get_program()).args(command.get_args());
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = site::inside(netns, || Ok(shell.spawn()?))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut worker = Self {
            child,
            input,
            output,
        };
        worker.answer().context("it did not start")?;
        Ok(worker)
    }

    /// One order, one answer.
    pub(super) fn tell(&mut self, order: &str) -> Result<String> {
        let input = self.input.as_mut().context("it has no input")?;
        input.write_all(format!("{order}\n").as_bytes())?;
        self.answer().with_context(|| order.to_owned())
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(
            self.output.read_line(&mut line)? > 0,
            "the process has ended: {:?}",
            self.child.try_wait()
        );
        Ok(line.trim_end().to_owned())
    }

    /// Seconds that it has run on a processor. With the softirqs that ran while it did: this kernel does not set
    /// them apart in a task's own time.
    fn busy_seconds(&self) -> Result<f64> {
        let threads = format!("/proc/{}/task", self.child.id());
        let mut nanos = 0.0;
        for thread in fs::read_dir(&threads).context(threads)? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let running = text.split(' ').next().unwrap_or_default();
            nanos += running.parse::<f64>()?;
        }
        Ok(nanos / 1e9)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // What it made it removes when its input ends.
        drop(self.input.take());
        let gone = wait_until("the end of a process", || {
            Ok(self.child.try_wait()?.is_some())
        });
        if gone.is_err() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// How the client reaches the server's Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Our programs at the node's cgroup and at the pods' links.
    Ours,
    /// A bridge, nothing else: there is no Service.
    Bare,
    /// A rule of iptables translates every packet: conntrack, and netfilter for what crosses the bridge.
    Dnat,
    /// The rules of our own iptables mode do.
    Iptables,
}

/// A node, two pods, and the processes in them. They end, and what they made goes, when it is dropped.
pub(super) struct Scene {
    pub(super) client: Worker,
    servers: Vec<Worker>,
    /// Last: the processes must have left the cgroup that it removes.
    programs: Option<Worker>,
}

impl Scene {
    pub(super) fn new(bench: &Bench<'_>, kind: Kind) -> Result<Self> {
        let name = format!("{kind:?}").to_lowercase();
        let node = bench.site.netns(&format!("{name}-node"))?;
        let pods = bench.site.netns_many(&format!("{name}-pod"), 2)?;
        link_up(&node, &pods, kind)?;
        let cgroup = match kind {
            Kind::Ours => Some(cgroup()?),
            Kind::Bare | Kind::Dnat | Kind::Iptables => None,
        };
        let cgroup = cgroup.as_deref();
        let programs = match kind {
            Kind::Ours | Kind::Iptables => Some(start_programs(bench, &node, cgroup)?),
            Kind::Bare | Kind::Dnat => None,
        };
        if kind == Kind::Dnat {
            translate_packets(&node)?;
        }
        let [client, server] = &*pods else {
            bail!("two pods were asked for");
        };
        let xtask = std::env::current_exe()?;
        let servers = WAYS.map(|(way, port)| {
            let mut command = Command::new(&xtask);
            command.args(["load", "serve", &port.to_string(), way]);
            Worker::start(server, cgroup, &command)
        });
        let mut command = Command::new(&xtask);
        command.args(["load", "client"]);
        Ok(Self {
            client: Worker::start(client, cgroup, &command)?,
            servers: servers.into_iter().collect::<Result<_>>()?,
            programs,
        })
    }

    /// Sees to it that there are so many Services, the server's among them.
    pub(super) fn set_services(&mut self, count: usize) -> Result<()> {
        let programs = self.programs.as_mut().context("none of our programs")?;
        let answer = programs.tell(&format!("services {count}"))?;
        ensure!(answer == "ok", "{answer}");
        Ok(())
    }

    /// How many packets went around the bridge so far.
    pub(super) fn direct_packets(&mut self) -> Result<u64> {
        let programs = self.programs.as_mut().context("none of our programs")?;
        Ok(programs.tell("direct")?.parse()?)
    }

    /// The CPU time of client and servers.
    pub(super) fn busy_seconds(&self) -> Result<f64> {
        let servers = self.servers.iter().map(Worker::busy_seconds);
        servers
            .chain([self.client.busy_seconds()])
            .sum::<Result<f64>>()
    }
}

/// Links, addresses and routes, as a pod of ours has them.
fn link_up(node: &Path, pods: &[PathBuf], kind: Kind) -> Result<()> {
    site::ip(node, &format!("link add {BRIDGE} type bridge"))?;
    site::ip(node, &format!("address add {NODE}/24 dev {BRIDGE}"))?;
    site::ip(node, &format!("link set {BRIDGE} up"))?;
    site::inside(node, || {
        // A node of ours has it on or off as its host has; the bare bridge has nothing to do with netfilter.
        let through_netfilter = kind != Kind::Bare;
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if Path::new(switch).exists() {
            fs::write(switch, if through_netfilter { "1" } else { "0" })?;
        } else {
            let needed = matches!(kind, Kind::Dnat | Kind::Iptables);
            ensure!(!needed, "this kernel has no bridge netfilter");
        }
        Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?)
    })?;
    for ((number, addr, mac), pod) in PODS.iter().zip(pods) {
        let name = pod.file_name().unwrap_or_default().display();
        let (port, peer) = (format!("veth{number}"), "peer name eth0");
        let pair = format!("index {number} master {BRIDGE} type veth {peer} address {mac} netns");
        site::ip(node, &format!("link add {port} {pair} {name}"))?;
        site::ip(node, &format!("link set {port} up"))?;
        site::ip(pod, "link set lo up")?;
        site::ip(pod, "link set eth0 up")?;
        site::ip(pod, &format!("address add {addr}/24 dev eth0"))?;
        site::ip(pod, &format!("route add default via {NODE}"))?;
    }
    Ok(())
}

/// What a proxy in the packets' way does for one Service, and no more.
fn translate_packets(node: &Path) -> Result<()> {
    site::inside(node, || {
        for (_, port) in WAYS {
            let rule = format!(
                "-w -t nat -A PREROUTING -d {VIP} -p tcp --dport {port} -j DNAT --to-destination {SERVER}:{port}"
            );
            crate::command::output(Command::new("iptables").args(rule.split(' ')))?;
        }
        Ok(())
    })
}

/// Without a cgroup: rules.
fn start_programs(bench: &Bench<'_>, node: &Path, cgroup: Option<&Path>) -> Result<Worker> {
    let mut command = Command::new(bench.examples.join("service_node"));
    command.arg(cgroup.unwrap_or_else(|| Path::new("iptables")));
    command.args([VIP, SERVER]);
    command.args(WAYS.map(|(_, port)| port.to_string()));
    command.arg("--");
    if cgroup.is_some() {
        command.args(PODS.map(|(number, addr, mac)| format!("{number}/{addr}/{mac}")));
    }
    Worker::start(node, None, &command)
}

/// The node's cgroup, where cgroup2 is mounted. Whoever puts programs there makes and removes it.
fn cgroup() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .context("cgroup2 is not mounted")?;
    let mount = line.split(' ').nth(4).context("reading mountinfo")?;
    Ok(Path::new(mount).join(format!("skiff-bench-{}", std::process::id())))
}
