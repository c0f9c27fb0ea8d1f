//! pods/log, exec, attach and portforward: which container on which node, and the kubelet's path for it.

use axum::body::Body;
use axum::response::Response;
use http::{Request, StatusCode, Uri};
use serde_json::Value;
use skiff_api::status::ApiStatus;

use crate::call::Call;
use crate::failure::Failure;
use crate::node_proxy::{NodeRequest, forward};
use crate::object::{at, meta, text};
use crate::query::Query;
use crate::respond;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const LOG_PARAMETERS: [&str; 9] = [
    "follow",
    "previous",
    "timestamps",
    "sinceSeconds",
    "sinceTime",
    "tailLines",
    "limitBytes",
    "stream",
    "insecureSkipTLSVerifyBackend",
];

/// Serves logs.
pub(crate) async fn log(call: &Call, client: Request<Body>) -> Result<Response, Failure> {
    let pod = call.load().await?.value;
    let container = container(call, &pod)?;
    for name in ["tailLines", "limitBytes", "sinceSeconds"] {
        if call
            .query
            .number::<i64>(name)?
            .is_some_and(|number| number < 0)
        {
            return Err(ApiStatus::bad_request(format!(
                "{name}: must be greater than or equal to 0"
            ))
            .into());
        }
    }
    let node = text(&pod, &["spec", "nodeName"]);
    if node.is_empty() {
        return Ok(respond::text(StatusCode::OK, Body::empty()));
    }
    check_started(&call.query, &pod, &container)?;
    let pairs: Vec<(&str, &str)> = LOG_PARAMETERS
        .iter()
        .filter(|name| !call.query.get(name).is_empty())
        .map(|name| (*name, call.query.get(name)))
        .collect();
    let uri = uri(
        &[
            "containerLogs",
            meta(&pod, "namespace"),
            meta(&pod, "name"),
            &container,
        ],
        &pairs,
    )?;
    forward(
        &call.core,
        NodeRequest {
            node: node.to_owned(),
            uri,
            client,
        },
    )
    .await
}

/// Serves exec and attach.
pub(crate) async fn stream(call: &Call, client: Request<Body>) -> Result<Response, Failure> {
    let pod = call.load().await?.value;
    let container = container(call, &pod)?;
    let phase = text(&pod, &["status", "phase"]);
    if matches!(phase, "Succeeded" | "Failed") {
        let why = format!(
            "cannot exec or attach into a container in a completed pod; current phase is {phase}"
        );
        return Err(ApiStatus::bad_request(why).into());
    }
    let node = host(&pod)?;
    let operation = call.request.subresource.as_str();
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    // The kubelet has other names for the streams than the API.
    for (name, kubelet_name) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if call.query.flag(name) {
            pairs.push((kubelet_name, "1"));
        }
    }
    if operation == "exec" {
        pairs.extend(
            call.query
                .all("command")
                .map(|argument| ("command", argument)),
        );
    }
    let uri = uri(
        &[
            operation,
            meta(&pod, "namespace"),
            meta(&pod, "name"),
            &container,
        ],
        &pairs,
    )?;
    forward(&call.core, NodeRequest { node, uri, client }).await
}

/// Serves port-forward.
pub(crate) async fn port_forward(call: &Call, client: Request<Body>) -> Result<Response, Failure> {
    let pod = call.load().await?.value;
    let node = host(&pod)?;
    let pairs: Vec<(&str, &str)> = call
        .query
        .all("ports")
        .flat_map(|p| p.split(','))
        .map(|port| ("port", port))
        .collect();
    let uri = uri(
        &["portForward", meta(&pod, "namespace"), meta(&pod, "name")],
        &pairs,
    )?;
    forward(&call.core, NodeRequest { node, uri, client }).await
}

fn host(pod: &Value) -> Result<String, Failure> {
    let node = text(pod, &["spec", "nodeName"]);
    if node.is_empty() {
        let why = format!("pod {} does not have a host assigned", meta(pod, "name"));
        return Err(ApiStatus::bad_request(why).into());
    }
    Ok(node.to_owned())
}

fn names<'a>(pod: &'a Value, field: &str) -> Vec<&'a str> {
    let list = at(pod, &["spec", field]).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|container| text(container, &["name"]))
        .collect()
}

