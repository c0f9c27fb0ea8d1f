//! Stopping and removing containers.

use std::sync::Arc;
use std::time::Duration;

use skiff_client::{EventKind, chain};
use skiff_runtime::{ContainerRef, ContainerState};

use super::start::run_hook;
use super::{Outcome, Worker};
use crate::annotations;
use crate::plan::{Op, StopReason};

/// The signal that asks a container to end unless it names another.
pub(super) const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

impl Worker {
    pub(super) fn begin_stop(&mut self, name: &str, id: String, grace: Duration, why: StopReason) {
        let message = match &why {
            StopReason::Probe(probe) => {
                format!("Container {name} failed {probe} probe, will be restarted")
            }
            StopReason::PodEnds | StopReason::Unfinished => format!("Stopping container {name}"),
        };
        let pod = Arc::clone(&self.pod);
        if why != StopReason::Unfinished {
            self.ctx
                .container_event(&pod, name, EventKind::Normal, "Killing", message);
        }
        let ctx = Arc::clone(&self.ctx);
        let container = self.container(name).cloned();
        let reference = self.reference(&id);
        let instance = self
            .observed
            .instances
            .iter()
            .find(|instance| instance.id == reference)
            .cloned();
        let signal = instance
            .as_ref()
            .and_then(|instance| instance.annotations.get(annotations::STOP_SIGNAL))
            .and_then(|text| signal_number(text))
            .unwrap_or(SIGTERM);
        let running = instance
            .is_some_and(|instance| matches!(instance.state, ContainerState::Running { .. }));
        let ip = self.observed.ips.first().copied();
        self.spawn(Op::Stop(id), async move {
            let started = tokio::time::Instant::now();
            let hook = container
                .as_ref()
                .and_then(|c| c.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()));
            if let (Some(container), Some(hook), true) = (&container, hook, running) {
                let run = run_hook(&ctx, container, &reference, ip, &hook);
                let failed = match tokio::time::timeout(grace, run).await {
                    Ok(Ok(())) => None,
                    Ok(Err(message)) => Some(message),
                    Err(_elapsed) => Some("grace period exceeded".to_owned()),
                };
                if let Some(message) = failed {
                    let (kind, reason) = (EventKind::Warning, "FailedPreStopHook");
                    let message = format!("PreStopHook failed: {message}");
                    ctx.container_event(&pod, &container.name, kind, reason, message);
                }
            }
            // Upstream leaves at least two seconds after the hook.
            let left = grace
                .saturating_sub(started.elapsed())
                .max(grace.min(Duration::from_secs(2)));
            match ctx.runtime.stop_container(&reference, signal, left).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed("FailedKillPod", chain(&error).to_string()),
            }
        });
    }

    /// Ends a stop that nobody waits for any more.
    pub(super) fn begin_kill(&mut self, id: String) {
        let (ctx, reference) = (Arc::clone(&self.ctx), self.reference(&id));
        self.spawn(Op::Kill(id), async move {
            match ctx
                .runtime
                .stop_container(&reference, SIGKILL, Duration::ZERO)
                .await
            {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed("FailedKillPod", chain(&error).to_string()),
            }
        });
    }

    pub(super) fn begin_remove(&mut self, id: String) {
        let (ctx, reference) = (Arc::clone(&self.ctx), self.reference(&id));
        let instance = self.observed.instances.iter().find(|i| i.id == reference);
        let key = instance
            .and_then(|i| i.annotations.get(annotations::SNAPSHOT))
            .cloned();
        self.spawn(Op::Remove(id), async move {
            if let Err(error) = ctx.runtime.remove_container(&reference).await {
                return Outcome::Failed("FailedRemove", chain(&error).to_string());
            }
            let released = match key {
                Some(key) => ctx.images.release(&key).await,
                None => Ok(()),
            };
            match released {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed("FailedRemove", error.to_string()),
            }
        });
    }

    fn reference(&self, id: &str) -> ContainerRef {
        ContainerRef {
            pod_uid: self.uid.clone(),
            container_id: id.to_owned(),
        }
    }
}

/// The number of a signal given by name or number.
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return Some(34 + offset.parse::<i32>().ok()?);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGQUIT", Some(3)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("0", None),
            ("", None),
            ("SIGNONSENSE", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
