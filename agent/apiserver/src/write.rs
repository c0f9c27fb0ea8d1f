//! Writing objects: one transaction for the object and whatever belongs to it.

use bytes::Bytes;
use serde_json::Value;
use skiff_api::resource::{Kind, Resource};
use skiff_api::status::ApiStatus;
use skiff_storage::{Op, Precondition, Revision, Txn, TxnOutcome};

use crate::admission;
use crate::call::{Call, Existing};
use crate::failure::Failure;
use crate::object::{self, at, finalizers, is_deleting, meta};
use crate::query::parse_version;

/// How often a write is tried again when something else changed in between.
pub(crate) const ATTEMPTS: u32 = 20;

/// The bytes to store: the stored version, without `resourceVersion`.
pub(crate) fn to_bytes(resource: &Resource, value: &Value) -> Result<Bytes, Failure> {
    let mut value = value.clone();
    resource.to_storage(&mut value);
    object::remove_meta(&mut value, "resourceVersion");
    let bytes = serde_json::to_vec(&value).map_err(|e| Failure::from(ApiStatus::internal(e)))?;
    if bytes.len() > crate::body::LIMIT {
        return Err(ApiStatus::request_too_large(crate::body::LIMIT).into());
    }
    Ok(Bytes::from(bytes))
}

/// Checks `resourceVersion` and `uid` of what a client sent against what there is.
pub(crate) fn check_optimistic_lock(call: &Call, new: &Value, old: &Value) -> Result<(), Failure> {
    let name = &call.request.name;
    let (wanted, found) = (meta(new, "uid"), meta(old, "uid"));
    if !wanted.is_empty() && wanted != found {
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        );
        return Err(ApiStatus::conflict(call.resource.group_resource(), name, &why).into());
    }
    match parse_version(meta(new, "resourceVersion"))? {
        None | Some(Revision(0)) => Ok(()),
        version if version == parse_version(meta(old, "resourceVersion"))? => Ok(()),
        Some(_) => Err(ApiStatus::modified(call.resource.group_resource(), name).into()),
    }
}

/// System metadata is the server's: a client's copy of it is overwritten.
fn keep_system_metadata(new: &mut Value, old: &Value) {
    const KEPT: [&str; 5] = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ];
    for field in KEPT {
        match at(old, &["metadata", field]).cloned() {
            Some(value) => object::set_meta(new, field, value),
            None => object::remove_meta(new, field),
        }
    }
    object::remove_meta(new, "managedFields");
}

/// Whether nothing holds an object back any more whose deletion has begun.
fn may_go(kind: Kind, value: &Value) -> bool {
    if !is_deleting(value) || !finalizers(value).is_empty() {
        return false;
    }
    match kind {
        Kind::Pod => {
            at(value, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64)
                == Some(0)
        }
        Kind::Namespace => at(value, &["spec", "finalizers"])
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty),
        _ => true,
    }
}

/// The transaction that removes an object and what was allocated for it.
pub(crate) fn removal(call: &Call, key: &str, old: &Existing) -> Txn {
    let mut txn = Txn {
        preconditions: vec![Precondition::Unchanged(key.to_owned(), old.revision)],
        ops: vec![Op::Delete {
            key: key.to_owned(),
        }],
    };
    if call.resource.id == Kind::Service {
        txn.ops.extend(admission::service::release_all(&old.value));
    }
    txn
}

/// Removes the object if it still is as `old`. `None`: it is not, try again.
pub(crate) async fn remove(
    call: &Call,
    key: &str,
    old: &Existing,
    dry_run: bool,
) -> Result<Option<Value>, Failure> {
    if dry_run {
        return Ok(Some(old.value.clone()));
    }
    match call.core.store.txn(removal(call, key, old)).await? {
        TxnOutcome::Committed(revision) => {
            let mut value = old.value.clone();
            object::set_version(&mut value, revision);
            Ok(Some(value))
        }
        TxnOutcome::Conflict(_) => Ok(None),
    }
}

/// Writes `new` in place of `old`. `None`: it changed meanwhile, try again.
pub(crate) async fn replace(
    call: &Call,
    key: &str,
    old: &Existing,
    new: Value,
    dry_run: bool,
) -> Result<Option<Value>, Failure> {
    let mut new = new;
    let mut txn = Txn {
        preconditions: vec![Precondition::Unchanged(key.to_owned(), old.revision)],
        ops: Vec::new(),
    };
    if call.resource.id == Kind::Service {
        admission::service::plan(&call.core, Some(&old.value), &mut new, &mut txn).await?;
    }
    let bytes = to_bytes(call.resource, &new)?;
    if bytes == old.stored {
        return Ok(Some(old.value.clone()));
    }
    if dry_run {
        object::set_version(&mut new, old.revision);
        return Ok(Some(new));
    }
    if may_go(call.resource.id, &new) {
        txn = removal(call, key, old);
    } else {
        txn.ops.push(Op::Put {
            key: key.to_owned(),
            value: bytes,
        });
    }
    match call.core.store.txn(txn).await? {
        TxnOutcome::Committed(revision) => {
            object::set_version(&mut new, revision);
            Ok(Some(new))
        }
        TxnOutcome::Conflict(_) => Ok(None),
    }
}

/// Changes the object of the request: reads it, lets `change` make the new one, writes that; again if
/// something else changed it in between. Checks the optimistic lock and keeps system metadata.
pub(crate) async fn update(
    call: &Call,
    dry_run: bool,
    mut change: impl FnMut(&Value) -> Result<Value, Failure> + Send,
) -> Result<Value, Failure> {
    let key = call.key(&call.request.name);
    for attempt in 0..ATTEMPTS {
        back_off(attempt).await;
        let old = call.load().await?;
        let mut new = change(&old.value)?;
        check_optimistic_lock(call, &new, &old.value)?;
        keep_system_metadata(&mut new, &old.value);
        if let Some(written) = replace(call, &key, &old, new, dry_run).await? {
            return Ok(written);
        }
    }
    Err(ApiStatus::modified(call.resource.group_resource(), &call.request.name).into())
}

/// Lets other writers finish first, the longer the more often one lost.
pub(crate) async fn back_off(attempt: u32) {
    if attempt == 0 {
        return;
    }
    let limit = 200 << attempt.min(7);
    tokio::time::sleep(std::time::Duration::from_micros(object::random_below(
        limit,
    )))
    .await;
}
