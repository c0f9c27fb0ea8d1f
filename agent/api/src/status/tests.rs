//! Tests of the status builders.

use serde_json::json;

use super::*;
use crate::resource::{Kind, Registry};

const PODS: GroupResource<'static> = GroupResource {
    group: "",
    resource: "pods",
};
const DEPLOYMENTS: GroupResource<'static> = GroupResource {
    group: "apps",
    resource: "deployments",
};

#[test]
fn statuses_have_upstreams_words() {
    let cases = [
        (
            ApiStatus::not_found(PODS, "x"),
            404,
            "NotFound",
            "pods \"x\" not found",
        ),
        (
            ApiStatus::already_exists(DEPLOYMENTS, "x"),
            409,
            "AlreadyExists",
            "deployments.apps \"x\" already exists",
        ),
        (
            ApiStatus::modified(DEPLOYMENTS, "x"),
            409,
            "Conflict",
            "Operation cannot be fulfilled on deployments.apps \"x\": the object has been modified; please apply your changes to the latest version and try again",
        ),
        (ApiStatus::bad_request("no"), 400, "BadRequest", "no"),
        (
            ApiStatus::unauthorized(),
            401,
            "Unauthorized",
            "Unauthorized",
        ),
        (
            ApiStatus::forbidden(PODS, "x", "because"),
            403,
            "Forbidden",
            "pods \"x\" is forbidden: because",
        ),
        (
            ApiStatus::method_not_allowed(PODS, "watch"),
            405,
            "MethodNotAllowed",
            "watch is not supported on resources of kind \"pods\"",
        ),
        (
            ApiStatus::too_old(5, 9),
            410,
            "Expired",
            "too old resource version: 5 (9)",
        ),
        (
            ApiStatus::internal("boom"),
            500,
            "InternalError",
            "Internal error occurred: boom",
        ),
        (
            ApiStatus::timeout("slow", 1),
            504,
            "Timeout",
            "Timeout: slow",
        ),
    ];
    for (status, code, reason, message) in cases {
        let value = status.to_value();
        assert_eq!(value["code"], code, "{message}");
        assert_eq!(value["reason"], reason, "{message}");
        assert_eq!(value["message"], message);
        assert_eq!(value["status"], "Failure");
        assert_eq!(status.to_string(), message);
        assert_eq!(ApiStatus::from_value(&value), Some(status));
    }
}

#[test]
fn invalid_objects_list_their_fields() {
    let errors = [
        FieldError::required("spec.containers[0].name", ""),
        FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
    ];
    let kind = Registry::of(Kind::Deployment).unwrap().group_kind();
    let one = ApiStatus::invalid(kind, "web", &errors[..1]);
    assert_eq!(
        one.message,
        "Deployment.apps \"web\" is invalid: spec.containers[0].name: Required value"
    );
    let two = ApiStatus::invalid(kind, "web", &errors).to_value();
    assert_eq!(
        two["message"],
        "Deployment.apps \"web\" is invalid: [spec.containers[0].name: Required value, spec.replicas: Invalid value: -1: must be greater than or equal to 0]"
    );
    assert_eq!(
        two["details"],
        json!({
            "name": "web",
            "group": "apps",
            "kind": "Deployment",
            "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers[0].name"},
                {"reason": "FieldValueInvalid", "message": "Invalid value: -1: must be greater than or equal to 0", "field": "spec.replicas"},
            ],
        })
    );
}

#[test]
fn success_is_no_error() {
    let value = deleted(PODS, "x", "uid-1");
    assert_eq!(value["status"], "Success");
    assert_eq!(
        value["details"],
        json!({"name": "x", "kind": "pods", "uid": "uid-1"})
    );
    assert_eq!(ApiStatus::from_value(&value), None);
    assert_eq!(success(201)["code"], 201);
}
