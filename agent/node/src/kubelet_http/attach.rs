//! `/attach` over WebSocket: a client at the streams of a container that runs.

use axum::extract::ws::WebSocket;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use futures::StreamExt;
use serde_json::json;
use skiff_client::chain;
use skiff_runtime::{AttachConfig, AttachSession};
use tokio::sync::mpsc;

use super::exec::{QUEUE, Streams, finish, forward, pump_input, pump_output, upgrade};
use super::{Context, Refusal, channel, find_pod, running};

pub(super) async fn attach(
    State(ctx): State<Context>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Refusal> {
    let streams = Streams::parse(query);
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Refusal::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    let pod = find_pod(&ctx, &namespace, &name)?;
    let instance = running(&ctx, &pod, &container).await?;
    let upgrade = upgrade(request).await?;
    Ok(upgrade.on_upgrade(async move |socket| {
        let config = AttachConfig {
            stdin: streams.stdin,
            stdout: streams.stdout,
            // A terminal shows both.
            stderr: streams.stderr && !streams.tty,
        };
        let status = match ctx.runtime.attach(&instance.id, config).await {
            Ok(session) => return serve(socket, session).await,
            Err(error) => channel::failure_status(&chain(&error).to_string()),
        };
        let (mut sink, _stream) = socket.split();
        finish(&mut sink, &status).await;
    }))
}

/// Until the container's output ends or the client leaves.
async fn serve(socket: WebSocket, session: AttachSession) {
    let (mut sink, incoming) = socket.split();
    let (sender, mut outgoing) = mpsc::channel(QUEUE);
    let AttachSession {
        stdin,
        stdout,
        stderr,
        resize,
    } = session;
    let has_output = stdout.is_some() || stderr.is_some();
    let pumps = [(stdout, channel::STDOUT), (stderr, channel::STDERR)].map(|(stream, channel)| {
        let sender = sender.clone();
        async move {
            if let Some(stream) = stream {
                pump_output(stream, Some(channel), sender).await;
            }
        }
    });
    drop(sender);
    let output = async {
        tokio::join!(
            forward(&mut outgoing, &mut sink),
            futures::future::join_all(pumps)
        );
        if !has_output {
            // Only the client can end what it only writes to.
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        () = output => true,
        () = pump_input(incoming, stdin, Some(resize)) => false,
    };
    if ended {
        // How the container ended is in the pod's status; being attached to it went well.
        let success = json!({ "metadata": {}, "status": "Success" });
        finish(&mut sink, &success).await;
    }
}
