//! The node's part of the cgroup hierarchies: where a pod's cgroups are, what they count, how they go away.
//!
//! libcontainer makes a container's cgroups and sets their limits. This module knows the same paths: on a
//! machine with v1 hierarchies (hybrid) containers have a cgroup in each of them and stay in the shim's own
//! cgroup2; on pure v2 they have one cgroup.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::{ContainerStats, RuntimeError};

/// How long processes that were killed may take to leave their cgroup.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the hierarchies are mounted and which part of them is the node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCgroups {
    v1: Vec<V1Mount>,
    v2: PathBuf,
    root: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct V1Mount {
    path: PathBuf,
    controllers: Vec<String>,
}

impl NodeCgroups {
    /// Finds the mounts. `root` is the node's cgroup in every hierarchy, e.g. `/` or `/skiff-demo`.
    ///
    /// # Errors
    /// [`RuntimeError`] if the mounts cannot be read or cgroup2 is mounted nowhere.
    pub fn detect(root: &Path) -> Result<Self, RuntimeError> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts =
            fs::read_to_string(path).map_err(|source| RuntimeError::io("reading", path, source))?;
        Self::parse(&mounts, root).ok_or_else(|| RuntimeError::Unsupported {
            message: "no cgroup2 mount on this machine".to_owned(),
        })
    }

    fn parse(mountinfo: &str, root: &Path) -> Option<Self> {
        let mut v1 = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((place, source)) = line.split_once(" - ") else {
                continue;
            };
            let Some(path) = place.split(' ').nth(4) else {
                continue;
            };
            let mut source = source.split(' ');
            match (source.next(), source.nth(1)) {
                (Some("cgroup2"), _) if v2.is_none() => v2 = Some(PathBuf::from(path)),
                (Some("cgroup"), Some(options)) => v1.push(V1Mount {
                    path: PathBuf::from(path),
                    controllers: options.split(',').map(str::to_owned).collect(),
                }),
                _ => {}
            }
        }
        // Only a named hierarchy (systemd's) beside cgroup2: nothing is controlled by v1.
        if v1.iter().all(|mount| {
            mount
                .controllers
                .iter()
                .any(|name| name.starts_with("name="))
        }) {
            v1.clear();
        }
        let root = root.strip_prefix("/").unwrap_or(root).to_owned();
        Some(Self { v1, v2: v2?, root })
    }

    /// Whether v1 hierarchies control the containers.
    #[must_use]
    pub fn is_v1(&self) -> bool {
        !self.v1.is_empty()
    }

    /// The path of a container's cgroup for the OCI spec: from the root of each hierarchy.
    #[must_use]
    pub fn container_spec_path(&self, pod_uid: &str, container_id: &str) -> PathBuf {
        Path::new("/").join(self.pod(pod_uid)).join(container_id)
    }

    /// The cgroup2 directory of the pod's shim.
    #[must_use]
    pub fn shim_dir(&self, pod_uid: &str) -> PathBuf {
        self.v2.join(self.pod(pod_uid)).join("shim")
    }

    /// Begins the RCU grace period that the next entry into a cgroup waits for, by a move of the shim to where
    /// it is. The kernel stays ready for the length of another one; entries in that time cost next to nothing.
    /// A container enters its v1 cgroups some milliseconds after its start was asked for: this overlaps the
    /// wait (8 to 20 ms) with all that comes before.
    pub fn expect_entry(&self, pod_uid: &str, shim: i32) {
        let path = self.shim_dir(pod_uid).join("cgroup.procs");
        // On failure the container's own entry waits as it would have.
        fs::write(path, shim.to_string()).ok();
    }

    /// The directories of a container's cgroup in the hierarchies that control it.
    #[must_use]
    pub fn container_dirs(&self, pod_uid: &str, container_id: &str) -> Vec<PathBuf> {
        let path = self.pod(pod_uid).join(container_id);
        if self.v1.is_empty() {
            return vec![self.v2.join(path)];
        }
        let dirs = self.v1.iter().map(|mount| mount.path.join(&path));
        dirs.filter(|dir| dir.exists()).collect()
    }

    /// The file that counts a container's out-of-memory kills.
    #[must_use]
    pub fn oom_file(&self, pod_uid: &str, container_id: &str) -> PathBuf {
        let path = self.pod(pod_uid).join(container_id);
        match self.v1_mount("memory") {
            Some(mount) => mount.join(path).join("memory.oom_control"),
            None => self.v2.join(path).join("memory.events"),
        }
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if its cgroup is gone.
    pub fn stats(&self, pod_uid: &str, container_id: &str) -> Result<ContainerStats, RuntimeError> {
        let path = self.pod(pod_uid).join(container_id);
        let at = |controller: &str| match self.v1_mount(controller) {
            Some(mount) => (mount.join(&path), true),
            None => (self.v2.join(&path), false),
        };
        let cpu_usage_nanos = match at("cpuacct") {
            (dir, true) => number(&dir.join("cpuacct.usage"))?,
            (dir, false) => keyed(&dir.join("cpu.stat"), "usage_usec")?.saturating_mul(1000),
        };
        let (dir, v1) = at("memory");
        let (usage, inactive) = if v1 {
            ("memory.usage_in_bytes", "total_inactive_file")
        } else {
            ("memory.current", "inactive_file")
        };
        let memory_working_set_bytes =
            number(&dir.join(usage))?.saturating_sub(keyed(&dir.join("memory.stat"), inactive)?);
        let pids = number(&at("pids").0.join("pids.current"))?;
        Ok(ContainerStats {
            cpu_usage_nanos,
            memory_working_set_bytes,
            pids,
        })
    }

    /// Kills whatever is left in a container's cgroups, then removes them.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] naming a directory that stays; the others are removed all the same.
    pub fn remove_container(&self, pod_uid: &str, container_id: &str) -> Result<(), RuntimeError> {
        self.remove(&self.pod(pod_uid).join(container_id))
    }

    /// Kills whatever is left in a pod's cgroups, the shim included, then removes them.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] naming a directory that stays; the others are removed all the same.
    pub fn remove_pod(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        self.remove(&self.pod(pod_uid))
    }

    /// Removes the node's own cgroups if nothing is in them any more.
    pub fn remove_empty_parents(&self) {
        for mount in self.mounts() {
            let mut dir = self.root.join("skiff");
            while !dir.as_os_str().is_empty() && fs::remove_dir(mount.join(&dir)).is_ok() {
                dir.pop();
            }
        }
    }

    /// The node's own cgroup2 directory: what is attached there sees the node's processes and no others.
    #[must_use]
    pub fn unified_root(&self) -> PathBuf {
        self.v2.join(&self.root)
    }

    /// Moves this process into the node's part of cgroup2, should the node have one of its own, so that its
    /// connections are treated as the node's.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if the cgroup cannot be made or entered.
    pub fn join_daemon(&self) -> Result<(), RuntimeError> {
        if self.root.as_os_str().is_empty() {
            return Ok(());
        }
        let dir = self.daemon_dir();
        fs::create_dir_all(&dir).map_err(|source| RuntimeError::io("making", &dir, source))?;
        let procs = dir.join("cgroup.procs");
        // 0 is the writer itself.
        fs::write(&procs, "0").map_err(|source| RuntimeError::io("entering", &procs, source))
    }

    /// A leaf beside the pods: in cgroup v2 only leaves hold processes.
    fn daemon_dir(&self) -> PathBuf {
        self.unified_root().join("skiff/daemon")
    }

    /// Removes what is left of the node's cgroups once its pods and its daemon are gone.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if the node has cgroups of its own and one of them stays.
    pub fn remove_node(&self) -> Result<(), RuntimeError> {
        if self.root.as_os_str().is_empty() {
            // The root of the hierarchy is the machine's.
            self.remove_empty_parents();
            return Ok(());
        }
        self.remove(&self.root)
    }

    /// UIDs of the pods that have a cgroup anywhere below the node's.
    #[must_use]
    pub fn pods(&self) -> Vec<String> {
        let mut uids: Vec<String> = self
            .mounts()
            .filter_map(|mount| fs::read_dir(mount.join(&self.root).join("skiff")).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix("pod").map(str::to_owned))
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }

    fn pod(&self, pod_uid: &str) -> PathBuf {
        self.root.join("skiff").join(format!("pod{pod_uid}"))
    }

    fn mounts(&self) -> impl Iterator<Item = &Path> {
        self.v1
            .iter()
            .map(|mount| mount.path.as_path())
            .chain([self.v2.as_path()])
    }

    fn v1_mount(&self, controller: &str) -> Option<&Path> {
        let has = |mount: &&V1Mount| mount.controllers.iter().any(|name| name == controller);
        self.v1.iter().find(has).map(|mount| mount.path.as_path())
    }

    fn remove(&self, path: &Path) -> Result<(), RuntimeError> {
        let dirs: Vec<PathBuf> = self.mounts().map(|mount| mount.join(path)).collect();
        let mut result = Ok(());
        for dir in &dirs {
            if let Err(source) = remove_tree(dir) {
                result = Err(RuntimeError::io("removing cgroup", dir, source));
            }
        }
        result
    }
}

