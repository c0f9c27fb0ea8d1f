//! create.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use skiff_api::resource::Kind;
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;
use skiff_storage::{Op, Precondition, Txn, TxnOutcome};

use super::prepare;
use crate::call::Call;
use crate::failure::Failure;
use crate::object::{self, meta};
use crate::write::{ATTEMPTS, back_off, to_bytes};
use crate::{admission, negotiate, respond};

/// How often another name is generated when one is taken.
const NAME_ATTEMPTS: u32 = 8;

/// Creates an object from a body.
pub(crate) async fn create(call: &Call, body: Body) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let (strictness, dry_run) = (call.query.strictness()?, call.query.dry_run()?);
    let body = call.body(body).await?;
    let mut warnings = Vec::new();
    let mut value = prepare::decode(call, &body, strictness, &mut warnings)?;
    if !meta(&value, "resourceVersion").is_empty() {
        let why = "resourceVersion should not be set on objects to be created";
        return Err(ApiStatus::internal(why).into());
    }
    prepare::settle_namespace(call, &mut value)?;
    let created = create_object(call, value, dry_run).await?;
    let response = respond::object(call, representation, StatusCode::CREATED, &created)?;
    Ok(respond::with_warnings(response, &warnings))
}

/// Creates a decoded object.
async fn create_object(call: &Call, mut value: Value, dry_run: bool) -> Result<Value, Failure> {
    let resource = call.resource;
    for field in [
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        object::remove_meta(&mut value, field);
    }
    resource.default(&mut value);
    resource.prepare_for_create(&mut value);
    object::set_meta(&mut value, "uid", object::new_uid());
    object::set_meta(&mut value, "creationTimestamp", object::now());
    let generated = meta(&value, "name").is_empty() && !meta(&value, "generateName").is_empty();
    let tries = if generated { NAME_ATTEMPTS } else { 1 };
    let mut taken = None;
    for _ in 0..tries {
        if generated {
            let name = object::generate_name(meta(&value, "generateName"));
            object::set_meta(&mut value, "name", name);
        }
        if meta(&value, "name").is_empty() {
            let error = FieldError::required("metadata.name", "name or generateName is required");
            return Err(ApiStatus::invalid(resource.group_kind(), "", &[error]).into());
        }
        let errors = resource.validate(&value);
        if !errors.is_empty() {
            let name = meta(&value, "name");
            return Err(ApiStatus::invalid(resource.group_kind(), name, &errors).into());
        }
        match insert(call, &value, dry_run).await {
            Err(failure) if failure.code == 409 && generated => taken = Some(failure),
            result => return result,
        }
    }
    Err(taken.unwrap_or_else(|| call.not_found()))
}

/// Stores a complete object under its name, with what is allocated for it.
async fn insert(call: &Call, value: &Value, dry_run: bool) -> Result<Value, Failure> {
    let resource = call.resource;
    let name = meta(value, "name").to_owned();
    let key = call.key(&name);
    let exists = || Failure::from(ApiStatus::already_exists(resource.group_resource(), &name));
    for attempt in 0..ATTEMPTS {
        back_off(attempt).await;
        let mut value = value.clone();
        let mut txn = Txn {
            preconditions: vec![Precondition::Absent(key.clone())],
            ops: Vec::new(),
        };
        if resource.namespaced {
            let namespace = &call.request.namespace;
            let guard =
                admission::namespace::open_for_creation(&call.core, resource, namespace, &name);
            match guard.await {
                Ok(guard) => txn.preconditions.push(guard),
                // Upstream finds what exists before it looks at the namespace's state.
                Err(failure) => {
                    let (found, _) = call.core.store.get(&key).await?;
                    return Err(if found.is_some() { exists() } else { failure });
                }
            }
        }
        if resource.id == Kind::Service {
            // Finding it first keeps a second creation from being told of its own ClusterIP.
            if call.core.store.get(&key).await?.0.is_some() {
                return Err(exists());
            }
            admission::service::plan(&call.core, None, &mut value, &mut txn).await?;
        }
        let bytes = to_bytes(resource, &value)?;
        if dry_run {
            let (found, _) = call.core.store.get(&key).await?;
            return if found.is_some() {
                Err(exists())
            } else {
                Ok(value)
            };
        }
        txn.ops.push(Op::Put {
            key: key.clone(),
            value: bytes,
        });
        match call.core.store.txn(txn).await? {
            TxnOutcome::Committed(revision) => {
                object::set_version(&mut value, revision);
                return Ok(value);
            }
            TxnOutcome::Conflict(Some(found)) if found.key == key => return Err(exists()),
            // The namespace changed, or an address was taken: look again.
            TxnOutcome::Conflict(_) => {}
        }
    }
    Err(ApiStatus::timeout("too many concurrent changes", 1).into())
}
