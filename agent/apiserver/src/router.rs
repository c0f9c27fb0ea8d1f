//! From a request to its verb: authentication, authorisation, dispatch, metrics.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::json;
use skiff_api::resource::{Registry, Resource};
use skiff_api::status::{ApiStatus, StatusReason};

use crate::authz::{self, Action};
use crate::call::Call;
use crate::failure::Failure;
use crate::query::Query;
use crate::request_info::{ResourceRequest, Target, verb};
use crate::server::Core;
use crate::subresources::{binding, connect, eviction, finalize, scale};
use crate::verbs::prepare::Part;
use crate::verbs::{create, delete, delete_collection, get, list, patch, update, watch};
use crate::{authn, discovery, health, metrics, openapi, respond, reviews};

/// The service. Paths are read by [`Target`], so there is one handler for all of them.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new().fallback(handle).with_state(core)
}

async fn handle(State(core): State<Arc<Core>>, request: Request) -> Response {
    let (target, query) = (
        Target::parse(request.uri().path()),
        Query::of(request.uri()),
    );
    let counted = core.metrics.clone();
    let (verb, resource, result) = match target {
        Target::Resource(info) => {
            let known = Registry::get(&info.group, &info.version, &info.resource);
            let verb = verb(request.method(), &info, query.flag("watch"));
            let result = objects(core, info, known, query, verb, request).await;
            (verb, known.map_or("", |resource| resource.plural), result)
        }
        target => {
            let verb = if request.method() == Method::GET {
                "get"
            } else {
                ""
            };
            let (parts, _) = request.into_parts();
            (verb, "", other(&core, target, &query, &parts).await)
        }
    };
    let response = result.unwrap_or_else(IntoResponse::into_response);
    counted.request(verb, resource, response.status().as_u16());
    response
}

async fn other(
    core: &Core,
    target: Target,
    query: &Query,
    request: &Parts,
) -> Result<Response, Failure> {
    let (path, headers) = (request.uri.path(), &request.headers);
    let user = authn::authenticate(&request.extensions, headers)?;
    let verb = request.method.as_str().to_ascii_lowercase();
    authz::authorize(
        &user,
        authn::is_local(&request.extensions),
        Action::Path(&verb, path),
    )?;
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Err(method_not_allowed());
    }
    match target {
        Target::CoreVersions => discovery::core_versions(headers),
        Target::Groups => discovery::groups(headers),
        Target::Group(group) => discovery::group(&group),
        Target::GroupVersion(group, version) => discovery::resources(&group, &version),
        Target::Resource(_) => Err(ApiStatus::unknown_path().into()),
        Target::Other => match path.trim_end_matches('/') {
            "" => Ok(respond::json_value(
                StatusCode::OK,
                &json!({"paths": discovery::paths()}),
            )),
            "/version" => Ok(health::version()),
            "/metrics" => Ok(respond::text(StatusCode::OK, metrics::render(core))),
            path => {
                if let Some(response) = health::serve(core, path, query) {
                    return Ok(response);
                }
                let document = openapi::serve(&core.openapi, path, headers).await;
                document.unwrap_or_else(|| Err(ApiStatus::unknown_path().into()))
            }
        },
    }
}

fn method_not_allowed() -> Failure {
    let message = "the server does not allow this method on the requested resource";
    ApiStatus::new(405, StatusReason::MethodNotAllowed, message).into()
}

async fn objects(
    core: Arc<Core>,
    info: ResourceRequest,
    resource: Option<&'static Resource>,
    query: Query,
    verb: &'static str,
    request: Request,
) -> Result<Response, Failure> {
    let user = authn::authenticate(request.extensions(), request.headers())?;
    let local = authn::is_local(request.extensions());
    if let Some(review) = reviews::find(verb, &info) {
        let (parts, body) = request.into_parts();
        return reviews::answer(review, &user, local, &parts.headers, body).await;
    }
    authz::authorize(&user, local, Action::Resource(verb, &info))?;
    let resource = resource.ok_or_else(|| Failure::from(ApiStatus::unknown_path()))?;
    if !resource.namespaced && !info.namespace.is_empty() {
        return Err(ApiStatus::unknown_path().into());
    }
    let everywhere = resource.namespaced && info.namespace.is_empty();
    if everywhere && !info.name.is_empty() {
        return Err(ApiStatus::unknown_path().into());
    }
    if everywhere && !matches!(verb, "list" | "watch") {
        return Err(method_not_allowed());
    }
    let headers = request.headers().clone();
    let call = Call {
        core,
        resource,
        request: info,
        query,
        headers,
    };
    if call.request.subresource.is_empty() {
        main(call, verb, request.into_body()).await
    } else {
        subresource(&call, request).await
    }
}

async fn main(call: Call, verb: &'static str, body: Body) -> Result<Response, Failure> {
    if !call.resource.has_verb(verb) {
        return Err(method_not_allowed());
    }
    let named = !call.request.name.is_empty();
    match (verb, named) {
        ("watch", _) => watch::watch(call).await,
        ("list", false) => list::list(&call).await,
        ("get", true) => get::get(&call).await,
        ("create", false) => create::create(&call, body).await,
        ("update", true) => update::update(&call, Part::Main, body).await,
        ("patch", true) => patch::patch(&call, Part::Main, body).await,
        ("delete", true) => delete::delete(&call, body).await,
        ("deletecollection", false) => delete_collection::delete_collection(&call, body).await,
        _ => Err(method_not_allowed()),
    }
}

async fn subresource(call: &Call, request: Request) -> Result<Response, Failure> {
    let name = call.request.subresource.as_str();
    let known = call
        .resource
        .subresource(name)
        .is_some_and(|s| discovery::is_served(call.resource, s));
    if !known || !call.request.rest.is_empty() {
        return Err(ApiStatus::unknown_path().into());
    }
    let method = request.method().clone();
    match name {
        "log" if method == Method::GET => return connect::log(call, request).await,
        "exec" | "attach" if method == Method::GET || method == Method::POST => {
            return connect::stream(call, request).await;
        }
        "portforward" if method == Method::GET || method == Method::POST => {
            return connect::port_forward(call, request).await;
        }
        _ => {}
    }
    let body = request.into_body();
    match (name, method) {
        ("status", Method::GET) => get::get(call).await,
        ("status", Method::PUT) => update::update(call, Part::Status, body).await,
        ("status", Method::PATCH) => patch::patch(call, Part::Status, body).await,
        ("scale", Method::GET) => scale::get(call).await,
        ("scale", Method::PUT) => scale::update(call, body).await,
        ("scale", Method::PATCH) => scale::patch(call, body).await,
        ("binding", Method::POST) => binding::create(call, body).await,
        ("eviction", Method::POST) => eviction::create(call, body).await,
        ("finalize", Method::PUT) => finalize::update(call, body).await,
        _ => Err(method_not_allowed()),
    }
}
