//! Podman with its CNI backend as a client of the plugins: its own default conflist, published ports, static addresses.
//!
//! Podman runs in a node's network namespace and a mount namespace of its own, where `/run`, `/var/lib/cni` and the
//! cgroup tree are private. The same cases pass on the reference's plugins, so that what they ask for is what Podman
//! gets there.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use skiff_tests_cni::{Bench, NO_BUS, TestNetns};

/// Debian's package of the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// The configuration list that comes with Podman.
const DEFAULT_CONFLIST: &str = "/etc/cni/net.d/87-podman-bridge.conflist";
const PATIENCE: Duration = Duration::from_secs(20);

/// What the shell does that keeps the mount namespace: it ends when its stdin closes.
const HOLD: &str = "set -e
mount -t tmpfs tmpfs /run
mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo ready
read end || true";

struct Podman {
    bench: Bench,
    /// Another machine: 192.0.2.2, where the node is 192.0.2.1.
    outside: TestNetns,
    holder: Child,
    plugins: PathBuf,
}

impl Podman {
    /// Podman over `plugins`, ours if there are none, with an image `busybox`.
    fn new(plugins: Option<&Path>) -> Self {
        for file in ["/usr/bin/podman", DEFAULT_CONFLIST, "/usr/bin/busybox"] {
            assert!(
                Path::new(file).exists(),
                "{file} is missing: cargo xtask setup"
            );
        }
        let bench = Bench::new();
        let outside = TestNetns::new("outside");
        let name = outside.path().file_name().unwrap().to_str().unwrap();
        bench.node.sh(&format!(
            "ip link set lo up && ip link add uplink type veth peer name eth0 netns {name}
             ip addr add 192.0.2.1/24 dev uplink && ip link set uplink up"
        ));
        outside.sh("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up && ip link set lo up");
        let mut hold = Command::new("unshare");
        hold.args(["--mount", "--propagation", "private", "sh", "-c", HOLD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut holder = bench.node.run(|| hold.spawn()).unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let plugins = plugins.unwrap_or(bench.plugins()).to_owned();
        let podman = Self {
            bench,
            outside,
            holder,
            plugins,
        };
        podman.configure();
        podman.import();
        podman
    }

    fn dir(&self) -> &Path {
        self.bench.dir.path()
    }

    fn configure(&self) {
        let (dir, plugins) = (self.dir().display(), self.plugins.display());
        fs::create_dir(self.dir().join("net.d")).unwrap();
        fs::copy(
            DEFAULT_CONFLIST,
            self.dir().join("net.d/87-podman-bridge.conflist"),
        )
        .unwrap();
        // Limits and cgroups as they are: a machine may let nobody raise or make them.
        let containers = format!(
            r#"[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
cni_plugin_dirs = ["{plugins}"]
network_backend = "cni"
network_config_dir = "{dir}/net.d"
"#
        );
        fs::write(self.dir().join("containers.conf"), containers).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/storage\"\nrunroot = \"{dir}/run\"\n"
        );
        fs::write(self.dir().join("storage.conf"), storage).unwrap();
    }

    fn import(&self) {
        self.sh(
            "mkdir -p $TMPDIR/image/bin $TMPDIR/image/www && cp /usr/bin/busybox $TMPDIR/image/bin/
             for name in sh timeout httpd wget ip ping; do ln -s busybox $TMPDIR/image/bin/$name; done
             tar -C $TMPDIR/image -c . | podman import - localhost/busybox",
        );
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("nsenter");
        shell
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .args(["sh", "-c", command])
            .env("CONTAINERS_CONF", self.dir().join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir().join("storage.conf"))
            .env("TMPDIR", self.dir())
            .envs([NO_BUS]);
        shell
    }

    /// Runs a command beside Podman; what it printed.
    #[track_caller]
    fn sh(&self, command: &str) -> String {
        let mut shell = self.shell(command);
        let output = self.bench.node.run(|| shell.output()).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {error}{said}");
        said.trim().to_owned()
    }

    /// Starts a container that serves its name on port 80.
    #[track_caller]
    fn serve(&self, name: &str, options: &str) -> String {
        self.sh(&format!(
            "podman run --detach --name {name} {options} localhost/busybox \
             sh -c 'echo {name} > /www/index.html && exec httpd -f -p 80 -h /www'"
        ))
    }

    /// The container's address in a network.
    #[track_caller]
    fn address(&self, name: &str, network: &str, key: &str) -> String {
        let text = self.sh(&format!("podman inspect {name}"));
        let json: Value = serde_json::from_str(&text).unwrap();
        let networks = &json[0]["NetworkSettings"]["Networks"];
        networks[network][key].as_str().unwrap().to_owned()
    }

    /// What a container gets from a server.
    fn fetch(&self, url: &str) -> String {
        eventually(url, || {
            let command = format!("podman run --rm localhost/busybox timeout 3 wget -qO- {url}");
            let mut shell = self.shell(&command);
            self.bench.node.run(|| shell.output()).unwrap()
        })
    }

    /// That nothing but the bridge is left of a network's containers.
    #[track_caller]
    fn assert_clean(&self, network: &str, bridge: &str, addresses: &[String]) {
        let mut links = self.bench.node.links();
        links.sort();
        assert_eq!(links, [bridge, "uplink"]);
        assert_eq!(self.sh("ls /var/lib/cni/results"), "");
        let leases = self.sh(&format!("ls /var/lib/cni/networks/{network}"));
        for address in addresses {
            assert!(!leases.contains(address), "{leases}");
            let rules = self.sh("iptables-save; ip6tables-save; nft list ruleset");
            assert!(!rules.contains(address), "{rules}");
        }
        assert_eq!(self.sh("ls /run/netns"), "");
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What cannot be removed shows in the machine's list of processes; a test that failed already says more.
        let mut shell = self.shell("podman rm --all --force --time 0");
        drop(self.bench.node.run(|| shell.output()));
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}

/// Tries until it succeeds; what it printed.
#[track_caller]
fn eventually(what: &str, mut attempt: impl FnMut() -> std::process::Output) -> String {
    let start = Instant::now();
    loop {
        let output = attempt();
        if output.status.success() {
            return String::from_utf8(output.stdout).unwrap().trim().to_owned();
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(start.elapsed() < PATIENCE, "{what}: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Not wget's own time limit: Debian's static busybox crashes on it.
fn wget(url: &str) -> Command {
    let mut wget = Command::new("timeout");
    wget.args(["3", "busybox", "wget", "-qO-", url]);
    wget
}

/// What a machine gets from a server.
#[track_caller]
fn fetch_from(netns: &TestNetns, url: &str) -> String {
    eventually(url, || netns.run(|| wget(url).output()).unwrap())
}

/// Podman's default network: containers reach each other and the world, published ports answer, nothing is left.
fn default_network(plugins: Option<&Path>) {
    let podman = Podman::new(plugins);
    let first = podman.serve("first", "--publish 8080:80");
    podman.serve("second", "");
    let addresses = ["first", "second"].map(|name| podman.address(name, "podman", "IPAddress"));
    assert_ne!(addresses[0], addresses[1]);

    let from_first = |command: &str| podman.sh(&format!("podman exec {first} {command}"));
    let second = &addresses[1];
    assert_eq!(podman.fetch(&format!("http://{second}/")), "second");
    assert_eq!(from_first(&format!("wget -qO- http://{second}/")), "second");
    // With a policy that lets nothing through, it is the firewall plugin that lets containers out.
    podman.sh("iptables -w -P FORWARD DROP");
    from_first("ping -c 1 -W 5 192.0.2.2");
    podman.sh("iptables -w -P FORWARD ACCEPT");

    assert_eq!(
        fetch_from(&podman.outside, "http://192.0.2.1:8080/"),
        "first"
    );
    assert_eq!(
        fetch_from(&podman.bench.node, "http://192.0.2.1:8080/"),
        "first"
    );
    assert_eq!(
        fetch_from(&podman.bench.node, "http://127.0.0.1:8080/"),
        "first"
    );

    podman.sh("podman rm --force --time 0 first second");
    podman.assert_clean("podman", "cni-podman0", &addresses);
    let mut again = wget("http://192.0.2.1:8080/");
    let status = podman.outside.run(|| again.output()).unwrap().status;
    assert!(!status.success(), "the port still answers");
}

/// A network that Podman makes: dual stack, with an address and a hardware address that the user chose.
fn own_network(plugins: Option<&Path>) {
    let podman = Podman::new(plugins);
    podman.sh(
        "podman network create --disable-dns --subnet 10.97.0.0/24 --ipv6 --subnet fd97::/64 own",
    );
    podman.serve(
        "chosen",
        "--network own --ip 10.97.0.77 --mac-address 02:00:00:00:00:77 --publish 8081:80",
    );
    let address = |key: &str| podman.address("chosen", "own", key);
    assert_eq!(address("IPAddress"), "10.97.0.77");
    assert_eq!(address("MacAddress"), "02:00:00:00:00:77");
    let v6 = address("GlobalIPv6Address");
    assert!(v6.starts_with("fd97::"), "{v6}");
    assert_eq!(
        fetch_from(&podman.bench.node, "http://10.97.0.77/"),
        "chosen"
    );
    assert_eq!(
        fetch_from(&podman.bench.node, &format!("http://[{v6}]/")),
        "chosen"
    );
    assert_eq!(
        fetch_from(&podman.outside, "http://192.0.2.1:8081/"),
        "chosen"
    );
    // Podman reloads rules that someone flushed: DEL and ADD on the living container.
    podman.sh("podman network disconnect own chosen && podman network connect own chosen");
    let addresses = [address("IPAddress"), address("GlobalIPv6Address")];

    podman.sh("podman restart --time 0 chosen && podman rm --force --time 0 chosen");
    let bridge = podman.bench.node.links();
    let bridge = bridge.iter().find(|name| name.starts_with("cni-")).unwrap();
    podman.assert_clean("own", bridge, &addresses);
}

/// The executable of `skiff cni`, built beside this test.
fn skiff() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("skiff");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p skiff",
        path.display()
    );
    path
}

#[test]
fn what_podman_attached_is_detached_by_hand() {
    let podman = Podman::new(None);
    let id = podman.serve("first", "--publish 8080:80");
    let address = podman.address("first", "podman", "IPAddress");
    assert_eq!(
        fetch_from(&podman.bench.node, "http://127.0.0.1:8080/"),
        "first"
    );
    let tool = |verb: &str, netns: &str| {
        podman.sh(&format!(
            "{} cni --conf-dir $TMPDIR/net.d --plugin-path {} --container-id {id} {verb} {netns}",
            skiff().display(),
            podman.plugins.display()
        ))
    };
    let netns = podman.sh("podman inspect --format '{{.NetworkSettings.SandboxKey}}' first");
    // The cache is libcni's: the list, the published port and the result are known.
    tool("check", &netns);
    tool("gc", "");
    assert_eq!(
        fetch_from(&podman.bench.node, "http://127.0.0.1:8080/"),
        "first"
    );
    tool("del", &netns);
    assert_eq!(podman.sh("ls /var/lib/cni/results"), "");
    assert!(podman.bench.veths().is_empty());
    podman.sh("podman rm --force --time 0 first");
    podman.assert_clean("podman", "cni-podman0", &[address]);
}

#[test]
fn podmans_default_network_works_on_our_plugins() {
    default_network(None);
}

#[test]
fn podmans_default_network_works_on_the_references() {
    default_network(Some(Path::new(REFERENCE)));
}

#[test]
fn a_network_made_by_podman_works_on_our_plugins() {
    own_network(None);
}

#[test]
fn a_network_made_by_podman_works_on_the_references() {
    own_network(Some(Path::new(REFERENCE)));
}
