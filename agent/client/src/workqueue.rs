//! A work queue as client-go's: a key is queued once, handled by one worker at a time, and a key
//! that fails waits longer each time.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::{self, Debug, Display};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);

struct State<T> {
    queue: VecDeque<T>,
    /// Wants work: in `queue`, or to be queued again when its worker is done.
    dirty: HashSet<T>,
    processing: HashSet<T>,
    failures: HashMap<T, u32>,
    delayed: BTreeSet<(Instant, T)>,
    due: HashMap<T, Instant>,
    closed: bool,
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn add(&mut self, key: T) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&(at, key.clone()));
        }
        if self.closed || !self.dirty.insert(key.clone()) {
            return;
        }
        if !self.processing.contains(&key) {
            self.queue.push_back(key);
        }
    }

    fn add_at(&mut self, key: T, at: Instant) {
        if let Some(waiting) = self.due.get(&key).copied() {
            if waiting <= at {
                return;
            }
            self.delayed.remove(&(waiting, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    fn next_back_off(&mut self, key: &T) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = BASE_DELAY
            .saturating_mul(1 << (*failures).min(20))
            .min(MAX_DELAY);
        *failures = failures.saturating_add(1);
        delay
    }

    fn release_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.delayed.first() {
            if *at > now {
                return Some(*at);
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }
}

/// The queue; cheap to clone.
pub struct WorkQueue<T> {
    state: Arc<Mutex<State<T>>>,
    wake: Arc<Notify>,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        WorkQueue {
            state: Arc::clone(&self.state),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<T> Debug for WorkQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkQueue")
            .field("len", &self.state.lock().queue.len())
            .finish()
    }
}

impl<T: Clone + Eq + Hash + Ord> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Ord> WorkQueue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        WorkQueue {
            state: Arc::new(Mutex::new(State {
                queue: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                failures: HashMap::new(),
                delayed: BTreeSet::new(),
                due: HashMap::new(),
                closed: false,
            })),
            wake: Arc::new(Notify::new()),
        }
    }

    /// Queues the key now. If a worker has it, it is queued again when that worker is done.
    pub fn add(&self, key: T) {
        self.state.lock().add(key);
        self.wake.notify_one();
    }

    /// Queues the key after `delay`, or earlier if it waits for an earlier time already.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            self.add(key);
            return;
        }
        self.state.lock().add_at(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Queues the key after its back-off, which this call doubles: 5 ms up to 1000 s.
    pub fn add_rate_limited(&self, key: T) {
        let delay = self.state.lock().next_back_off(&key);
        self.add_after(key, delay);
    }

    /// Ends the key's back-off: it went well.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// How often the key failed since it last went well.
    #[must_use]
    pub fn failures(&self, key: &T) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The worker is done with the key that [`get`](Self::get) gave it.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.queue.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// The next key, marked as being worked on; `None` once the queue is closed.
    pub async fn get(&self) -> Option<T> {
        loop {
            let next_due = {
                let mut state = self.state.lock();
                if state.closed {
                    // Each worker passes the word on.
                    self.wake.notify_one();
                    return None;
                }
                let next_due = state.release_due(Instant::now());
                if let Some(key) = state.queue.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.queue.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                next_due
            };
            match next_due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// How many keys are ready to be worked on.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Whether no key is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the queue: every `get` returns `None` from now on.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.queue.clear();
        drop(state);
        self.wake.notify_one();
    }
}

/// Drains `queue` with `workers` tasks until `token` is cancelled.
///
/// `reconcile` returns how long until the key is to be looked at again anyway, if at all; its error
/// puts the key under back-off.
pub async fn run_workers<T, E, F, R>(
    name: &'static str,
    queue: WorkQueue<T>,
    workers: usize,
    token: CancellationToken,
    reconcile: R,
) where
    T: Clone + Display + Eq + Hash + Ord + Send + Sync + 'static,
    E: std::error::Error + Send + 'static,
    F: Future<Output = Result<Option<Duration>, E>> + Send + 'static,
    R: Fn(T) -> F + Clone + Send + Sync + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let queue = queue.clone();
        let reconcile = reconcile.clone();
        tasks.spawn(async move {
            while let Some(key) = queue.get().await {
                match reconcile(key.clone()).await {
                    Ok(again) => {
                        queue.forget(&key);
                        if let Some(delay) = again {
                            queue.add_after(key.clone(), delay);
                        }
                    }
                    Err(error) => {
                        let failures = queue.failures(&key);
                        let error = crate::chain(&error);
                        // The first failures are races with other writers: the retry heals them.
                        if failures < 3 {
                            tracing::debug!(controller = name, %key, failures, %error, "retrying");
                        } else {
                            tracing::warn!(controller = name, %key, failures, %error, "retrying");
                        }
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    token.cancelled().await;
    queue.close();
    tasks.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_queued_once_and_worked_on_once_at_a_time() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.len(), 0, "a worker has it");
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[test]
    fn back_off_doubles_until_forgotten() {
        let queue = WorkQueue::new();
        let delays: Vec<u128> = (0..4)
            .map(|_| queue.state.lock().next_back_off(&"a").as_millis())
            .collect();
        assert_eq!(delays, [5, 10, 20, 40]);
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
        for _ in 0..40 {
            queue.state.lock().next_back_off(&"a");
        }
        assert_eq!(queue.state.lock().next_back_off(&"a"), MAX_DELAY);
    }

    #[test]
    fn the_earlier_of_two_delays_wins_and_add_overrides_both() {
        let queue = WorkQueue::new();
        let mut state = queue.state.lock();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        state.add_at("a", after(10));
        state.add_at("a", after(1));
        state.add_at("a", after(5));
        assert_eq!(state.release_due(start), Some(after(1)));
        assert!(state.queue.is_empty());
        assert_eq!(state.release_due(after(1)), None);
        assert_eq!(state.queue.pop_front(), Some("a"));
        state.dirty.clear();
        state.add_at("a", after(10));
        state.add("a");
        assert_eq!(state.queue.pop_front(), Some("a"));
        assert!(state.delayed.is_empty() && state.due.is_empty());
    }

    #[tokio::test]
    async fn a_delayed_key_arrives() {
        let queue = WorkQueue::new();
        queue.add_after("a", Duration::from_millis(1));
        assert!(queue.is_empty());
        assert_eq!(queue.get().await, Some("a"));
    }

    #[tokio::test]
    async fn workers_retry_failures_and_stop_on_cancel() {
        let queue = WorkQueue::new();
        let token = CancellationToken::new();
        let tries = Arc::new(Mutex::new(Vec::new()));
        queue.add("a".to_owned());
        queue.add("b".to_owned());
        let seen = Arc::clone(&tries);
        let stop = token.clone();
        run_workers("test", queue.clone(), 2, token, move |key: String| {
            let seen = Arc::clone(&seen);
            let stop = stop.clone();
            async move {
                seen.lock().push(key.clone());
                let count = seen.lock().iter().filter(|k| **k == key).count();
                if count < 3 {
                    return Err(std::io::Error::other("not yet"));
                }
                if seen.lock().len() == 6 {
                    stop.cancel();
                }
                Ok(None)
            }
        })
        .await;
        assert_eq!(tries.lock().len(), 6);
        assert_eq!(queue.get().await, None);
    }
}
