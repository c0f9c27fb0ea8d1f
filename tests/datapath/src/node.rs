//! A node to test with.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use skiff_ebpf_loader::{Datapath, DatapathConfig, Limits, NodeSettings, netns_cookie, teardown};
use skiff_netns::{NetNs, delete_pinned};

use crate::Probe;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The node's own address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The pod's addresses: each can be a backend.
pub const PODS: [Ipv4Addr; 5] = [
    Ipv4Addr::new(10, 88, 0, 2),
    Ipv4Addr::new(10, 88, 0, 3),
    Ipv4Addr::new(10, 88, 0, 4),
    Ipv4Addr::new(10, 88, 0, 5),
    Ipv4Addr::new(10, 88, 0, 6),
];
/// The node's own IPv6 address.
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1);
/// The pod's IPv6 addresses.
pub const PODS6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 3),
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 4),
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 5),
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 6),
];

/// A cgroup, a folder for pins, a network namespace for the node and one for pods, joined by a veth pair.
#[derive(Debug)]
pub struct TestNode {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// The folder for pins: [`teardown`] removes it.
    pub bpffs: PathBuf,
    /// The node's network namespace.
    pub netns: PathBuf,
    /// The pods' network namespace.
    pub pod_netns: PathBuf,
    pub(crate) program: PathBuf,
    _folder: tempfile::TempDir,
}

impl TestNode {
    /// Makes one. `program` is the `datapath-probe` binary.
    ///
    /// # Errors
    /// If something of it cannot be made; nothing is left then.
    pub fn new(program: &str) -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("skiff-t-{}-{number}", std::process::id());
        let folder = tempfile::tempdir()?;
        let node = Self {
            cgroup: cgroup2_mount()?.join(&name),
            bpffs: folder.path().join("bpf"),
            netns: folder.path().join("net"),
            pod_netns: folder.path().join("pod"),
            program: program.into(),
            _folder: folder,
        };
        fs::create_dir(&node.cgroup)
            .with_context(|| format!("making {}", node.cgroup.display()))?;
        NetNs::create_pinned(&node.netns)?;
        NetNs::create_pinned(&node.pod_netns)?;
        let (host, pod) = (node.netns.as_path(), node.pod_netns.as_path());
        let veth = [
            "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns",
        ];
        ip(host, &[&veth[..], &[&pod.to_string_lossy()]].concat())?;
        ip(
            host,
            &["address", "add", &format!("{NODE}/24"), "dev", "pod0"],
        )?;
        for addr in PODS {
            ip(
                pod,
                &["address", "add", &format!("{addr}/24"), "dev", "eth0"],
            )?;
        }
        // No duplicate can be on a link that only we use, and looking for one takes seconds.
        let add6 = |netns: &Path, addr: Ipv6Addr, link| {
            let addr = format!("{addr}/64");
            ip(netns, &["address", "add", &addr, "dev", link, "nodad"])
        };
        add6(host, NODE6, "pod0")?;
        for addr in PODS6 {
            add6(pod, addr, "eth0")?;
        }
        ip(host, &["link", "set", "pod0", "up"])?;
        ip(pod, &["link", "set", "eth0", "up"])?;
        ip(pod, &["route", "add", "default", "via", &NODE.to_string()])?;
        for netns in [host, pod] {
            // As on every node: what was not translated goes nowhere.
            for range in ["10.96.0.0/16", "fd96::/112"] {
                ip(netns, &["route", "add", "unreachable", range])?;
            }
        }
        Ok(node)
    }

    /// Where its datapath is.
    #[must_use]
    pub fn config(&self) -> DatapathConfig {
        let limits = Limits {
            services: 1024,
            sets: 1024,
            slots: 8192,
            backends: 8192,
            rev_nat: 4096,
            affinity: 1024,
            flows: 1024,
            nat_flows: 1024,
        };
        DatapathConfig {
            cgroup_path: self.cgroup.clone(),
            bpffs_dir: self.bpffs.clone(),
            limits,
        }
    }

    /// Opens its datapath and tells it about the node.
    ///
    /// # Errors
    /// As [`Datapath::open`].
    pub fn open(&self) -> Result<Datapath> {
        let mut datapath = Datapath::open(&self.config())?;
        datapath.set_node(&self.settings()?)?;
        Ok(datapath)
    }

    /// What the programs are told.
    ///
    /// # Errors
    /// If the namespace's cookie cannot be had.
    pub fn settings(&self) -> Result<NodeSettings> {
        let netns_cookie = NetNs::open(&self.netns)?.run(netns_cookie)??;
        Ok(NodeSettings {
            node_ports: 30_000..=32_767,
            addresses: vec![NODE.into(), NODE6.into()],
            netns_cookie,
        })
    }

    /// A process of the node itself.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn host(&self) -> Result<Probe> {
        Probe::start(&self.program, Some(&self.cgroup), &self.netns)
    }

    /// A process of a pod.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn pod(&self) -> Result<Probe> {
        Probe::start(&self.program, Some(&self.cgroup), &self.pod_netns)
    }

    /// A process in the pod's network, but not in the node's cgroup.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn outsider(&self) -> Result<Probe> {
        Probe::start(&self.program, None, &self.pod_netns)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        let failed = [
            teardown(&self.bpffs).err().map(|e| e.to_string()),
            fs::remove_dir(&self.cgroup).err().map(|e| e.to_string()),
            delete_pinned(&self.pod_netns).err().map(|e| e.to_string()),
            delete_pinned(&self.netns).err().map(|e| e.to_string()),
        ];
        let failed: Vec<String> = failed.into_iter().flatten().collect();
        assert!(
            failed.is_empty() || std::thread::panicking(),
            "not removed: {failed:?}"
        );
    }
}

/// Runs `ip` in a network namespace. Not `ip netns exec`: that needs the namespace in a folder which everybody shares.
///
/// # Errors
/// What it says if it fails.
pub fn ip(netns: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .arg("ip")
        .args(arguments);
    let output = command.output().context("running ip")?;
    if !output.status.success() {
        bail!(
            "ip {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Where cgroup2 is mounted.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .context("no cgroup2")?;
    Ok(PathBuf::from(line.split(' ').nth(4).context("mountinfo")?))
}
