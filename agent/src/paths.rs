//! The node agent's ways between pods, made by the datapath, and kept closed until a pod's policies are in force.

use std::{
    error::Error,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use skiff_ebpf_loader::DatapathError;
use skiff_netns::NodeNetns;
use skiff_node::PodPort;
use skiff_service_proxy::policy::PolicyHandle;

/// How long a pod's start waits for its policies. It starts then all the same, closed until they are known.
const PATIENCE: Duration = Duration::from_secs(5);

/// [`skiff_node::PodPaths`] over [`skiff_ebpf_loader::PodPaths`], in the node's network namespace.
pub(crate) struct PodPaths {
    /// None where Services are rules, which must see every packet: policies are not enforced there.
    programs: Option<(skiff_ebpf_loader::PodPaths, PolicyHandle)>,
    netns: NodeNetns,
    /// The kernel has no such programs: said once.
    unsupported: AtomicBool,
}

impl PodPaths {
    pub(crate) fn new(
        programs: Option<(skiff_ebpf_loader::PodPaths, PolicyHandle)>,
        netns: NodeNetns,
    ) -> Self {
        Self {
            programs,
            netns,
            unsupported: AtomicBool::new(false),
        }
    }

    /// True if the programs are at the pod's link.
    fn attach_here(&self, pod: &PodPort) -> Result<bool, DatapathError> {
        let Some((paths, policies)) = &self.programs else {
            return Ok(false);
        };
        if self.unsupported.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match paths.attach(&skiff_ebpf_loader::PodPort {
            ifindex: pod.ifindex,
            mac: pod.mac,
            addrs: pod.addrs.clone(),
            direct: pod.direct,
            closed: true,
        }) {
            Err(error @ DatapathError::MissingFeature { .. }) => {
                self.unsupported.store(true, Ordering::Relaxed);
                policies.unsupported();
                tracing::warn!(
                    %error,
                    "packets between pods take the bridge, their sources are not checked, and NetworkPolicies are not enforced"
                );
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    fn admit(&self, pod: &PodPort, patience: Duration) {
        let Some((_, policies)) = &self.programs else {
            return;
        };
        let known = policies.started(&pod.uid, pod.ifindex, &pod.addrs, patience);
        if !known && !patience.is_zero() {
            tracing::warn!(
                uid = pod.uid,
                "the pod's policies are not known yet: nothing but the node reaches it until they are"
            );
        }
    }
}

impl skiff_node::PodPaths for PodPaths {
    fn attach(&self, pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.netns.run(|| self.attach_here(pod))?? {
            self.admit(pod, PATIENCE);
        }
        Ok(())
    }

    fn detach(&self, pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>> {
        if let Some((paths, policies)) = &self.programs {
            policies.stopped(pod.ifindex);
            paths.detach(pod.ifindex)?;
        }
        Ok(())
    }

    fn sync(&self, pods: &[PodPort]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Some((paths, policies)) = &self.programs else {
            return Ok(());
        };
        let keep: Vec<u32> = pods.iter().map(|pod| pod.ifindex).collect();
        paths.retain(&keep)?;
        // Programs of an earlier version, if there are any, enforce what they know until policies are known here.
        if !pods.is_empty() && !policies.wait_ready(PATIENCE) {
            tracing::warn!("policies are not known yet");
        }
        // A pod whose link is gone does not keep the others from theirs.
        let attach = || {
            pods.iter()
                .map(|pod| {
                    let attached = self.attach_here(pod);
                    if matches!(attached, Ok(true)) {
                        // All of them are asked for at once.
                        self.admit(pod, Duration::ZERO);
                    }
                    attached.map(drop)
                })
                .fold(Ok(()), Result::and)
        };
        Ok(self.netns.run(attach)??)
    }
}
