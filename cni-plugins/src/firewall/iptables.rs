//! `iptables-restore` and `iptables-save`, of either variant. Each call is one process.

use std::{fmt::Write as _, net::IpAddr};

use super::{FirewallError, FirewallLock, Table, lock::replan, process};

/// An address family's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The range of multicast addresses.
    #[must_use]
    pub fn multicast(self) -> &'static str {
        match self {
            Self::V4 => "224.0.0.0/4",
            Self::V6 => "ff00::/8",
        }
    }

    /// The program for single commands.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// nftables' word for it.
    #[must_use]
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Whether the family's programs are there. Without them it has no rules, so none are to be removed.
    #[must_use]
    pub fn is_installed(self) -> bool {
        process::find(self.restore_program()).is_some()
    }

    fn restore_program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    fn save_program(self) -> &'static str {
        match self {
            Self::V4 => "iptables-save",
            Self::V6 => "ip6tables-save",
        }
    }
}

/// A batch's lines but its changes: the table's name and `COMMIT`.
const FRAME: usize = 2;

/// Changes to one table that happen together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    table: &'static str,
    lines: Vec<String>,
}

impl Batch {
    /// No change yet.
    #[must_use]
    pub fn new(table: &'static str) -> Self {
        Self {
            table,
            lines: Vec::new(),
        }
    }

    /// Whether nothing would change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Makes a chain that must not exist.
    pub fn create(&mut self, chain: &str) {
        self.lines.push(format!("-N {chain}"));
    }

    /// Makes a chain, or empties it.
    pub fn declare(&mut self, chain: &str) {
        self.lines.push(format!(":{chain} - [0:0]"));
    }

    /// Adds a rule at the end of a chain.
    pub fn append(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-A {chain} {rule}"));
    }

    /// Adds a rule at the beginning of a chain.
    pub fn insert(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-I {chain} 1 {rule}"));
    }

    /// Refuses the batch unless a chain has this rule.
    pub fn expect(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-C {chain} {rule}"));
    }

    /// Deletes a rule, which must be there.
    pub fn delete(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-D {chain} {rule}"));
    }

    /// Empties a chain.
    pub fn flush(&mut self, chain: &str) {
        self.lines.push(format!("-F {chain}"));
    }

    /// Removes a chain, which must be empty and no rule's target.
    pub fn remove(&mut self, chain: &str) {
        self.lines.push(format!("-X {chain}"));
    }

    /// How many lines its text has.
    pub(super) fn height(&self) -> usize {
        self.lines.len() + FRAME
    }

    /// Whether this line of its text, counted from one, removes a chain.
    pub(super) fn is_removal(&self, line: usize) -> bool {
        // The first line names the table.
        line.checked_sub(2)
            .and_then(|index| self.lines.get(index))
            .is_some_and(|line| line.starts_with("-X "))
    }

    /// Removes chains of `table` with their rules and those that lead to them.
    pub fn remove_whole(&mut self, table: &Table, chains: &[&str]) {
        // Flushing comes first: the `nft` variant forgets what the same batch deleted from a chain before.
        for chain in chains {
            if !table.rules(chain).is_empty() {
                self.flush(chain);
            }
        }
        for chain in chains {
            for (parent, rule) in table.jumps_to(chain) {
                if !chains.contains(&parent) {
                    self.delete(parent, rule.text());
                }
            }
        }
        for chain in chains {
            self.remove(chain);
        }
    }

    /// The text that `iptables-restore` reads.
    #[must_use]
    pub fn script(&self) -> String {
        let mut script = format!("*{}\n", self.table);
        for line in &self.lines {
            // Writing into a String cannot fail.
            writeln!(script, "{line}").ok();
        }
        script.push_str("COMMIT\n");
        script
    }
}

/// Applies a batch, leaving the rest of the table as it is.
///
/// # Errors
/// [`FirewallError::Refused`] if one of its lines does not fit the table.
pub fn restore(family: Family, batch: &Batch) -> Result<(), FirewallError> {
    restore_script(family, &batch.script())
}

/// Applies batches that follow each other, of different tables too, in one process, up to the first that is refused.
/// Each happens as a whole or not at all.
///
/// # Errors
/// [`FirewallError::Refused`] if one of their lines does not fit its table.
pub fn restore_all(family: Family, batches: &[Batch]) -> Result<(), FirewallError> {
    let script: String = batches.iter().map(Batch::script).collect();
    restore_script(family, &script)
}

/// As [`restore_all`], with a text that is ready.
pub(super) fn restore_script(family: Family, script: &str) -> Result<(), FirewallError> {
    process::run(family.restore_program(), &["--noflush", "-w"], script).map(drop)
}

/// Reads a table.
///
/// # Errors
/// [`FirewallError`].
pub fn save(family: Family, table: &str) -> Result<Table, FirewallError> {
    let printed = process::run(family.save_program(), &["-t", table], "")?;
    Ok(Table::parse(&String::from_utf8_lossy(&printed), table))
}

/// Changes a table: by the first of the `guesses` that fits, or else by what `plan` says after a look, made anew while
/// somebody else changes the table. Says whether there was anything to change.
///
/// The first guess goes without the lock, so it must make no chain that others make too: of two who do so at once, the
/// `nft` variant lets both fill it.
///
/// # Errors
/// [`FirewallError`]; the last plan's refusal if none fits.
pub fn change(
    family: Family,
    table: &str,
    guesses: &[Batch],
    plan: impl Fn(&Table) -> Batch,
) -> Result<bool, FirewallError> {
    let (first, others) = guesses.split_at(guesses.len().min(1));
    if try_guesses(family, first)? {
        return Ok(true);
    }
    let _lock = FirewallLock::acquire()?;
    if try_guesses(family, others)? {
        return Ok(true);
    }
    replan(|| {
        let found = match save(family, table) {
            // A kernel without IPv6 has no such table.
            Err(error) if family == Family::V6 && error.is_refusal() => Table::default(),
            saved => saved?,
        };
        let batch = plan(&found);
        Ok((!batch.is_empty()).then(|| restore(family, &batch)))
    })
}

/// Applies the first that fits. Says whether there was one.
fn try_guesses(family: Family, guesses: &[Batch]) -> Result<bool, FirewallError> {
    for guess in guesses {
        match restore(family, guess) {
            Err(error) if error.is_refusal() => {}
            done => return done.map(|()| true),
        }
    }
    Ok(false)
}

/// Splits a rule as a shell would, the way `iptables-save` quotes.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            '\\' => word.extend(characters.next()),
            ' ' if !quoted => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            other => word.push(other),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Quotes a word for a rule.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-+.,:/!=[]".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('"');
    for character in word.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_written_in_order() {
        let mut batch = Batch::new("nat");
        assert!(batch.is_empty());
        batch.create("A");
        batch.append("A", "-j ACCEPT");
        batch.insert("POSTROUTING", "-j A");
        assert_eq!(
            batch.script(),
            "*nat\n-N A\n-A A -j ACCEPT\n-I POSTROUTING 1 -j A\nCOMMIT\n"
        );
    }

    #[test]
    fn quoting_is_read_back() {
        for word in ["plain", "two words", r#"name: "net""#, r"back\slash", ""] {
            assert_eq!(words(&format!("-a {} -b", quote(word))), ["-a", word, "-b"]);
        }
    }
}
