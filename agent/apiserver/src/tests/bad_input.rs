//! Bad input gets a Status that says what is wrong.

use axum::body::Body;
use serde_json::json;

use super::*;

/// Method, path, media type, body; code, reason, part of the message, field of the first cause.
type Case = (
    &'static str,
    String,
    &'static str,
    String,
    u16,
    &'static str,
    &'static str,
    &'static str,
);

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let json = "application/json";
    let named = |name: &str| config_map(name, &json!({})).to_string();
    let mut unknown = pod("p");
    unknown["spec"]["contaners"] = json!([]);
    let mut wrong_type = deployment("d");
    wrong_type["spec"]["replicas"] = "three".into();
    let mut no_image = pod("p");
    no_image["spec"]["containers"] = json!([]);
    let mut versioned = config_map("v", &json!({}));
    versioned["metadata"]["resourceVersion"] = "7".into();
    let mut elsewhere = config_map("e", &json!({}));
    elsewhere["metadata"]["namespace"] = "kube-system".into();
    vec![
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            "{".into(),
            400,
            "BadRequest",
            "unrecognized",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            String::new(),
            400,
            "BadRequest",
            "unexpected end",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            "[]".into(),
            400,
            "BadRequest",
            "expected an object",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            "{\"metadata\":3}".into(),
            400,
            "BadRequest",
            "metadata",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            pod("p").to_string(),
            400,
            "BadRequest",
            "ConfigMap",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            "{}".into(),
            422,
            "Invalid",
            "name or generateName is required",
            "metadata.name",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            named("No_Name"),
            422,
            "Invalid",
            "metadata.name",
            "metadata.name",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            elsewhere.to_string(),
            400,
            "BadRequest",
            "does not match the namespace",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            json,
            versioned.to_string(),
            500,
            "InternalError",
            "resourceVersion should not be set",
            "",
        ),
        (
            "POST",
            CONFIG_MAPS.into(),
            "application/vnd.kubernetes.protobuf",
            "k8s".into(),
            400,
            "BadRequest",
            "no k8s prefix",
            "",
        ),
        (
            "POST",
            "/api/v1/namespaces/nope/configmaps".into(),
            json,
            named("a"),
            404,
            "NotFound",
            "namespaces \"nope\" not found",
            "",
        ),
        (
            "POST",
            "/api/v1/configmaps".into(),
            json,
            named("a"),
            405,
            "MethodNotAllowed",
            "does not allow",
            "",
        ),
        (
            "POST",
            format!("{PODS}?fieldValidation=Strict"),
            json,
            unknown.to_string(),
            400,
            "BadRequest",
            "unknown field \"spec.contaners\"",
            "",
        ),
        (
            "POST",
            DEPLOYMENTS.into(),
            json,
            wrong_type.to_string(),
            400,
            "BadRequest",
            "spec.replicas",
            "",
        ),
        (
            "POST",
            PODS.into(),
            json,
            no_image.to_string(),
            422,
            "Invalid",
            "spec.containers",
            "spec.containers",
        ),
        (
            "POST",
            format!("{CONFIG_MAPS}?dryRun=Some"),
            json,
            named("a"),
            422,
            "Invalid",
            "dryRun",
            "dryRun",
        ),
        (
            "PUT",
            format!("{CONFIG_MAPS}/none"),
            json,
            named("none"),
            404,
            "NotFound",
            "not found",
            "",
        ),
        (
            "PUT",
            format!("{CONFIG_MAPS}/there"),
            json,
            named("other"),
            400,
            "BadRequest",
            "does not match the name on the URL",
            "",
        ),
        (
            "PATCH",
            format!("{CONFIG_MAPS}/there"),
            "application/merge-patch+json",
            "{".into(),
            400,
            "BadRequest",
            "",
            "",
        ),
        (
            "PATCH",
            format!("{CONFIG_MAPS}/there"),
            "application/json-patch+json",
            "{}".into(),
            400,
            "BadRequest",
            "",
            "",
        ),
        (
            "PATCH",
            format!("{CONFIG_MAPS}/there"),
            json,
            "{}".into(),
            415,
            "UnsupportedMediaType",
            "",
            "",
        ),
        (
            "DELETE",
            format!("{CONFIG_MAPS}/there"),
            json,
            "{\"propagationPolicy\":\"Never\"}".into(),
            422,
            "Invalid",
            "propagationPolicy",
            "propagationPolicy",
        ),
        (
            "GET",
            format!("{CONFIG_MAPS}?limit=many"),
            json,
            String::new(),
            400,
            "BadRequest",
            "limit",
            "",
        ),
        (
            "GET",
            format!("{CONFIG_MAPS}?resourceVersion=x"),
            json,
            String::new(),
            400,
            "BadRequest",
            "resourceVersion",
            "",
        ),
        (
            "GET",
            "/api/v1/pods/p".into(),
            json,
            String::new(),
            404,
            "NotFound",
            "the server could not find the requested resource",
            "",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/nodes".into(),
            json,
            String::new(),
            404,
            "NotFound",
            "could not find",
            "",
        ),
        (
            "GET",
            "/apis/apps/v2/deployments".into(),
            json,
            String::new(),
            404,
            "NotFound",
            "could not find",
            "",
        ),
        (
            "GET",
            "/nonsense".into(),
            json,
            String::new(),
            404,
            "NotFound",
            "could not find",
            "",
        ),
        (
            "GET",
            format!("{CONFIG_MAPS}/there/status"),
            json,
            String::new(),
            404,
            "NotFound",
            "could not find",
            "",
        ),
        (
            "DELETE",
            "/version".into(),
            json,
            String::new(),
            405,
            "MethodNotAllowed",
            "",
            "",
        ),
        (
            "TRACE",
            CONFIG_MAPS.into(),
            json,
            String::new(),
            405,
            "MethodNotAllowed",
            "",
            "",
        ),
    ]
}

