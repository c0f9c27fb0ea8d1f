//! Questions about the one who asks: who am I, may I do this, what may I do. They are answered, not stored.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_api::decode::decode_as;
use skiff_api::k8s_openapi::api::authorization::v1::{
    SelfSubjectAccessReview, SelfSubjectRulesReview,
};
use skiff_api::resource::GroupKind;
use skiff_api::status::ApiStatus;
use skiff_api::validation::FieldError;

use crate::authn::UserInfo;
use crate::authz::{self, Action, PUBLIC};
use crate::failure::Failure;
use crate::request_info::ResourceRequest;
use crate::{body, respond};

/// One kind of question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Review {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
}

/// The version of all of them.
pub(crate) const VERSION: &str = "v1";
/// The groups that have nothing else.
pub(crate) const GROUPS: [&str; 2] = ["authentication.k8s.io", "authorization.k8s.io"];
const WHO: Review = Review {
    group: GROUPS[0],
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    kind: "SelfSubjectReview",
};
const MAY: Review = Review {
    group: GROUPS[1],
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    kind: "SelfSubjectAccessReview",
};
const RULES: Review = Review {
    group: GROUPS[1],
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    kind: "SelfSubjectRulesReview",
};
/// All of them.
pub(crate) const REVIEWS: [Review; 3] = [WHO, MAY, RULES];

/// The question that a request asks.
pub(crate) fn find(verb: &str, request: &ResourceRequest) -> Option<&'static Review> {
    let bare = [&request.namespace, &request.name, &request.subresource];
    if verb != "create" || request.version != VERSION || bare.iter().any(|part| !part.is_empty()) {
        return None;
    }
    REVIEWS
        .iter()
        .find(|review| review.group == request.group && review.plural == request.resource)
}

/// Answers a question. Everyone with credentials may ask about themselves.
pub(crate) async fn answer(
    review: &Review,
    user: &UserInfo,
    local: bool,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    if user.is_anonymous() {
        return Err(ApiStatus::unauthorized().into());
    }
    let asked = body::object(headers, body).await?;
    let answer = match review.kind {
        "SelfSubjectReview" => with_status(review, json!({}), &who(user)),
        "SelfSubjectAccessReview" => {
            let typed: SelfSubjectAccessReview = decode(review, &asked)?;
            let status = may(review, &typed, user, local)?;
            with_status(review, json!({"spec": typed.spec}), &status)
        }
        _ => {
            let typed: SelfSubjectRulesReview = decode(review, &asked)?;
            if typed.spec.namespace.unwrap_or_default().is_empty() {
                return Err(ApiStatus::bad_request("no namespace on request").into());
            }
            with_status(review, json!({"spec": {}}), &rules(user, local))
        }
    };
    Ok(respond::json_value(StatusCode::CREATED, &answer))
}

fn decode<T: DeserializeOwned>(review: &Review, asked: &Value) -> Result<T, Failure> {
    decode_as(asked, &mut Vec::new())
        .map_err(|error| ApiStatus::bad_request(error.to_message(VERSION, review.kind)).into())
}

fn with_status(review: &Review, mut answer: Value, status: &Value) -> Value {
    answer["apiVersion"] = format!("{}/{VERSION}", review.group).into();
    answer["kind"] = review.kind.into();
    answer["metadata"] = json!({"creationTimestamp": null});
    answer["status"] = status.clone();
    answer
}

fn who(user: &UserInfo) -> Value {
    json!({"userInfo": {"username": user.name, "groups": user.groups}})
}

fn may(
    review: &Review,
    asked: &SelfSubjectAccessReview,
    user: &UserInfo,
    local: bool,
) -> Result<Value, Failure> {
    let verdict = match (
        &asked.spec.resource_attributes,
        &asked.spec.non_resource_attributes,
    ) {
        (Some(about), None) => {
            let text = |part: &Option<String>| part.clone().unwrap_or_default();
            let request = ResourceRequest {
                group: text(&about.group),
                version: text(&about.version),
                namespace: text(&about.namespace),
                resource: text(&about.resource),
                name: text(&about.name),
                subresource: text(&about.subresource),
                rest: String::new(),
            };
            let verb = about.verb.as_deref().unwrap_or_default();
            authz::authorize(user, local, Action::Resource(verb, &request))
        }
        (None, Some(about)) => {
            let verb = about.verb.as_deref().unwrap_or_default();
            let path = about.path.as_deref().unwrap_or_default();
            authz::authorize(user, local, Action::Path(verb, path))
        }
        (resource, _) => {
            let why = if resource.is_some() {
                "cannot be specified in combination with resourceAttributes"
            } else {
                "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            };
            let field = if resource.is_some() {
                "spec.nonResourceAttributes"
            } else {
                "spec.resourceAttributes"
            };
            let kind = GroupKind {
                group: review.group,
                kind: review.kind,
            };
            let error = FieldError::invalid(field, Value::Null, why);
            return Err(ApiStatus::invalid(kind, "", &[error]).into());
        }
    };
    Ok(match verdict {
        Ok(()) => json!({"allowed": true}),
        Err(failure) => json!({"allowed": false, "reason": failure.message}),
    })
}

/// What [`authz`] knows, as rules.
fn rules(user: &UserInfo, local: bool) -> Value {
    let anything = ResourceRequest {
        group: "*".to_owned(),
        version: "*".to_owned(),
        namespace: String::new(),
        resource: "*".to_owned(),
        name: String::new(),
        subresource: String::new(),
        rest: String::new(),
    };
    let mut resources: Vec<Value> = GROUPS
        .iter()
        .map(|group| {
            let own = REVIEWS.iter().filter(|review| review.group == *group);
            let plurals: Vec<_> = own.map(|review| review.plural).collect();
            json!({"verbs": ["create"], "apiGroups": [group], "resources": plurals})
        })
        .collect();
    let open: Vec<String> = PUBLIC
        .iter()
        .flat_map(|path| [(*path).to_owned(), format!("{path}/*")])
        .collect();
    let mut paths = vec![json!({"verbs": ["get"], "nonResourceURLs": open})];
    let all = authz::authorize(user, local, Action::Resource("*", &anything)).is_ok();
    if all {
        resources.insert(
            0,
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
        );
        paths.insert(0, json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
