//! Nothing is created in a namespace that does not exist or is on its way out; some namespaces stay.

use serde_json::Value;
use skiff_api::resource::{GroupResource, Kind, Resource};
use skiff_api::status::{ApiStatus, StatusCause};
use skiff_storage::Precondition;

use crate::failure::Failure;
use crate::object::{is_deleting, text};
use crate::server::Core;

/// Namespaces that every cluster has. They cannot be deleted.
pub(crate) const IMMORTAL: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const NAMESPACES: GroupResource<'static> = GroupResource {
    group: "",
    resource: "namespaces",
};

/// Lets a creation pass if its namespace is there and stays. The precondition belongs into the
/// creation's transaction: a namespace that begins to terminate at the same moment refuses it.
pub(crate) async fn open_for_creation(
    core: &Core,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<Precondition, Failure> {
    let key = format!("/registry/namespaces/{namespace}");
    let (found, _) = core.store.get(&key).await?;
    let found = found.ok_or_else(|| Failure::from(ApiStatus::not_found(NAMESPACES, namespace)))?;
    let value: Value = serde_json::from_slice(&found.value)
        .map_err(|error| Failure::from(ApiStatus::internal(error)))?;
    if is_deleting(&value) || text(&value, &["status", "phase"]) == "Terminating" {
        let message = format!("namespace {namespace} is being terminated");
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut status = ApiStatus::forbidden(resource.group_resource(), name, &why);
        status
            .details
            .get_or_insert_default()
            .causes
            .push(StatusCause {
                reason: "NamespaceTerminating".to_owned(),
                message,
                field: "metadata.namespace".to_owned(),
            });
        return Err(status.into());
    }
    Ok(Precondition::Unchanged(key, found.mod_revision))
}

/// Refuses the deletion of a namespace that every cluster has.
pub(crate) fn may_be_deleted(resource: &Resource, name: &str) -> Result<(), Failure> {
    if resource.id == Kind::Namespace && IMMORTAL.contains(&name) {
        let why = "this namespace may not be deleted";
        return Err(ApiStatus::forbidden(resource.group_resource(), name, why).into());
    }
    Ok(())
}
