//! A bench for CNI plugins: a node and its pods as network namespaces of their own, gone again when it is dropped.
//!
//! Needs root, and the plugins built (`cargo build -p skiff-cni-plugins`). The machine's own network stays untouched.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot be built fails its test"
)]

pub mod chained;
pub mod compare;
pub mod forwarding;
pub mod raw;
pub mod runtime;
pub mod state;
pub mod traffic;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};
use skiff_netns::NetNs;
use tempfile::TempDir;

/// For the environment of plugins: a firewalld that the machine may have is none of ours.
pub const NO_BUS: (&str, &str) = ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A pinned namespace that is unpinned when dropped, also by a failing test.
#[derive(Debug)]
pub struct TestNetns {
    netns: NetNs,
    name: String,
}

impl TestNetns {
    /// A fresh one.
    #[must_use]
    pub fn new(role: &str) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("skiff-t-{role}-{}-{number}", std::process::id());
        let netns = NetNs::create_pinned(format!("/run/netns/{name}")).unwrap();
        Self { netns, name }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.netns.path()
    }

    /// Runs `f` inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f).unwrap()
    }

    /// Runs a command inside and returns what it printed.
    pub fn sh(&self, command: &str) -> String {
        self.try_sh(command)
            .unwrap_or_else(|error| panic!("{}: {command}: {error}", self.name))
    }

    /// Runs a command inside.
    ///
    /// # Errors
    /// What it had to say.
    pub fn try_sh(&self, command: &str) -> Result<String, String> {
        let output = self
            .run(|| Command::new("sh").args(["-c", command]).output())
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8(output.stdout).unwrap())
    }

    /// The names of the links inside, but for `lo`.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        let json: Value = serde_json::from_str(&self.sh("ip -j link")).unwrap();
        let names = json
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap());
        names
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for TestNetns {
    fn drop(&mut self) {
        skiff_netns::delete_pinned(self.netns.path()).unwrap();
    }
}

/// A node with a folder of plugins and one for leases.
#[derive(Debug)]
pub struct Bench {
    /// The node.
    pub node: TestNetns,
    /// Leases, cached results, plugin links.
    pub dir: TempDir,
    plugins: PathBuf,
}

/// What a plugin answered.
#[derive(Debug)]
pub struct Answer {
    /// Whether it succeeded.
    pub ok: bool,
    /// What it printed; null if nothing.
    pub json: Value,
}

impl Answer {
    /// The error's code.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        self.json["code"].as_u64()
    }

    /// The first address, without its length.
    #[must_use]
    pub fn ip(&self) -> String {
        let address = self.json["ips"][0]["address"]
            .as_str()
            .unwrap_or_else(|| panic!("{self:?}"));
        address.split('/').next().unwrap().to_owned()
    }

    /// Itself, if it is a success.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(self.ok, "{}", self.json);
        self
    }
}

/// The executable that holds our plugins, built beside this test.
#[must_use]
pub fn skiff_cni() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("skiff-cni");
    assert!(
        path.exists(),
        "{} is missing: cargo build -p skiff-cni-plugins",
        path.display()
    );
    path
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// A node without links, and our plugins.
    #[must_use]
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("skiff-t-cni-").unwrap();
        let plugins = dir.path().join("bin");
        let status = Command::new(skiff_cni())
            .arg("--install")
            .arg(&plugins)
            .status()
            .unwrap();
        assert!(status.success());
        Self {
            node: TestNetns::new("node"),
            dir,
            plugins,
        }
    }

    /// The same with the plugins of another folder.
    #[must_use]
    pub fn with_plugins(plugins: &Path) -> Self {
        Self {
            plugins: plugins.to_owned(),
            ..Self::new()
        }
    }

    /// The folder of plugins.
    #[must_use]
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }

    /// A bridge with host-local on 10.99.0.0/24 as a node uses it.
    #[must_use]
    pub fn bridge_conf(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0",
            "isDefaultGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": self.dir.path().join("networks"),
                "ranges": [[{"subnet": "10.99.0.0/24"}]],
            },
        })
    }

    /// The addresses that are leased.
    #[must_use]
    pub fn leases(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("networks/net")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut ips: Vec<String> = names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect();
        ips.sort();
        ips
    }

    /// Starts a plugin in the node; `netns` is left out if empty.
    #[must_use]
    pub fn start(&self, command: &str, conf: &Value, container: &str, netns: &Path) -> Child {
        let plugin = self.plugins.join(conf["type"].as_str().unwrap());
        let mut call = Command::new(plugin);
        call.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .envs([NO_BUS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if !netns.as_os_str().is_empty() {
            call.env("CNI_NETNS", netns);
        }
        let mut child = self.node.run(|| call.spawn()).unwrap();
        // A plugin that is killed does not read.
        child
            .stdin
            .take()
            .unwrap()
            .write_all(conf.to_string().as_bytes())
            .ok();
        child
    }

    /// Runs a plugin in the node.
    #[must_use]
    pub fn call(&self, command: &str, conf: &Value, container: &str, netns: &Path) -> Answer {
        let output = self
            .start(command, conf, container, netns)
            .wait_with_output()
            .unwrap();
        let json = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        };
        Answer {
            ok: output.status.success(),
            json,
        }
    }

    /// ADD that must succeed.
    #[track_caller]
    pub fn add(&self, conf: &Value, container: &str, pod: &TestNetns) -> Answer {
        self.call("ADD", conf, container, pod.path()).expect_ok()
    }

    /// DEL that must succeed.
    #[track_caller]
    pub fn del(&self, conf: &Value, container: &str, pod: &TestNetns) {
        assert_eq!(
            self.call("DEL", conf, container, pod.path())
                .expect_ok()
                .json,
            Value::Null
        );
    }

    /// The veth ends in the node.
    #[must_use]
    pub fn veths(&self) -> Vec<String> {
        self.node
            .links()
            .into_iter()
            .filter(|name| name.starts_with("veth"))
            .collect()
    }
}
