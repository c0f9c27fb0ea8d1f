//! Pods that are joined to a node by a bridge.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
};

use anyhow::Result;
use skiff_ebpf_loader::PodPort;
use skiff_netns::{NetNs, delete_pinned};

use crate::{Probe, TestNode, ip, protocol::Command as Say};

/// Where [`Pod::serve`] listens.
pub const POD_PORT: u16 = 8080;

/// Gives the node a bridge, which is its pods' way out.
///
/// # Errors
/// If it cannot be made.
pub fn bridge(node: &TestNode) -> Result<()> {
    ip(&node.netns, &["link", "add", "br0", "up", "type", "bridge"])?;
    ip(
        &node.netns,
        &["address", "add", "10.77.0.1/24", "dev", "br0"],
    )
}

/// A pod at the node's bridge.
#[derive(Debug)]
pub struct Pod {
    /// Its IPv4 address.
    pub addr: Ipv4Addr,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Where it is joined to the node.
    pub port: PodPort,
    program: PathBuf,
}

impl Pod {
    /// Makes one: 10.77.0.`number`. Its IPv6 address, which it has not yet, is fd00:77::`number`.
    ///
    /// # Errors
    /// If something of it cannot be made.
    pub fn new(node: &TestNode, number: u8) -> Result<Self> {
        let netns = node.netns.with_file_name(format!("pod{number}"));
        NetNs::create_pinned(&netns)?;
        let addr = Ipv4Addr::new(10, 77, 0, number);
        let mac = [0x0a, 0x58, 10, 77, 0, number];
        let pod = Self {
            addr,
            netns,
            port: PodPort {
                ifindex: u32::from(number) + 100,
                mac,
                addrs: vec![addr.into(), addr_v6(number)],
                direct: true,
                closed: false,
            },
            program: node.program.clone(),
        };
        let (name, index) = (format!("veth{number}"), pod.port.ifindex.to_string());
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let netns = pod.netns.to_string_lossy().into_owned();
        let veth = [
            "link", "add", &name, "index", &index, "master", "br0", "type", "veth", "peer", "name",
            "eth0", "address", &text, "netns", &netns,
        ];
        ip(&node.netns, &veth)?;
        ip(&node.netns, &["link", "set", &name, "up"])?;
        ip(&pod.netns, &["link", "set", "eth0", "up"])?;
        ip(
            &pod.netns,
            &["address", "add", &format!("{addr}/24"), "dev", "eth0"],
        )?;
        Ok(pod)
    }

    /// A process of the pod.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn probe(&self) -> Result<Probe> {
        Probe::start(&self.program, None, &self.netns)
    }

    /// A server that answers with the pod's address.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn serve(&self) -> Result<Probe> {
        let mut probe = self.probe()?;
        probe.tell(&Say::TcpServe {
            addr: (self.addr, POD_PORT).into(),
            name: self.addr.to_string(),
        })?;
        Ok(probe)
    }

    /// Pings from one of its addresses; true if an answer comes.
    ///
    /// # Errors
    /// If it cannot be tried.
    pub fn pings(&self, from: &str, to: Ipv4Addr) -> Result<bool> {
        let status = Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .args(["busybox", "ping", "-q", "-c", "1", "-W", "1", "-I", from])
            .arg(to.to_string())
            .stdout(std::process::Stdio::null())
            .status()?;
        Ok(status.success())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(delete_pinned(&self.netns));
    }
}

/// The IPv6 address of a pod.
#[must_use]
pub fn addr_v6(number: u8) -> IpAddr {
    IpAddr::from([0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(number)])
}
