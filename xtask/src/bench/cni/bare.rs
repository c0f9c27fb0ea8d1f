//! A node whose containers are attached by nothing but the calls that cannot be avoided: the floor.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    Bench,
    call::{self, Attachment, Cost, Prepared},
    network::{BRIDGE, attachment},
    site,
};

pub(super) struct Bare {
    executable: PathBuf,
    pub(super) node: PathBuf,
}

impl Bare {
    /// A fresh node with a bridge that has a port.
    pub(super) fn new(bench: &Bench<'_>, name: &str) -> Result<Self> {
        let node = bench.site.netns(&format!("{name}-node"))?;
        for change in [
            "link set lo up",
            &format!("link add {BRIDGE} type bridge"),
            &format!("address add 10.88.0.1/16 dev {BRIDGE}"),
            &format!("link set {BRIDGE} up"),
        ] {
            site::ip(&node, change)?;
        }
        let bare = Self {
            executable: bench.bare.clone(),
            node,
        };
        let resident = bench.site.netns(&format!("{name}-resident"))?;
        bare.add(&attachment("resident", &resident), 250)?;
        Ok(bare)
    }

    /// What ADD is made of. `number` is under 250 and nobody else's meanwhile.
    pub(super) fn add(&self, pod: &Attachment, number: usize) -> Result<Cost> {
        let add = self.prepare_add(pod, number)?;
        site::inside(&self.node, || add.run()).map(|(cost, _)| cost)
    }

    /// The same, to be started by the caller.
    pub(super) fn prepare_add(&self, pod: &Attachment, number: usize) -> Result<Prepared> {
        let netns = pod.netns.display().to_string();
        let address = format!("10.88.1.{number}");
        self.prepare(&[
            "add",
            &netns,
            &link(number),
            BRIDGE,
            &address,
            "16",
            "10.88.0.1",
        ])
    }

    /// What DEL is made of.
    pub(super) fn del(&self, number: usize) -> Result<Cost> {
        let del = self.prepare_del(number)?;
        site::inside(&self.node, || del.run()).map(|(cost, _)| cost)
    }

    /// The same, to be started by the caller.
    pub(super) fn prepare_del(&self, number: usize) -> Result<Prepared> {
        self.prepare(&["del", &link(number)])
    }

    fn prepare(&self, arguments: &[&str]) -> Result<Prepared> {
        let mut command = Command::new(&self.executable);
        command.args(arguments);
        call::prepare_command(command, "")
    }
}

fn link(number: usize) -> String {
    format!("veth-{number}")
}

/// Gives a bridge many ports. Their other ends are up, in one namespace that has no IPv6: what one container receives
/// costs little, and no container knows the addresses of all others.
pub(super) fn add_ports(bench: &Bench<'_>, name: &str, node: &Path, count: usize) -> Result<()> {
    let pods = bench.site.netns(&format!("{name}-ports"))?;
    site::inside(&pods, || {
        Ok(fs::write(
            "/proc/sys/net/ipv6/conf/default/disable_ipv6",
            "1",
        )?)
    })?;
    let mut ports = Command::new(&bench.bare);
    ports
        .arg("ports")
        .arg(&pods)
        .args([BRIDGE, &count.to_string()]);
    let ports = call::prepare_command(ports, "")?;
    site::inside(node, || ports.run()).map(drop)
}
