//! What the proxy drives: something in the kernel that sends clients of frontends to backends.

use std::{collections::HashSet, net::SocketAddr};

use skiff_ebpf_loader::{
    ClientTable, Counters, Datapath, DatapathError, NodeSettings, StalePeer, TableDiff,
};

use crate::{iptables::IptablesError, tracker::TableView};

/// Why a dataplane could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel programs.
    #[error(transparent)]
    Ebpf(#[from] DatapathError),
    /// The rules.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
}

/// Tables of frontends and backend sets in force. Dropping it changes nothing in the kernel.
pub trait Dataplane: Send {
    /// Tells it about the node.
    ///
    /// # Errors
    /// [`DataplaneError`] if it cannot be told.
    fn set_node(&mut self, node: &NodeSettings) -> Result<(), DataplaneError>;

    /// What the tables hold.
    fn view(&self) -> &dyn TableView;

    /// Makes the change. The first one puts everything in force, also if it is empty.
    ///
    /// # Errors
    /// [`DataplaneError`]; a full diff against [`Self::view`] then repairs what is missing.
    fn apply(&mut self, diff: &TableDiff) -> Result<(), DataplaneError>;

    /// What the kernel has counted; none if it does not count.
    ///
    /// # Errors
    /// [`DataplaneError`] if it cannot be asked.
    fn counters(&self) -> Result<Option<Counters>, DataplaneError>;

    /// Whether after the change a client may have a backend that it would be given no longer, and that
    /// [`Self::stale_peers`] would tell.
    fn takes_away(&self, _diff: &TableDiff) -> bool {
        false
    }

    /// The UDP frontends that the change brings, if a socket that is connected to one of them was before it, and is never
    /// served.
    fn new_frontends(&self, _diff: &TableDiff) -> Vec<SocketAddr> {
        Vec::new()
    }

    /// The sockets that were sent to a backend which their Service no longer has, and which does not drain either. None
    /// if packets are translated rather than sockets.
    ///
    /// # Errors
    /// [`DataplaneError`] if it cannot be asked.
    fn stale_peers(
        &self,
        _draining: &HashSet<SocketAddr>,
    ) -> Result<Vec<StalePeer>, DataplaneError> {
        Ok(Vec::new())
    }

    /// Forgets what these sockets asked for: they exist no longer.
    ///
    /// # Errors
    /// [`DataplaneError`] if that cannot be written.
    fn forget_peers(&self, _peers: &[StalePeer]) -> Result<(), DataplaneError> {
        Ok(())
    }

    /// The table of what sockets send from; none if packets are translated rather than sockets.
    ///
    /// # Errors
    /// [`DataplaneError`] if it cannot be opened.
    fn clients(&self) -> Result<Option<ClientTable>, DataplaneError> {
        Ok(None)
    }

    /// Whether a change waits for processes, so that it must be kept off the async runtime's threads.
    fn blocks(&self) -> bool;
}

impl Dataplane for Datapath {
    fn set_node(&mut self, node: &NodeSettings) -> Result<(), DataplaneError> {
        Ok(Self::set_node(self, node)?)
    }

    fn view(&self) -> &dyn TableView {
        self.state()
    }

    fn apply(&mut self, diff: &TableDiff) -> Result<(), DataplaneError> {
        Ok(Self::apply(self, diff)?)
    }

    fn counters(&self) -> Result<Option<Counters>, DataplaneError> {
        Ok(Some(Self::counters(self)?))
    }

    fn takes_away(&self, diff: &TableDiff) -> bool {
        diff.takes_away(self.state())
    }

    fn new_frontends(&self, diff: &TableDiff) -> Vec<SocketAddr> {
        diff.new_frontends(self.state())
    }

    fn stale_peers(
        &self,
        draining: &HashSet<SocketAddr>,
    ) -> Result<Vec<StalePeer>, DataplaneError> {
        Ok(Self::stale_peers(self, draining)?)
    }

    fn forget_peers(&self, peers: &[StalePeer]) -> Result<(), DataplaneError> {
        Ok(Self::forget_peers(self, peers)?)
    }

    fn clients(&self) -> Result<Option<ClientTable>, DataplaneError> {
        Ok(Some(Self::clients(self)?))
    }

    fn blocks(&self) -> bool {
        false
    }
}

impl<D: Dataplane + ?Sized> Dataplane for Box<D> {
    fn set_node(&mut self, node: &NodeSettings) -> Result<(), DataplaneError> {
        (**self).set_node(node)
    }

    fn view(&self) -> &dyn TableView {
        (**self).view()
    }

    fn apply(&mut self, diff: &TableDiff) -> Result<(), DataplaneError> {
        (**self).apply(diff)
    }

    fn counters(&self) -> Result<Option<Counters>, DataplaneError> {
        (**self).counters()
    }

    fn takes_away(&self, diff: &TableDiff) -> bool {
        (**self).takes_away(diff)
    }

    fn new_frontends(&self, diff: &TableDiff) -> Vec<SocketAddr> {
        (**self).new_frontends(diff)
    }

    fn stale_peers(
        &self,
        draining: &HashSet<SocketAddr>,
    ) -> Result<Vec<StalePeer>, DataplaneError> {
        (**self).stale_peers(draining)
    }

    fn forget_peers(&self, peers: &[StalePeer]) -> Result<(), DataplaneError> {
        (**self).forget_peers(peers)
    }

    fn clients(&self) -> Result<Option<ClientTable>, DataplaneError> {
        (**self).clients()
    }

    fn blocks(&self) -> bool {
        (**self).blocks()
    }
}
