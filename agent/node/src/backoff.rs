//! Back-off of container restarts and image pulls. Pure: time is an argument.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// First delay after a failure.
pub(crate) const INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub(crate) const MAXIMUM: Duration = Duration::from_secs(300);
/// A container that ran this long starts over with no delay.
const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// Delay before the next attempt, doubling with each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    delay: Duration,
    updated_at: Timestamp,
}

impl Backoff {
    /// The state after a first attempt at `now`.
    pub(crate) fn first(now: Timestamp) -> Self {
        Self {
            delay: INITIAL,
            updated_at: now,
        }
    }

    /// The state after one more attempt at `now`.
    pub(crate) fn next(previous: Option<Self>, now: Timestamp) -> Self {
        match previous {
            Some(entry) if !entry.is_expired(now) => Self {
                delay: (entry.delay * 2).min(MAXIMUM),
                updated_at: now,
            },
            _ => Self::first(now),
        }
    }

    /// What a container that was restarted `restarts` times has earned, for a daemon that finds it.
    pub(crate) fn after_restarts(restarts: u32, now: Timestamp) -> Option<Self> {
        let doublings = restarts.checked_sub(1)?.min(5);
        Some(Self {
            delay: (INITIAL * 2_u32.pow(doublings)).min(MAXIMUM),
            updated_at: now,
        })
    }

    /// How long to wait.
    pub(crate) fn delay(&self) -> Duration {
        self.delay
    }

    /// Earliest time for the next attempt after a failure at `failed_at`; `None` if the last attempt is so
    /// long ago that there is nothing to hold back.
    pub(crate) fn not_before(&self, failed_at: Timestamp) -> Option<Timestamp> {
        if self.is_expired(failed_at) {
            None
        } else {
            Some(add(failed_at, self.delay))
        }
    }

    fn is_expired(&self, at: Timestamp) -> bool {
        at.duration_since(self.updated_at) >= RESET_AFTER
    }
}

/// `at` plus `delay`, saturating.
pub(crate) fn add(at: Timestamp, delay: Duration) -> Timestamp {
    at.saturating_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn doubles_from_ten_seconds_to_five_minutes() {
        let mut entry = None;
        let mut delays = Vec::new();
        for attempt in 0..7 {
            let next = Backoff::next(entry, at(attempt * 300));
            delays.push(next.delay().as_secs());
            entry = Some(next);
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn starts_over_after_ten_minutes_of_running() {
        let entry = Backoff::next(Some(Backoff::first(at(0))), at(10));
        assert_eq!(entry.delay().as_secs(), 20);
        assert_eq!(entry.not_before(at(30)), Some(at(50)));
        assert_eq!(entry.not_before(at(610)), None);
        assert_eq!(Backoff::next(Some(entry), at(610)).delay(), INITIAL);
    }

    #[test]
    fn is_rebuilt_from_the_restart_count() {
        assert_eq!(Backoff::after_restarts(0, at(0)), None);
        assert_eq!(
            Backoff::after_restarts(1, at(0)).unwrap().delay().as_secs(),
            10
        );
        assert_eq!(
            Backoff::after_restarts(3, at(0)).unwrap().delay().as_secs(),
            40
        );
        assert_eq!(Backoff::after_restarts(99, at(0)).unwrap().delay(), MAXIMUM);
    }
}
