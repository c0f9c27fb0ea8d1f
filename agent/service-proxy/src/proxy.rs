//! The task: watches, plans, writes.

use std::{
    collections::{BTreeSet, HashSet},
    error::Error,
    net::IpAddr,
    ops::RangeInclusive,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use parking_lot::Mutex;
use skiff_ebpf_loader::{Counters, Frontend, NodeSettings, TableDiff};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clients::{Clients, clients_loop},
    dataplane::{Dataplane, DataplaneError},
    health::{Health, NodeListeners, health_loop},
    objects::{ServiceInfo, ServiceName, SliceInfo, zone_of},
    retry::Retry,
    sweep::{Draining, NewFrontends, NodeNamespaces, sweep_loop},
    tracker::Tracker,
    warn::NodeWarnings,
};

/// So many queued changes at most are applied as one.
const BATCH: usize = 4096;

/// What the proxy must know of its node.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The node's name: endpoints with it are local.
    pub node_name: String,
    /// The node's addresses, on which NodePorts answer. Loopback addresses need no entry.
    pub node_addresses: Vec<IpAddr>,
    /// The range of NodePorts.
    pub node_ports: RangeInclusive<u16>,
    /// [`skiff_ebpf_loader::netns_cookie`], called in the node's network namespace.
    pub node_netns_cookie: u64,
}

/// Why the proxy gave up.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A table of the dataplane could not be opened.
    #[error("opening the table of clients")]
    Clients(#[source] DataplaneError),
    /// The dataplane could not be told about the node.
    #[error("telling the datapath about the node")]
    Node(#[source] DataplaneError),
    /// A watch ended, which it never does.
    #[error("the watch of Services and EndpointSlices has ended")]
    WatchEnded,
}

/// What the proxy did so far.
#[derive(Clone, Debug, Default)]
pub struct ProxyCounters {
    /// Services with frontends.
    pub services: usize,
    /// Frontends that more than one Service claims.
    pub conflicts: usize,
    /// Changes applied.
    pub applied: u64,
    /// Sets published.
    pub sets_published: u64,
    /// Changes that failed and were tried again.
    pub failed: u64,
    /// How long the last change took, planning and writing.
    pub last_apply: Duration,
    /// How long the first complete one took.
    pub first_sync: Duration,
}

struct Shared {
    dataplane: Arc<Mutex<Box<dyn Dataplane>>>,
    /// Changes wait for processes.
    blocks: bool,
    counters: Mutex<ProxyCounters>,
    synced: watch::Sender<bool>,
    /// Asks for a sweep.
    sweep: watch::Sender<Draining>,
    /// What such a sweep is to look for besides.
    new_frontends: Arc<NewFrontends>,
    /// What load balancers are told.
    health: watch::Sender<Health>,
}

/// What a running proxy is asked for.
enum Request {
    /// Whose frontend is which.
    Owners(oneshot::Sender<Vec<(Frontend, ServiceName)>>),
    /// An Event about the node: reason and message.
    Warn(&'static str, String),
}

/// Asks a running proxy.
#[derive(Clone)]
pub struct ProxyHandle {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
}

impl std::fmt::Debug for ProxyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyHandle")
            .field("synced", &self.is_synced())
            .finish_non_exhaustive()
    }
}

impl ProxyHandle {
    /// Whether the tables have been what the API wanted once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits for [`Self::is_synced`].
    pub async fn synced(&self) {
        let mut receiver = self.shared.synced.subscribe();
        // The sender lives as long as this handle: it cannot fail.
        drop(receiver.wait_for(|synced| *synced).await);
    }

    /// What the proxy did so far.
    #[must_use]
    pub fn counters(&self) -> ProxyCounters {
        self.shared.counters.lock().clone()
    }

