//! A node for tests of the runtime: directories, cgroups and namespaces of its own, and a root filesystem made
//! of busybox. Needs root and `busybox` (Debian: busybox-static). Everything is removed at the end, also after
//! a failure.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilitiesBuilder, LinuxSeccompAction, LinuxSeccompBuilder,
    LinuxSyscallBuilder, Spec,
};
use skiff_netns::NodeNetns;
use skiff_runtime::{
    ContainerConfig, ContainerRef, ContainerState, ExecConfig, ExitStatus, Runtime, RuntimeConfig,
    RuntimeError, Sandbox, SandboxConfig, ShimRuntime, Stdin,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Commands of busybox that containers find in `/bin`.
const APPLETS: &[&str] = &[
    "sh", "echo", "sleep", "cat", "true", "false", "id", "grep", "head", "yes", "kill", "mkdir",
    "stty", "tty", "env", "pwd", "dd", "wc", "seq", "ls", "hostname", "tail", "rmdir", "test",
];

/// A node.
pub struct Node {
    dir: TempDir,
    /// Taken by [`Node::crash`] and put back by [`Node::reopen`].
    runtime: Option<ShimRuntime>,
    cgroup_root: PathBuf,
}

impl Node {
    /// Makes one.
    pub async fn new(name: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this test needs root");
        let dir = tempfile::Builder::new().prefix("skiff-test-").tempdir()?;
        make_rootfs(&dir.path().join("rootfs"))?;
        let cgroup_root = PathBuf::from(format!("/skiff-test-{name}-{}", std::process::id()));
        let mut node = Self {
            dir,
            runtime: None,
            cgroup_root,
        };
        node.reopen().await?;
        Ok(node)
    }

    /// The runtime.
    ///
    /// # Panics
    /// After [`Node::crash`].
    #[expect(clippy::expect_used, reason = "a mistake in the test")]
    pub fn runtime(&self) -> &ShimRuntime {
        self.runtime.as_ref().expect("the daemon is down")
    }

    /// The daemon dies: nothing is told to anyone.
    pub fn crash(&mut self) {
        self.runtime = None;
    }

    /// A new daemon starts.
    pub async fn reopen(&mut self) -> Result<()> {
        let config = RuntimeConfig {
            run_dir: self.run_dir(),
            shim_path: shim_path()?,
            cgroup_root: self.cgroup_root.clone(),
            node_netns: NodeNetns::machine(),
            netns_dir: self.netns_dir(),
        };
        self.runtime = Some(ShimRuntime::open(config).await?);
        Ok(())
    }

    /// Directory of the node.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Run directory.
    pub fn run_dir(&self) -> PathBuf {
        // Deep on purpose: longer than the address of a socket may be.
        self.dir
            .path()
            .join("a-run-directory-whose-name-is-long")
            .join("x".repeat(60))
    }

    /// Where network namespaces are pinned.
    pub fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// Log file of a container.
    pub fn log(&self, pod: &str, name: &str) -> PathBuf {
        self.dir
            .path()
            .join("logs")
            .join(pod)
            .join(name)
            .join("0.log")
    }

    /// The root filesystem.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// The node's cgroup, from the root of each hierarchy.
    pub fn cgroup_root(&self) -> &str {
        self.cgroup_root.to_str().unwrap_or_default()
    }

    /// The node's cgroup directories that exist now.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let root = self
            .cgroup_root
            .strip_prefix("/")
            .unwrap_or(&self.cgroup_root);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let dirs = mounts.filter_map(|line| Some(Path::new(line.split(' ').nth(4)?).join(root)));
        dirs.filter(|dir| dir.exists()).collect()
    }

    /// Makes a sandbox.
    pub async fn sandbox(&self, uid: &str) -> Result<Sandbox> {
        let config = SandboxConfig {
            pod_uid: uid.to_owned(),
            namespace: "default".to_owned(),
            name: format!("pod-{uid}"),
            hostname: format!("host-{uid}"),
            host_network: false,
        };
        Ok(self.runtime().run_sandbox(config).await?)
    }

    /// A container that runs `script` by `sh -c`.
    pub fn shell(&self, pod: &str, name: &str, script: &str) -> ContainerConfig {
        self.container(pod, name, &["sh", "-c", script])
    }

    /// A container that runs a command.
    pub fn container(&self, pod: &str, name: &str, command: &[&str]) -> ContainerConfig {
        let mut spec = Spec::default();
        if let Some(root) = spec.root_mut() {
            root.set_readonly(Some(false));
        }
        if let Some(process) = spec.process_mut() {
            process.set_args(Some(command.iter().map(|&word| word.to_owned()).collect()));
            process.set_env(Some(vec!["PATH=/bin".to_owned(), "COLOUR=blue".to_owned()]));
            process.set_cwd("/tmp".into());
            process.set_rlimits(None);
            process.set_no_new_privileges(Some(false));
        }
        set_capabilities(
            &mut spec,
            &[
                Capability::Kill,
                Capability::Chown,
                Capability::NetBindService,
            ],
        );
        ContainerConfig {
            pod_uid: pod.to_owned(),
            name: name.to_owned(),
            restart_count: 0,
            rootfs: self.rootfs(),
            spec,
            log_path: self.log(pod, name),
            annotations: BTreeMap::from([("spec-hash".to_owned(), "1".to_owned())]),
            tty: false,
            stdin: Stdin::Empty,
        }
    }

    /// Its state now.
    pub async fn state(&self, id: &ContainerRef) -> Result<ContainerState> {
        let pod = self.runtime().pod(&id.pod_uid).await?;
        let found = pod
            .containers
            .into_iter()
            .find(|container| container.id == *id);
        Ok(found.context("no such container")?.state)
    }

    /// Waits for its end.
    pub async fn exit(&self, id: &ContainerRef) -> Result<ExitStatus> {
        let mut events = self.runtime().events();
        let wait = async {
            loop {
                if let ContainerState::Exited(status) = self.state(id).await? {
                    return Ok(status);
                }
                events.recv().await?;
            }
        };
        tokio::time::timeout(DEADLINE, wait)
            .await
            .context("the container does not end")?
    }

    /// Runs a container to its end; its status and its log without timestamps.
    pub async fn run(&self, config: ContainerConfig) -> Result<(ExitStatus, Vec<String>)> {
        let log = config.log_path.clone();
        let id = self.runtime().start_container(config).await?;
        let status = self.exit(&id).await?;
        Ok((status, log_lines(&log)?))
    }

    /// Runs a command in a container: exit code, stdout, stderr.
    pub async fn exec(&self, id: &ContainerRef, script: &str) -> Result<(i32, String, String)> {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let config = ExecConfig {
            command,
            tty: false,
            stdin: false,
        };
        let mut session = self.runtime().exec(id, config).await?;
        let (mut out, mut err) = (String::new(), String::new());
        let mut stderr = session.stderr.take().context("no stderr")?;
        tokio::time::timeout(DEADLINE, async {
            let (first, second) = tokio::join!(
                session.stdout.read_to_string(&mut out),
                stderr.read_to_string(&mut err)
            );
            first.and(second)?;
            Ok((session.exit.await?, out, err))
        })
        .await
        .context("the command does not end")?
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let runtime = self.runtime.take();
        let config = RuntimeConfig {
            run_dir: self.run_dir(),
            shim_path: shim_path().unwrap_or_default(),
            cgroup_root: self.cgroup_root.clone(),
            node_netns: NodeNetns::machine(),
            netns_dir: self.netns_dir(),
        };
        // Dropped inside a runtime that may be ending itself: so on a thread of its own.
        let clean = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok()?;
            tokio.block_on(async {
                drop(runtime);
                ShimRuntime::open(config)
                    .await
                    .ok()?
                    .remove_everything()
                    .await
                    .ok()
            })
        });
        clean.join().ok();
    }
}

