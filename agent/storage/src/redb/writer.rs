//! The one thread that writes: group commit.

use std::sync::{
    Arc,
    mpsc::{Receiver, TryRecvError},
};

use ::redb::{ReadableTable, Table, WriteTransaction};
use tokio::sync::oneshot;

use super::{COMPACTED, CURRENT, HISTORY, META, REVISION, Shared, backend, codec};
use crate::{Change, KeyValue, Op, Precondition, Revision, StorageError, Txn, TxnOutcome};

/// Transactions that share one sync at most, so that the first of them does not wait without bound.
const GROUP_LIMIT: usize = 512;

type Reply<T> = oneshot::Sender<Result<T, StorageError>>;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Request {
    /// Apply a transaction.
    Txn {
        /// The transaction.
        txn: Txn,
        /// Told once the outcome is durable.
        reply: Reply<TxnOutcome>,
    },
    /// Remove history up to a revision, which watches do not ask for any more.
    Compact {
        /// The revision.
        compacted: Revision,
        /// Told once it is gone.
        reply: Reply<()>,
    },
}

/// Outcomes of one group, to be told when it is on disk.
#[derive(Default)]
struct Group {
    txns: Vec<(Reply<TxnOutcome>, TxnOutcome)>,
    compactions: Vec<Reply<()>>,
    published: Vec<(Revision, Vec<Change>)>,
}

/// Serves requests until their sender is gone.
pub(super) fn run(shared: &Arc<Shared>, requests: &Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        let mut batch = vec![first];
        while batch.len() < GROUP_LIMIT {
            match requests.try_recv() {
                Ok(request) => batch.push(request),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        // After an error the file still holds the state before the group, and every caller is told.
        match commit(shared, batch) {
            Ok(group) => announce(shared, group),
            Err((err, group)) => refuse(group, &err),
        }
    }
    shared.hub.close();
}

fn announce(shared: &Shared, group: Group) {
    // Watchers first: whoever is told "committed" finds the change in every watch cache soon.
    for (revision, changes) in group.published {
        shared.hub.publish(revision, changes);
    }
    // A caller that gave up is no error: its change is durable all the same.
    for (reply, outcome) in group.txns {
        reply.send(Ok(outcome)).ok();
    }
    for reply in group.compactions {
        reply.send(Ok(())).ok();
    }
}

fn refuse(group: Group, err: &::redb::Error) {
    for (reply, _) in group.txns {
        reply.send(Err(backend("writing")(err.to_string()))).ok();
    }
    for reply in group.compactions {
        reply.send(Err(backend("compacting")(err.to_string()))).ok();
    }
}

#[expect(
    clippy::result_large_err,
    reason = "the group must be answered either way"
)]
fn commit(shared: &Shared, batch: Vec<Request>) -> Result<Group, (::redb::Error, Group)> {
    let mut group = Group::default();
    let mut pending = batch.into_iter();
    let result = (|| {
        let txn = shared.database.begin_write()?;
        apply_all(&txn, &mut pending, &mut group)?;
        if let Some((revision, _)) = group.published.last() {
            shared.hub.committing(*revision);
        }
        // Durability is immediate by default: this returns after the sync.
        txn.commit()?;
        Ok(())
    })();
    match result {
        Ok(()) => Ok(group),
        Err(err) => {
            // Those not reached yet are refused with the rest.
            for request in pending {
                match request {
                    Request::Txn { reply, .. } => {
                        group.txns.push((reply, TxnOutcome::Conflict(None)));
                    }
                    Request::Compact { reply, .. } => group.compactions.push(reply),
                }
            }
            Err((err, group))
        }
    }
}

fn apply_all(
    txn: &WriteTransaction,
    pending: &mut std::vec::IntoIter<Request>,
    group: &mut Group,
) -> Result<(), ::redb::Error> {
    let mut current = txn.open_table(CURRENT)?;
    let mut history = txn.open_table(HISTORY)?;
    let mut meta = txn.open_table(META)?;
    let before = meta.get(REVISION)?.map_or(0, |value| value.value());
    let mut revision = Revision(before);
    for request in pending {
        match request {
            Request::Txn { txn, reply } => {
                // Recorded first, so that an error below answers this caller too.
                group.txns.push((reply, TxnOutcome::Conflict(None)));
                let (outcome, changes) = apply(&mut current, revision, txn)?;
                if !changes.is_empty() {
                    revision = Revision(revision.0 + 1);
                    record(&mut history, revision, &changes)?;
                    group.published.push((revision, changes));
                }
                if let Some((_, slot)) = group.txns.last_mut() {
                    *slot = outcome;
                }
            }
            Request::Compact { compacted, reply } => {
                group.compactions.push(reply);
                history.retain_in((0, 0)..=(compacted.0, u32::MAX), |_, _| false)?;
                meta.insert(COMPACTED, compacted.0)?;
            }
        }
    }
    if revision.0 != before {
        meta.insert(REVISION, revision.0)?;
    }
    Ok(())
}

fn record(
    history: &mut Table<'_, (u64, u32), &'static [u8]>,
    revision: Revision,
    changes: &[Change],
) -> Result<(), ::redb::Error> {
    for (position, change) in (0..).zip(changes) {
        history.insert(
            (revision.0, position),
            codec::encode_change(change).as_slice(),
        )?;
    }
    Ok(())
}

/// The outcome, and the changes that the next revision consists of.
fn apply(
    current: &mut Table<'_, &'static str, &'static [u8]>,
    revision: Revision,
    txn: Txn,
) -> Result<(TxnOutcome, Vec<Change>), ::redb::Error> {
    for precondition in &txn.preconditions {
        let (key, wanted) = match precondition {
            Precondition::Absent(key) => (key, None),
            Precondition::Unchanged(key, revision) => (key, Some(*revision)),
        };
        let found = read(current, key)?;
        if found.as_ref().map(|kv| kv.mod_revision) != wanted {
            return Ok((TxnOutcome::Conflict(found), Vec::new()));
        }
    }
    let next = Revision(revision.0 + 1);
    let mut changes = Vec::new();
    for op in txn.ops {
        let (Op::Put { key, .. } | Op::Delete { key }) = &op;
        let previous = read(current, key)?;
        let written = write(current, next, &op, previous.as_ref())?;
        if written.is_some() || previous.is_some() {
            changes.push(Change {
                revision: next,
                key: key.clone(),
                current: written,
                previous,
            });
        }
    }
    let committed = if changes.is_empty() { revision } else { next };
    Ok((TxnOutcome::Committed(committed), changes))
}

fn read(
    current: &Table<'_, &'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<KeyValue>, ::redb::Error> {
    Ok(current
        .get(key)?
        .and_then(|value| codec::decode_value(key, value.value())))
}

fn write(
    current: &mut Table<'_, &'static str, &'static [u8]>,
    revision: Revision,
    op: &Op,
    previous: Option<&KeyValue>,
) -> Result<Option<KeyValue>, ::redb::Error> {
    match op {
        Op::Put { key, value } => {
            let kv = KeyValue {
                key: key.clone(),
                value: value.clone(),
                create_revision: previous.map_or(revision, |kv| kv.create_revision),
                mod_revision: revision,
            };
            let mut bytes = Vec::with_capacity(16 + value.len());
            codec::encode_value(&kv, &mut bytes);
            current.insert(key.as_str(), bytes.as_slice())?;
            Ok(Some(kv))
        }
        Op::Delete { key } => {
            current.remove(key.as_str())?;
            Ok(None)
        }
    }
}