    /// Whose frontend is which. Empty if the proxy has ended.
    pub async fn owners(&self) -> Vec<(Frontend, ServiceName)> {
        let (ask, answer) = oneshot::channel();
        if self.requests.send(Request::Owners(ask)).is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Has an Event written about the node.
    pub fn warn(&self, reason: &'static str, message: String) {
        // A proxy that has ended writes none.
        drop(self.requests.send(Request::Warn(reason, message)));
    }

    /// The kernel's counters; none if the dataplane has none. Waits while a change is written.
    ///
    /// # Errors
    /// [`DataplaneError`] if they cannot be read.
    pub fn kernel_counters(&self) -> Result<Option<Counters>, DataplaneError> {
        self.shared.dataplane.lock().counters()
    }
}

/// The Service proxy of one node.
pub struct ServiceProxy {
    client: Client,
    config: ProxyConfig,
    tracker: Tracker,
    services: Listing<ServiceName>,
    slices: Listing<(String, String)>,
    node: Listing<()>,
    namespaces: Option<Arc<dyn NodeNamespaces>>,
    clients: Option<Arc<Clients>>,
    listeners: Option<Arc<dyn NodeListeners>>,
    shared: Arc<Shared>,
    requests: (
        mpsc::UnboundedSender<Request>,
        mpsc::UnboundedReceiver<Request>,
    ),
}

impl std::fmt::Debug for ServiceProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceProxy")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Which objects a list in progress has named.
struct Listing<K> {
    seen: HashSet<K>,
    complete: bool,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self {
            seen: HashSet::new(),
            complete: false,
        }
    }
}

/// Events with what is needed of their objects: the objects themselves are large and dropped at once.
enum Change {
    Service(Event<(ServiceName, Option<ServiceInfo>)>),
    Slice(Event<((String, String), Option<SliceInfo>)>),
    /// Our node's zone.
    Node(Event<Option<String>>),
    Failed(watcher::Error),
}

impl ServiceProxy {
    /// Ready to [`Self::run`].
    #[must_use]
    pub fn new(client: Client, config: ProxyConfig, dataplane: impl Dataplane + 'static) -> Self {
        let shared = Arc::new(Shared {
            blocks: dataplane.blocks(),
            dataplane: Arc::new(Mutex::new(Box::new(dataplane))),
            counters: Mutex::default(),
            synced: watch::Sender::new(false),
            sweep: watch::Sender::default(),
            new_frontends: Arc::default(),
            health: watch::Sender::default(),
        });
        let (services, slices) = (Listing::default(), Listing::default());
        Self {
            client,
            config,
            tracker: Tracker::default(),
            services,
            slices,
            node: Listing::default(),
            namespaces: None,
            clients: None,
            listeners: None,
            shared,
            requests: mpsc::unbounded_channel(),
        }
    }

