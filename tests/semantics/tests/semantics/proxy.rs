//! The process under test.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    site::Site,
    who::{Family, NODE_NAME, node_address},
};

/// Which proxy is tested, and what it cannot do.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// For `sh`.
    command: String,
    /// Removes what it made; none for another proxy than ours.
    cleanup: Option<String>,
    pub(crate) lacks: &'static [(Need, &'static str)],
}

/// What a case may ask for beyond what every proxy can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Clients beyond the uplink.
    Outside,
    /// That clients beyond the uplink are refused where every Service without endpoints refuses.
    RefusalOutside,
    /// An API server with ClusterIPs of both families.
    Ipv6,
    /// `loadBalancerSourceRanges`.
    SourceRanges,
    /// Hints of EndpointSlices.
    Hints,
    /// Health checks of load balancers at the node.
    HealthCheck,
    /// That a Service which comes late is found by UDP sockets that were connected to its address before.
    EarlyUdp,
}

const SKIFF: &str = "\"$SKIFF\" proxy --run-dir \"$RUN_DIR\" --cgroup-root \"$CGROUP_ROOT\"";
const ARGUMENTS: &str =
    "--node-name \"$NODE_NAME\" --kubeconfig \"$KUBECONFIG\" --cluster-cidr \"$POD_CIDRS\"";

/// Those that can be tested, or the one that the environment names.
pub(crate) fn modes() -> Vec<Mode> {
    if let Ok(command) = std::env::var("SKIFF_SEMANTICS_PROXY") {
        return vec![Mode {
            name: "given",
            command,
            cleanup: None,
            lacks: &[],
        }];
    }
    let ours = |name, lacks| Mode {
        name,
        command: format!("exec {SKIFF} {ARGUMENTS} --proxy-mode {name}"),
        cleanup: Some(format!("exec {SKIFF} --cleanup")),
        lacks,
    };
    vec![ours("ebpf", &[]), ours("iptables", &[])]
}

/// A running proxy; ended when dropped.
pub(crate) struct Proxy {
    command: Command,
    child: Option<Child>,
    site_netns: skiff_netns::NetNs,
    log: PathBuf,
}

impl Proxy {
    pub(crate) fn start(mode: &Mode, site: &Site) -> Result<Self> {
        let mut proxy = Self {
            command: command(&mode.command, site)?,
            child: None,
            site_netns: site.node_netns()?,
            log: site.path("proxy.log"),
        };
        proxy.again()?;
        Ok(proxy)
    }

    /// Starts it once more.
    pub(crate) fn again(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        let command = &mut self.command;
        // A child starts in the namespace of the thread that starts it.
        let child = self.site_netns.run(|| command.spawn())?;
        self.child = Some(child.context("starting the proxy")?);
        Ok(())
    }

    /// Ends it by a signal and waits for that.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(child.id().try_into()?), signal)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the proxy does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The end of what it said.
    pub(crate) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(30);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.end(Signal::SIGKILL) {
            println!("{error:#}");
        }
    }
}

/// Removes what the proxy made.
pub(crate) fn clean_up(mode: &Mode, site: &Site) -> Result<()> {
    let Some(cleanup) = &mode.cleanup else {
        return Ok(());
    };
    let mut command = command(cleanup, site)?;
    let output = site.node_netns()?.run(|| {
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
    })??;
    ensure!(
        output.status.success(),
        "cleanup: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let run_dir = site.path("run");
    ensure!(!run_dir.exists(), "cleanup left {}", run_dir.display());
    Ok(())
}

/// `sh` that joins the node's cgroup first.
fn command(text: &str, site: &Site) -> Result<Command> {
    let addresses: Vec<String> = [Family::V4, Family::V6]
        .map(|family| node_address(family).to_string())
        .into();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("echo 0 > \"$CGROUP/cgroup.procs\" && exec sh -c \"$0\"")
        .arg(text)
        .env("CGROUP", &site.cgroup)
        .env("CGROUP_ROOT", &site.cgroup_root)
        .env("KUBECONFIG", site.path("kubeconfig"))
        .env("NODE_NAME", NODE_NAME)
        .env("NODE_IPS", addresses.join(","))
        .env("POD_CIDRS", "10.88.0.0/15,fd00:58::/31")
        .env("RUN_DIR", site.path("run"))
        .env("SKIFF", skiff_test_harness::binary("skiff")?)
        .stdin(Stdio::null());
    Ok(command)
}
