//! delete: preconditions, propagation, finalizers, graceful deletion of pods, namespaces.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use skiff_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use skiff_api::resource::Kind;
use skiff_api::status::{self, ApiStatus};
use skiff_api::validation::FieldError;

use crate::call::{Call, Existing};
use crate::failure::Failure;
use crate::object::{self, at, finalizers, is_deleting, meta, text};
use crate::query::invalid_options;
use crate::write::{self, ATTEMPTS, back_off};
use crate::{admission, body, negotiate, respond};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// What becomes of an object's dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    propagation: Option<Propagation>,
    grace_seconds: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl Options {
    /// Reads them from the body, else from the query.
    pub(crate) async fn read(call: &Call, body: Body) -> Result<Self, Failure> {
        let given = match body::optional(&call.headers, body).await? {
            Some(value) => decode(&value)?,
            None => DeleteOptions::default(),
        };
        Self::of(call, given)
    }

    /// From options that a body brought along, completed from the query.
    pub(crate) fn of(call: &Call, given: DeleteOptions) -> Result<Self, Failure> {
        let query = &call.query;
        let policy = given
            .propagation_policy
            .unwrap_or_else(|| query.get("propagationPolicy").to_owned());
        let orphan = given
            .orphan_dependents
            .or(match query.get("orphanDependents") {
                "" => None,
                _ => Some(query.flag("orphanDependents")),
            });
        if orphan.is_some() && !policy.is_empty() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            let error = FieldError::invalid("propagationPolicy", policy, why);
            return Err(invalid_options("DeleteOptions", error));
        }
        let propagation = match (policy.as_str(), orphan) {
            ("", None) => None,
            ("", Some(true)) | ("Orphan", _) => Some(Propagation::Orphan),
            ("", Some(false)) | ("Background", _) => Some(Propagation::Background),
            ("Foreground", _) => Some(Propagation::Foreground),
            (other, _) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                let error = FieldError::not_supported("propagationPolicy", other, &supported);
                return Err(invalid_options("DeleteOptions", error));
            }
        };
        let dry_run =
            query.dry_run()? || given.dry_run.iter().flatten().any(|value| value == "All");
        let preconditions = given.preconditions.unwrap_or_default();
        Ok(Self {
            propagation,
            grace_seconds: given
                .grace_period_seconds
                .or(query.number("gracePeriodSeconds")?),
            uid: preconditions.uid,
            resource_version: preconditions.resource_version,
            dry_run,
        })
    }

    fn check_preconditions(&self, call: &Call, old: &Existing) -> Result<(), Failure> {
        let name = meta(&old.value, "name");
        let conflict = |what: &str, wanted: &str, found: &str| {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            Err(ApiStatus::conflict(call.resource.group_resource(), name, &why).into())
        };
        let (uid, version) = (meta(&old.value, "uid"), meta(&old.value, "resourceVersion"));
        match (&self.uid, &self.resource_version) {
            (Some(wanted), _) if wanted != uid => conflict("UID", wanted, uid),
            (_, Some(wanted)) if wanted != version => conflict("ResourceVersion", wanted, version),
            _ => Ok(()),
        }
    }
}

fn decode(value: &Value) -> Result<DeleteOptions, Failure> {
    skiff_api::decode::decode_as(value, &mut Vec::new())
        .map_err(|error| ApiStatus::bad_request(error.to_message("v1", "DeleteOptions")).into())
}

/// What became of a deletion.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone; its last state.
    Gone(Value),
    /// It will go later: a finalizer or the kubelet holds it.
    Pending(Value),
}

/// Deletes the object of the request.
pub(crate) async fn delete(call: &Call, body: Body) -> Result<Response, Failure> {
    let representation = negotiate::objects(&call.headers)?;
    let options = Options::read(call, body).await?;
    let deleted = delete_object(call, &options).await?;
    let resource = call.resource;
    match deleted {
        Deleted::Gone(value)
            if !matches!(
                resource.id,
                Kind::Pod | Kind::Namespace | Kind::ServiceAccount
            ) =>
        {
            let name = meta(&value, "name");
            let status = status::deleted(resource.group_resource(), name, meta(&value, "uid"));
            Ok(respond::json_value(StatusCode::OK, &status))
        }
        Deleted::Gone(value) | Deleted::Pending(value) => {
            respond::object(call, representation, StatusCode::OK, &value)
        }
    }
}

/// Deletes one object, as far as it may go now.
pub(crate) async fn delete_object(call: &Call, options: &Options) -> Result<Deleted, Failure> {
    let key = call.key(&call.request.name);
    admission::namespace::may_be_deleted(call.resource, &call.request.name)?;
    for attempt in 0..ATTEMPTS {
        back_off(attempt).await;
        let old = call.load().await?;
        options.check_preconditions(call, &old)?;
        match plan(call.resource.id, &old.value, options) {
            Plan::Nothing => return Ok(Deleted::Pending(old.value)),
            Plan::Remove => {
                if let Some(value) = write::remove(call, &key, &old, options.dry_run).await? {
                    return Ok(Deleted::Gone(value));
                }
            }
            Plan::Mark(new) => {
                let written = write::replace(call, &key, &old, new, options.dry_run).await?;
                if let Some(value) = written {
                    return Ok(Deleted::Pending(value));
                }
            }
        }
    }
    Err(ApiStatus::modified(call.resource.group_resource(), &call.request.name).into())
}

/// The next step of a deletion.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It is under way already.
    Nothing,
    /// Nothing holds the object.
    Remove,
    /// The object says from now on that it is being deleted.
    Mark(Value),
}

