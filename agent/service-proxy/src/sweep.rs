//! Ends the sockets of backends that have gone, and those that were before their Service, so that their owners move on at once.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use skiff_ebpf_loader::{Ended, StalePeer, end_sockets};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    dataplane::{Dataplane, DataplaneError},
    proxy::chain,
};

/// A socket may be about to connect to a backend that was taken away a moment ago: so long later all of them have.
const SETTLE: Duration = Duration::from_secs(1);

/// The network namespaces that use the node's Services.
pub trait NodeNamespaces: Send + Sync {
    /// Runs `f` in the node's own network namespace and in that of each of its pods, one after the other. A pod that goes
    /// meanwhile is left out.
    ///
    /// # Errors
    /// If the pods cannot be listed or a namespace not be entered.
    fn run_in_each(&self, f: &mut (dyn FnMut() + Send))
    -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// Backends that have left their sets, but still serve the clients they have.
pub(crate) type Draining = Arc<HashSet<SocketAddr>>;

/// UDP frontends that are new, and since when.
pub(crate) type NewFrontends = Mutex<HashMap<SocketAddr, Instant>>;

/// Sweeps whenever it is asked to, and once more when things have settled.
pub(crate) async fn sweep_loop(
    dataplane: Arc<Mutex<Box<dyn Dataplane>>>,
    namespaces: Arc<dyn NodeNamespaces>,
    new: Arc<NewFrontends>,
    mut requests: watch::Receiver<Draining>,
    token: CancellationToken,
) {
    let mut sweeper = Sweeper {
        namespaces,
        new,
        streams: HashSet::new(),
        missing: HashSet::new(),
    };
    let mut again = false;
    loop {
        let settled = async {
            if again {
                sleep(SETTLE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = token.cancelled() => return,
            changed = requests.changed() => match changed {
                Ok(()) => again = true,
                Err(_proxy_has_ended) => return,
            },
            () = settled => again = false,
        }
        let draining = Arc::clone(&requests.borrow_and_update());
        let dataplane = Arc::clone(&dataplane);
        let swept = spawn_blocking(move || {
            let result = sweeper.sweep(&dataplane, &draining);
            (sweeper, result)
        });
        let result;
        (sweeper, result) = match swept.await {
            Ok(swept) => swept,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_shutting_down) => return,
            },
        };
        if let Err(error) = result {
            tracing::warn!(error = %chain(&error), "ending sockets of backends that have gone");
        }
    }
}

/// Why a sweep failed.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Tables(#[from] DataplaneError),
    #[error("entering the pods' network namespaces")]
    Namespaces(#[source] Box<dyn Error + Send + Sync>),
    #[error("listing or ending sockets")]
    Sockets(#[source] io::Error),
}

struct Sweeper {
    namespaces: Arc<dyn NodeNamespaces>,
    /// Whose connected sockets, if there are any, are older than the Service.
    new: Arc<NewFrontends>,
    /// TCP sockets: a cookie stays one's, so nobody looks for them again.
    streams: HashSet<StalePeer>,
    /// Not found the last time. The socket may have been in the middle of `connect`.
    missing: HashSet<StalePeer>,
}

impl Sweeper {
    fn sweep(
        &mut self,
        dataplane: &Mutex<Box<dyn Dataplane>>,
        draining: &HashSet<SocketAddr>,
    ) -> Result<(), SweepError> {
        let begun = Instant::now();
        let stale = dataplane.lock().stale_peers(draining)?;
        let stale: HashSet<StalePeer> = stale.into_iter().collect();
        self.streams.retain(|peer| stale.contains(peer));
        let wanted: Vec<StalePeer> = stale.difference(&self.streams).copied().collect();
        let early = self.new_frontends(begun);
        if wanted.is_empty() && early.is_empty() {
            return Ok(());
        }
        let mut found = Ended::default();
        let mut failed = None;
        let mut in_one = || match end_sockets(&wanted, &early) {
            Ok(here) => {
                found.ended.extend(here.ended);
                found.alive.extend(here.alive);
                found.streams.extend(here.streams);
                found.early += here.early;
            }
            Err(error) => failed = Some(error),
        };
        self.namespaces
            .run_in_each(&mut in_one)
            .map_err(SweepError::Namespaces)?;
        if let Some(error) = failed {
            return Err(SweepError::Sockets(error));
        }
        if !found.ended.is_empty() || found.early > 0 {
            let (gone, early, took) = (found.ended.len(), found.early, begun.elapsed());
            tracing::info!(
                gone,
                early,
                ?took,
                "ended sockets of backends that have gone, and of Services that have come"
            );
        }
        let exist = found.ended.iter().chain(&found.alive);
        let exist: HashSet<&StalePeer> = exist.chain(&found.streams).collect();
        let missing = wanted.iter().filter(|peer| !exist.contains(peer));
        let missing: HashSet<StalePeer> = missing.copied().collect();
        let gone = missing.intersection(&self.missing).chain(&found.ended);
        dataplane
            .lock()
            .forget_peers(&gone.copied().collect::<Vec<_>>())?;
        self.streams.extend(&found.streams);
        self.missing = missing;
        Ok(())
    }

    /// Each is looked for until things have settled.
    fn new_frontends(&self, now: Instant) -> HashSet<SocketAddr> {
        let mut new = self.new.lock();
        let all = new.keys().copied().collect();
        new.retain(|_, since| now.duration_since(*since) < SETTLE);
        all
    }
}
