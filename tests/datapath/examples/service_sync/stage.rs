//! Where Services are served: a node of its own for each way of doing it.

use std::{path::PathBuf, str::FromStr};

use anyhow::{Context as _, Result, bail};
use skiff_ebpf_loader::{Datapath, DatapathConfig, Limits};
use skiff_netns::NodeNetns;
use skiff_service_proxy::{Dataplane, Iptables, IptablesConfig};
use skiff_tests_datapath::{BridgedNode, PODS, Probe, TARGET, TestNode, UPLINK, protocol};

/// How Services are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Ebpf,
    Iptables,
}

impl Mode {
    /// As it is typed.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
        }
    }
}

impl FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ebpf" => Ok(Self::Ebpf),
            "iptables" => Ok(Self::Iptables),
            _ => bail!("{text} is no way to serve Services"),
        }
    }
}

/// A node.
pub(crate) enum Stage {
    Ebpf(TestNode),
    Iptables(BridgedNode),
}

impl Stage {
    pub(crate) fn new(mode: Mode) -> Result<Self> {
        let own = std::env::current_exe()?;
        let binaries = own.ancestors().nth(2);
        let binaries = binaries.context("this executable lies nowhere")?;
        let program = binaries.join("datapath-probe");
        let program = program.to_string_lossy();
        Ok(match mode {
            Mode::Ebpf => Self::Ebpf(TestNode::new(&program)?),
            Mode::Iptables => Self::Iptables(BridgedNode::new(&program)?),
        })
    }

    /// By what another process finds it.
    pub(crate) fn place(&self) -> [PathBuf; 2] {
        match self {
            Self::Ebpf(node) => [node.cgroup.clone(), node.bpffs.clone()],
            Self::Iptables(node) => [node.netns.clone(), PathBuf::new()],
        }
    }

    pub(crate) async fn open(&self) -> Result<Box<dyn Dataplane>> {
        match self {
            Self::Ebpf(node) => {
                let mut datapath = open_ebpf(self.place())?;
                datapath.set_node(&node.settings()?)?;
                Ok(Box::new(datapath))
            }
            Self::Iptables(node) => open_iptables(node.node_netns()?).await,
        }
    }

    /// The endpoint of the last Service.
    pub(crate) fn server(&self) -> Result<Vec<Probe>> {
        match self {
            Self::Ebpf(node) => {
                let mut server = node.pod()?;
                let [addr, ..] = PODS;
                server.tell(&protocol::Command::TcpServe {
                    addr: (addr, TARGET).into(),
                    name: "here".to_owned(),
                })?;
                Ok(vec![server])
            }
            Self::Iptables(node) => node.serving_pods(),
        }
    }

    pub(crate) fn client(&self) -> Result<Probe> {
        match self {
            Self::Ebpf(node) => node.pod(),
            Self::Iptables(node) => node.pod(1),
        }
    }
}

pub(crate) fn open_ebpf([cgroup_path, bpffs_dir]: [PathBuf; 2]) -> Result<Datapath> {
    Ok(Datapath::open(&DatapathConfig {
        cgroup_path,
        bpffs_dir,
        limits: Limits::default(),
    })?)
}

pub(crate) async fn open_iptables(netns: NodeNetns) -> Result<Box<dyn Dataplane>> {
    let config = IptablesConfig {
        netns,
        node_addresses: vec![UPLINK.into()],
        pod_ranges: vec!["10.88.0.0/24".parse()?],
        service_ranges: vec!["10.96.0.0/16".parse()?],
    };
    Ok(Box::new(Iptables::open(config).await?))
}