    /// Ends sockets there whose backend leaves its Service, and finds out their addresses. Otherwise they go on to talk to it,
    /// and no load balancer with source ranges serves them.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: Arc<dyn NodeNamespaces>) -> Self {
        self.namespaces = Some(namespaces);
        self
    }

    /// Tells load balancers there whether this node has endpoints of their Services (`healthCheckNodePort`).
    #[must_use]
    pub fn with_listeners(mut self, listeners: Arc<dyn NodeListeners>) -> Self {
        self.listeners = Some(listeners);
        self
    }

    /// To ask it while it runs.
    #[must_use]
    pub fn handle(&self) -> ProxyHandle {
        ProxyHandle {
            shared: Arc::clone(&self.shared),
            requests: self.requests.0.clone(),
        }
    }

    /// Runs until `token` is cancelled. The tables stay as they are then.
    ///
    /// # Errors
    /// [`ProxyError`] if the node cannot be made known to the programs.
    pub async fn run(mut self, token: CancellationToken) -> Result<(), ProxyError> {
        let node = NodeSettings {
            node_ports: self.config.node_ports.clone(),
            addresses: self.config.node_addresses.clone(),
            netns_cookie: self.config.node_netns_cookie,
        };
        self.shared
            .dataplane
            .lock()
            .set_node(&node)
            .map_err(ProxyError::Node)?;
        if let Some(namespaces) = self.namespaces.take() {
            let dataplane = Arc::clone(&self.shared.dataplane);
            let table = dataplane.lock().clients().map_err(ProxyError::Clients)?;
            if let Some(table) = table {
                let clients = Arc::new(Clients::new(table, Arc::clone(&namespaces)));
                tokio::spawn(clients_loop(Arc::clone(&clients), token.clone()));
                self.clients = Some(clients);
            }
            let requests = self.shared.sweep.subscribe();
            let new = Arc::clone(&self.shared.new_frontends);
            tokio::spawn(sweep_loop(
                dataplane,
                namespaces,
                new,
                requests,
                token.clone(),
            ));
        }
        if let Some(listeners) = self.listeners.take() {
            let health = self.shared.health.subscribe();
            tokio::spawn(health_loop(listeners, health, token.clone()));
        }
        let mut tasks = JoinSet::new();
        let warnings = NodeWarnings::start(
            self.client.clone(),
            "skiff-service-proxy",
            &self.config.node_name,
            &mut tasks,
            &token,
        );
        let mut changes = pin!(changes(self.client.clone(), self.config.node_name.clone()));
        let mut retry = Retry::new();
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                () = retry.due() => {}
                Some(request) = self.requests.1.recv() => {
                    match request {
                        // Whoever asked may be gone.
                        Request::Owners(answer) => drop(answer.send(self.tracker.owners())),
                        Request::Warn(reason, message) => warnings.warn(reason, message),
                    }
                    continue;
                }
                change = changes.next() => self.take(change.ok_or(ProxyError::WatchEnded)?),
            }
            for _ in 0..BATCH {
                let Some(Some(change)) = changes.next().now_or_never() else {
                    break;
                };
                self.take(change);
            }
            let complete = self.services.complete && self.slices.complete && self.node.complete;
            if !complete || retry.is_waiting() {
                continue;
            }
            let result = self.apply(retry.full()).await;
            if let Err(error) = &result {
                tracing::warn!(error = %chain(error), "writing Services; trying again");
                warnings.table_full(error, || self.unserved());
            }
            retry.note(result.is_ok());
        }
    }

    /// Notes a change; nothing is written yet.
    fn take(&mut self, change: Change) {
        match change {
            Change::Failed(error) => {
                tracing::warn!(error = %chain(&error), "watching Services; trying again");
            }
            Change::Service(Event::Init) => self.services.seen.clear(),
            Change::Service(Event::InitApply((name, info))) => {
                self.services.seen.insert(name.clone());
                self.tracker.set_service(name, info);
            }
            Change::Service(Event::Apply((name, info))) => self.tracker.set_service(name, info),
            Change::Service(Event::Delete((name, _))) => self.tracker.set_service(name, None),
            Change::Service(Event::InitDone) => {
                self.tracker
                    .retain_services(&std::mem::take(&mut self.services.seen));
                self.services.complete = true;
            }
            Change::Slice(Event::Init) => self.slices.seen.clear(),
            Change::Slice(Event::InitApply((key, info))) => {
                self.tracker.set_slice(&key.0, &key.1, info);
                self.slices.seen.insert(key);
            }
            Change::Slice(Event::Apply((key, info))) => {
                self.tracker.set_slice(&key.0, &key.1, info);
            }
            Change::Slice(Event::Delete((key, _))) => self.tracker.set_slice(&key.0, &key.1, None),
            Change::Slice(Event::InitDone) => {
                self.tracker
                    .retain_slices(&std::mem::take(&mut self.slices.seen));
                self.slices.complete = true;
            }
            Change::Node(Event::Init) => self.node.seen.clear(),
            Change::Node(Event::InitApply(zone)) => {
                self.node.seen.insert(());
                self.tracker.set_zone(zone);
            }
            Change::Node(Event::Apply(zone)) => self.tracker.set_zone(zone),
            Change::Node(Event::Delete(_)) => self.tracker.set_zone(None),
            Change::Node(Event::InitDone) => {
                if self.node.seen.is_empty() {
                    self.tracker.set_zone(None);
                }
                self.node.complete = true;
            }
        }
    }

    /// The Services of which a frontend is in no table.
    fn unserved(&self) -> Vec<ServiceName> {
        let dataplane = self.shared.dataplane.lock();
        let owners = self.tracker.owners().into_iter();
        let missing = owners.filter(|(frontend, _)| dataplane.view().frontend(frontend).is_none());
        let names: BTreeSet<ServiceName> = missing.map(|(_, name)| name).collect();
        names.into_iter().collect()
    }

    /// Writes what has changed. If it fails it must be done again, in full.
    async fn apply(&mut self, full: bool) -> Result<(), DataplaneError> {
        if !full && !self.tracker.is_dirty() {
            return Ok(());
        }
        let begun = Instant::now();
        let (diff, takes_away, new) = {
            let dataplane = self.shared.dataplane.lock();
            let diff = if full {
                self.tracker.full_diff(dataplane.view())
            } else {
                self.tracker.diff(dataplane.view())
            };
            let takes_away = dataplane.takes_away(&diff);
            let new = dataplane.new_frontends(&diff);
            (diff, takes_away, new)
        };
        if let Some(clients) = &self.clients
            && diff.upsert.iter().any(|(_, spec)| spec.sources.is_some())
        {
            clients.refresh().await;
        }
        let draining = self.tracker.draining();
        let sweep =
            full || takes_away || !new.is_empty() || draining != **self.shared.sweep.borrow();
        // Also if it is empty: the first one puts newly built tables in force.
        let (diff, result) = write(&self.shared, diff).await;
        self.shared
            .health
            .send_if_modified(|health| health.update(self.tracker.health_checks(), result.is_ok()));
        let mut counters = self.shared.counters.lock();
        counters.services = self.tracker.services();
        counters.conflicts = self.tracker.conflicts();
        counters.last_apply = begun.elapsed();
        if result.is_err() {
            counters.failed += 1;
            return result;
        }
        if sweep {
            let since = Instant::now();
            let new = new.into_iter().map(|frontend| (frontend, since));
            self.shared.new_frontends.lock().extend(new);
            self.shared.sweep.send_replace(Arc::new(draining));
        }
        counters.applied += 1;
        counters.sets_published += diff.publish.len() as u64;
        if !self.shared.synced.send_replace(true) {
            counters.first_sync = counters.last_apply;
            let services = counters.services;
            tracing::info!(services, changed = diff.upsert.len(), "Services programmed");
        }
        Ok(())
    }
}

