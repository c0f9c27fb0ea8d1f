//! The rules themselves.

use std::{
    collections::HashSet,
    fs::File,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use iptables::IPTables;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    fingerprint,
    types::{ContainerId, NetworkName},
};

const TABLE: &str = "nat";
const PARENT: &str = "POSTROUTING";
const CHAIN_PREFIX: &str = "SKIFF-MASQ-";
const LOCK_FILE: &str = "/run/skiff-masquerade.lock";

/// A refused or unreadable firewall.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The rules cannot be read or changed.
    #[error("{action}: {reason}")]
    Command {
        /// What was tried.
        action: &'static str,
        /// What iptables said.
        reason: String,
    },
    /// The lock file cannot be had.
    #[error("locking {path}", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The masquerading of one network.
#[derive(Debug, Clone)]
pub struct Masquerade {
    network: NetworkName,
    lock_path: PathBuf,
}

/// One address family's tables.
struct Tables {
    iptables: IPTables,
    multicast: &'static str,
}

impl Tables {
    /// Without asking iptables for its version: `-C` and `-w` are older than any kernel that we run on.
    fn new(v4: bool) -> Self {
        let cmd = if v4 { "iptables" } else { "ip6tables" };
        Self {
            iptables: IPTables {
                cmd,
                has_check: true,
                has_wait: true,
                is_numeric: false,
            },
            multicast: if v4 { "224.0.0.0/4" } else { "ff00::/8" },
        }
    }

    /// The rules of a chain as `-S` prints them; `None` if there is no such chain (or no iptables of this family).
    fn list(&self, chain: &str) -> Result<Option<Vec<String>>, FirewallError> {
        let output = self
            .iptables
            .execute(TABLE, &format!("-S {chain}"))
            .map_err(|error| refused("listing masquerade rules")(&*error))?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return Ok(Some(text.lines().map(str::to_owned).collect()));
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        if is_missing(&reason) {
            return Ok(None);
        }
        Err(FirewallError::Command {
            action: "listing masquerade rules",
            reason: first_line(&reason),
        })
    }

    fn chain_names(&self) -> Result<Vec<String>, FirewallError> {
        let chains = self
            .iptables
            .list_chains(TABLE)
            .map_err(|error| refused("listing chains")(&*error))?;
        Ok(chains
            .into_iter()
            .filter(|chain| chain.starts_with(CHAIN_PREFIX))
            .collect())
    }

    /// Makes the chain of a subnet, its first rule and the way into it.
    fn create_chain(&self, chain: &str, subnet: IpNetwork) -> Result<(), FirewallError> {
        let failed = "making a masquerade chain";
        match self.iptables.new_chain(TABLE, chain) {
            Err(error) if !error.to_string().contains("exist") => {
                return Err(refused(failed)(&*error));
            }
            _ => {}
        }
        let inside = format!("-d {subnet} -j ACCEPT");
        for (parent, rule) in [(chain, inside), (PARENT, jump(chain, subnet))] {
            let exists = self
                .iptables
                .exists(TABLE, parent, &rule)
                .map_err(|error| refused(failed)(&*error))?;
            if !exists {
                self.iptables
                    .append(TABLE, parent, &rule)
                    .map_err(|error| refused(failed)(&*error))?;
            }
        }
        Ok(())
    }

    /// Removes a chain and whatever leads into it.
    fn delete_chain(&self, chain: &str) -> Result<(), FirewallError> {
        let failed = "removing a masquerade chain";
        let target = format!("-j {chain}");
        for rule in self.list(PARENT)?.unwrap_or_default() {
            if rule.ends_with(&target)
                && let Some(rule) = rule.strip_prefix("-A POSTROUTING ")
            {
                self.iptables
                    .delete(TABLE, PARENT, rule)
                    .map_err(|error| refused(failed)(&*error))?;
            }
        }
        self.iptables
            .flush_chain(TABLE, chain)
            .map_err(|error| refused(failed)(&*error))?;
        self.iptables
            .delete_chain(TABLE, chain)
            .map_err(|error| refused(failed)(&*error))
    }

