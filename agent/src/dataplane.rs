//! Which dataplane serves the node's Services: kernel programs, or rules where the kernel lacks what those need.
//!
//! A change of mode leaves no gap: what the other one made stays in force until the new one has programmed all Services.

use std::{fs, io, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use skiff_ebpf_loader::{Datapath, DatapathConfig, DatapathError, Limits};
use skiff_service_proxy::{Dataplane, Iptables, IptablesConfig, ProxyHandle};
use tokio_util::sync::CancellationToken;

use crate::{cli::ProxyMode, compose, config::Place, preflight};

/// What rules must know of the cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    pub(crate) node_addresses: Vec<IpAddr>,
    pub(crate) pods: Vec<IpNetwork>,
    pub(crate) services: Vec<IpNetwork>,
}

/// A dataplane, ready to be driven.
pub(crate) struct Opened {
    pub(crate) mode: ProxyMode,
    pub(crate) dataplane: Box<dyn Dataplane>,
    /// Ways between pods, which only kernel programs make: they lead around the rules.
    pub(crate) pods: Option<skiff_ebpf_loader::PodPaths>,
    /// The tables of policies, which only kernel programs enforce.
    pub(crate) policies: Option<skiff_ebpf_loader::Policies>,
}

/// Opens the dataplane that is wished for; without a wish kernel programs if the kernel can run them.
pub(crate) async fn open(
    place: &Place,
    wish: Option<ProxyMode>,
    limits: Limits,
    ranges: &Ranges,
) -> Result<Opened> {
    let lacking = match wish {
        Some(ProxyMode::Iptables) => return open_iptables(place, ranges).await,
        Some(ProxyMode::Ebpf) => preflight::missing_for_ebpf(),
        None => match preflight::missing_for_ebpf() {
            Some(what) => return fall_back(place, ranges, &what).await,
            None => None,
        },
    };
    if let Some(what) = lacking {
        anyhow::bail!("--proxy-mode ebpf: this kernel lacks {what}");
    }
    match open_ebpf(place, limits) {
        Err(Failure::Datapath(error @ DatapathError::MissingFeature { .. })) if wish.is_none() => {
            fall_back(place, ranges, &error).await
        }
        Err(Failure::Datapath(error)) => Err(error).context("bringing up the Service datapath"),
        Err(Failure::Place(error)) => Err(error),
        Ok(datapath) => Ok(Opened {
            mode: ProxyMode::Ebpf,
            pods: Some(datapath.pods()?),
            policies: Some(datapath.policies()?),
            dataplane: Box::new(datapath),
        }),
    }
}

enum Failure {
    Datapath(DatapathError),
    Place(anyhow::Error),
}

fn open_ebpf(place: &Place, limits: Limits) -> Result<Datapath, Failure> {
    let cgroups = compose::cgroups(place).map_err(Failure::Place)?;
    let config = DatapathConfig {
        cgroup_path: cgroups.unified_root(),
        bpffs_dir: place.bpffs_dir.clone(),
        limits,
    };
    Datapath::open(&config).map_err(Failure::Datapath)
}

async fn fall_back(
    place: &Place,
    ranges: &Ranges,
    why: &(dyn std::fmt::Display + Send + Sync),
) -> Result<Opened> {
    tracing::warn!(
        reason = %why,
        "Services are served by iptables rules, which cost more per connection and change more slowly"
    );
    open_iptables(place, ranges).await
}

async fn open_iptables(place: &Place, ranges: &Ranges) -> Result<Opened> {
    // Before the first rule: whoever comes next knows that there may be some.
    Trace::of(place).write(&ranges.services)?;
    let config = IptablesConfig {
        netns: place.netns.clone(),
        node_addresses: ranges.node_addresses.clone(),
        pod_ranges: ranges.pods.clone(),
        service_ranges: ranges.services.clone(),
    };
    let iptables = Iptables::open(config).await;
    Ok(Opened {
        mode: ProxyMode::Iptables,
        dataplane: Box::new(iptables.context("bringing up Services by iptables rules")?),
        pods: None,
        policies: None,
    })
}

/// Once this mode has programmed the Services, removes what an earlier daemon left of the other one.
pub(crate) async fn retire_other(
    mode: ProxyMode,
    place: Place,
    handle: ProxyHandle,
    token: CancellationToken,
) -> Result<()> {
    if token.run_until_cancelled(handle.synced()).await.is_none() {
        return Ok(());
    }
    let result = match mode {
        ProxyMode::Ebpf => remove_rules(&place, false).await,
        ProxyMode::Iptables => {
            skiff_ebpf_loader::teardown(&place.bpffs_dir).map_err(anyhow::Error::from)
        }
    };
    if let Err(error) = result {
        tracing::warn!(
            error = format!("{error:#}"),
            "removing the other proxy mode's leftovers"
        );
    }
    token.cancelled().await;
    Ok(())
}

/// Removes the rules of this node, if there may be some; those of a network that is gone have gone with it.
pub(crate) async fn remove_rules(place: &Place, network_is_gone: bool) -> Result<()> {
    let trace = Trace::of(place);
    let Some(services) = trace.read()? else {
        return Ok(());
    };
    if !network_is_gone {
        Iptables::remove(&place.netns, &services)
            .await
            .context("removing the rules of Services")?;
    }
    trace.remove()
}

/// The file that says that this node has rules, and which ranges of Services they are for. To look for rules instead would
/// have some kernels start to track every connection.
struct Trace(PathBuf);

impl Trace {
    fn of(place: &Place) -> Self {
        Self(place.run_dir.join("iptables-services"))
    }

    fn write(&self, services: &[IpNetwork]) -> Result<()> {
        let lines: String = services.iter().map(|range| format!("{range}\n")).collect();
        fs::write(&self.0, lines).with_context(|| format!("writing {}", self.0.display()))
    }

    fn read(&self) -> Result<Option<Vec<IpNetwork>>> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(Some(
                text.lines().filter_map(|line| line.parse().ok()).collect(),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", self.0.display())),
        }
    }

    fn remove(&self) -> Result<()> {
        fs::remove_file(&self.0).with_context(|| format!("removing {}", self.0.display()))
    }
}
