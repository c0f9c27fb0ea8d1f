//! When what could not be written is tried again.

use std::{future, time::Duration};

use tokio::time::{Instant, sleep_until};

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(10);

/// Waits longer after each failure, until something succeeds.
#[derive(Debug)]
pub(crate) struct Retry {
    at: Option<Instant>,
    wait: Duration,
    full: bool,
}

impl Retry {
    /// Nothing was written yet.
    pub(crate) fn new() -> Self {
        Self {
            at: None,
            wait: FIRST,
            full: true,
        }
    }

    /// Whether everything must be compared, not only what has changed: nothing was written yet, or the last time failed.
    pub(crate) fn full(&self) -> bool {
        self.full
    }

    /// Returns when it is time to try again; never if nothing failed.
    pub(crate) async fn due(&self) {
        match self.at {
            Some(at) => sleep_until(at).await,
            None => future::pending().await,
        }
    }

    /// Whether it is too early to try again.
    pub(crate) fn is_waiting(&self) -> bool {
        self.at.is_some_and(|at| at > Instant::now())
    }

    /// How it went.
    pub(crate) fn note(&mut self, success: bool) {
        if success {
            *self = Self {
                full: false,
                ..Self::new()
            };
        } else {
            self.full = true;
            self.at = Some(Instant::now() + self.wait);
            self.wait = (self.wait * 2).min(LAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_and_success_begins_anew() {
        let mut retry = Retry::new();
        assert!(retry.full() && !retry.is_waiting());
        retry.note(true);
        assert!(!retry.full() && !retry.is_waiting());
        let mut waits = Vec::new();
        for _ in 0..8 {
            retry.note(false);
            assert!(retry.full() && retry.is_waiting());
            let begun = Instant::now();
            retry.due().await;
            waits.push(begun.elapsed().as_millis());
        }
        assert_eq!(waits.first(), Some(&200));
        assert!(waits.is_sorted());
        assert_eq!(waits.last(), Some(&10_000));
        retry.note(true);
        assert!(!retry.full() && !retry.is_waiting());
    }
}