/// Applies a change, off the runtime's threads if it takes long.
async fn write(shared: &Arc<Shared>, diff: TableDiff) -> (TableDiff, Result<(), DataplaneError>) {
    let apply = {
        let shared = Arc::clone(shared);
        move || {
            let result = shared.dataplane.lock().apply(&diff);
            (diff, result)
        }
    };
    if !shared.blocks {
        return apply();
    }
    match tokio::task::spawn_blocking(apply).await {
        Ok(done) => done,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

fn changes(client: Client, node: String) -> impl Stream<Item = Change> {
    let config = watcher::Config::default;
    let services = watcher(Api::<Service>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), config()).default_backoff();
    let ours = config().fields(&format!("metadata.name={node}"));
    let nodes = watcher(Api::<Node>::all(client), ours).default_backoff();
    let service = |service: Service| {
        let info = ServiceInfo::of(&service);
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        (ServiceName::new(namespace, &service.name_any()), info)
    };
    let slice = move |slice: EndpointSlice| {
        let info = SliceInfo::of(&slice, &node);
        (
            (slice.namespace().unwrap_or_default(), slice.name_any()),
            info,
        )
    };
    let nodes = nodes.map(|result| match result {
        Ok(event) => Change::Node(map_event(event, |node| zone_of(&node))),
        Err(error) => Change::Failed(error),
    });
    let objects = stream::select(
        services.map(move |result| match result {
            Ok(event) => Change::Service(map_event(event, service)),
            Err(error) => Change::Failed(error),
        }),
        slices.map(move |result| match result {
            Ok(event) => Change::Slice(map_event(event, &slice)),
            Err(error) => Change::Failed(error),
        }),
    );
    stream::select(objects, nodes)
}

pub(crate) fn map_event<K, T>(event: Event<K>, f: impl FnOnce(K) -> T) -> Event<T> {
    match event {
        Event::Apply(object) => Event::Apply(f(object)),
        Event::Delete(object) => Event::Delete(f(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(f(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// An error with all its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