/// The container that is meant: the one named, the only one, or the annotated one.
fn container(call: &Call, pod: &Value) -> Result<String, Failure> {
    let name = meta(pod, "name");
    let (containers, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let asked = call.query.get("container");
    if !asked.is_empty() {
        let ephemeral = names(pod, "ephemeralContainers");
        if [&containers, &init, &ephemeral]
            .iter()
            .any(|list| list.contains(&asked))
        {
            return Ok(asked.to_owned());
        }
        let why = format!("container {asked} is not valid for pod {name}");
        return Err(ApiStatus::bad_request(why).into());
    }
    if let [only] = containers.as_slice() {
        return Ok((*only).to_owned());
    }
    let annotated = text(pod, &["metadata", "annotations", DEFAULT_CONTAINER]);
    if containers.contains(&annotated) {
        return Ok(annotated.to_owned());
    }
    let mut why = format!(
        "a container name must be specified for pod {name}, choose one of: [{}]",
        containers.join(" ")
    );
    if !init.is_empty() {
        why.push_str(&format!(
            " or one of the init containers: [{}]",
            init.join(" ")
        ));
    }
    Err(ApiStatus::bad_request(why).into())
}

/// There are no logs of a container that has not started yet.
fn check_started(query: &Query, pod: &Value, container: &str) -> Result<(), Failure> {
    let name = meta(pod, "name");
    let statuses = [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ];
    let status = statuses.iter().find_map(|field| {
        let list = at(pod, &["status", field])?.as_array()?;
        list.iter()
            .find(|status| text(status, &["name"]) == container)
    });
    let last = status.and_then(|status| at(status, &["lastState", "terminated"]));
    if query.flag("previous") {
        if last.is_some() {
            return Ok(());
        }
        let why = format!("previous terminated container {container:?} in pod {name:?} not found");
        return Err(ApiStatus::bad_request(why).into());
    }
    let waiting = match status {
        // The kubelet has not said anything about the pod yet.
        None => Some("ContainerCreating"),
        Some(status) => at(status, &["state", "waiting"]).map(|waiting| text(waiting, &["reason"])),
    };
    match (waiting, last) {
        (Some(reason), None) => {
            let reason = match reason {
                "" => "ContainerCreating",
                "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image",
                "ErrImageNeverPull" => "image isn't present and pull policy is Never",
                reason => reason,
            };
            let why =
                format!("container {container:?} in pod {name:?} is waiting to start: {reason}");
            Err(ApiStatus::bad_request(why).into())
        }
        _ => Ok(()),
    }
}

/// Path and query; values are escaped, path segments are names.
fn uri(segments: &[&str], pairs: &[(&str, &str)]) -> Result<Uri, Failure> {
    let mut text = String::new();
    for segment in segments {
        text.push('/');
        escape(segment, &mut text);
    }
    for (index, (name, value)) in pairs.iter().enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        escape(value, &mut text);
    }
    text.parse()
        .map_err(|error| ApiStatus::bad_request(format!("{error}")).into())
}

fn escape(value: &str, out: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_survive_the_way() {
        let uri = uri(
            &["exec", "dev", "web", "c"],
            &[("command", "sh"), ("command", "echo a&b=ü")],
        )
        .unwrap();
        assert_eq!(
            uri,
            "/exec/dev/web/c?command=sh&command=echo%20a%26b%3D%C3%BC"
        );
        let query = Query::of(&uri);
        assert_eq!(
            query.all("command").collect::<Vec<_>>(),
            ["sh", "echo a&b=ü"]
        );
    }

    #[test]
    fn what_has_not_started_has_no_logs() {
        let pod = |status: Value| json!({"metadata": {"name": "y"}, "status": {"containerStatuses": [status]}});
        let none = Query::default();
        let check =
            |status: Value| check_started(&none, &pod(status), "x").map_err(|e| e.message.clone());
        assert_eq!(
            check(json!({"name": "x", "state": {"waiting": {"reason": "ContainerCreating"}}}))
                .unwrap_err(),
            "container \"x\" in pod \"y\" is waiting to start: ContainerCreating"
        );
        assert!(check(json!({"name": "x", "state": {"running": {}}})).is_ok());
        let crashed = json!({"name": "x", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1}}});
        assert!(check(crashed).is_ok());
    }
}
