//! Which firewall a network's rules go to.

use super::{FirewallError, nft, process};

/// The programs that rules go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `iptables-restore` and `ip6tables-restore`.
    Iptables,
    /// `nft`.
    Nftables,
}

impl Backend {
    /// The backend that a configuration names; without a name iptables if it is installed, otherwise nftables.
    ///
    /// # Errors
    /// [`FirewallError::UnknownBackend`], [`FirewallError::NoBackend`].
    pub fn choose(configured: Option<&str>) -> Result<Self, FirewallError> {
        match configured {
            Some("iptables") => Ok(Self::Iptables),
            Some("nftables") => Ok(Self::Nftables),
            Some(other) => Err(FirewallError::UnknownBackend(other.to_owned())),
            None => [Self::Iptables, Self::Nftables]
                .into_iter()
                .find(|backend| backend.is_installed())
                .ok_or(FirewallError::NoBackend),
        }
    }

    /// Whether the backend's program can be run.
    #[must_use]
    pub fn is_installed(self) -> bool {
        process::find(match self {
            Self::Iptables => "iptables-restore",
            Self::Nftables => "nft",
        })
        .is_some()
    }

    /// The result of removing something from a backend that a network does not use: if it cannot be used at all, there
    /// was nothing.
    ///
    /// # Errors
    /// That of `result`.
    pub fn forgive(self, result: Result<bool, FirewallError>) -> Result<bool, FirewallError> {
        match result {
            Err(_) if self.check_usable().is_err() => Ok(false),
            other => other,
        }
    }

    /// Asks the backend for something that changes nothing.
    ///
    /// # Errors
    /// What it said.
    pub fn check_usable(self) -> Result<(), FirewallError> {
        match self {
            Self::Iptables => ::iptables::new(false)
                .and_then(|tables| tables.list_chains("nat"))
                .map(drop)
                .map_err(|error| FirewallError::Refused {
                    program: "iptables",
                    reason: error.to_string().trim().to_owned(),
                }),
            Self::Nftables => nft::list_json(&["tables", "ip"]).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_chosen_by_name() {
        let chosen = |name| Backend::choose(Some(name)).ok();
        assert_eq!(chosen("iptables"), Some(Backend::Iptables));
        assert_eq!(chosen("nftables"), Some(Backend::Nftables));
        assert_eq!(chosen("ipfw"), None);
    }
}
