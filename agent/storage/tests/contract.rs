//! What every store must do. One suite, run against each backend.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]
#![allow(missing_docs, reason = "tests document themselves by name")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "cases are functions that tests call"
)]

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use skiff_storage::{
    Change, Op, Precondition, Revision, StorageError, Store, Txn, TxnOutcome, Watch,
    memory::MemoryStore, redb::RedbStore,
};

/// A store with whatever must outlive it.
struct Fixture {
    store: Arc<dyn Store>,
    _dir: Option<tempfile::TempDir>,
}

fn memory() -> Fixture {
    Fixture {
        store: Arc::new(MemoryStore::new()),
        _dir: None,
    }
}

fn redb() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
    Fixture {
        store: Arc::new(store),
        _dir: Some(dir),
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    }
}

fn delete(key: &str) -> Op {
    Op::Delete {
        key: key.to_owned(),
    }
}

async fn commit(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match store
        .txn(Txn {
            preconditions: Vec::new(),
            ops,
        })
        .await
        .unwrap()
    {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(current) => panic!("conflict with {current:?}"),
    }
}

async fn next(watch: &mut Watch) -> Arc<[Change]> {
    within(watch.next()).await.expect("the watch has ended")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("nothing came in 20 s")
}

fn shown(changes: &[Change]) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    changes
        .iter()
        .map(|c| {
            (
                c.revision.0,
                c.key.clone(),
                c.current.as_ref().map(|kv| text(&kv.value)),
            )
        })
        .collect()
}

async fn a_written_value_is_read_back_with_its_revisions(store: &dyn Store) {
    let first = commit(store, vec![put("/a", "1")]).await;
    let second = commit(store, vec![put("/a", "2")]).await;
    assert!(second > first);
    let (kv, revision) = store.get("/a").await.unwrap();
    let kv = kv.unwrap();
    assert_eq!(
        (kv.value.as_ref(), kv.create_revision, kv.mod_revision),
        (&b"2"[..], first, second)
    );
    assert_eq!(revision, second);
    assert_eq!(store.current_revision(), second);
    assert_eq!(store.get("/b").await.unwrap().0, None);
}

async fn a_key_created_again_has_a_new_create_revision(store: &dyn Store) {
    commit(store, vec![put("/a", "1")]).await;
    commit(store, vec![delete("/a")]).await;
    let again = commit(store, vec![put("/a", "2")]).await;
    assert_eq!(
        store.get("/a").await.unwrap().0.unwrap().create_revision,
        again
    );
}

async fn a_failed_precondition_changes_nothing_and_shows_the_value(store: &dyn Store) {
    let revision = commit(store, vec![put("/a", "1")]).await;
    let cases = [
        Precondition::Absent("/a".to_owned()),
        Precondition::Unchanged("/a".to_owned(), Revision(revision.0 + 1)),
    ];
    for precondition in cases {
        let txn = Txn {
            preconditions: vec![precondition],
            ops: vec![put("/a", "2"), put("/b", "2")],
        };
        match store.txn(txn).await.unwrap() {
            TxnOutcome::Conflict(Some(kv)) => assert_eq!(kv.value.as_ref(), b"1"),
            outcome => panic!("{outcome:?}"),
        }
    }
    let txn = Txn {
        preconditions: vec![Precondition::Unchanged("/none".to_owned(), revision)],
        ops: vec![put("/b", "2")],
    };
    assert_eq!(store.txn(txn).await.unwrap(), TxnOutcome::Conflict(None));
    assert_eq!(store.get("/b").await.unwrap(), (None, revision));
}

async fn a_transaction_that_changes_nothing_takes_no_revision(store: &dyn Store) {
    let revision = commit(store, vec![put("/a", "1")]).await;
    assert_eq!(commit(store, vec![delete("/none")]).await, revision);
    assert_eq!(store.current_revision(), revision);
}

async fn a_list_is_sorted_bounded_and_resumable(store: &dyn Store) {
    for key in ["/p/b", "/p/a", "/p/c", "/q", "/o"] {
        commit(store, vec![put(key, key)]).await;
    }
    let keys = |listing: &skiff_storage::Listing| {
        listing
            .items
            .iter()
            .map(|kv| kv.key.clone())
            .collect::<Vec<_>>()
    };
    let all = store.list("/p/", None, 0).await.unwrap();
    assert_eq!(
        (keys(&all), all.more),
        (vec!["/p/a".into(), "/p/b".into(), "/p/c".into()], false)
    );
    assert_eq!(all.revision, store.current_revision());
    let page = store.list("/p/", None, 2).await.unwrap();
    assert_eq!(
        (keys(&page), page.more),
        (vec!["/p/a".into(), "/p/b".into()], true)
    );
    let rest = store.list("/p/", Some("/p/b"), 2).await.unwrap();
    assert_eq!((keys(&rest), rest.more), (vec!["/p/c".into()], false));
}

