//! What of two transcripts may differ, and what may not.

use std::{
    path::{Path, PathBuf},
    thread,
};

use serde_json::{Value, json};

use super::{
    Case, Step,
    run::{OK, is_bookkeeping},
};
use crate::state::{self, Deviation};

/// A deviation from the reference that is meant.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Where, as [`Deviation::path`] tells it; `*` stands for anything.
    pub path: &'static str,
    /// Why it is so.
    pub why: &'static str,
}

impl Difference {
    /// Whether it speaks of this path.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let mut parts = self.path.split('*');
        let Some(mut rest) = path.strip_prefix(parts.next().unwrap_or_default()) else {
            return false;
        };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// What the references and ours made of one case.
#[derive(Debug)]
pub struct Transcripts {
    new: Value,
    old: Option<Value>,
    ours: Value,
}

impl Case {
    /// Runs it with the references and ours, all at once.
    #[must_use]
    pub fn transcripts(&self, reference: &References, ours: &Path) -> Transcripts {
        thread::scope(|scope| {
            let new = scope.spawn(|| self.transcript(&reference.new));
            let old = self
                .old
                .then(|| scope.spawn(|| self.transcript(&reference.old)));
            Transcripts {
                ours: self.transcript(ours),
                new: new.join().unwrap(),
                old: old.map(|old| old.join().unwrap()),
            }
        })
    }

    /// Tells what is not as it should be; empty if all is. `common` are the deviations of a whole table; those that are
    /// seen are marked.
    #[must_use]
    pub fn verdict(&self, told: &Transcripts, common: &mut Common) -> Vec<String> {
        let mut found = self.judge(
            "newest",
            &told.new,
            &told.ours,
            &self.differences_new,
            common,
        );
        if let Some(old) = &told.old {
            found.extend(self.judge("oldest", old, &told.ours, &self.differences_old, common));
        }
        found
    }

    fn judge(
        &self,
        which: &str,
        reference: &Value,
        ours: &Value,
        own: &[Difference],
        common: &mut Common,
    ) -> Vec<String> {
        let title = format!("{} against the {which} reference", self.name);
        let mut found = self.unexpected(reference, ours, &title);
        let mut reference = reference.clone();
        for (number, step) in self.steps.iter().enumerate() {
            if matches!(step, Step::Untouched) {
                reference[format!("{number} untouched")] = json!({});
            }
        }
        let deviations: Vec<Deviation> = state::differences(&reference, ours)
            .into_iter()
            .filter(|deviation| !self.says_nothing(deviation))
            .collect();
        let explained: Vec<&Difference> = self.differences.iter().chain(own).collect();
        let unexplained: Vec<Deviation> = deviations
            .iter()
            .filter(|deviation| {
                let meant = explained.iter().any(|known| known.covers(&deviation.path));
                !common.mark(&deviation.path) && !meant
            })
            .cloned()
            .collect();
        if !unexplained.is_empty() {
            found.push(format!(
                "{title} (its value first):\n{}",
                state::show(&unexplained)
            ));
        }
        for known in explained {
            if !deviations
                .iter()
                .any(|deviation| known.covers(&deviation.path))
            {
                found.push(format!("{title}: no longer different: {known:?}\n"));
            }
        }
        found
    }

    /// Messages are for people, and so are the codes of whatever the reference's authors did not think of. An ADD that
    /// the kernel refuses may leave where host-local looks next.
    fn says_nothing(&self, deviation: &Deviation) -> bool {
        deviation.path.ends_with(" > message")
            || only_code_of_catch_all(deviation)
            || (self.needs.is_some() && is_bookkeeping(&deviation.path))
    }

    /// Steps in which neither did what the case is about: such a case would compare nothing. If only one did, that is
    /// a deviation.
    fn unexpected(&self, reference: &Value, ours: &Value, title: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (step, answer) in reference.as_object().unwrap() {
            let number: usize = step.split(' ').next().unwrap().parse().unwrap();
            let meant = |answer: &Value| match self.steps[number] {
                Step::Look(_) | Step::Untouched => true,
                Step::Refuse(_) | Step::Miss(_) => answer["outcome"] != OK,
                _ => answer["outcome"] == OK || self.needs.is_some(),
            };
            if !meant(answer) && !meant(&ours[step]) {
                found.push(format!(
                    "{title}: step {step} is not what the case says: {answer}\n"
                ));
            }
        }
        found
    }
}

/// Deviations that a whole table has in common, and whether each was seen.
#[derive(Debug)]
pub struct Common(Vec<(Difference, bool)>);

impl Common {
    /// None of them seen.
    #[must_use]
    pub fn new(differences: &[Difference]) -> Self {
        Self(
            differences
                .iter()
                .map(|difference| (*difference, false))
                .collect(),
        )
    }

    /// Whether a deviation at this path is meant; it counts as seen.
    pub fn mark(&mut self, path: &str) -> bool {
        let mut meant = false;
        for (difference, seen) in &mut self.0 {
            if difference.covers(path) {
                *seen = true;
                meant = true;
            }
        }
        meant
    }

    /// Those that no case of the table has.
    #[must_use]
    pub fn stale(&self) -> Vec<String> {
        let stale = self.0.iter().filter(|(_, seen)| !seen);
        stale
            .map(|(difference, _)| {
                format!("no case has this difference any longer: {difference:?}\n")
            })
            .collect()
    }
}

/// What the reference answers to whatever its authors did not think of: "generic" and "internal". A more telling
/// code of ours is not a deviation, as long as both refuse.
const CATCH_ALL: [u64; 2] = [100, 999];

fn only_code_of_catch_all(deviation: &Deviation) -> bool {
    let left = deviation.left.as_ref().and_then(Value::as_u64);
    let right = deviation.right.as_ref().and_then(Value::as_u64);
    deviation.path.ends_with("> outcome")
        && left.is_some_and(|code| CATCH_ALL.contains(&code))
        && right.is_some_and(|code| code > 0)
}

/// Where the reference's plugins are.
#[derive(Debug)]
pub struct References {
    /// Fetched by `cargo xtask setup`.
    pub new: PathBuf,
    /// Of the machine's Debian.
    pub old: PathBuf,
}

impl References {
    /// Where `setup` puts them.
    #[must_use]
    pub fn find() -> Self {
        let tools = std::env::var_os("SKIFF_TOOLS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"),
            PathBuf::from,
        );
        let found = Self {
            new: tools.join("cni-reference"),
            old: PathBuf::from("/usr/lib/cni"),
        };
        for plugins in [&found.new, &found.old] {
            let bridge = plugins.join("bridge");
            assert!(
                bridge.exists(),
                "{} is missing: cargo xtask setup",
                bridge.display()
            );
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let covers = |path, text: &str| Difference { path, why: "" }.covers(text);
        assert!(covers("a > *> mtu", "a > links > br0 > mtu"));
        assert!(covers("*", "x"));
        assert!(covers("a*c*", "abcd"));
        assert!(!covers("a > *> mtu", "a > links > br0 > mtus"));
        assert!(!covers("a", "ab"));
    }
}
