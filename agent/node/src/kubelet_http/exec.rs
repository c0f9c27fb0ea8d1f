//! `/exec` over WebSocket, and what `/attach` shares with it.

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use skiff_client::chain;
use skiff_runtime::{ExecConfig, ExecSession};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channel::{self, ClientFrame};
use super::{Context, Refusal, find_pod, running};

/// Messages that may wait for a slow client.
pub(super) const QUEUE: usize = 16;

/// What the client wants connected.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Streams {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Streams {
    /// Both spellings: kubelet's (`input`, `1`) and the API's (`stdin`, `true`).
    pub(super) fn parse(query: Vec<(String, String)>) -> Self {
        let mut streams = Self::default();
        for (name, value) in query {
            let on = matches!(value.as_str(), "1" | "true");
            match name.as_str() {
                "command" => streams.command.push(value),
                "stdin" | "input" => streams.stdin |= on,
                "stdout" | "output" => streams.stdout |= on,
                "stderr" | "error" => streams.stderr |= on,
                "tty" => streams.tty |= on,
                _ => {}
            }
        }
        streams
    }
}

/// Takes the request over as a WebSocket that speaks one of the protocols of exec and attach.
pub(super) async fn upgrade(request: Request) -> Result<WebSocketUpgrade, Refusal> {
    upgrade_to(&channel::PROTOCOLS, request).await
}

/// Takes the request over as a WebSocket that speaks one of `protocols`.
pub(super) async fn upgrade_to(
    protocols: &[&'static str],
    request: Request,
) -> Result<WebSocketUpgrade, Refusal> {
    let (mut parts, _body) = request.into_parts();
    let offered: Vec<String> = parts
        .headers
        .get_all("sec-websocket-protocol")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|protocol| protocol.trim().to_owned())
        .collect();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|error| Refusal::bad_request(format!("WebSocket upgrade needed: {error}")))?;
    if !offered
        .iter()
        .any(|protocol| protocols.contains(&protocol.as_str()))
    {
        return Err(Refusal {
            status: StatusCode::FORBIDDEN,
            reason: "Forbidden",
            message: format!("no protocol in common: offered {offered:?}"),
        });
    }
    Ok(upgrade
        .protocols(protocols.iter().copied())
        .max_message_size(8 << 20))
}

pub(super) async fn exec(
    State(ctx): State<Context>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Refusal> {
    let streams = Streams::parse(query);
    if streams.command.is_empty() {
        return Err(Refusal::bad_request(
            "you must specify at least 1 command for exec",
        ));
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Refusal::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    let pod = find_pod(&ctx, &namespace, &name)?;
    let instance = running(&ctx, &pod, &container).await?;
    let upgrade = upgrade(request).await?;
    Ok(upgrade.on_upgrade(async move |socket| {
        let config = ExecConfig {
            command: streams.command.clone(),
            tty: streams.tty,
            stdin: streams.stdin,
        };
        let status = match ctx.runtime.exec(&instance.id, config).await {
            Ok(session) => return serve_exec(socket, session, &streams).await,
            Err(error) => channel::failure_status(&chain(&error).to_string()),
        };
        let (mut sink, _stream) = socket.split();
        finish(&mut sink, &status).await;
    }))
}

pub(super) type Outgoing = mpsc::Sender<(u8, Vec<u8>)>;

async fn serve_exec(socket: WebSocket, session: ExecSession, streams: &Streams) {
    let ExecSession {
        stdin,
        stdout,
        stderr,
        resize,
        exit,
    } = session;
    let (mut sink, incoming) = socket.split();
    let (sender, mut outgoing) = mpsc::channel(QUEUE);
    let input = pump_input(incoming, stdin, resize);
    let out = pump_output(
        stdout,
        streams.stdout.then_some(channel::STDOUT),
        sender.clone(),
    );
    let err = async {
        if let Some(stderr) = stderr {
            pump_output(stderr, streams.stderr.then_some(channel::STDERR), sender).await;
        } else {
            drop(sender);
        }
    };
    let output = async {
        let ((), (), (), code) = tokio::join!(forward(&mut outgoing, &mut sink), out, err, exit);
        let status = match code {
            Ok(code) => channel::exit_status(code),
            Err(error) => channel::failure_status(&chain(&error).to_string()),
        };
        finish(&mut sink, &status).await;
    };
    let gone = async {
        input.await;
    };
    tokio::select! {
        () = output => {}
        // The client left; dropping the session ends the command's streams.
        () = gone => {}
    }
}

/// Sends what the streams say.
pub(super) async fn forward(
    outgoing: &mut mpsc::Receiver<(u8, Vec<u8>)>,
    sink: &mut SplitSink<WebSocket, Message>,
) {
    while let Some((channel, data)) = outgoing.recv().await {
        let message = Message::Binary(channel::encode(channel, &data));
        if sink.send(message).await.is_err() {
            // Go on reading, so that the command is not blocked by a client that left.
            outgoing.close();
        }
    }
}

/// Copies a stream of the command to the client, or nowhere if it is not wanted.
pub(super) async fn pump_output(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    channel: Option<u8>,
    to: Outgoing,
) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if let Some(channel) = channel {
            // A client that left is noticed elsewhere.
            drop(to.send((channel, buffer[..read].to_vec())).await);
        }
    }
}

/// Hands the client's input on. Returns when the client has left.
pub(super) async fn pump_input(
    mut incoming: SplitStream<WebSocket>,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) {
    while let Some(Ok(message)) = incoming.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        match channel::decode(&data) {
            ClientFrame::Stdin(bytes) => {
                if let Some(writer) = &mut stdin
                    && writer.write_all(&bytes).await.is_err()
                {
                    // The command reads no more; its end is told by its exit.
                    stdin = None;
                }
                if let Some(writer) = &mut stdin {
                    drop(writer.flush().await);
                }
            }
            ClientFrame::CloseStdin => {
                if let Some(mut writer) = stdin.take() {
                    drop(writer.shutdown().await);
                }
            }
            ClientFrame::Resize(columns, rows) => {
                if let Some(resize) = &resize {
                    let _gone = resize.send((columns, rows)).await;
                }
            }
            ClientFrame::Ignored => {}
        }
    }
}

pub(super) async fn finish(sink: &mut SplitSink<WebSocket, Message>, status: &Value) {
    let frame = channel::encode(channel::ERROR, status.to_string().as_bytes());
    let close = CloseFrame {
        code: 1000,
        reason: "".into(),
    };
    if sink.send(Message::Binary(frame)).await.is_ok() {
        drop(sink.send(Message::Close(Some(close))).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_understood() {
        let parse = |query: &[(&str, &str)]| {
            Streams::parse(
                query
                    .iter()
                    .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                    .collect(),
            )
        };
        let api = parse(&[
            ("command", "sh"),
            ("command", "-c"),
            ("stdin", "true"),
            ("tty", "true"),
        ]);
        let kubelet = parse(&[
            ("command", "sh"),
            ("command", "-c"),
            ("input", "1"),
            ("tty", "1"),
        ]);
        assert_eq!(api, kubelet);
        assert_eq!(api.command, ["sh", "-c"]);
        assert!(!api.stdout);
    }
}
