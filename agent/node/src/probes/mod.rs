//! Startup, readiness and liveness probes: one task for each running container that has any.
//!
//! A task writes its [`ProbeVerdict`] into the worker's table and wakes the worker; it never acts by itself.

mod http;
mod run;
mod threshold;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::Mutex;
use skiff_client::EventKind;
use skiff_runtime::ContainerRef;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::threshold::Threshold;
use crate::context::NodeContext;
use crate::plan::ProbeVerdict;

pub(crate) use self::http::{HttpTarget, http_get};
pub(crate) use self::run::{ProbeOutcome, exec_output};

/// Verdicts by container id.
pub(crate) type Verdicts = Arc<Mutex<BTreeMap<String, ProbeVerdict>>>;

/// The probe tasks of one pod.
pub(crate) struct ProbeManager {
    tasks: JoinSet<String>,
    running: BTreeMap<String, tokio::task::AbortHandle>,
    verdicts: Verdicts,
    wake: Arc<Notify>,
}

/// What a probe task works on.
#[derive(Clone)]
pub(crate) struct ProbeTarget {
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) id: ContainerRef,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) started_at: Timestamp,
}

impl ProbeManager {
    /// No tasks yet; `wake` is told of every change.
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        Self {
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            verdicts: Verdicts::default(),
            wake,
        }
    }

    /// The verdicts now.
    pub(crate) fn verdicts(&self) -> BTreeMap<String, ProbeVerdict> {
        self.verdicts.lock().clone()
    }

    /// Ends the tasks of containers that are not among `targets` and starts those that are missing. `seed`
    /// tells what a container is known to be that an earlier daemon probed.
    pub(crate) fn sync(
        &mut self,
        ctx: &Arc<NodeContext>,
        targets: Vec<ProbeTarget>,
        seed: impl Fn(&ContainerRef) -> Option<ProbeVerdict>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        let ids: BTreeSet<String> = targets.iter().map(|t| t.id.container_id.clone()).collect();
        self.running.retain(|id, task| {
            let keep = ids.contains(id);
            if !keep {
                task.abort();
                self.verdicts.lock().remove(id);
            }
            keep
        });
        for target in targets {
            let id = target.id.container_id.clone();
            if self.running.contains_key(&id) {
                continue;
            }
            let verdict = seed(&target.id).unwrap_or_else(|| ProbeVerdict {
                started: target.container.startup_probe.is_none(),
                ready: target.container.readiness_probe.is_none()
                    && target.container.startup_probe.is_none(),
                failed: None,
            });
            self.verdicts.lock().insert(id.clone(), verdict);
            let reporter = Reporter {
                id: id.clone(),
                verdicts: Arc::clone(&self.verdicts),
                wake: Arc::clone(&self.wake),
            };
            let task = self
                .tasks
                .spawn(probe_container(Arc::clone(ctx), target, reporter));
            self.running.insert(id, task);
        }
    }
}

/// Whether this container has any probe.
pub(crate) fn has_probes(container: &Container) -> bool {
    container.startup_probe.is_some()
        || container.readiness_probe.is_some()
        || container.liveness_probe.is_some()
}

struct Reporter {
    id: String,
    verdicts: Verdicts,
    wake: Arc<Notify>,
}

impl Reporter {
    fn change(&self, change: impl FnOnce(&mut ProbeVerdict)) {
        if let Some(verdict) = self.verdicts.lock().get_mut(&self.id) {
            change(verdict);
        }
        self.wake.notify_one();
    }

    fn is_started(&self) -> bool {
        self.verdicts
            .lock()
            .get(&self.id)
            .is_some_and(|verdict| verdict.started)
    }

    fn is_ready(&self) -> bool {
        self.verdicts
            .lock()
            .get(&self.id)
            .is_some_and(|verdict| verdict.ready)
    }
}

async fn probe_container(ctx: Arc<NodeContext>, target: ProbeTarget, reporter: Reporter) -> String {
    if let Some(probe) = &target.container.startup_probe
        && !reporter.is_started()
    {
        let mut threshold = Threshold::new(probe, false);
        let passed = probe_until(&ctx, &target, probe, "Startup", &mut threshold).await;
        if !passed {
            reporter.change(|verdict| verdict.failed = Some("startup"));
            return reporter.id;
        }
        let ready = target.container.readiness_probe.is_none();
        reporter.change(|verdict| {
            verdict.started = true;
            verdict.ready = ready;
        });
    }
    let readiness = async {
        let Some(probe) = &target.container.readiness_probe else {
            return;
        };
        let mut threshold = Threshold::new(probe, reporter.is_ready());
        loop {
            let ready = probe_until(&ctx, &target, probe, "Readiness", &mut threshold).await;
            reporter.change(|verdict| verdict.ready = ready);
        }
    };
    let liveness = async {
        let Some(probe) = &target.container.liveness_probe else {
            return;
        };
        let mut threshold = Threshold::new(probe, true);
        while probe_until(&ctx, &target, probe, "Liveness", &mut threshold).await {}
        reporter.change(|verdict| verdict.failed = Some("liveness"));
    };
    tokio::join!(readiness, liveness);
    reporter.id
}

/// Probes until the threshold's verdict changes; the new verdict.
async fn probe_until(
    ctx: &Arc<NodeContext>,
    target: &ProbeTarget,
    probe: &Probe,
    kind: &str,
    threshold: &mut Threshold,
) -> bool {
    let period = seconds(probe.period_seconds, 10);
    loop {
        if threshold.is_first() {
            let delay = Duration::from_secs(
                probe
                    .initial_delay_seconds
                    .and_then(|s| u64::try_from(s).ok())
                    .unwrap_or(0),
            );
            let due = crate::backoff::add(target.started_at, delay);
            let wait = due.duration_since(ctx.clock.now());
            tokio::time::sleep(Duration::try_from(wait).unwrap_or(Duration::ZERO)).await;
        } else {
            tokio::time::sleep(period).await;
        }
        let outcome = run::probe(ctx, target, probe).await;
        if let ProbeOutcome::Failure(message) = &outcome {
            ctx.container_event(
                &target.pod,
                &target.container.name,
                EventKind::Warning,
                "Unhealthy",
                format!("{kind} probe failed: {message}"),
            );
        }
        if let Some(verdict) = threshold.observe(matches!(outcome, ProbeOutcome::Success)) {
            return verdict;
        }
    }
}

/// A probe's number of seconds, at least one.
fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0);
    Duration::from_secs(value.unwrap_or(default))
}

#[cfg(test)]
mod tests;
