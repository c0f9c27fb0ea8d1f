//! The task: watches, plans, writes, and lets new pods of the node in.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::mpsc as blocking,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, ObjectReference, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use skiff_client::{chain, object_reference};
use skiff_ebpf_loader::{DatapathError, Policies};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Key, Labels, PodInfo, PolicyInfo, Tracker};
use crate::{retry::Retry, warn::NodeWarnings};

/// So many queued changes at most are applied as one.
const BATCH: usize = 4096;

/// What the agent must know of its node.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// The node's name, for Events.
    pub node_name: String,
    /// Where the node serves the cluster's DNS, if it does.
    pub dns: Option<SocketAddr>,
}

/// Why the agent gave up.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A watch ended, which it never does.
    #[error("the watch of NetworkPolicies, Namespaces and Pods has ended")]
    WatchEnded,
}

/// A pod of the node that is closed until its policies are in the tables.
#[derive(Debug)]
struct Started {
    uid: String,
    ifindex: u32,
    addrs: Vec<IpAddr>,
    done: blocking::Sender<()>,
}

#[derive(Debug)]
enum Request {
    Ready(blocking::Sender<()>),
    Started(Started),
    Stopped(u32),
    Unsupported,
}

/// Speaks to a [`PolicyAgent`]. Blocking: for threads that may wait.
#[derive(Clone, Debug)]
pub struct PolicyHandle {
    requests: mpsc::UnboundedSender<Request>,
}

impl PolicyHandle {
    /// Waits until the tables are what the API wants; false if that takes too long.
    #[must_use]
    pub fn wait_ready(&self, patience: Duration) -> bool {
        let (done, wait) = blocking::channel();
        self.requests.send(Request::Ready(done)).is_ok() && wait.recv_timeout(patience).is_ok()
    }

    /// A pod has started at a link, with these addresses; waits until its policies are in force. False if that takes too
    /// long: they will be later, and until then the pod is closed.
    #[must_use]
    pub fn started(&self, uid: &str, ifindex: u32, addrs: &[IpAddr], patience: Duration) -> bool {
        let (done, wait) = blocking::channel();
        let started = Started {
            uid: uid.to_owned(),
            ifindex,
            addrs: addrs.to_vec(),
            done,
        };
        self.requests.send(Request::Started(started)).is_ok() && wait.recv_timeout(patience).is_ok()
    }

    /// The pod at a link has gone.
    pub fn stopped(&self, ifindex: u32) {
        drop(self.requests.send(Request::Stopped(ifindex)));
    }

    /// The kernel has no programs at links: every policy gets an Event that says so.
    pub fn unsupported(&self) {
        drop(self.requests.send(Request::Unsupported));
    }
}

/// Keeps a node's tables of policies as the API wants them.
pub struct PolicyAgent {
    client: Client,
    config: PolicyConfig,
    tracker: Tracker,
    policies: Policies,
    lists: [Listing; 3],
    requests: mpsc::UnboundedReceiver<Request>,
    handle: PolicyHandle,
    ready: Vec<blocking::Sender<()>>,
    started: HashMap<u32, Started>,
    is_unsupported: bool,
    references: HashMap<Key, ObjectReference>,
}

impl std::fmt::Debug for PolicyAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyAgent")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Which objects a list in progress has named.
#[derive(Default)]
struct Listing {
    seen: HashSet<Key>,
    complete: bool,
}

#[derive(Clone, Copy)]
enum Collection {
    Policies,
    Namespaces,
    Pods,
}

/// What is needed of an object.
enum Info {
    Policy(PolicyInfo, ObjectReference),
    Namespace(Labels),
    Pod(Option<PodInfo>),
}

enum Change {
    Of(Collection, Event<(Key, Box<Info>)>),
    Failed(watcher::Error),
}

