//! Objects that every cluster has: four namespaces, and Service `default/kubernetes` with its endpoint.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::body::Body;
use futures::future::try_join_all;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::admission::namespace::IMMORTAL;
use crate::authn::UserInfo;
use crate::server::{ApiServerError, Core};

const NAMESPACES: &str = "/api/v1/namespaces";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Creates what is missing, through the API like everybody else.
pub(crate) async fn ensure(core: &Core, router: &Router) -> Result<(), ApiServerError> {
    let namespaces = IMMORTAL
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    try_join_all(
        namespaces
            .iter()
            .map(|namespace| create(router, NAMESPACES, namespace)),
    )
    .await?;
    let port = core
        .options
        .advertise_address
        .map_or(443, |address| address.port());
    if let Some(cidr) = core.options.service_cidrs.first() {
        create(router, SERVICES, &service(*cidr, port)).await?;
    }
    if let Some(address) = core.options.advertise_address {
        let (endpoints, slice) = endpoints(address);
        tokio::try_join!(
            put(router, ENDPOINTS, &endpoints),
            put(router, SLICES, &slice)
        )?;
    }
    Ok(())
}

fn service(cidr: IpNetwork, target_port: u16) -> Value {
    let first = match cidr.network() {
        IpAddr::V4(base) => IpAddr::V4(u32::from(base).wrapping_add(1).into()),
        IpAddr::V6(base) => IpAddr::V6(u128::from(base).wrapping_add(1).into()),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": first.to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": target_port}],
            "type": "ClusterIP",
        },
    })
}

fn endpoints(address: SocketAddr) -> (Value, Value) {
    let (ip, port) = (address.ip().to_string(), address.port());
    let endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": ip}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    (endpoints, slice)
}

/// Creates an object; that it exists is fine.
async fn create(router: &Router, path: &str, object: &Value) -> Result<(), ApiServerError> {
    match send(router, Method::POST, path, object).await {
        (200 | 201 | 409, _) => Ok(()),
        (_, message) => Err(ApiServerError::Bootstrap { message }),
    }
}

/// Creates an object or brings it up to date. One that is refused is left out: an address that pods
/// cannot use (loopback) is no reason not to start.
async fn put(router: &Router, path: &str, object: &Value) -> Result<(), ApiServerError> {
    let mut answer = send(router, Method::POST, path, object).await;
    if answer.0 == 409 {
        answer = send(router, Method::PUT, &format!("{path}/kubernetes"), object).await;
    }
    match answer {
        (200 | 201, _) => Ok(()),
        (422, message) => {
            tracing::warn!(message, "no endpoint of the kubernetes service");
            Ok(())
        }
        (_, message) => Err(ApiServerError::Bootstrap { message }),
    }
}

async fn send(router: &Router, method: Method, path: &str, object: &Value) -> (u16, String) {
    let mut request = Request::new(Body::from(object.to_string()));
    *request.method_mut() = method;
    let Ok(uri) = path.parse() else {
        return (0, format!("{path} is no path"));
    };
    *request.uri_mut() = uri;
    let json = http::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    request
        .extensions_mut()
        .insert(UserInfo::component("system:apiserver"));
    let response = match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let code = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    (code, String::from_utf8_lossy(&body).into_owned())
}
