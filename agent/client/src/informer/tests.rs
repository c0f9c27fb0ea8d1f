use futures::channel::mpsc as channel;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};

use super::*;

fn object(namespace: &str, name: &str, version: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(version.to_owned()),
            labels: Some(BTreeMap::from([("v".to_owned(), version.to_owned())])),
            managed_fields: Some(vec![ManagedFieldsEntry::default()]),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

struct Fixture {
    feed: channel::UnboundedSender<watcher::Result<Event<ConfigMap>>>,
    informer: Informer<ConfigMap>,
    changes: mpsc::UnboundedReceiver<Change<ConfigMap>>,
    _tasks: JoinSet<()>,
}

fn fixture() -> Fixture {
    let (feed, events) = channel::unbounded();
    let mut tasks = JoinSet::new();
    let informer = Informer::builder()
        .index("version", |o: &ConfigMap| {
            o.metadata
                .labels
                .iter()
                .flat_map(|l| l.values().cloned())
                .collect()
        })
        .start_from(events, &mut tasks, &CancellationToken::new());
    let changes = informer.subscribe();
    Fixture {
        feed,
        informer,
        changes,
        _tasks: tasks,
    }
}

impl Fixture {
    fn send(&self, event: Event<ConfigMap>) {
        self.feed.unbounded_send(Ok(event)).unwrap();
    }

    async fn next(&mut self) -> String {
        match self.changes.recv().await.unwrap() {
            Change::Applied { old, new } => format!(
                "{} {}->{}",
                Key::of(&*new),
                old.and_then(|o| o.metadata.resource_version.clone())
                    .unwrap_or_default(),
                new.metadata.resource_version.clone().unwrap_or_default()
            ),
            Change::Deleted(last) => format!("{} gone", Key::of(&*last)),
        }
    }
}

#[tokio::test]
async fn follows_the_watch_and_tells_old_and_new() {
    let mut f = fixture();
    f.send(Event::Init);
    f.send(Event::InitApply(object("a", "x", "1")));
    f.send(Event::InitApply(object("b", "y", "2")));
    f.send(Event::InitDone);
    f.send(Event::Apply(object("a", "x", "3")));
    f.send(Event::Delete(object("b", "y", "4")));
    assert!(f.informer.synced().await);
    assert_eq!(f.next().await, "a/x ->1");
    assert_eq!(f.next().await, "b/y ->2");
    assert_eq!(f.next().await, "a/x 1->3");
    assert_eq!(f.next().await, "b/y gone");
    let left = f.informer.list();
    assert_eq!(left.len(), 1);
    assert!(
        left[0].metadata.managed_fields.is_none(),
        "managedFields cost memory"
    );
}

#[tokio::test]
async fn a_relist_tells_what_vanished_and_repeats_nothing() {
    let mut f = fixture();
    f.send(Event::Init);
    f.send(Event::InitApply(object("a", "x", "1")));
    f.send(Event::InitApply(object("a", "y", "2")));
    f.send(Event::InitDone);
    f.send(Event::Init);
    f.send(Event::InitApply(object("a", "y", "2")));
    f.send(Event::InitApply(object("a", "z", "5")));
    f.send(Event::InitDone);
    assert_eq!(f.next().await, "a/x ->1");
    assert_eq!(f.next().await, "a/y ->2");
    assert_eq!(f.next().await, "a/z ->5");
    assert_eq!(f.next().await, "a/x gone");
}

#[tokio::test]
async fn a_new_uid_under_the_same_name_is_a_deletion_first() {
    let mut f = fixture();
    f.send(Event::Apply(object("a", "x", "1")));
    let mut again = object("a", "x", "9");
    again.metadata.uid = Some("other".to_owned());
    f.send(Event::Apply(again));
    assert_eq!(f.next().await, "a/x ->1");
    assert_eq!(f.next().await, "a/x gone");
    assert_eq!(f.next().await, "a/x ->9");
}

#[tokio::test]
async fn namespaces_and_indexes_are_looked_up() {
    let mut f = fixture();
    for o in [
        object("a", "x", "1"),
        object("aa", "x", "1"),
        object("b", "z", "2"),
    ] {
        f.send(Event::Apply(o));
    }
    f.send(Event::Apply(object("a", "x", "2")));
    for _ in 0..4 {
        f.next().await;
    }
    assert_eq!(f.informer.in_namespace("a").len(), 1);
    assert_eq!(f.informer.in_namespace("c").len(), 0);
    let names = |value| -> Vec<String> {
        f.informer
            .by_index("version", value)
            .iter()
            .map(|o| Key::of(&**o).to_string())
            .collect()
    };
    assert_eq!(names("1"), ["aa/x"]);
    assert_eq!(names("2"), ["a/x", "b/z"]);
    assert!(f.informer.get(&Key::new("b", "z")).is_some());
}

#[tokio::test]
async fn a_late_handler_sees_what_is_there() {
    let mut f = fixture();
    f.send(Event::Apply(object("a", "x", "1")));
    f.next().await;
    let mut late = f.informer.subscribe();
    assert!(matches!(
        late.recv().await,
        Some(Change::Applied { old: None, .. })
    ));
}
