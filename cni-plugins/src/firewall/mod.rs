//! Firewall rules, by whichever of iptables (`nft` or legacy variant) and nftables a network uses.
//!
//! ```text
//! common case:  one batch, right if the tables are as expected -> iptables-restore --noflush | nft -f -
//! refused:      lock -> iptables-save | nft -j list -> Table -> plan_* (pure) -> one batch, again while others meddle
//! removal:      own rules, COMMIT, what is shared, COMMIT      -> the same one process; the second part may be refused
//! ```
//! A batch is a transaction: all of it happens or nothing. One that expects too much is refused by the kernel, so the
//! common case needs neither a look nor a lock; only whoever makes shared chains or has to look takes the lock of its
//! network namespace.
//! Names and layout are those of the reference plugins where they allow it, and what those left is removed with ours,
//! so that a node can switch in place.

mod backend;
mod conntrack;
mod error;
mod iptables;
mod lock;
mod masquerade;
pub mod nft;
mod node_masquerade;
mod owner;
mod process;
mod release;
mod table;

pub use backend::Backend;
pub use conntrack::{UdpFlow, delete_udp_flows};
pub use error::FirewallError;
pub use iptables::{Batch, Family, change, quote, restore, restore_all, save};
pub use lock::FirewallLock;
pub use masquerade::Masquerade;
pub use node_masquerade::NodeMasquerade;
pub use owner::{Owner, reference_chain};
pub use release::{Release, release};
pub use table::{Rule, Table};