impl PolicyAgent {
    /// Ready to [`Self::run`].
    #[must_use]
    pub fn new(client: Client, config: PolicyConfig, policies: Policies) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        Self {
            client,
            tracker: Tracker::new(config.dns),
            config,
            policies,
            lists: Default::default(),
            requests,
            handle: PolicyHandle { requests: sender },
            ready: Vec::new(),
            started: HashMap::new(),
            is_unsupported: false,
            references: HashMap::new(),
        }
    }

    /// To speak to it while it runs.
    #[must_use]
    pub fn handle(&self) -> PolicyHandle {
        self.handle.clone()
    }

    /// Runs until `token` is cancelled. The tables stay as they are then.
    ///
    /// # Errors
    /// [`PolicyError`]
    pub async fn run(mut self, token: CancellationToken) -> Result<(), PolicyError> {
        let mut tasks = JoinSet::new();
        let warnings = NodeWarnings::start(
            self.client.clone(),
            "skiff-network-policy",
            &self.config.node_name,
            &mut tasks,
            &token,
        );
        let mut changes = pin!(changes(&self.client));
        let mut retry = Retry::new();
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                () = retry.due() => {}
                Some(request) = self.requests.recv() => self.take_request(request),
                change = changes.next() => self.take(change.ok_or(PolicyError::WatchEnded)?),
            }
            for _ in 0..BATCH {
                let Some(Some(change)) = changes.next().now_or_never() else {
                    break;
                };
                self.take(change);
            }
            self.tell_unsupported(&warnings);
            if !self.lists.iter().all(|list| list.complete) || retry.is_waiting() {
                continue;
            }
            let result = self.apply(retry.full());
            if let Err(error) = &result {
                tracing::warn!(error = %chain(error), "writing policies; trying again");
                warnings.table_full(error, Vec::new);
            }
            retry.note(result.is_ok());
        }
    }

    fn take_request(&mut self, request: Request) {
        match request {
            Request::Ready(done) => self.ready.push(done),
            Request::Started(started) => {
                self.started.insert(started.ifindex, started);
            }
            Request::Stopped(ifindex) => {
                self.started.remove(&ifindex);
            }
            Request::Unsupported => self.is_unsupported = true,
        }
    }

    /// Notes a change; nothing is written yet.
    fn take(&mut self, change: Change) {
        let (collection, event) = match change {
            Change::Of(collection, event) => (collection, event),
            Change::Failed(error) => {
                tracing::warn!(error = %chain(&error), "watching for policies; trying again");
                return;
            }
        };
        let [policies, namespaces, pods] = &mut self.lists;
        let list = match collection {
            Collection::Policies => policies,
            Collection::Namespaces => namespaces,
            Collection::Pods => pods,
        };
        match event {
            Event::Init => list.seen.clear(),
            Event::InitApply((key, info)) => {
                list.seen.insert(key.clone());
                self.set(key, *info);
            }
            Event::Apply((key, info)) => self.set(key, *info),
            Event::Delete((key, _)) => match collection {
                Collection::Policies => {
                    self.references.remove(&key);
                    self.tracker.set_policy(key, None);
                }
                Collection::Namespaces => self.tracker.set_namespace(&key.1, None),
                Collection::Pods => self.tracker.set_pod(key, None),
            },
            Event::InitDone => {
                list.complete = true;
                let seen = std::mem::take(&mut list.seen);
                match collection {
                    Collection::Policies => {
                        self.references.retain(|key, _| seen.contains(key));
                        self.tracker.retain_policies(&seen);
                    }
                    Collection::Namespaces => self.tracker.retain_namespaces(&seen),
                    Collection::Pods => self.tracker.retain_pods(&seen),
                }
            }
        }
    }

    fn set(&mut self, key: Key, info: Info) {
        match info {
            Info::Policy(policy, reference) => {
                self.references.insert(key.clone(), reference);
                self.tracker.set_policy(key, Some(policy));
            }
            Info::Namespace(labels) => self.tracker.set_namespace(&key.1, Some(labels)),
            Info::Pod(pod) => self.tracker.set_pod(key, pod),
        }
    }

    /// Writes what has changed, and lets in the pods whose policies are in the tables now.
    fn apply(&mut self, full: bool) -> Result<(), DatapathError> {
        let mut known = Vec::new();
        for started in self.started.values_mut() {
            let addrs = std::mem::take(&mut started.addrs);
            if self.tracker.set_local(&started.uid, addrs.clone()) {
                known.push(started.ifindex);
            }
            started.addrs = addrs;
        }
        if full || self.tracker.is_dirty() {
            let begun = Instant::now();
            let change = if full {
                self.tracker.full_change(self.policies.tables())
            } else {
                self.tracker.change()
            };
            self.policies.apply(&change)?;
            if full || !change.is_empty() {
                tracing::debug!(
                    policies = self.tracker.policies(),
                    identities = change.ids.len(),
                    added = change.add.len(),
                    removed = change.remove.len(),
                    took = ?begun.elapsed(),
                    "policies programmed"
                );
            }
        }
        for ifindex in known {
            self.policies.admit(ifindex)?;
            if let Some(started) = self.started.remove(&ifindex) {
                // Whoever asked may have lost patience.
                started.done.send(()).ok();
            }
        }
        for ready in self.ready.drain(..) {
            ready.send(()).ok();
        }
        Ok(())
    }

    fn tell_unsupported(&mut self, warnings: &NodeWarnings) {
        if !self.is_unsupported {
            return;
        }
        for (_, policy) in self.references.drain() {
            warnings.record(
                policy,
                "NotEnforced",
                format!(
                    "node {} does not enforce NetworkPolicies: its kernel is older than Linux 6.6",
                    self.config.node_name
                ),
            );
        }
    }
}

fn changes(client: &Client) -> impl Stream<Item = Change> + use<> {
    let client = || client.clone();
    let policies = watch(client(), Collection::Policies, |policy: NetworkPolicy| {
        Info::Policy(PolicyInfo::of(&policy), object_reference(&policy))
    });
    let namespaces = watch(client(), Collection::Namespaces, |namespace: Namespace| {
        Info::Namespace(namespace.metadata.labels.unwrap_or_default())
    });
    let pods = watch(client(), Collection::Pods, |pod: Pod| {
        Info::Pod(PodInfo::of(&pod))
    });
    stream::select(policies, stream::select(namespaces, pods))
}

fn watch<K>(
    client: Client,
    collection: Collection,
    info: impl Fn(K) -> Info,
) -> impl Stream<Item = Change>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let api = Api::<K>::all(client);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    events.map(move |result| match result {
        Ok(event) => Change::Of(
            collection,
            crate::proxy::map_event(event, |object: K| {
                let namespace = object.namespace().unwrap_or_default();
                let key = (namespace.into(), object.name_any().into());
                (key, Box::new(info(object)))
            }),
        ),
        Err(error) => Change::Failed(error),
    })
}
