//! A node with a world outside, and packets that are sent through it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{Answer, Bench, TestNetns};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use serde_json::{Value, json};

/// The node's addresses towards the outside.
pub const NODE: [&str; 2] = ["192.0.2.1", "fd01::1"];
/// The outside's.
pub const OUTSIDE: [&str; 2] = ["192.0.2.2", "fd01::2"];
/// Where the reference plugins are installed.
pub const REFERENCE: &str = "/usr/lib/cni";

const PATIENCE: Duration = Duration::from_secs(5);
/// For packets that must not arrive.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// How a word is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In a connection.
    Tcp,
    /// In a datagram.
    Udp,
}

/// A node and a machine beside it, joined by a link.
#[derive(Debug)]
pub struct World {
    /// The node.
    pub bench: Bench,
    /// The machine, whose default route is the node.
    pub outside: TestNetns,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// With our plugins.
    #[must_use]
    pub fn new() -> Self {
        Self::around(Bench::new())
    }

    /// With the plugins of another folder.
    #[must_use]
    pub fn with_plugins(plugins: &Path) -> Self {
        Self::around(Bench::with_plugins(plugins))
    }

    fn around(bench: Bench) -> Self {
        let outside = TestNetns::new("out");
        let name = outside.path().file_name().unwrap().to_str().unwrap();
        bench.node.sh(&format!(
            "ip link add up0 type veth peer name eth0 netns {name} \
             && ip addr add {}/24 dev up0 && ip -6 addr add {}/64 dev up0 nodad && ip link set up0 up",
            NODE[0], NODE[1]
        ));
        outside.sh(&format!(
            "ip addr add {}/24 dev eth0 && ip -6 addr add {}/64 dev eth0 nodad && ip link set eth0 up \
             && ip route add default via {} && ip -6 route add default via {}",
            OUTSIDE[0], OUTSIDE[1], NODE[0], NODE[1]
        ));
        Self { bench, outside }
    }

    /// A bridge with both families, whose ports let packets out by which they came: where bridges call iptables, that
    /// is what a pod takes to reach itself.
    #[must_use]
    pub fn bridge_conf(&self) -> Value {
        let mut conf = self.bench.bridge_conf();
        conf["hairpinMode"] = json!(true);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
        conf
    }

    /// The rules and tables that plugins made.
    #[must_use]
    pub fn rules(&self) -> String {
        let saved = self
            .bench
            .node
            .sh("iptables-save -t nat; ip6tables-save -t nat; nft list tables");
        let is_made =
            |line: &&str| line.starts_with("-A") || line.contains(" - [") || line.contains("cni_");
        let lines: Vec<&str> = saved.lines().filter(is_made).collect();
        lines.join("\n")
    }
}

/// An address and a port as they are written together.
#[must_use]
pub fn format_target(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

fn patient<T: std::os::fd::AsFd>(socket: &T, patience: Duration) {
    let microseconds = i64::try_from(patience.as_micros()).unwrap();
    let time = TimeVal::new(microseconds / 1_000_000, microseconds % 1_000_000);
    setsockopt(socket, ReceiveTimeout, &time).unwrap();
}

/// Sends a word from `from` to `target` while `to` listens on `port`; returns whom the listener saw, or nothing if
/// nothing came back.
#[must_use]
pub fn reach(
    protocol: Protocol,
    from: &TestNetns,
    target: &str,
    to: &TestNetns,
    port: u16,
) -> Option<IpAddr> {
    reach_within(PATIENCE, protocol, from, target, to, port)
}

/// That nothing comes back.
#[must_use]
pub fn is_unreachable(
    protocol: Protocol,
    from: &TestNetns,
    target: &str,
    to: &TestNetns,
    port: u16,
) -> bool {
    reach_within(IMPATIENCE, protocol, from, target, to, port).is_none()
}

fn reach_within(
    patience: Duration,
    protocol: Protocol,
    from: &TestNetns,
    target: &str,
    to: &TestNetns,
    port: u16,
) -> Option<IpAddr> {
    let target: SocketAddr = target.parse().unwrap();
    let any = if target.is_ipv4() { "0.0.0.0" } else { "::" };
    match protocol {
        Protocol::Tcp => {
            let listener = to.run(|| TcpListener::bind((any, port))).unwrap();
            patient(&listener, patience);
            thread::scope(|scope| {
                scope.spawn(|| {
                    if let Ok((mut stream, peer)) = listener.accept() {
                        stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
                    }
                });
                let mut stream = from
                    .run(|| TcpStream::connect_timeout(&target, patience))
                    .ok()?;
                patient(&stream, patience);
                let mut seen = String::new();
                stream.read_to_string(&mut seen).ok()?;
                seen.parse().ok()
            })
        }
        Protocol::Udp => {
            let server = to.run(|| UdpSocket::bind((any, port))).unwrap();
            let client = from.run(|| UdpSocket::bind((any, 0))).unwrap();
            udp_within(patience, &client, target, &server)
        }
    }
}

/// Sends a word between two sockets; returns whom the server saw.
#[must_use]
pub fn udp(client: &UdpSocket, target: SocketAddr, server: &UdpSocket) -> Option<IpAddr> {
    udp_within(PATIENCE, client, target, server)
}

fn udp_within(
    patience: Duration,
    client: &UdpSocket,
    target: SocketAddr,
    server: &UdpSocket,
) -> Option<IpAddr> {
    patient(server, patience);
    patient(client, patience);
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Ok((_, peer)) = server.recv_from(&mut [0; 8]) {
                server
                    .send_to(peer.ip().to_string().as_bytes(), peer)
                    .unwrap();
            }
        });
        client.send_to(b"word", target).ok()?;
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).ok()?;
        String::from_utf8_lossy(&buffer[..length]).parse().ok()
    })
}

