//! The Services of a node as iptables and ip6tables rules, for kernels that lack what the eBPF datapath needs.
//!
//! ```text
//! nat     PREROUTING, OUTPUT      -> SKIFF-SERVICES -> ranges of addresses -> SKIFF-SVC (or SKIFF-EXT first) -> SKIFF-SEP
//!                                                   -> SKIFF-NODEPORTS     -> the same, for addresses of the node
//!         POSTROUTING             -> SKIFF-POSTROUTING   masquerades what was marked
//! filter  INPUT, FORWARD, OUTPUT  -> SKIFF-SERVICES      refuses what no backend serves
//! ```
//!
//! [`State`] mirrors the tables, pure functions render the chains of what a change touches, and [`Kernel`] writes those
//! that differ by one `iptables-restore --noflush`. At start, and after an error, everything is rendered and compared with
//! what `iptables-save` prints: what is as it should be stays untouched, connections with it.

mod balance;
mod base;
mod chain;
mod dispatch;
mod flows;
mod kernel;
mod site;
mod state;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, io, net::IpAddr};

use ipnetwork::IpNetwork;
use skiff_cni::{firewall::FirewallError, netlink::NetlinkError};
use skiff_ebpf_loader::{Counters, NodeSettings, SetId, TableDiff};
use skiff_netns::{NetnsError, NodeNetns};

pub use self::kernel::RuleWrites;
use self::{
    chain::{Chains, FAMILIES},
    dispatch::Ranges,
    flows::Answerers,
    kernel::Kernel,
    state::{State, Touched},
};
use crate::{
    dataplane::{Dataplane, DataplaneError},
    tracker::TableView,
};

/// Where the rules go, and what they must know.
#[derive(Clone, Debug)]
pub struct IptablesConfig {
    /// The node's network namespace.
    pub netns: NodeNetns,
    /// The node's addresses: packets to Services are routed as to the link that has one of them.
    pub node_addresses: Vec<IpAddr>,
    /// The addresses of all pods of the cluster: what comes from elsewhere is masqueraded on its way to a ClusterIP.
    /// Without a range of a family nothing is.
    pub pod_ranges: Vec<IpNetwork>,
    /// The addresses of Services: what goes to one that no Service has is refused.
    pub service_ranges: Vec<IpNetwork>,
}

/// Why the rules could not be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The tables refused.
    #[error("changing the firewall's rules")]
    Firewall(#[from] FirewallError),
    /// The node's network namespace cannot be entered.
    #[error("entering the node's network namespace")]
    Netns(#[from] NetnsError),
    /// The route to the Services' addresses.
    #[error("routing to the Services' addresses")]
    Route(#[from] NetlinkError),
    /// A kernel setting cannot be written.
    #[error("setting {path}")]
    Setting {
        /// Which.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A node's Services as rules. Dropping it leaves them in force.
#[derive(Debug)]
pub struct Iptables {
    netns: NodeNetns,
    ranges: Ranges,
    state: State,
    /// None: to be read again, for the tables may hold anything.
    kernel: Option<Kernel>,
    /// The chains of each set, so that those that a change leaves without use are found.
    owned: HashMap<SetId, Vec<chain::ChainId>>,
    writes: RuleWrites,
}

impl Iptables {
    /// Prepares the node. Rules of an earlier daemon stay in force until the first [`Dataplane::apply`], which changes
    /// what differs.
    ///
    /// # Errors
    /// [`IptablesError`] if the node's kernel cannot be set up.
    pub async fn open(config: IptablesConfig) -> Result<Self, IptablesError> {
        site::prepare(&config).await?;
        Ok(Self {
            netns: config.netns,
            ranges: Ranges {
                pods: config.pod_ranges,
                services: config.service_ranges,
            },
            state: State::default(),
            kernel: None,
            owned: HashMap::new(),
            writes: RuleWrites::default(),
        })
    }

    /// Removes all rules and the routes to these ranges of Services. Absent is success.
    ///
    /// # Errors
    /// [`IptablesError`]; goes on after one and returns the first.
    pub async fn remove(
        netns: &NodeNetns,
        service_ranges: &[IpNetwork],
    ) -> Result<(), IptablesError> {
        site::restore(netns, service_ranges).await
    }

    /// How much was written since [`Self::open`].
    #[must_use]
    pub fn writes(&self) -> RuleWrites {
        self.writes
    }

    /// Brings the kernel's rules to the state; in the node's network namespace.
    fn write(&mut self, mut touched: Touched) -> Result<(), IptablesError> {
        let known = self.kernel.take();
        let everything = known.is_none();
        let mut kernel = match known {
            Some(kernel) => kernel,
            None => Kernel::read()?,
        };
        let mut wanted = Chains::new();
        if everything {
            touched = self.state.all();
            self.owned.clear();
            for family in kernel.families() {
                wanted.extend(base::chains(&self.state, *family, &self.ranges));
            }
        }
        wanted.extend(dispatch::chains_to(
            &self.state,
            &touched.frontends,
            &self.ranges,
        ));
        for set in &touched.sets {
            let chains = balance::chains_of(&self.state, *set, &self.ranges.pods);
            let now: Vec<_> = chains.keys().cloned().collect();
            let before = if now.is_empty() {
                self.owned.remove(set)
            } else {
                self.owned.insert(*set, now)
            };
            for id in before.into_iter().flatten() {
                wanted.entry(id).or_insert(None);
            }
            wanted.extend(chains);
        }
        if everything {
            for id in kernel.others(&wanted) {
                wanted.insert(id, None);
            }
        }
        // After an error nobody knows how far it came: `self.kernel` stays empty.
        let writes = kernel.write(wanted)?;
        self.writes.chains += writes.chains;
        self.writes.removed += writes.removed;
        self.writes.rules += writes.rules;
        self.writes.runs += writes.runs;
        for family in kernel.families() {
            let answerers = Answerers::of(&self.state, &touched.frontends, *family);
            if let Err(error) = flows::end_stale(&answerers, *family) {
                // The rules are right; what is left ends by itself when it is silent for long enough.
                tracing::warn!(%error, "ending UDP flows to former backends");
            }
        }
        self.kernel = Some(kernel);
        Ok(())
    }
}

impl Dataplane for Iptables {
    fn set_node(&mut self, _node: &NodeSettings) -> Result<(), DataplaneError> {
        // The kernel knows which addresses are the node's; NodePorts are looked up whatever their range.
        Ok(())
    }

    fn view(&self) -> &dyn TableView {
        &self.state
    }

    fn apply(&mut self, diff: &TableDiff) -> Result<(), DataplaneError> {
        let touched = self.state.apply(diff);
        let netns = self.netns.clone();
        let result = netns.run(|| self.write(touched));
        result.map_err(IptablesError::Netns)??;
        Ok(())
    }

    fn counters(&self) -> Result<Option<Counters>, DataplaneError> {
        Ok(None)
    }

    fn blocks(&self) -> bool {
        true
    }
}

/// Removes our rules, in the calling thread's network namespace.
fn remove_rules() -> Result<bool, FirewallError> {
    use skiff_cni::firewall::{Family, change};
    let mut changed = false;
    for family in FAMILIES.map(chain::family_of) {
        if family == Family::V6 && !family.is_installed() {
            continue;
        }
        for table in chain::TableName::ALL {
            changed |= change(family, table.as_str(), &[], |found| {
                base::plan_removal(table, found)
            })?;
        }
    }
    Ok(changed)
}