async fn a_watch_delivers_history_then_live_changes(store: &dyn Store) {
    let start = commit(store, vec![put("/p/a", "1"), put("/q/x", "1")]).await;
    commit(
        store,
        vec![put("/p/a", "2"), put("/q/x", "2"), put("/p/b", "2")],
    )
    .await;
    let mut watch = store.watch("/p/", start).await.unwrap();
    commit(store, vec![put("/q/x", "3")]).await;
    commit(store, vec![delete("/p/a")]).await;
    let old = next(&mut watch).await;
    assert_eq!(
        shown(&old),
        [
            (2, "/p/a".into(), Some("2".into())),
            (2, "/p/b".into(), Some("2".into()))
        ]
    );
    assert_eq!(old[0].previous.as_ref().unwrap().value.as_ref(), b"1");
    assert_eq!(old[1].previous, None);
    let live = next(&mut watch).await;
    assert_eq!(shown(&live), [(4, "/p/a".into(), None)]);
    assert_eq!(live[0].previous.as_ref().unwrap().value.as_ref(), b"2");
}

async fn a_watch_from_compacted_or_future_revisions_is_refused(store: &dyn Store) {
    for value in ["1", "2", "3"] {
        commit(store, vec![put("/a", value)]).await;
    }
    store.compact(Revision(2)).await.unwrap();
    assert!(matches!(
        store.watch("/", Revision(1)).await,
        Err(StorageError::Compacted {
            requested: Revision(1),
            compacted: Revision(2)
        })
    ));
    assert!(matches!(
        store.watch("/", Revision(4)).await,
        Err(StorageError::FutureRevision {
            requested: Revision(4),
            current: Revision(3)
        })
    ));
    let mut watch = store.watch("/", Revision(2)).await.unwrap();
    assert_eq!(
        shown(&next(&mut watch).await),
        [(3, "/a".into(), Some("3".into()))]
    );
    assert_eq!(
        store.get("/a").await.unwrap().0.unwrap().value.as_ref(),
        b"3"
    );
}

async fn of_racing_writers_one_wins_each_revision(store: Arc<dyn Store>) {
    let writers = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..25 {
                loop {
                    let (kv, _) = store.get("/n").await.unwrap();
                    let (count, precondition) = match kv {
                        None => (0, Precondition::Absent("/n".into())),
                        Some(kv) => (
                            String::from_utf8(kv.value.to_vec())
                                .unwrap()
                                .parse::<u32>()
                                .unwrap(),
                            Precondition::Unchanged("/n".into(), kv.mod_revision),
                        ),
                    };
                    let ops = vec![put("/n", &(count + 1).to_string())];
                    let txn = Txn {
                        preconditions: vec![precondition],
                        ops,
                    };
                    if let TxnOutcome::Committed(_) = store.txn(txn).await.unwrap() {
                        break;
                    }
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(
        store.get("/n").await.unwrap().0.unwrap().value.as_ref(),
        b"200"
    );
}

/// List, watch from the list's revision, replay: the result is the store, whatever was written meanwhile.
async fn list_and_watch_lose_and_repeat_nothing(store: Arc<dyn Store>) {
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for n in 0..300_u32 {
                let key = format!("/k/{}", n % 7);
                let op = if n % 5 == 0 {
                    delete(&key)
                } else {
                    put(&key, &n.to_string())
                };
                commit(store.as_ref(), vec![op]).await;
            }
            commit(store.as_ref(), vec![put("/k/end", "")]).await
        }
    });
    let mut followers = Vec::new();
    for _ in 0..10 {
        let listing = store.list("/k/", None, 0).await.unwrap();
        let mut watch = store.watch("/k/", listing.revision).await.unwrap();
        followers.push(tokio::spawn(async move {
            let mut seen = listing.revision;
            let mut state: std::collections::BTreeMap<_, _> = listing
                .items
                .into_iter()
                .map(|kv| (kv.key.clone(), kv))
                .collect();
            while !state.contains_key("/k/end") {
                for change in next(&mut watch).await.iter() {
                    assert!(change.revision > seen, "{} after {seen}", change.revision);
                    seen = change.revision;
                    let before = match &change.current {
                        Some(kv) => state.insert(change.key.clone(), kv.clone()),
                        None => state.remove(&change.key),
                    };
                    assert_eq!(before, change.previous, "a change was missed");
                }
            }
            state
        }));
        tokio::task::yield_now().await;
    }
    within(writer).await.unwrap();
    let last = store.list("/k/", None, 0).await.unwrap().items;
    for follower in followers {
        let state = within(follower).await.unwrap();
        assert_eq!(state.into_values().collect::<Vec<_>>(), last);
    }
}

macro_rules! contract {
    ($($backend:ident),*) => {$(
        mod $backend {
            macro_rules! case {
                ($name:ident) => {
                    #[tokio::test]
                    async fn $name() {
                        let fixture = super::$backend();
                        super::$name(fixture.store.as_ref()).await;
                    }
                };
                (shared $name:ident) => {
                    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                    async fn $name() {
                        let fixture = super::$backend();
                        super::$name(std::sync::Arc::clone(&fixture.store)).await;
                    }
                };
            }
            case!(a_written_value_is_read_back_with_its_revisions);
            case!(a_key_created_again_has_a_new_create_revision);
            case!(a_failed_precondition_changes_nothing_and_shows_the_value);
            case!(a_transaction_that_changes_nothing_takes_no_revision);
            case!(a_list_is_sorted_bounded_and_resumable);
            case!(a_watch_delivers_history_then_live_changes);
            case!(a_watch_from_compacted_or_future_revisions_is_refused);
            case!(shared of_racing_writers_one_wins_each_revision);
            case!(shared list_and_watch_lose_and_repeat_nothing);
        }
    )*};
}

contract!(memory, redb);