/// Where the calls of programs are written down, in a folder of [`plugins_with_variant`].
const CALLS: &str = "calls";

/// A folder of our plugins that see only one variant of iptables, of which [`take_calls`] tells.
#[must_use]
pub fn plugins_with_variant(bench: &Bench, variant: &str) -> PathBuf {
    let dir = bench.dir.path().join(variant);
    let programs = dir.join("programs");
    fs::create_dir_all(&programs).unwrap();
    for family in ["iptables", "ip6tables"] {
        for command in ["", "-save", "-restore"] {
            let name = format!("{family}{command}");
            let log = dir.join(CALLS);
            let script = format!(
                "#!/bin/sh\necho {name} >>{}\nexec /usr/sbin/{family}-{variant}{command} \"$@\"\n",
                log.display()
            );
            write_script(&programs.join(name), &script);
        }
    }
    for plugin in ["bridge", "host-local", "portmap"] {
        let path = dir.join(plugin);
        let real = bench.plugins().join(plugin);
        let (programs, real) = (programs.display(), real.display());
        let script = format!("#!/bin/sh\nPATH={programs}:$PATH exec {real}\n");
        write_script(&path, &script);
    }
    dir
}

fn write_script(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The programs of iptables that the plugins of [`plugins_with_variant`] have called since the last time, sorted.
#[must_use]
pub fn take_calls(plugins: &Path) -> Vec<String> {
    let log = plugins.join(CALLS);
    let text = fs::read_to_string(&log).unwrap_or_default();
    fs::remove_file(&log).ok();
    let mut calls: Vec<String> = text.lines().map(str::to_owned).collect();
    calls.sort();
    calls
}

/// A pod with an address, and what portmap is told about it.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub netns: TestNetns,
    /// Its container.
    pub name: String,
    /// What bridge answered.
    pub result: Value,
}

impl Pod {
    /// Joins one to the world's bridge.
    #[must_use]
    pub fn new(world: &World, name: &str) -> Self {
        let netns = TestNetns::new("pod");
        let result = world.bench.add(&world.bridge_conf(), name, &netns).json;
        Self {
            netns,
            name: name.to_owned(),
            result,
        }
    }

    /// portmap's configuration for it.
    #[must_use]
    pub fn conf(&self, backend: &str, mappings: &Value) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "portmap", "backend": backend,
            "runtimeConfig": {"portMappings": mappings}, "prevResult": self.result,
        })
    }

    /// Calls portmap.
    #[must_use]
    pub fn call(&self, world: &World, command: &str, conf: &Value) -> Answer {
        world
            .bench
            .call(command, conf, &self.name, self.netns.path())
    }

    /// ADD that must succeed and pass the result on.
    #[track_caller]
    pub fn add(&self, world: &World, conf: &Value) {
        let answer = self.call(world, "ADD", conf).expect_ok();
        assert_eq!(answer.json, self.result);
    }

    /// DEL that must succeed.
    #[track_caller]
    pub fn del(&self, world: &World, conf: &Value) {
        self.call(world, "DEL", conf).expect_ok();
    }
}

/// A mapping as a runtime asks for it.
#[must_use]
pub fn mapping(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

/// That the listener saw this address.
#[must_use]
pub fn seen(ip: &str) -> Option<IpAddr> {
    Some(ip.parse().unwrap())
}
