//! What can go wrong with the firewall.

use std::{io, path::PathBuf};

/// A firewall that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A backend that does not exist.
    #[error("unknown firewall backend {0:?}: it is \"iptables\" or \"nftables\"")]
    UnknownBackend(String),
    /// Neither of the two is installed.
    #[error("neither iptables nor nft is installed")]
    NoBackend,
    /// A program cannot be run.
    #[error("running {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program refused.
    #[error("{program}: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// A program printed what cannot be read.
    #[error("{program} printed nonsense")]
    Output {
        /// The program.
        program: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The lock file cannot be had.
    #[error("locking {path}", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Connection tracking.
    #[error("{action}")]
    Conntrack {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl FirewallError {
    /// Whether a program ran and said no, which a look at the tables may explain.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// The first line of its input that a program refused, if it says so: `line 7 failed`, `line 7: CHAIN_DEL failed`,
    /// `Error occurred at line: 7`.
    pub(super) fn refused_line(&self) -> Option<usize> {
        let Self::Refused { reason, .. } = self else {
            return None;
        };
        let mut words = reason.split_ascii_whitespace();
        words.find(|word| matches!(*word, "line" | "line:"))?;
        words.next()?.trim_end_matches([':', '.']).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_line_is_read() {
        let line = |reason: &str| {
            let reason = reason.to_owned();
            FirewallError::Refused {
                program: "iptables-restore",
                reason,
            }
            .refused_line()
        };
        let busy = "iptables-restore v1.8.9 (nf_tables): \
                    line 7: CHAIN_DEL failed (Device or resource busy): chain C line 9: more";
        assert_eq!(line(busy), Some(7));
        assert_eq!(line("iptables-restore: line 12 failed"), Some(12));
        assert_eq!(line("Bad rule. Error occurred at line: 3"), Some(3));
        assert_eq!(line("no reason given"), None);
        assert_eq!(FirewallError::NoBackend.refused_line(), None);
    }
}