/// Capabilities of all kinds but ambient and inheritable.
pub fn set_capabilities(spec: &mut Spec, capabilities: &[Capability]) {
    let set: Capabilities = capabilities.iter().copied().collect();
    let mut all = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .build()
        .unwrap_or_default();
    all.set_inheritable(None).set_ambient(None);
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(Some(all));
    }
}

/// A seccomp profile that lets everything pass but `mkdir`.
pub fn forbid_mkdir(spec: &mut Spec) -> Result<()> {
    let mkdir = LinuxSyscallBuilder::default()
        .names(["mkdir".to_owned(), "mkdirat".to_owned()])
        .action(LinuxSeccompAction::ScmpActErrno)
        .build()?;
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .syscalls([mkdir])
        .build()?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_seccomp(Some(profile));
    spec.set_linux(Some(linux));
    Ok(())
}

/// A container's log without timestamps.
pub fn log_lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text
        .split_terminator('\n')
        .filter_map(|line| line.split_once(' '))
        .map(|(_, rest)| rest.to_owned())
        .collect())
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        if tokio::time::Instant::now() > deadline {
            bail!("not in time: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Whether an error is the shim's with these words in it.
pub fn says(error: &RuntimeError, words: &str) -> bool {
    matches!(error, RuntimeError::Shim { message, .. } if message.contains(words))
}

/// The shim beside this test's own directory.
pub fn shim_path() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.ancestors().nth(2).context("no directory")?;
    let shim = dir.join("skiff-shim");
    ensure!(
        shim.exists(),
        "{} is missing: cargo build -p skiff-shim",
        shim.display()
    );
    Ok(shim)
}

fn make_rootfs(rootfs: &Path) -> Result<()> {
    let found = Command::new("which").arg("busybox").output()?;
    ensure!(
        found.status.success(),
        "busybox is missing: apt-get install busybox-static"
    );
    let busybox = String::from_utf8(found.stdout)?;
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::copy(busybox.trim(), rootfs.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/\n",
    )?;
    Ok(())
}
