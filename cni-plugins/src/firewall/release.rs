//! Removing a container's rules, and what it shared with others if it was the last: one process, without a look.
//!
//! ```text
//! own      -D rule, ...                    COMMIT   stands, whatever comes after it
//! shared   -D jump to chain, -X chain      COMMIT   refused as a whole while others have rules in the chain
//! ```
//! Whoever joins meanwhile is safe without a lock, since each part is one transaction and the kernel puts transactions in
//! an order. If the newcomer's comes before the shared part, the chain is not empty, so `-X` is refused and with it the
//! deletion of the jump. If it comes after, its `-A` into a chain that is gone is refused, however the check (`-C`) went
//! that it had made before, and it makes the chain anew after a look. Of two who were the last together one removes the
//! shared part; the other is refused where it does not expect it, looks, and finds nothing. Whoever is killed between the
//! parts leaves chains without a container, which the next one uses and takes along.

use super::{Batch, Family, FirewallError, Table, change, iptables::restore_script};

/// What a container has in a table: its own, and what it may share with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Removes what nobody else uses.
    pub own: Batch,
    /// Removes all that is shared, chains included, so that it does not fit while somebody else uses one of them.
    pub shared: Batch,
}

/// How much of a release was done before it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Perhaps nothing: the container's own part is not as expected.
    Own,
    /// All but the shared part, which is not as expected.
    Shared,
    /// All that can be done: others use the shared part.
    InUse,
}

impl Release {
    fn script(&self) -> String {
        self.own.script() + &self.shared.script()
    }

    /// What a refusal of this line of the script means.
    fn refusal(&self, line: Option<usize>) -> Refusal {
        let in_shared = line
            .and_then(|line| line.checked_sub(self.own.height()))
            .filter(|line| *line > 0);
        match in_shared {
            None => Refusal::Own,
            Some(line) if self.shared.is_removal(line) => Refusal::InUse,
            Some(_) => Refusal::Shared,
        }
    }
}

/// Removes what `guess` says if it fits, or else what `plan` says after a look. Says whether there was anything.
///
/// # Errors
/// [`FirewallError`]; the last plan's refusal if none fits.
pub fn release(
    family: Family,
    table: &str,
    guess: &Release,
    plan: impl Fn(&Table) -> Batch,
) -> Result<bool, FirewallError> {
    let Err(error) = restore_script(family, &guess.script()) else {
        return Ok(true);
    };
    if !error.is_refusal() {
        return Err(error);
    }
    match guess.refusal(error.refused_line()) {
        Refusal::InUse => Ok(true),
        Refusal::Shared => change(family, table, &[], plan).map(|_changed| true),
        Refusal::Own => change(family, table, &[], plan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_line_says_how_much_was_done() {
        let (mut own, mut shared) = (Batch::new("nat"), Batch::new("nat"));
        own.delete("C", "-s 10.0.0.2/32 -j MASQUERADE");
        own.remove("OWN");
        shared.delete("POSTROUTING", "-j C");
        shared.remove("C");
        let release = Release { own, shared };
        let script = release.script();
        let number = |text: &str| {
            script
                .lines()
                .position(|line| line == text)
                .map(|at| at + 1)
        };
        let refusal = |text| release.refusal(number(text));
        assert_eq!(refusal("-D C -s 10.0.0.2/32 -j MASQUERADE"), Refusal::Own);
        assert_eq!(refusal("-X OWN"), Refusal::Own);
        // The first of its kind.
        assert_eq!(refusal("COMMIT"), Refusal::Own);
        assert_eq!(refusal("-D POSTROUTING -j C"), Refusal::Shared);
        assert_eq!(refusal("-X C"), Refusal::InUse);
        let last = script.lines().count();
        assert_eq!(release.refusal(Some(last)), Refusal::Shared);
        assert_eq!(release.refusal(None), Refusal::Own);
    }
}