#[tokio::test]
async fn each_gets_its_status() {
    let server = Server::start().await;
    server.config_map("there", &json!({})).await;
    for (method, path, media_type, body, code, reason, part, field) in cases() {
        let what = format!("{method} {path} {body}");
        let answer = server
            .send(
                method,
                &path,
                &[("content-type", media_type)],
                Body::from(body),
            )
            .await;
        assert_eq!(
            (answer.code, &answer.body["reason"]),
            (code, &json!(reason)),
            "{what}: {}",
            answer.body
        );
        assert_eq!(answer.body["kind"], "Status", "{what}");
        assert_eq!(answer.body["code"], code, "{what}");
        assert!(
            answer.body["message"]
                .as_str()
                .unwrap_or_default()
                .contains(part),
            "{what}: {}",
            answer.body
        );
        if !field.is_empty() {
            assert_eq!(
                answer.body["details"]["causes"][0]["field"], field,
                "{what}: {}",
                answer.body
            );
        }
    }
}

#[tokio::test]
async fn an_unknown_field_is_warned_about() {
    let server = Server::start().await;
    let mut body = pod("p");
    body["spec"]["contaners"] = json!([]);
    let answer = server.post(PODS, &body).await;
    assert_eq!(
        answer.headers["warning"],
        "299 - \"unknown field \\\"spec.contaners\\\"\""
    );
    assert!(answer.ok()["spec"]["contaners"].is_null());
    body["metadata"]["name"] = "q".into();
    let answer = server
        .post(&format!("{PODS}?fieldValidation=Ignore"), &body)
        .await;
    assert!(answer.headers.get("warning").is_none());
    answer.ok();
}

#[tokio::test]
async fn a_body_may_be_3_mib_and_not_more() {
    let server = Server::start().await;
    let mut body = config_map("big", &json!({}));
    body["data"]["key"] = "x".repeat(crate::body::LIMIT).into();
    let headers = [("content-type", "application/json")];
    let answer = server
        .send("POST", CONFIG_MAPS, &headers, Body::from(body.to_string()))
        .await;
    answer.fails(413, "RequestEntityTooLarge");
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let server = Server::start().await;
    let ask = |path: &str, user: Option<UserInfo>| {
        let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
        if let Some(user) = user {
            request.extensions_mut().insert(user);
        }
        server.router.clone().oneshot(request)
    };
    assert_eq!(ask(CONFIG_MAPS, None).await.unwrap().status(), 401);
    assert_eq!(ask("/api", None).await.unwrap().status(), 401);
    assert_eq!(ask("/version", None).await.unwrap().status(), 200);
    assert_eq!(
        ask(CONFIG_MAPS, Some(UserInfo::component("jane")))
            .await
            .unwrap()
            .status(),
        403
    );
}