    /// Deletes the pods' rules for which `doomed` holds; the chain goes with the last one.
    fn prune(&self, chain: &str, doomed: impl Fn(&str) -> bool) -> Result<(), FirewallError> {
        let Some(rules) = self.list(chain)? else {
            return Ok(());
        };
        let start = format!("-A {chain} ");
        let pods: Vec<&str> = rules
            .iter()
            .filter_map(|rule| rule.strip_prefix(&start))
            .filter(|rule| rule.ends_with("-j MASQUERADE"))
            .collect();
        let (gone, kept): (Vec<_>, Vec<_>) = pods.into_iter().partition(|rule| doomed(rule));
        if kept.is_empty() {
            return self.delete_chain(chain);
        }
        for rule in gone {
            self.iptables
                .delete(TABLE, chain, rule)
                .map_err(|error| refused("removing a masquerade rule")(&*error))?;
        }
        Ok(())
    }
}

fn is_missing(reason: &str) -> bool {
    // iptables-nft 1.8.9 and its neighbours call a chain "incompatible" that is not there. If one really is, making it
    // fails with the true reason.
    reason.contains("No chain")
        || reason.contains("does not exist")
        || reason.contains("is incompatible, use 'nft' tool")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("no reason given").to_owned()
}

fn refused(action: &'static str) -> impl Fn(&dyn std::error::Error) -> FirewallError {
    move |error| FirewallError::Command {
        action,
        reason: first_line(&error.to_string()),
    }
}

fn jump(chain: &str, subnet: IpNetwork) -> String {
    format!("-s {subnet} -j {chain}")
}

/// The network and the container that a rule names; quotes come and go with the iptables variant.
fn owner_in(rule: &str) -> Option<(&str, &str)> {
    let word = |prefix| {
        rule.split([' ', '"'])
            .find_map(|word| word.strip_prefix(prefix))
    };
    Some((word("name:")?, word("id:")?))
}

fn network_of(subnet: IpNetwork) -> IpNetwork {
    IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet)
}

impl Masquerade {
    /// The masquerading of `network`.
    #[must_use]
    pub fn new(network: NetworkName) -> Self {
        Self {
            network,
            lock_path: PathBuf::from(LOCK_FILE),
        }
    }

    fn chain(&self, subnet: IpNetwork) -> String {
        let hash = fingerprint(&[self.network.as_str(), &subnet.to_string()], 12);
        // The network's part comes first, so that DEL finds the chains without knowing their subnets.
        format!("{}{hash}", self.chain_prefix())
    }

    fn chain_prefix(&self) -> String {
        format!("{CHAIN_PREFIX}{}", fingerprint(&[self.network.as_str()], 4))
    }

    fn rule(&self, ip: IpAddr, container: &ContainerId, multicast: &str) -> String {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        format!(
            "-s {ip}/{bits} ! -d {multicast} -m comment --comment \"name:{} id:{container}\" -j MASQUERADE",
            self.network,
        )
    }

    /// Whether a rule is this network's, and of a container for which `wanted` holds. Chains of two networks may share
    /// the beginning of their names.
    fn is_of(&self, rule: &str, wanted: impl Fn(&str) -> bool) -> bool {
        owner_in(rule).is_some_and(|(network, id)| network == self.network.as_str() && wanted(id))
    }

