//! Logs and exec through a kubelet that a test plays.

use std::io;

use async_trait::async_trait;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::{NodeDialer, NodeStream};

/// Answers every connection with a fixed text, then echoes. The request goes to a channel.
pub(super) struct FakeKubelet {
    answer: &'static str,
    requests: tokio::sync::mpsc::UnboundedSender<(String, String)>,
}

impl FakeKubelet {
    pub(super) fn answering(
        answer: &'static str,
    ) -> (
        ApiServerOptions,
        tokio::sync::mpsc::UnboundedReceiver<(String, String)>,
    ) {
        let (requests, received) = tokio::sync::mpsc::unbounded_channel();
        let dialer = Arc::new(FakeKubelet { answer, requests });
        (
            ApiServerOptions {
                node_dialer: Some(dialer),
                ..ApiServerOptions::default()
            },
            received,
        )
    }
}

#[async_trait]
impl NodeDialer for FakeKubelet {
    async fn dial(&self, node_name: &str) -> io::Result<Box<dyn NodeStream>> {
        if node_name == "gone" {
            return Err(io::Error::other("no such node"));
        }
        let (ours, theirs) = tokio::io::duplex(4096);
        let (answer, requests, node) = (self.answer, self.requests.clone(), node_name.to_owned());
        tokio::spawn(async move { serve(theirs, answer, &requests, node).await });
        Ok(Box::new(ours))
    }
}

async fn serve(
    mut stream: DuplexStream,
    answer: &str,
    requests: &tokio::sync::mpsc::UnboundedSender<(String, String)>,
    node: String,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    requests
        .send((node, String::from_utf8_lossy(&head).into_owned()))
        .map_err(io::Error::other)?;
    stream.write_all(answer.as_bytes()).await?;
    if answer.starts_with("HTTP/1.1 101") {
        let mut buffer = [0; 64];
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            stream.write_all(&buffer[..n]).await?;
        }
    }
    Ok(())
}

/// A pod on a node, with the state of its container.
pub(super) async fn placed(server: &Server, name: &str, node: &str, status: &Value) {
    server.pod(name).await;
    server
        .post(
            &format!("{PODS}/{name}/binding"),
            &json!({"target": {"name": node}}),
        )
        .await
        .ok();
    let status = json!({"status": {"phase": "Running", "containerStatuses": [{
        "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": status}]}});
    server
        .patch("merge", &format!("{PODS}/{name}/status"), &status)
        .await
        .ok();
}

#[tokio::test]
async fn logs_come_from_the_pods_node() {
    let (options, mut requests) = FakeKubelet::answering(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\nhello\n",
    );
    let server = Server::with(options).await;
    placed(&server, "p", "n1", &json!({"running": {}})).await;
    let answer = server
        .get(&format!("{PODS}/p/log?follow=true&tailLines=5"))
        .await;
    assert_eq!(answer.ok(), "hello\n");
    let (node, head) = requests.recv().await.unwrap();
    assert_eq!(node, "n1");
    assert!(
        head.starts_with("GET /containerLogs/default/p/c?follow=true&tailLines=5 HTTP/1.1\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn what_cannot_be_logged_says_why() {
    let (options, _requests) =
        FakeKubelet::answering("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
    let server = Server::with(options).await;
    placed(
        &server,
        "waiting",
        "n1",
        &json!({"waiting": {"reason": "ContainerCreating"}}),
    )
    .await;
    placed(&server, "lost", "gone", &json!({"running": {}})).await;
    placed(&server, "p", "n1", &json!({"running": {}})).await;
    let mut two = pod("two");
    two["spec"]["containers"] = json!([{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]);
    server.post(PODS, &two).await.ok();
    for (path, code, reason, part) in [
        (
            "waiting/log",
            400,
            "BadRequest",
            "container \"c\" in pod \"waiting\" is waiting to start: ContainerCreating",
        ),
        (
            "p/log?container=x",
            400,
            "BadRequest",
            "container x is not valid for pod p",
        ),
        (
            "two/log",
            400,
            "BadRequest",
            "a container name must be specified for pod two, choose one of: [c d]",
        ),
        (
            "two/exec?container=c&command=ls",
            400,
            "BadRequest",
            "pod two does not have a host assigned",
        ),
        (
            "lost/log",
            500,
            "InternalError",
            "error dialing backend: no such node",
        ),
        ("none/log", 404, "NotFound", "pods \"none\" not found"),
        ("p/log?tailLines=-1", 400, "BadRequest", "tailLines"),
        ("p/log", 404, "NotFound", "none"),
    ] {
        let message = server
            .get(&format!("{PODS}/{path}"))
            .await
            .fails(code, reason);
        assert!(message.contains(part), "{path}: {message}");
    }
    let none = Server::start().await;
    placed(&none, "p", "n1", &json!({"running": {}})).await;
    none.get(&format!("{PODS}/p/log"))
        .await
        .fails(503, "ServiceUnavailable");
}
