//! Runs of slots: which are free, and which must wait until no program can read them any more.

use std::collections::BTreeMap;

/// Allocates runs of numbers from `start..limit`.
#[derive(Debug)]
pub(super) struct Runs {
    limit: u32,
    /// Length to the starts of the free runs of that length.
    free: BTreeMap<u32, Vec<u32>>,
    /// Given back, but perhaps still read by a program.
    waiting: Vec<(u32, u32)>,
    waiting_total: u32,
}

impl Runs {
    /// Everything from `start` to `limit` is free, except the runs in `used`.
    pub(super) fn new(start: u32, limit: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<(u32, u32)> = used.into_iter().filter(|(_, len)| *len > 0).collect();
        used.sort_unstable();
        let mut runs = Self {
            limit,
            free: BTreeMap::new(),
            waiting: Vec::new(),
            waiting_total: 0,
        };
        let mut next = start;
        for (base, len) in used {
            if base > next {
                runs.add_free(next, base - next);
            }
            next = next.max(base.saturating_add(len));
        }
        if next < limit {
            runs.add_free(next, limit - next);
        }
        runs
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    fn add_free(&mut self, base: u32, len: u32) {
        self.free.entry(len).or_default().push(base);
    }

    /// A free run, from the smallest that is large enough.
    pub(super) fn take(&mut self, len: u32) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        let (&found, starts) = self.free.range_mut(len..).next()?;
        let base = starts.pop()?;
        if starts.is_empty() {
            self.free.remove(&found);
        }
        if found > len {
            self.add_free(base + len, found - len);
        }
        Some(base)
    }

    /// Gives a run back. It is used again only after [`Self::release_waiting`].
    pub(super) fn give_back(&mut self, base: u32, len: u32) {
        if len > 0 {
            self.waiting.push((base, len));
            self.waiting_total += len;
        }
    }

    /// How much could be had by waiting.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting_total
    }

    /// No program reads what was given back any more. Joins what lies side by side.
    pub(super) fn release_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.waiting);
        self.waiting_total = 0;
        for (len, starts) in std::mem::take(&mut self.free) {
            all.extend(starts.into_iter().map(|base| (base, len)));
        }
        all.sort_unstable();
        let mut joined: Option<(u32, u32)> = None;
        for (base, len) in all {
            match &mut joined {
                Some((start, total)) if *start + *total == base => *total += len,
                _ => {
                    if let Some((start, total)) = joined.replace((base, len)) {
                        self.add_free(start, total);
                    }
                }
            }
        }
        if let Some((start, total)) = joined {
            self.add_free(start, total);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Runs in use never overlap, what waits is never handed out, and nothing is lost.
        #[test]
        fn prop_runs_are_disjoint_and_conserved(steps in prop::collection::vec((0_u32..9, any::<u8>()), 1..200)) {
            let mut runs = Runs::new(1, 200, []);
            let mut used: Vec<(u32, u32)> = Vec::new();
            let mut waiting: Vec<(u32, u32)> = Vec::new();
            for (len, choice) in steps {
                match choice % 4 {
                    0 if !used.is_empty() => {
                        let (base, len) = used.swap_remove(usize::from(choice) % used.len());
                        runs.give_back(base, len);
                        waiting.push((base, len));
                    }
                    1 => {
                        runs.release_waiting();
                        waiting.clear();
                    }
                    _ if len > 0 => {
                        if let Some(base) = runs.take(len) {
                            prop_assert!(base >= 1 && base + len <= 200);
                            for (other, size) in used.iter().chain(&waiting) {
                                prop_assert!(base + len <= *other || other + size <= base);
                            }
                            used.push((base, len));
                        }
                    }
                    _ => {}
                }
            }
            for (base, len) in used {
                runs.give_back(base, len);
            }
            runs.release_waiting();
            prop_assert_eq!(runs.take(199), Some(1));
        }
    }

    #[test]
    fn what_is_used_at_start_is_not_handed_out() {
        let mut runs = Runs::new(1, 10, [(3, 2), (7, 1)]);
        let mut all: Vec<u32> = std::iter::from_fn(|| runs.take(1)).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 5, 6, 8, 9]);
    }
}
