//! Informers: an in-memory copy of one collection, and who wants to know of its changes.
//!
//! The list and the watch are [`kube::runtime::watcher`]'s. The store is ours because it must also
//! tell what vanished during a re-list, hand out the previous state, and serve look-ups by
//! namespace and by index without walking everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug};
use std::ops::Bound;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_collection};
use kube::{Api, Resource};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Namespace and name of an object; the namespace is empty for cluster-scoped ones.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Key {
        let meta = object.meta();
        Key {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change of the collection, told after the store has it.
#[derive(Debug)]
pub enum Change<K> {
    /// The object is new or differs from before.
    Applied {
        /// What the store held until now.
        old: Option<Arc<K>>,
        /// What it holds now.
        new: Arc<K>,
    },
    /// The object is gone; this is its last known state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest known state of the object.
    #[must_use]
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        }
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Change::Applied { old, new } => Change::Applied {
                old: old.clone(),
                new: Arc::clone(new),
            },
            Change::Deleted(last) => Change::Deleted(Arc::clone(last)),
        }
    }
}

type IndexFn<K> = Arc<dyn Fn(&K) -> Vec<String> + Send + Sync>;
type Handler<K> = Arc<dyn Fn(&Change<K>) + Send + Sync>;
type Transform<K> = Box<dyn Fn(&mut K) + Send>;

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

struct Store<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

impl<K: Resource> Store<K> {
    fn insert(&mut self, key: &Key, object: &Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), Arc::clone(object));
        for index in self.indexes.values_mut() {
            let new_values = (index.values)(object);
            if let Some(old) = &old {
                let old_values = (index.values)(old);
                if old_values == new_values {
                    continue;
                }
                unindex(index, key, old_values);
            }
            for value in new_values {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in self.indexes.values_mut() {
            let values = (index.values)(&old);
            unindex(index, key, values);
        }
        Some(old)
    }
}

fn unindex<K>(index: &mut Index<K>, key: &Key, values: Vec<String>) {
    for value in values {
        if let Some(keys) = index.keys.get_mut(&value) {
            keys.remove(key);
            if keys.is_empty() {
                index.keys.remove(&value);
            }
        }
    }
}

struct Shared<K> {
    store: RwLock<Store<K>>,
    /// Held while a change is stored and told, so that a handler added meanwhile misses nothing.
    handlers: Mutex<Vec<Handler<K>>>,
}

/// Reads one collection; cheap to clone. The task that feeds it lives in the `JoinSet` it was
/// started with.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    synced: watch::Receiver<bool>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer {
            shared: Arc::clone(&self.shared),
            synced: self.synced.clone(),
        }
    }
}

impl<K> Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer")
            .field("synced", &*self.synced.borrow())
            .finish_non_exhaustive()
    }
}

/// What an informer is to do, before it is started.
pub struct InformerBuilder<K> {
    config: watcher::Config,
    transform: Option<Transform<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

impl<K> Debug for InformerBuilder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InformerBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<K> Default for InformerBuilder<K> {
    fn default() -> Self {
        InformerBuilder {
            config: watcher::Config::default(),
            transform: None,
            indexes: HashMap::new(),
        }
    }
}

impl<K> InformerBuilder<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Selectors, page size and list semantic of the watch.
    #[must_use]
    pub fn config(mut self, config: watcher::Config) -> Self {
        self.config = config;
        self
    }

    /// Drops what nobody reads before an object is stored. `managedFields` always go.
    #[must_use]
    pub fn transform(mut self, transform: impl Fn(&mut K) + Send + 'static) -> Self {
        self.transform = Some(Box::new(transform));
        self
    }

    /// An index that [`Informer::by_index`] can ask: the values under which an object is found.
    #[must_use]
    pub fn index(
        mut self,
        name: &'static str,
        values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.indexes.insert(
            name,
            Index {
                values: Arc::new(values),
                keys: HashMap::new(),
            },
        );
        self
    }

    /// Starts the list and watch; it ends when `token` is cancelled.
    pub fn start(
        self,
        api: Api<K>,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Informer<K> {
        let events = watch_collection(api, self.config.clone());
        self.start_from(events, tasks, token)
    }

    /// Like [`start`](Self::start) with watch events from elsewhere, such as
    /// [`kube::runtime::metadata_watcher`].
    pub fn start_from<S>(
        self,
        events: S,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Informer<K>
    where
        S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            store: RwLock::new(Store {
                objects: BTreeMap::new(),
                indexes: self.indexes,
            }),
            handlers: Mutex::new(Vec::new()),
        });
        let (synced_tx, synced) = watch::channel(false);
        let feed = Feed {
            shared: Arc::clone(&shared),
            synced: synced_tx,
            transform: self.transform,
            relist: None,
        };
        tasks.spawn(feed.run(events, token.clone()));
        Informer { shared, synced }
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Options first, then [`InformerBuilder::start`].
    #[must_use]
    pub fn builder() -> InformerBuilder<K> {
        InformerBuilder::default()
    }

