//! Pods that wait: for their turn, for a back-off to end, or for the cluster to change. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::pod_info::PodInfo;

const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(10);

type Order = (Reverse<i32>, Timestamp, u64);

#[derive(Debug)]
enum Place {
    Active(Order),
    BackOff(Instant),
    Unschedulable,
}

#[derive(Debug)]
struct Waiting {
    pod: PodInfo,
    attempts: u32,
    /// Not before this, even if the cluster changes.
    not_before: Instant,
    place: Place,
}

/// The queue, by pod UID: highest priority first, then oldest.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeMap<Order, String>,
    back_off: BTreeSet<(Instant, String)>,
    /// Unschedulable ones, and those of them that look at other pods.
    parked: BTreeSet<String>,
    parked_lookers: BTreeSet<String>,
    sequence: u64,
}

/// A pod that was popped, and how often it had been tried before.
#[derive(Debug)]
pub(crate) struct Popped {
    pub(crate) pod: PodInfo,
    pub(crate) attempts: u32,
}

impl Queue {
    fn order(&mut self, pod: &PodInfo) -> Order {
        self.sequence += 1;
        (Reverse(pod.priority), pod.created, self.sequence)
    }

    fn put(&mut self, pod: PodInfo, attempts: u32, not_before: Instant, place: Place) {
        match &place {
            Place::Active(order) => {
                self.active.insert(*order, pod.uid.clone());
            }
            Place::BackOff(at) => {
                self.back_off.insert((*at, pod.uid.clone()));
            }
            Place::Unschedulable => {
                self.parked.insert(pod.uid.clone());
                if pod.looks_at_others() {
                    self.parked_lookers.insert(pod.uid.clone());
                }
            }
        }
        self.pods.insert(
            pod.uid.clone(),
            Waiting {
                pod,
                attempts,
                not_before,
                place,
            },
        );
    }

    fn take(&mut self, uid: &str) -> Option<Waiting> {
        let waiting = self.pods.remove(uid)?;
        match &waiting.place {
            Place::Active(order) => {
                self.active.remove(order);
            }
            Place::BackOff(at) => {
                self.back_off.remove(&(*at, uid.to_owned()));
            }
            Place::Unschedulable => {
                self.parked.remove(uid);
                self.parked_lookers.remove(uid);
            }
        }
        Some(waiting)
    }

    /// A pod to schedule, new or changed.
    pub(crate) fn add(&mut self, mut pod: PodInfo, now: Instant) {
        let before = self.take(&pod.uid);
        let attempts = before.as_ref().map_or(0, |b| b.attempts);
        pod.reported = before.and_then(|b| b.pod.reported);
        let order = self.order(&pod);
        self.put(pod, attempts, now, Place::Active(order));
    }

    /// Known already, with nothing in it changed that matters.
    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    pub(crate) fn pop(&mut self, now: Instant) -> Option<Popped> {
        while let Some((at, uid)) = self.back_off.first() {
            if *at > now {
                break;
            }
            let uid = uid.clone();
            if let Some(waiting) = self.take(&uid) {
                let order = self.order(&waiting.pod);
                self.put(
                    waiting.pod,
                    waiting.attempts,
                    waiting.not_before,
                    Place::Active(order),
                );
            }
        }
        let (_, uid) = self.active.pop_first()?;
        let waiting = self.pods.remove(&uid)?;
        Some(Popped {
            pod: waiting.pod,
            attempts: waiting.attempts,
        })
    }

    /// It fits nowhere: it waits for [`cluster_changed`](Self::cluster_changed).
    pub(crate) fn park(&mut self, popped: Popped, now: Instant) {
        let not_before = now + back_off(popped.attempts);
        self.put(
            popped.pod,
            popped.attempts + 1,
            not_before,
            Place::Unschedulable,
        );
    }

    /// Something failed that has nothing to do with the cluster's state.
    pub(crate) fn retry(&mut self, popped: Popped, now: Instant) {
        let at = now + back_off(popped.attempts);
        self.put(popped.pod, popped.attempts + 1, at, Place::BackOff(at));
    }

    /// There is room, or a node, that was not there before: parked pods are tried again, once
    /// their back-off is over.
    pub(crate) fn cluster_changed(&mut self, now: Instant) {
        let parked = self.parked.iter().cloned().collect();
        self.unpark(parked, now);
    }

    /// A pod was placed: those that want to be near one, or evenly spread, are tried again.
    pub(crate) fn pod_placed(&mut self, now: Instant) {
        if !self.parked_lookers.is_empty() {
            let parked = self.parked_lookers.iter().cloned().collect();
            self.unpark(parked, now);
        }
    }

    fn unpark(&mut self, parked: Vec<String>, now: Instant) {
        for uid in parked {
            let Some(waiting) = self.take(&uid) else {
                continue;
            };
            let place = if waiting.not_before > now {
                Place::BackOff(waiting.not_before)
            } else {
                Place::Active(self.order(&waiting.pod))
            };
            self.put(waiting.pod, waiting.attempts, waiting.not_before, place);
        }
    }

    /// When the next back-off ends.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.back_off.first().map(|(at, _)| *at)
    }
}

fn back_off(attempts: u32) -> Duration {
    FIRST_BACK_OFF
        .saturating_mul(1 << attempts.min(10))
        .min(MAX_BACK_OFF)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, PodSpec};

    use super::*;

    fn pod(name: &str, priority: i32, created: i64) -> PodInfo {
        let mut pod = Pod {
            spec: Some(PodSpec {
                priority: Some(priority),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some(name.to_owned());
        pod.metadata.creation_timestamp = Some(Timestamp::from_second(created).unwrap().into());
        PodInfo::new(&pod)
    }

    fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|popped| popped.pod.uid)
    }

    #[test]
    fn priority_first_then_age() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for p in [pod("young", 0, 9), pod("old", 0, 1), pod("urgent", 5, 9)] {
            queue.add(p, now);
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["urgent", "old", "young"]);
    }

    #[test]
    fn a_parked_pod_waits_for_a_change_and_for_its_back_off() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add(pod("a", 0, 1), now);
        let popped = queue.pop(now).unwrap();
        queue.park(popped, now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(pop(&mut queue, later), None, "nothing changed");
        queue.pod_placed(now);
        assert_eq!(
            pop(&mut queue, later),
            None,
            "it does not look at other pods"
        );
        queue.cluster_changed(now);
        assert_eq!(pop(&mut queue, now), None, "backing off");
        assert_eq!(queue.next_wake(), Some(now + FIRST_BACK_OFF));
        assert_eq!(pop(&mut queue, now + FIRST_BACK_OFF).as_deref(), Some("a"));
    }

    #[test]
    fn a_removed_pod_is_nowhere() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add(pod("a", 0, 1), now);
        let popped = queue.pop(now).unwrap();
        queue.retry(popped, now);
        queue.remove("a");
        assert_eq!(queue.next_wake(), None);
        assert_eq!(pop(&mut queue, now + MAX_BACK_OFF), None);
    }
}