/// Decides what a deletion does to an object. Pure.
fn plan(kind: Kind, old: &Value, options: &Options) -> Plan {
    let mut new = old.clone();
    let already = is_deleting(old);
    set_finalizers(&mut new, options.propagation);
    let grace = match kind {
        Kind::Pod => pod_grace(old, options),
        _ => 0,
    };
    let held = match kind {
        Kind::Namespace => at(old, &["spec", "finalizers"])
            .and_then(Value::as_array)
            .is_some_and(|f| !f.is_empty()),
        _ => false,
    };
    if finalizers(&new).is_empty() && grace == 0 && !held {
        return Plan::Remove;
    }
    let previous = at(old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    if !already || previous.is_some_and(|previous| grace < previous) {
        let deadline = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
        object::set_meta(&mut new, "deletionTimestamp", object::timestamp(deadline));
        object::set_meta(&mut new, "deletionGracePeriodSeconds", grace);
        if !already
            && let Some(generation) = at(old, &["metadata", "generation"]).and_then(Value::as_i64)
        {
            object::set_meta(&mut new, "generation", generation + 1);
        }
        if kind == Kind::Namespace {
            object::section(&mut new, "status").insert("phase".to_owned(), "Terminating".into());
        }
    }
    if new == *old {
        Plan::Nothing
    } else {
        Plan::Mark(new)
    }
}

fn set_finalizers(value: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let mut list: Vec<String> = finalizers(value)
        .into_iter()
        .filter(|finalizer| *finalizer != FOREGROUND && *finalizer != ORPHAN)
        .map(str::to_owned)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => list.push(FOREGROUND.to_owned()),
        Propagation::Orphan => list.push(ORPHAN.to_owned()),
    }
    if list.is_empty() {
        object::remove_meta(value, "finalizers");
    } else {
        object::set_meta(value, "finalizers", list);
    }
}

/// Seconds that a pod has left: none if nobody runs it, never more than it was given before.
fn pod_grace(pod: &Value, options: &Options) -> i64 {
    let finished = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if text(pod, &["spec", "nodeName"]).is_empty() || finished {
        return 0;
    }
    let wanted = options
        .grace_seconds
        .or_else(|| at(pod, &["spec", "terminationGracePeriodSeconds"])?.as_i64())
        .unwrap_or(DEFAULT_GRACE_SECONDS);
    // A negative value means "at once, but let the kubelet do it".
    let wanted = if wanted < 0 { 1 } else { wanted };
    let given = at(pod, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    given
        .filter(|_| is_deleting(pod))
        .map_or(wanted, |given| wanted.min(given))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEFAULTS: Options = Options {
        propagation: None,
        grace_seconds: None,
        uid: None,
        resource_version: None,
        dry_run: false,
    };

    fn pod(node: &str, more: &Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        for (key, value) in more.as_object().unwrap() {
            object::section(&mut pod, "metadata").insert(key.clone(), value.clone());
        }
        pod
    }

    #[test]
    fn a_running_pod_waits_for_its_kubelet() {
        let Plan::Mark(marked) = plan(Kind::Pod, &pod("n", &json!({})), &DEFAULTS) else {
            panic!()
        };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        // Again: nothing new; shorter: shortened; longer: not prolonged; zero: gone.
        assert_eq!(plan(Kind::Pod, &marked, &DEFAULTS), Plan::Nothing);
        let grace = |seconds| Options {
            grace_seconds: Some(seconds),
            ..DEFAULTS
        };
        let Plan::Mark(shorter) = plan(Kind::Pod, &marked, &grace(5)) else {
            panic!()
        };
        assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
        assert_eq!(plan(Kind::Pod, &shorter, &grace(60)), Plan::Nothing);
        assert_eq!(plan(Kind::Pod, &marked, &grace(0)), Plan::Remove);
    }

    #[test]
    fn a_pod_that_nobody_runs_goes_at_once_unless_held() {
        assert_eq!(
            plan(Kind::Pod, &pod("", &json!({})), &DEFAULTS),
            Plan::Remove
        );
        let held = pod("", &json!({"finalizers": ["x/y"]}));
        assert!(matches!(plan(Kind::Pod, &held, &DEFAULTS), Plan::Mark(_)));
    }

    #[test]
    fn propagation_sets_and_clears_finalizers() {
        let with = |propagation| Options {
            propagation: Some(propagation),
            ..DEFAULTS
        };
        let object = json!({"metadata": {"name": "d"}});
        let Plan::Mark(marked) = plan(Kind::Deployment, &object, &with(Propagation::Foreground))
        else {
            panic!()
        };
        assert_eq!(finalizers(&marked), [FOREGROUND]);
        let Plan::Mark(marked) = plan(Kind::Deployment, &marked, &with(Propagation::Orphan)) else {
            panic!()
        };
        assert_eq!(finalizers(&marked), [ORPHAN]);
        assert_eq!(
            plan(Kind::Deployment, &marked, &with(Propagation::Background)),
            Plan::Remove
        );
    }

    #[test]
    fn a_namespace_terminates_until_it_is_finalized() {
        let namespace =
            json!({"metadata": {"name": "dev"}, "spec": {"finalizers": ["kubernetes"]}});
        let Plan::Mark(marked) = plan(Kind::Namespace, &namespace, &DEFAULTS) else {
            panic!()
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert!(is_deleting(&marked));
        assert_eq!(
            plan(
                Kind::Namespace,
                &json!({"metadata": {"name": "dev"}}),
                &DEFAULTS
            ),
            Plan::Remove
        );
    }
}