    /// Starts an informer without indexes.
    pub fn start(
        api: Api<K>,
        config: watcher::Config,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Informer<K> {
        Self::builder().config(config).start(api, tasks, token)
    }
}

impl<K> Informer<K> {
    /// Resolves once the first list is in the store; `false` when the informer stopped before.
    pub async fn synced(&self) -> bool {
        self.synced.clone().wait_for(|done| *done).await.is_ok()
    }

    /// Whether the first list is in the store.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Calls `handler` for every object that is there and for each later change, on the informer's
    /// task and in order. It must not block: it adds a key to a queue.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.list() {
            handler(&Change::Applied {
                old: None,
                new: object,
            });
        }
        handlers.push(Arc::new(handler));
    }

    /// The same changes as a stream.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>>
    where
        K: Send + Sync + 'static,
    {
        let (tx, rx) = mpsc::unbounded_channel();
        self.on_change(move |change| {
            // A receiver that was dropped has lost interest.
            drop(tx.send(change.clone()));
        });
        rx
    }

    /// The object of that key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.shared.store.read().objects.get(key).map(Arc::clone)
    }

    /// Everything, ordered by namespace and name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared
            .store
            .read()
            .objects
            .values()
            .map(Arc::clone)
            .collect()
    }

    /// Everything in one namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        let store = self.shared.store.read();
        store
            .objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// The objects that the index lists under `value`; empty too when there is no such index.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let store = self.shared.store.read();
        let Some(keys) = store.indexes.get(index).and_then(|i| i.keys.get(value)) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| store.objects.get(key))
            .map(Arc::clone)
            .collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.store.read().objects.len()
    }

    /// Whether the collection is empty (or not listed yet).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The task's side.
struct Feed<K> {
    shared: Arc<Shared<K>>,
    synced: watch::Sender<bool>,
    transform: Option<Transform<K>>,
    /// Keys seen in the list that is under way.
    relist: Option<BTreeSet<Key>>,
}

impl<K> Feed<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    async fn run<S>(mut self, events: S, token: CancellationToken)
    where
        S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    {
        let mut events = pin!(events.backoff(WatchBackoff::default()));
        loop {
            let event = tokio::select! {
                () = token.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => self.apply(event),
                Some(Err(error)) => {
                    let kind = std::any::type_name::<K>();
                    tracing::warn!(kind, error = %crate::chain(&error), "watch failed");
                }
                None => return,
            }
        }
    }

    fn apply(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.relist = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                let key = self.upsert(object);
                if let Some(seen) = &mut self.relist {
                    seen.insert(key);
                }
            }
            Event::InitDone => {
                self.drop_unlisted();
                self.synced.send_replace(true);
            }
            Event::Apply(object) => {
                self.upsert(object);
            }
            Event::Delete(mut object) => {
                self.shrink(&mut object);
                let key = Key::of(&object);
                let handlers = self.shared.handlers.lock();
                if self.shared.store.write().remove(&key).is_some() {
                    tell(&handlers, &Change::Deleted(Arc::new(object)));
                }
            }
        }
    }

    fn shrink(&self, object: &mut K) {
        object.meta_mut().managed_fields = None;
        if let Some(transform) = &self.transform {
            transform(object);
        }
    }

    fn upsert(&self, mut object: K) -> Key {
        self.shrink(&mut object);
        let key = Key::of(&object);
        let new = Arc::new(object);
        let handlers = self.shared.handlers.lock();
        let old = self.shared.store.write().insert(&key, &new);
        match old {
            Some(old) if old.meta().uid != new.meta().uid => {
                // Deleted and created anew while nobody looked: two different objects.
                tell(&handlers, &Change::Deleted(old));
                tell(&handlers, &Change::Applied { old: None, new });
            }
            Some(old)
                if old.meta().resource_version.is_some()
                    && old.meta().resource_version == new.meta().resource_version => {}
            old => tell(&handlers, &Change::Applied { old, new }),
        }
        key
    }

    fn drop_unlisted(&mut self) {
        let Some(seen) = self.relist.take() else {
            return;
        };
        let handlers = self.shared.handlers.lock();
        let gone: Vec<Key> = {
            let store = self.shared.store.read();
            store
                .objects
                .keys()
                .filter(|key| !seen.contains(*key))
                .cloned()
                .collect()
        };
        for key in gone {
            let old = self.shared.store.write().remove(&key);
            if let Some(old) = old {
                tell(&handlers, &Change::Deleted(old));
            }
        }
    }
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    for handler in handlers {
        handler(change);
    }
}

/// 20 ms doubling to 10 s. kube's default starts at 800 ms, which suits a server far away; ours is
/// mostly in the same process and its watches end on each compaction.
#[derive(Debug, Default)]
struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = Duration::from_millis(20 << self.failures.min(9)).min(Duration::from_secs(10));
        self.failures = self.failures.saturating_add(1);
        Some(delay)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests;
