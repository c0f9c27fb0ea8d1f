//! A cluster for trying skiff out: one node with a network namespace, a cgroup subtree and folders of its own, so
//! that nothing of the machine's own network changes.

pub(crate) mod down;
pub(crate) mod node_exec;
pub(crate) mod registry;
pub(crate) mod up;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use clap::Args;

/// Which cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceArgs {
    /// Name of the node, its network namespace, its cgroup and its folders.
    #[arg(long, default_value = "skiff-demo")]
    pub(crate) name: String,
    /// Use the optimised binaries.
    #[arg(long)]
    pub(crate) release: bool,
}

/// The parameters of a cluster, all derived from its name.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) name: String,
    binaries: PathBuf,
}

impl Instance {
    pub(crate) fn new(args: &InstanceArgs) -> Result<Self> {
        let fits = !args.name.is_empty() && args.name.len() <= 40;
        if !fits
            || !args
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            bail!(
                "--name {:?}: use 1 to 40 lower-case letters, digits and dashes",
                args.name
            );
        }
        let binaries = crate::paths::binaries(args.release);
        Ok(Self {
            name: args.name.clone(),
            binaries,
        })
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.name)
    }

    /// Beside the node's own directory, which is skiff's to remove.
    pub(crate) fn registry_dir(&self) -> PathBuf {
        Path::new("/var/lib").join(format!("{}-registry", self.name))
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    pub(crate) fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Relative to each cgroup mount.
    pub(crate) fn cgroup_root(&self) -> String {
        format!("/{}", self.name)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("admin.kubeconfig")
    }

    /// `skiff VERB` with the flags that say which node is meant.
    pub(crate) fn skiff(&self, verb: &str) -> Command {
        let mut command = Command::new(self.binaries.join("skiff"));
        command.arg(verb);
        command.arg("--node-name").arg(&self.name);
        command.arg("--node-netns").arg(self.netns());
        command.arg("--cgroup-root").arg(self.cgroup_root());
        command.arg("--data-dir").arg(self.data_dir());
        command.arg("--run-dir").arg(self.run_dir());
        command
    }

    pub(crate) fn kubectl(&self) -> Command {
        let mut command = Command::new(crate::paths::kubectl());
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }
}

/// `preferred` on 127.0.0.1 if it is free, else a free port.
pub(crate) fn free_port(preferred: u16) -> Result<u16> {
    let bind = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let listener = bind(preferred).or_else(|_taken| bind(0))?;
    Ok(listener.local_addr()?.port())
}
