//! A cluster as a newcomer gets it: `xtask up`, under a name of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{eventually, leftovers, leftovers::node_leftovers};

/// A running one-node cluster; taken down on drop, also when a test fails.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    /// Environment of the daemon: its flags as variables.
    env: Vec<(&'static str, String)>,
    /// Daemons that this test started again: reaped when it ends.
    children: Vec<Child>,
    down: bool,
}

/// Upstream's kubectl, pointed at a cluster.
#[derive(Debug)]
pub struct Kubectl<'a> {
    cluster: &'a Cluster,
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Path of a binary of ours. The test binaries lie in `<profile>/deps`, ours one above.
///
/// # Errors
/// If it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let dir = test
        .ancestors()
        .nth(2)
        .context("the test binary has no profile folder")?;
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "{} is not built: run `cargo build --workspace`",
            path.display()
        );
    }
    Ok(path)
}

fn text(what: &str, output: Output) -> Result<String> {
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if !output.status.success() {
        bail!("{what}: {}\n{stdout}{stderr}", output.status);
    }
    Ok(stdout.into_owned())
}

impl Cluster {
    /// Starts a cluster without workloads. `name` must be unique among tests that run at the same time.
    ///
    /// # Errors
    /// With what `xtask up` printed, if it fails.
    pub fn up(name: &str) -> Result<Self> {
        Self::up_with(name, &[])
    }

    /// [`Cluster::up`] with flags of the daemon, as environment variables.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up_with(name: &str, env: &[(&'static str, &str)]) -> Result<Self> {
        // A run that was killed may have left one.
        let env = env.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let cluster = Self {
            name: format!("skiff-t-{name}"),
            env: env.collect(),
            children: Vec::new(),
            down: false,
        };
        cluster.xtask("down", &[])?;
        cluster.xtask("up", &["--bare", "--no-build", "--api-port", "0"])?;
        Ok(cluster)
    }

    /// Name of the node and of all that belongs to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.name)
    }

    /// The node's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    fn xtask(&self, verb: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("xtask")?);
        command
            .arg(verb)
            .args(["--name", &self.name])
            .args(args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(root());
        let output = command.stdin(Stdio::null()).output()?;
        text(&format!("xtask {verb}"), output)
    }

    /// Our own command, with this node's folders.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn skiff(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("skiff")?);
        command.args(args);
        command.env("SKIFF_RUN_DIR", self.run_dir());
        command.env("SKIFF_DATA_DIR", self.data_dir());
        Ok(command)
    }

    /// What [`Self::skiff`] prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn skiff_says(&self, args: &[&str]) -> Result<String> {
        let output = self.skiff(args)?.output()?;
        text(&format!("skiff {}", args.join(" ")), output)
    }

    /// kubectl as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl<'_> {
        Kubectl { cluster: self }
    }

    /// Runs a command as a process of the node: its network namespace and cgroup.
    ///
    /// # Errors
    /// With what it printed, if it fails.
    pub fn node_exec(&self, command: &[&str]) -> Result<String> {
        let mut args = vec!["--"];
        args.extend(command);
        self.xtask("node-exec", &args)
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// If none holds the node's lock.
    pub fn daemon_pid(&self) -> Result<i32> {
        let pid = fs::read_to_string(self.run_dir().join("lock"))?
            .trim()
            .parse()?;
        if !Path::new(&format!("/proc/{pid}/exe")).exists() {
            bail!("process {pid} is gone");
        }
        Ok(pid)
    }

    /// Command line of the daemon.
    ///
    /// # Errors
    /// If it does not run.
    pub fn daemon_command(&self) -> Result<Vec<String>> {
        let command = fs::read_to_string(format!("/proc/{}/cmdline", self.daemon_pid()?))?;
        Ok(command.split_terminator('\0').map(str::to_owned).collect())
    }

    /// Kills the daemon as a crash would. Returns the command line to start it again with.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_daemon(&self) -> Result<Vec<String>> {
        let pid = self.daemon_pid()?;
        let command = self.daemon_command()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        eventually(
            "the daemon's end",
            Duration::from_secs(10),
            || Ok(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()),
            String::is_empty,
        )?;
        Ok(command)
    }

    /// Starts the daemon again and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_daemon(&mut self, command: &[String]) -> Result<()> {
        let (program, args) = command.split_first().context("an empty command line")?;
        let log = fs::OpenOptions::new()
            .append(true)
            .open(self.data_dir().join("skiff.log"))?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.children.push(child);
        let ready = || self.kubectl().run(&["get", "--raw", "/readyz"]);
        eventually(
            "the API's readiness",
            Duration::from_secs(30),
            ready,
            |answer| answer == "ok",
        )?;
        Ok(())
    }

    /// Takes the cluster down and checks that nothing of it is left.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn down(mut self) -> Result<()> {
        self.down = true;
        // First skiff's own part, while the node's namespace is still there to be looked at.
        let skiff_down = self.skiff_down();
        let mut left = node_leftovers(&self.name)?;
        self.xtask("down", &[])?;
        self.reap();
        skiff_down?;
        left.extend(leftovers(&self.name)?);
        if !left.is_empty() {
            bail!("left behind:\n{}", left.join("\n"));
        }
        Ok(())
    }

    /// `skiff down`, as a user of the binary types it.
    fn skiff_down(&self) -> Result<()> {
        let mut command = Command::new(binary("skiff")?);
        command.arg("down").args(["--node-name", &self.name]);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command
            .arg("--node-netns")
            .arg(Path::new("/run/netns").join(&self.name));
        command
            .arg("--cgroup-root")
            .arg(Path::new("/").join(&self.name));
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--run-dir")
            .arg(self.run_dir());
        text("skiff down", command.stdin(Stdio::null()).output()?).map(drop)
    }

    fn reap(&mut self) {
        for mut child in self.children.drain(..) {
            // Already ended by `down`; should it live on, `leftovers` names it.
            child.try_wait().ok();
        }
    }

    /// The end of the daemon's log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.data_dir().join("skiff.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines.split_at(lines.len().saturating_sub(60)).1.join("\n")
    }
}

impl Drop for Cluster {
    #[expect(
        clippy::print_stderr,
        reason = "a test that fails shows the daemon's log"
    )]
    fn drop(&mut self) {
        if self.down {
            return;
        }
        eprintln!("--- end of skiff.log\n{}\n---", self.log_tail());
        if let Err(err) = self.xtask("down", &[]) {
            eprintln!("cleaning up: {err:#}");
        }
        self.reap();
    }
}

impl Kubectl<'_> {
    /// The command, ready to be given arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(root().join(".tools/kubectl/usr/bin/kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.cluster.data_dir().join("admin.kubeconfig"));
        command
            .arg("--cache-dir")
            .arg(self.cluster.run_dir().join("kubectl-cache"));
        command.current_dir(root()).stdin(Stdio::null());
        command
    }

    /// Runs it and returns its stdout.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        text(
            &format!("kubectl {}", args.join(" ")),
            self.command().args(args).output()?,
        )
    }

    /// Runs it expecting failure; returns its stderr.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn fails(&self, args: &[&str]) -> Result<String> {
        let output = self.command().args(args).output()?;
        if output.status.success() {
            bail!("kubectl {} succeeded", args.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// `get ... -o json`, parsed.
    ///
    /// # Errors
    /// If kubectl fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.run(&[args, &["-o", "json"]].concat())?,
        )?)
    }
}