    fn lock(&self) -> Result<Flock<File>, FirewallError> {
        let failed = |source| FirewallError::Lock {
            path: self.lock_path.clone(),
            source,
        };
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.lock_path)
            .map_err(failed)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(lock),
                Err((again, nix::errno::Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// Makes what `address` (with the length of its subnet) sends out of its subnet carry the node's address.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn ensure(&self, address: IpNetwork, container: &ContainerId) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        let tables = Tables::new(address.is_ipv4());
        let subnet = network_of(address);
        let chain = self.chain(subnet);
        let rules = tables.list(&chain)?;
        let source = format!("-s {}/", address.ip());
        let ours = |rule: &String| {
            rule.contains(&source) && self.is_of(rule, |id| id == container.as_str())
        };
        match rules {
            // Its pods' rules come after the first one; without any, its maker may have died half-way.
            Some(rules) if rules.iter().any(|rule| rule.ends_with("-j MASQUERADE")) => {
                if rules.iter().any(ours) {
                    return Ok(());
                }
            }
            _ => tables.create_chain(&chain, subnet)?,
        }
        let rule = self.rule(address.ip(), container, tables.multicast);
        tables
            .iptables
            .append(TABLE, &chain, &rule)
            .map_err(|error| refused("adding a masquerade rule")(&*error))
    }

    /// Whether the rule for `address` and the way to it are there.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn is_ensured(
        &self,
        address: IpNetwork,
        container: &ContainerId,
    ) -> Result<bool, FirewallError> {
        let tables = Tables::new(address.is_ipv4());
        let subnet = network_of(address);
        let chain = self.chain(subnet);
        let rule = self.rule(address.ip(), container, tables.multicast);
        for (chain, rule) in [(PARENT, jump(&chain, subnet)), (&*chain, rule)] {
            let exists = tables
                .iptables
                .exists(TABLE, chain, &rule)
                .map_err(|error| refused("checking a masquerade rule")(&*error))?;
            if !exists {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes a container's rules, found by name: its addresses need not be known. Absent is success.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn delete(&self, container: &ContainerId) -> Result<(), FirewallError> {
        self.prune(|id| id == container.as_str(), &[true, false])
    }

    /// [`Masquerade::delete`] where the subnets are known, which saves looking for the chains.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn delete_from(
        &self,
        subnets: &[IpNetwork],
        container: &ContainerId,
    ) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        for subnet in subnets.iter().copied().map(network_of) {
            Tables::new(subnet.is_ipv4()).prune(&self.chain(subnet), |rule| {
                self.is_of(rule, |id| id == container.as_str())
            })?;
        }
        Ok(())
    }

    /// Removes the rules of all containers but `valid` ones.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn sweep(&self, valid: &HashSet<ContainerId>) -> Result<(), FirewallError> {
        self.prune(
            |id| !valid.iter().any(|container| container.as_str() == id),
            &[true, false],
        )
    }

    fn prune(&self, doomed: impl Fn(&str) -> bool, families: &[bool]) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        let prefix = self.chain_prefix();
        for v4 in families {
            let tables = Tables::new(*v4);
            let chains = match tables.chain_names() {
                Ok(chains) => chains,
                // A kernel or a machine without IPv6 has no rules there.
                Err(_) if !v4 => continue,
                Err(error) => return Err(error),
            };
            for chain in chains.iter().filter(|chain| chain.starts_with(&prefix)) {
                tables.prune(chain, |rule| self.is_of(rule, &doomed))?;
            }
        }
        Ok(())
    }

    /// Removes everything of every network: for whoever takes a node down.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn delete_all() -> Result<(), FirewallError> {
        for v4 in [true, false] {
            let tables = Tables::new(v4);
            let chains = match tables.chain_names() {
                Ok(chains) => chains,
                Err(_) if !v4 => continue,
                Err(error) => return Err(error),
            };
            for chain in chains {
                tables.delete_chain(&chain)?;
            }
        }
        Ok(())
    }

    /// Uses another lock file: networks in different network namespaces need not wait for each other.
    #[must_use]
    pub fn with_lock(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.lock_path);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_owner_is_in_its_comment() {
        let quoted = r#"-s 10.0.0.2/32 ! -d 224.0.0.0/4 -m comment --comment "name:net id:c1" -j MASQUERADE"#;
        assert_eq!(owner_in(quoted), Some(("net", "c1")));
        assert_eq!(owner_in("-d 10.0.0.0/24 -j ACCEPT"), None);
    }

    #[test]
    fn chain_names_fit_into_the_kernels_28_characters() {
        let masquerade = Masquerade::new("a-network".parse().unwrap());
        let chain = masquerade.chain("10.0.0.0/24".parse().unwrap());
        assert!(chain.starts_with(&masquerade.chain_prefix()));
        assert!(chain.len() <= 28, "{chain}");
    }
}