/// Removes a cgroup with its children, killing who is in them until they are gone.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    loop {
        match remove_tree_once(dir) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                kill_tree(dir);
                // There is no file to wait on in v1 until a process has left its cgroup.
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

fn remove_tree_once(dir: &Path) -> io::Result<()> {
    // Nearly always there are no children: try that first.
    let busy = match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => error,
        result => return result,
    };
    let children = children(dir);
    if children.is_empty() {
        return Err(busy);
    }
    for child in children {
        remove_tree_once(&child)?;
    }
    fs::remove_dir(dir)
}

fn kill_tree(dir: &Path) {
    for child in children(dir) {
        kill_tree(&child);
    }
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
    {
        // It may be gone already, which is what we want.
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn read(path: &Path) -> Result<String, RuntimeError> {
    fs::read_to_string(path).map_err(|source| RuntimeError::io("reading", path, source))
}

fn invalid(path: &Path) -> RuntimeError {
    RuntimeError::io("reading", path, io::ErrorKind::InvalidData.into())
}

fn number(path: &Path) -> Result<u64, RuntimeError> {
    let text = read(path)?;
    let number = text.trim().parse();
    number.map_err(|_not_a_number: std::num::ParseIntError| invalid(path))
}

fn keyed(path: &Path, key: &str) -> Result<u64, RuntimeError> {
    counter(&read(path)?, key).ok_or_else(|| invalid(path))
}

/// The value of `key` in a file of `key value` lines.
#[must_use]
pub fn counter(text: &str, key: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const PURE: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn on_hybrid_a_container_is_in_v1_and_the_shim_in_cgroup2() {
        let cgroups = NodeCgroups::parse(HYBRID, Path::new("/demo")).unwrap();
        assert_eq!(
            cgroups.oom_file("u", "c"),
            Path::new("/sys/fs/cgroup/memory/demo/skiff/podu/c/memory.oom_control")
        );
        assert_eq!(
            cgroups.shim_dir("u"),
            Path::new("/sys/fs/cgroup/unified/demo/skiff/podu/shim")
        );
        assert_eq!(
            cgroups.container_spec_path("u", "c"),
            Path::new("/demo/skiff/podu/c")
        );
        assert_eq!(
            cgroups.v1_mount("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
    }

    #[test]
    fn on_pure_v2_everything_is_in_one_tree() {
        let cgroups = NodeCgroups::parse(PURE, Path::new("/")).unwrap();
        assert_eq!(
            cgroups.container_dirs("u", "c"),
            [Path::new("/sys/fs/cgroup/skiff/podu/c")]
        );
        assert_eq!(
            cgroups.oom_file("u", "c"),
            Path::new("/sys/fs/cgroup/skiff/podu/c/memory.events")
        );
        assert_eq!(NodeCgroups::parse("", Path::new("/")), None);
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter(text, "oom"), None);
    }
}
