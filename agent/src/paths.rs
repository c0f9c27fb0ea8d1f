//! The node agent's ways between pods, made by the datapath.

use std::{
    error::Error,
    sync::atomic::{AtomicBool, Ordering},
};

use skiff_ebpf_loader::DatapathError;
use skiff_netns::NodeNetns;
use skiff_node::PodPort;

/// [`skiff_node::PodPaths`] over [`skiff_ebpf_loader::PodPaths`], in the node's network namespace.
pub(crate) struct PodPaths {
    /// None where Services are rules, which must see every packet.
    paths: Option<skiff_ebpf_loader::PodPaths>,
    netns: NodeNetns,
    /// The kernel has no such programs: said once.
    unsupported: AtomicBool,
}

impl PodPaths {
    pub(crate) fn new(paths: Option<skiff_ebpf_loader::PodPaths>, netns: NodeNetns) -> Self {
        Self {
            paths,
            netns,
            unsupported: AtomicBool::new(false),
        }
    }

    fn attach_here(&self, pod: &PodPort) -> Result<(), DatapathError> {
        let Some(paths) = &self.paths else {
            return Ok(());
        };
        if self.unsupported.load(Ordering::Relaxed) {
            return Ok(());
        }
        match paths.attach(&skiff_ebpf_loader::PodPort {
            ifindex: pod.ifindex,
            mac: pod.mac,
            addrs: pod.addrs.clone(),
            direct: pod.direct,
            closed: false,
        }) {
            Err(error @ DatapathError::MissingFeature { .. }) => {
                self.unsupported.store(true, Ordering::Relaxed);
                tracing::warn!(%error, "packets between pods take the bridge, and their sources are not checked");
                Ok(())
            }
            result => result,
        }
    }
}

impl skiff_node::PodPaths for PodPaths {
    fn attach(&self, pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.netns.run(|| self.attach_here(pod))??)
    }

    fn detach(&self, pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>> {
        match &self.paths {
            Some(paths) => Ok(paths.detach(pod.ifindex)?),
            None => Ok(()),
        }
    }

    fn sync(&self, pods: &[PodPort]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Some(paths) = &self.paths else {
            return Ok(());
        };
        let keep: Vec<u32> = pods.iter().map(|pod| pod.ifindex).collect();
        paths.retain(&keep)?;
        // A pod whose link is gone does not keep the others from theirs.
        let attach = || {
            pods.iter()
                .map(|pod| self.attach_here(pod))
                .fold(Ok(()), Result::and)
        };
        Ok(self.netns.run(attach)??)
    }
}
