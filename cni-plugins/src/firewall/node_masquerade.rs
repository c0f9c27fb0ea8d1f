//! Masquerading of all pods of a node at once, for a node agent that knows its ranges: what it costs does not grow with
//! the pods, and neither starting nor stopping one touches the firewall.
//!
//! ```text
//! POSTROUTING      -s PODS -j SKIFF-NODE-MASQ
//! SKIFF-NODE-MASQ  -d CLUSTER -j RETURN              pods keep their addresses towards each other and their nodes
//!                  ! -d MULTICAST -j MASQUERADE
//! ```
//! With nftables the same is one rule in a table of its own for each family.

use ipnetwork::IpNetwork;

use super::{Backend, Batch, Family, FirewallError, Table, change, nft};

const TABLE: &str = "nat";
const PARENT: &str = "POSTROUTING";
const CHAIN: &str = "SKIFF-NODE-MASQ";
const NFT_TABLES: [&str; 2] = ["inet skiff_node_masquerade", "inet skiff_node_masquerade6"];

/// Masquerades what the addresses of `pods` send out of `cluster`, which contains them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeMasquerade {
    /// The range of the node's pods.
    pub pods: IpNetwork,
    /// The range of all nodes' pods.
    pub cluster: IpNetwork,
}

impl NodeMasquerade {
    fn family(&self) -> Family {
        Family::of(self.pods.ip())
    }

    fn jump(&self) -> String {
        format!("-s {} -j {CHAIN}", self.pods)
    }

    fn rules(&self) -> [String; 2] {
        [
            format!("-d {} -j RETURN", self.cluster),
            format!("! -d {} -j MASQUERADE", self.family().multicast()),
        ]
    }

    /// Makes the rules, in the network namespace of the calling thread, or finds them as they should be.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn ensure(&self) -> Result<(), FirewallError> {
        match Backend::choose(None)? {
            Backend::Iptables => {
                let guesses = [self.plan_nothing(), self.plan_ensure(&Table::default())];
                change(self.family(), TABLE, &guesses, |table| {
                    self.plan_ensure(table)
                })
                .map(drop)
            }
            Backend::Nftables => nft::apply(&self.plan_script()),
        }
    }

    /// Removes them, whatever the ranges were. Absent is success.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn remove() -> Result<(), FirewallError> {
        if Backend::Iptables.is_installed() {
            for family in Family::BOTH.into_iter().filter(|f| f.is_installed()) {
                change(family, TABLE, &[], |table| {
                    let mut batch = Batch::new(TABLE);
                    if table.has_chain(CHAIN) {
                        batch.remove_whole(table, &[CHAIN]);
                    }
                    batch
                })?;
            }
        }
        if Backend::Nftables.is_installed() {
            // Added first, so that there is one to delete.
            for table in NFT_TABLES {
                nft::apply(&format!("add table {table}\ndelete table {table}\n"))?;
            }
        }
        Ok(())
    }

    /// Fits if everything is there.
    fn plan_nothing(&self) -> Batch {
        let mut batch = Batch::new(TABLE);
        batch.expect(PARENT, &self.jump());
        for rule in self.rules() {
            batch.expect(CHAIN, &rule);
        }
        batch
    }

    fn plan_ensure(&self, table: &Table) -> Batch {
        let mut batch = Batch::new(TABLE);
        if table.has_chain(CHAIN) {
            batch.remove_whole(table, &[CHAIN]);
        }
        batch.create(CHAIN);
        for rule in self.rules() {
            batch.append(CHAIN, &rule);
        }
        batch.append(PARENT, &self.jump());
        batch
    }

    fn plan_script(&self) -> String {
        let (ip, multicast) = (self.family().nft(), self.family().multicast());
        let Self { pods, cluster } = self;
        let [four, six] = NFT_TABLES;
        let table = if pods.is_ipv4() { four } else { six };
        format!(
            "add table {table}
delete table {table}
table {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        {ip} saddr {pods} {ip} daddr != {{ {cluster}, {multicast} }} masquerade
    }}
}}
"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_ranges_replace_the_rules_of_the_old_ones() {
        let new = NodeMasquerade {
            pods: "10.244.1.0/24".parse().unwrap(),
            cluster: "10.244.0.0/16".parse().unwrap(),
        };
        let saved = "*nat\n:POSTROUTING ACCEPT [0:0]\n:SKIFF-NODE-MASQ - [0:0]\n\
            -A POSTROUTING -s 10.1.0.0/24 -j SKIFF-NODE-MASQ\n-A SKIFF-NODE-MASQ -d 10.1.0.0/16 -j RETURN\n\
            -A SKIFF-NODE-MASQ ! -d 224.0.0.0/4 -j MASQUERADE\nCOMMIT\n";
        let batch = new.plan_ensure(&Table::parse(saved, "nat"));
        let script = batch.script();
        let order = [
            "-D POSTROUTING -s 10.1.0.0/24 -j SKIFF-NODE-MASQ",
            "-X SKIFF-NODE-MASQ",
            "-N SKIFF-NODE-MASQ",
            "-A SKIFF-NODE-MASQ -d 10.244.0.0/16 -j RETURN",
            "-A SKIFF-NODE-MASQ ! -d 224.0.0.0/4 -j MASQUERADE",
            "-A POSTROUTING -s 10.244.1.0/24 -j SKIFF-NODE-MASQ",
        ];
        let places: Vec<_> = order.iter().map(|line| script.find(line)).collect();
        assert!(places.iter().all(Option::is_some), "{script}");
        assert!(places.is_sorted(), "{script}");
    }
}
