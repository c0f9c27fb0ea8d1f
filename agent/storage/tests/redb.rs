//! What only a store in a file can do: outlive its process and refuse a second one.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]
#![allow(missing_docs, reason = "tests document themselves by name")]

use bytes::Bytes;
use skiff_storage::{Op, Revision, StorageError, Store, Txn, TxnOutcome, redb::RedbStore};

fn put(key: &str, value: &str) -> Txn {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Txn {
        preconditions: Vec::new(),
        ops: vec![Op::Put {
            key: key.to_owned(),
            value,
        }],
    }
}

#[tokio::test]
async fn values_revisions_and_history_outlive_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    {
        let store = RedbStore::open(&path).unwrap();
        for value in ["1", "2", "3"] {
            store.txn(put("/a", value)).await.unwrap();
        }
        store.compact(Revision(1)).await.unwrap();
    }
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.current_revision(), Revision(3));
    assert!(matches!(
        store.watch("/", Revision(0)).await,
        Err(StorageError::Compacted { .. })
    ));
    let mut watch = store.watch("/", Revision(1)).await.unwrap();
    for value in ["2", "3"] {
        let batch = watch.next().await.unwrap();
        assert_eq!(
            batch[0].current.as_ref().unwrap().value.as_ref(),
            value.as_bytes()
        );
    }
    assert_eq!(
        store.txn(put("/a", "4")).await.unwrap(),
        TxnOutcome::Committed(Revision(4))
    );
}

#[tokio::test]
async fn a_second_store_on_the_same_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let _first = RedbStore::open(&path).unwrap();
    let second = RedbStore::open(&path);
    assert!(matches!(second, Err(StorageError::InUse { path: in_use }) if in_use == path));
}

#[tokio::test]
async fn a_closed_store_takes_no_more_writes_and_ends_watches() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
    let mut watch = store.watch("/", Revision(0)).await.unwrap();
    store.close();
    assert!(watch.next().await.is_none());
    assert!(matches!(
        store.txn(put("/a", "1")).await,
        Err(StorageError::Closed)
    ));
}
