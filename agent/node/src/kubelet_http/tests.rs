use std::sync::Arc;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use skiff_runtime::{ContainerConfig, Runtime, SandboxConfig, Stdin};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tower::ServiceExt;

use super::*;
use crate::annotations;
use crate::testing::{TestNode, pod_named};

/// A node with the running pod `web`.
pub(super) async fn node_with_pod(host_network: bool) -> TestNode {
    let node = TestNode::new().await;
    let pod = pod_named("web");
    node.context
        .pods
        .write()
        .insert("uid-web".to_owned(), Arc::new(pod));
    let config = SandboxConfig {
        pod_uid: "uid-web".to_owned(),
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        hostname: "web".to_owned(),
        host_network,
    };
    node.runtime.run_sandbox(config).await.unwrap();
    let log = node
        .context
        .config
        .log_dir("default", "web", "uid-web")
        .join("c/0.log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(&log, "2026-01-02T03:04:05Z stdout F hello\n").unwrap();
    let config = ContainerConfig {
        pod_uid: "uid-web".to_owned(),
        name: "c".to_owned(),
        restart_count: 0,
        rootfs: "/".into(),
        spec: Default::default(),
        log_path: log.clone(),
        annotations: [(annotations::LOG_PATH.to_owned(), log.display().to_string())].into(),
        tty: false,
        stdin: Stdin::Empty,
    };
    node.runtime.start_container(config).await.unwrap();
    node
}

async fn get(node: &TestNode, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router(Arc::clone(&node.context))
        .oneshot(request)
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn logs_and_lists_are_served() {
    let node = node_with_pod(false).await;
    assert_eq!(get(&node, "/healthz").await, (200, "ok".to_owned()));
    assert_eq!(
        get(&node, "/containerLogs/default/web/c").await,
        (200, "hello\n".to_owned())
    );
    let (status, pods) = get(&node, "/pods").await;
    assert_eq!(status, 200);
    assert!(
        pods.contains("\"PodList\"") && pods.contains("uid-web"),
        "{pods}"
    );
    let (_, stats) = get(&node, "/stats/summary").await;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(
        stats["pods"][0]["containers"][0]["memory"]["workingSetBytes"],
        7
    );
}

#[tokio::test]
async fn refusals_name_what_is_wrong() {
    let node = node_with_pod(false).await;
    for (path, status, message) in [
        (
            "/containerLogs/default/nope/c",
            404,
            "pod \\\"nope\\\" in namespace",
        ),
        (
            "/containerLogs/default/web/x",
            400,
            "container x is not valid for pod web",
        ),
        (
            "/containerLogs/default/web/c?tailLines=-1",
            400,
            "tailLines",
        ),
        (
            "/containerLogs/default/web/c?previous=true",
            400,
            "previous terminated container",
        ),
        ("/portForward/default/web", 400, "WebSocket upgrade needed"),
        ("/exec/default/web/c?stdout=true", 400, "at least 1 command"),
        (
            "/exec/default/web/c?command=ls&stdout=true",
            400,
            "WebSocket upgrade needed",
        ),
        ("/attach/default/web/c", 400, "at least 1 of stdin"),
        (
            "/attach/default/web/c?stdin=true",
            400,
            "WebSocket upgrade needed",
        ),
    ] {
        let (code, body) = get(&node, path).await;
        assert_eq!(code, status, "{path}: {body}");
        assert!(body.contains(message), "{path}: {body}");
        assert!(body.contains("\"kind\":\"Status\""), "{path}: {body}");
    }
}

/// A WebSocket client, just enough of one: unfragmented binary frames shorter than 126 bytes, or with a
/// 16-bit length from the server.
pub(super) struct Client {
    stream: DuplexStream,
}

impl Client {
    pub(super) async fn connect(node: &TestNode, path: &str, protocol: &str) -> (Self, String) {
        let (mut stream, theirs) = tokio::io::duplex(64 * 1024);
        let service =
            hyper_util::service::TowerToHyperService::new(router(Arc::clone(&node.context)));
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(theirs);
            let server = hyper::server::conn::http1::Builder::new();
            server
                .serve_connection(io, service)
                .with_upgrades()
                .await
                .unwrap();
        });
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             sec-websocket-protocol: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (Self { stream }, String::from_utf8(head).unwrap())
    }

    pub(super) async fn send(&mut self, data: &[u8]) {
        let mut frame = vec![0x82, 0x80 | u8::try_from(data.len()).unwrap(), 0, 0, 0, 0];
        frame.extend_from_slice(data);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// Opcode and payload of the next frame.
    pub(super) async fn next(&mut self) -> (u8, Vec<u8>) {
        let opcode = self.stream.read_u8().await.unwrap() & 0x0f;
        let length = match self.stream.read_u8().await.unwrap() {
            126 => usize::from(self.stream.read_u16().await.unwrap()),
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.unwrap();
        (opcode, payload)
    }
}

#[tokio::test]
async fn exec_carries_input_output_and_the_exit_code() {
    let node = node_with_pod(false).await;
    node.runtime.script_exec("cat", &[7]);
    let path = "/exec/default/web/c?command=cat&stdin=true&stdout=true";
    let (mut client, head) =
        Client::connect(&node, path, "v4.channel.k8s.io, v5.channel.k8s.io").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.to_lowercase()
            .contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{head}"
    );
    client.send(b"\0ping").await;
    assert_eq!(client.next().await, (2, b"\x01ping".to_vec()));
    client.send(b"\xff\0").await;
    let (_, status) = client.next().await;
    assert_eq!(status[0], channel::ERROR);
    let status: serde_json::Value = serde_json::from_slice(&status[1..]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    assert_eq!(client.next().await.0, 8, "close");
}

#[tokio::test]
async fn exec_without_input_tells_both_outputs_and_success() {
    let node = node_with_pod(false).await;
    let path = "/exec/default/web/c?command=ls&output=1&error=1";
    let (mut client, _) = Client::connect(&node, path, "v4.channel.k8s.io").await;
    let mut frames = vec![client.next().await.1, client.next().await.1];
    frames.sort();
    assert_eq!(frames, [b"\x01out".to_vec(), b"\x02err".to_vec()]);
    let (_, status) = client.next().await;
    assert!(String::from_utf8_lossy(&status[1..]).contains("\"Success\""));
}

#[tokio::test]
async fn an_unknown_protocol_is_refused() {
    let node = node_with_pod(false).await;
    let path = "/exec/default/web/c?command=ls&stdout=true";
    let (_, head) = Client::connect(&node, path, "chat").await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
}

#[tokio::test]
async fn attach_connects_both_ways_until_the_output_ends() {
    let node = node_with_pod(false).await;
    let path = "/attach/default/web/c?stdin=true&stdout=true";
    let (mut client, _) = Client::connect(&node, path, "v5.channel.k8s.io").await;
    client.send(b"\0hello").await;
    assert_eq!(client.next().await.1, b"\x01hello");
    client.send(b"\xff\0").await;
    let (_, status) = client.next().await;
    assert_eq!(status[0], channel::ERROR);
    assert!(String::from_utf8_lossy(&status[1..]).contains("\"Success\""));
    assert_eq!(client.next().await.0, 8, "close");
}
