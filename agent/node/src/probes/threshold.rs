//! Success and failure thresholds. Pure.

use k8s_openapi::api::core::v1::Probe;

/// Counts results in a row and tells when the verdict changes.
#[derive(Debug)]
pub(super) struct Threshold {
    verdict: bool,
    last: Option<bool>,
    in_a_row: i32,
    success: i32,
    failure: i32,
    decided: bool,
}

impl Threshold {
    pub(super) fn new(probe: &Probe, verdict: bool) -> Self {
        Self {
            verdict,
            last: None,
            in_a_row: 0,
            success: probe.success_threshold.unwrap_or(1).max(1),
            failure: probe.failure_threshold.unwrap_or(3).max(1),
            decided: false,
        }
    }

    /// Nothing was observed yet.
    pub(super) fn is_first(&self) -> bool {
        self.last.is_none()
    }

    /// The verdict if this result changes it. A verdict of failure is told even if failure is what was
    /// assumed at first, because it means that the threshold was reached.
    pub(super) fn observe(&mut self, result: bool) -> Option<bool> {
        self.in_a_row = if self.last == Some(result) {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(result);
        let needed = if result { self.success } else { self.failure };
        if self.in_a_row < needed || (self.decided && self.verdict == result) {
            return None;
        }
        let changed = self.verdict != result || !result;
        self.decided = true;
        self.verdict = result;
        changed.then_some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(success: i32, failure: i32) -> Probe {
        Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Probe::default()
        }
    }

    #[test]
    fn counts_results_in_a_row() {
        let mut readiness = Threshold::new(&probe(2, 3), false);
        let seen: Vec<Option<bool>> = [
            true, false, true, true, true, false, false, true, false, false, false,
        ]
        .into_iter()
        .map(|result| readiness.observe(result))
        .collect();
        let mut expected = vec![None; 11];
        expected[3] = Some(true);
        expected[10] = Some(false);
        assert_eq!(seen, expected);
    }

    #[test]
    fn liveness_tells_only_failure() {
        let mut liveness = Threshold::new(&probe(1, 2), true);
        assert_eq!(liveness.observe(true), None);
        assert_eq!(liveness.observe(false), None);
        assert_eq!(liveness.observe(false), Some(false));
    }

    #[test]
    fn startup_tells_when_it_gave_up() {
        let mut startup = Threshold::new(&probe(1, 2), false);
        assert_eq!(startup.observe(false), None);
        assert_eq!(startup.observe(false), Some(false));
    }
}
