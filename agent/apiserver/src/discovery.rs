//! `/api`, `/apis` and below: which groups, versions and resources there are, plain and aggregated.

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use skiff_api::resource::{Registry, Resource, Subresource};
use skiff_api::status::ApiStatus;

use crate::failure::Failure;
use crate::negotiate::{self, Representation};
use crate::respond;
use crate::reviews::{self, REVIEWS, Review};

/// Subresources that the table knows and this server does not serve.
const UNSERVED: &[(&str, &str)] = &[
    ("pods", "ephemeralcontainers"),
    ("serviceaccounts", "token"),
    ("nodes", "proxy"),
];

/// Whether a subresource is served.
pub(crate) fn is_served(resource: &Resource, subresource: &Subresource) -> bool {
    !UNSERVED.contains(&(resource.plural, subresource.name))
}

fn served(resource: &Resource) -> impl Iterator<Item = &'static Subresource> {
    resource
        .subresources
        .iter()
        .filter(|subresource| is_served(resource, subresource))
}

/// `/api`.
pub(crate) fn core_versions(headers: &HeaderMap) -> Result<Response, Failure> {
    if let Representation::Discovery(version) = negotiate::discovery(headers)? {
        return Ok(aggregated(version, |group| group.is_empty()));
    }
    Ok(respond::json_value(
        StatusCode::OK,
        &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
    ))
}

/// `/apis`.
pub(crate) fn groups(headers: &HeaderMap) -> Result<Response, Failure> {
    if let Representation::Discovery(version) = negotiate::discovery(headers)? {
        return Ok(aggregated(version, |group| !group.is_empty()));
    }
    let groups: Vec<Value> = group_names()
        .filter(|g| !g.is_empty())
        .map(group_value)
        .collect();
    let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
    Ok(respond::json_value(StatusCode::OK, &list))
}

/// `/apis/G`.
pub(crate) fn group(name: &str) -> Result<Response, Failure> {
    if name.is_empty() || !group_names().any(|group| group == name) {
        return Err(ApiStatus::unknown_path().into());
    }
    let mut group = group_value(name);
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Ok(respond::json_value(StatusCode::OK, &group))
}

/// `/api/v1`, `/apis/G/V`.
pub(crate) fn resources(group: &str, version: &str) -> Result<Response, Failure> {
    let mut list = Vec::new();
    for resource in of(group, version) {
        list.push(json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        }));
        if let Some(entry) = list.last_mut() {
            add_names(entry, resource);
        }
        for subresource in served(resource) {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, subresource.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": subresource.kind,
                "verbs": subresource.verbs,
            });
            if (subresource.group, subresource.version) != (group, version) {
                entry["group"] = subresource.group.into();
                entry["version"] = subresource.version.into();
            }
            list.push(entry);
        }
    }
    for review in reviews_of(group, version) {
        list.push(json!({
            "name": review.plural,
            "singularName": review.singular,
            "namespaced": false,
            "kind": review.kind,
            "verbs": ["create"],
        }));
    }
    if list.is_empty() {
        return Err(ApiStatus::unknown_path().into());
    }
    let list = json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": list,
    });
    Ok(respond::json_value(StatusCode::OK, &list))
}

/// What `/` lists.
pub(crate) fn paths() -> Vec<String> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    for (group, version) in group_versions().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    let others = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ];
    paths.extend(others.into_iter().map(str::to_owned));
    paths
}

/// Those with stored objects, then those that only answer questions.
fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    Registry::group_versions().chain(reviews::GROUPS.map(|group| (group, reviews::VERSION)))
}

fn reviews_of<'a>(
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static Review> + use<'a> {
    REVIEWS
        .iter()
        .filter(move |review| review.group == group && version == reviews::VERSION)
}

fn group_names() -> impl Iterator<Item = &'static str> {
    let mut last = None;
    group_versions()
        .map(|(group, _)| group)
        .filter(move |group| last.replace(*group) != Some(*group))
}

fn of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> + use<'a> {
    Registry::iter().filter(move |r| r.group == group && r.version == version)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

fn group_value(name: &str) -> Value {
    let versions: Vec<Value> = group_versions()
        .filter(|(group, _)| *group == name)
        .map(|(_, version)| json!({"groupVersion": group_version(name, version), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

fn add_names(entry: &mut Value, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let subresources: Vec<Value> = served(resource)
        .map(|s| {
            json!({
                "subresource": s.name,
                "responseKind": response_kind(s.group, s.version, s.kind),
                "verbs": s.verbs,
            })
        })
        .collect();
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": response_kind(resource.group, resource.version, resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    add_names(&mut entry, resource);
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

fn aggregated_review(review: &Review) -> Value {
    json!({
        "resource": review.plural,
        "responseKind": response_kind(review.group, reviews::VERSION, review.kind),
        "scope": "Cluster",
        "singularResource": review.singular,
        "verbs": ["create"],
    })
}

fn aggregated(version: &str, wanted: impl Fn(&str) -> bool) -> Response {
    let items: Vec<Value> = group_names()
        .filter(|group| wanted(group))
        .map(|group| {
            let versions: Vec<Value> = group_versions()
                .filter(|(g, _)| *g == group)
                .map(|(_, version)| {
                    let stored = of(group, version).map(aggregated_resource);
                    let asked = reviews_of(group, version).map(aggregated_review);
                    let resources: Vec<Value> = stored.chain(asked).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let mut response = respond::json_value(StatusCode::OK, &list);
    let media_type =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(media_type) = HeaderValue::from_str(&media_type) {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
    }
    // Caches must not serve the one form where the other was asked for.
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
