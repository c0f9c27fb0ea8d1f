//! Which addresses the node's sockets send from: asked for by Services whose load balancers are not for everybody.

use std::{collections::HashMap, error::Error, io, sync::Arc};

use parking_lot::Mutex;
use skiff_ebpf_loader::{ClientTable, DatapathError, netns_client};
use tokio::{io::unix::AsyncFd, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{proxy::chain, sweep::NodeNamespaces};

/// The table of addresses, and where they come from.
pub(crate) struct Clients {
    table: Mutex<ClientTable>,
    namespaces: Arc<dyn NodeNamespaces>,
}

/// Why addresses could not be found or written.
#[derive(Debug, thiserror::Error)]
enum ClientsError {
    #[error(transparent)]
    Table(#[from] DatapathError),
    #[error("entering the pods' network namespaces")]
    Namespaces(#[source] Box<dyn Error + Send + Sync>),
    #[error("waiting for the programs to ask")]
    Wait(#[from] io::Error),
}

impl Clients {
    pub(crate) fn new(table: ClientTable, namespaces: Arc<dyn NodeNamespaces>) -> Self {
        Self {
            table: Mutex::new(table),
            namespaces,
        }
    }

    /// Writes the addresses of all network namespaces that there are now.
    pub(crate) async fn refresh(self: &Arc<Self>) {
        let clients = Arc::clone(self);
        match spawn_blocking(move || clients.refresh_now()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "finding the addresses of the node's clients");
            }
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    fn refresh_now(&self) -> Result<(), ClientsError> {
        let mut table = self.table.lock();
        // Before the look: whoever is asked for meanwhile is looked for again.
        table.clear_unknown();
        let mut all = HashMap::new();
        let mut in_one = || match netns_client() {
            Ok((netns, addrs)) => drop(all.insert(netns, addrs)),
            Err(error) => tracing::debug!(%error, "the addresses of a network namespace"),
        };
        self.namespaces
            .run_in_each(&mut in_one)
            .map_err(ClientsError::Namespaces)?;
        Ok(table.set(&all)?)
    }

    #[expect(
        deprecated,
        reason = "its doubts are about types that change their descriptor; an owned one does not"
    )]
    async fn follow(self: &Arc<Self>) -> Result<(), ClientsError> {
        let asked = AsyncFd::new(self.table.lock().asked()?)?;
        loop {
            asked.readable().await?.clear_ready();
            self.refresh().await;
        }
    }
}

/// Finds out whenever the programs ask.
pub(crate) async fn clients_loop(clients: Arc<Clients>, token: CancellationToken) {
    if let Some(Err(error)) = token.run_until_cancelled(clients.follow()).await {
        tracing::warn!(error = %chain(&error), "new pods are refused by load balancers with source ranges");
    }
}
