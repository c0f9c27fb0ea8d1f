//! Questions about the asking user, and what kubectl asks for besides objects.

use axum::body::Body;
use serde_json::{Value, json};

use super::{DEPLOYMENTS, Server, deployment};

const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

async fn as_bob(server: &Server, path: &str, body: &Value) -> super::Answer {
    let headers = [
        ("content-type", "application/json"),
        ("impersonate-user", "bob"),
    ];
    server
        .send("POST", path, &headers, Body::from(body.to_string()))
        .await
}

#[tokio::test]
async fn one_may_ask_who_one_is_and_what_one_may_do() {
    let server = Server::start().await;
    let answer = server
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({}),
        )
        .await;
    assert_eq!(answer.code, 201);
    assert_eq!(answer.body["status"]["userInfo"]["username"], "system:test");
    let create_pods =
        json!({"spec": {"resourceAttributes": {"verb": "create", "resource": "pods"}}});
    let answer = server.post(ACCESS, &create_pods).await.ok();
    assert_eq!(answer["kind"], "SelfSubjectAccessReview");
    assert_eq!(answer["status"]["allowed"], true);
    assert_eq!(answer["spec"]["resourceAttributes"]["resource"], "pods");
    let rules = json!({"spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let answer = server.post(path, &rules).await.ok();
    assert_eq!(answer["status"]["resourceRules"][0]["verbs"][0], "*");
    server
        .post(path, &json!({"spec": {}}))
        .await
        .fails(400, "BadRequest");
}

#[tokio::test]
async fn a_question_that_is_none_is_refused() {
    let server = Server::start().await;
    for spec in [
        json!({}),
        json!({"resourceAttributes": {}, "nonResourceAttributes": {}}),
    ] {
        let message = server
            .post(ACCESS, &json!({"spec": spec}))
            .await
            .fails(422, "Invalid");
        assert!(message.contains("ResourceAttributes"), "{message}");
    }
    server
        .post(ACCESS, &json!({"spec": {"resourceAttributes": 5}}))
        .await
        .fails(400, "BadRequest");
    // They are answered, not stored.
    server.get(ACCESS).await.fails(404, "NotFound");
}

#[tokio::test]
async fn the_components_may_not_impersonate() {
    let server = Server::start().await;
    let message = as_bob(&server, ACCESS, &json!({}))
        .await
        .fails(403, "Forbidden");
    assert!(message.contains("cannot impersonate"), "{message}");
}

#[tokio::test]
async fn discovery_lists_the_questions() {
    let server = Server::start().await;
    for (path, field, name) in [
        (
            "/apis/authorization.k8s.io/v1",
            "resources",
            "selfsubjectaccessreviews",
        ),
        ("/apis", "groups", "authentication.k8s.io"),
    ] {
        let list = server.get(path).await.ok();
        let names: Vec<_> = list[field].as_array().unwrap().iter().collect();
        assert!(names.iter().any(|entry| entry["name"] == name), "{list}");
    }
}

#[tokio::test]
async fn clients_that_read_openapi_v2_get_it_as_protobuf() {
    let server = Server::start().await;
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let answer = server
        .send("GET", "/openapi/v2", &[("accept", asked)], Body::empty())
        .await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    let media_type = answer.headers["content-type"].to_str().unwrap();
    assert_eq!(media_type, asked.replace('@', "."));
    let json = server.get("/openapi/v2").await.ok();
    assert_eq!(json["swagger"], "2.0");
}

#[tokio::test]
async fn a_scale_is_printed_with_its_numbers() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let path = format!("{DEPLOYMENTS}/web/scale");
    let table = server.send("GET", &path, &accept, Body::empty()).await.ok();
    let columns: Vec<_> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    let names: Vec<_> = columns.iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "web");
    assert_eq!(table["rows"][0]["cells"][1], 1);
}
