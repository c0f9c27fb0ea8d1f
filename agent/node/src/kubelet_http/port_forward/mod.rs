//! `/portForward`: connections to a pod's ports, as kubectl asks for them: SPDY streams within a WebSocket (KEP-4006).
//!
//! For each connection the client opens two streams, `error` and `data`, which name the port and carry the same request
//! id. We connect to the port on the pod's own loopback, so that a server is reached that listens nowhere else.

mod spdy;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use skiff_netns::NodeNetns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::spdy::{Answer, Decoder, Encoder, Frame};
use super::exec::upgrade_to;
use super::{Context, Refusal, find_pod};

const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Pieces that may wait on their way to one connection, or to the client.
const QUEUE: usize = 16;
const PIECE: usize = 32 * 1024;
/// Connections of one client at a time.
const MAX_CONNECTIONS: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn port_forward(
    State(ctx): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Refusal> {
    let pod = find_pod(&ctx, &namespace, &name)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let record = ctx
        .runtime
        .pod(uid)
        .await
        .map_err(|_gone| Refusal::not_found(format!("pod {name} is not running")))?;
    let upgrade = upgrade_to(&[PROTOCOL], request).await?;
    let netns = if record.sandbox.config.host_network {
        ctx.config.node_netns.clone()
    } else {
        NodeNetns::open(&record.sandbox.netns)
            .map_err(|error| Refusal::internal(format!("the pod's network: {error}")))?
    };
    let description = format!("pod {name}, uid {uid}");
    Ok(upgrade.on_upgrade(async move |socket| {
        let target = Target { netns, description };
        if let Err(error) = serve(socket, target).await {
            tracing::debug!(%error, "port-forward");
        }
    }))
}

/// Where connections go.
#[derive(Clone)]
struct Target {
    netns: NodeNetns,
    description: String,
}

/// Until the client leaves.
async fn serve(socket: WebSocket, target: Target) -> Result<(), spdy::SpdyError> {
    let (sink, mut incoming) = socket.split();
    let (answers, queue) = mpsc::channel(QUEUE);
    let mut connections = Connections {
        target,
        answers,
        inputs: HashMap::new(),
        halves: HashMap::new(),
        tasks: JoinSet::new(),
    };
    connections.tasks.spawn(write_answers(sink, queue));
    let mut decoder = Decoder::new();
    while let Some(Ok(message)) = incoming.next().await {
        match message {
            Message::Binary(bytes) => decoder.push(&bytes),
            Message::Close(_) => break,
            _ => continue,
        }
        while let Some(frame) = decoder.next()? {
            if frame == Frame::GoAway {
                return Ok(());
            }
            connections.handle(frame).await;
        }
    }
    // Dropping the tasks ends all connections.
    Ok(())
}

async fn write_answers(
    mut sink: SplitSink<WebSocket, Message>,
    mut answers: mpsc::Receiver<Answer>,
) {
    let mut encoder = Encoder::new();
    while let Some(answer) = answers.recv().await {
        if sink
            .send(Message::Binary(encoder.encode(&answer)))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// The streams of one client.
struct Connections {
    target: Target,
    answers: mpsc::Sender<Answer>,
    /// From the client to a connection, by the data stream's number. Empty bytes are the input's end; dropping one ends
    /// the connection.
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    /// Requests of which one stream is still to come.
    halves: HashMap<String, Half>,
    tasks: JoinSet<()>,
}

enum Half {
    Error(u32),
    Data(u32, u16, mpsc::Receiver<Bytes>),
}

impl Connections {
    async fn handle(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers } => {
                let answer = if self.open(stream, &headers).is_some() {
                    Answer::Accept(stream)
                } else {
                    Answer::Refuse(stream)
                };
                self.answer(answer).await;
            }
            Frame::Data { stream, bytes, end } => {
                let Some(input) = self.inputs.get(&stream) else {
                    return;
                };
                // A connection that has ended takes no more.
                if !bytes.is_empty() {
                    input.send(bytes).await.ok();
                }
                if end {
                    input.send(Bytes::new()).await.ok();
                }
            }
            // The client wants nothing more of it, and kubectl then waits for the error stream's end.
            Frame::Reset { stream } => drop(self.inputs.remove(&stream)),
            Frame::Ping(id) => self.answer(Answer::Pong(id)).await,
            Frame::GoAway | Frame::Ignored => {}
        }
    }

    async fn answer(&self, answer: Answer) {
        // A client that has left is noticed elsewhere.
        self.answers.send(answer).await.ok();
    }

    /// `None`: such a stream cannot be had.
    fn open(&mut self, stream: u32, headers: &[(String, String)]) -> Option<()> {
        let header = |name| headers.iter().find(|(n, _)| n == name).map(|(_, v)| &**v);
        let request = header("requestid")?.to_owned();
        let port: u16 = header("port")?.parse().ok().filter(|port| *port != 0)?;
        while self.tasks.try_join_next().is_some() {}
        self.inputs.retain(|_, input| !input.is_closed());
        if self.tasks.len() + self.halves.len() > MAX_CONNECTIONS {
            return None;
        }
        let half = match header("streamtype")? {
            "error" => Half::Error(stream),
            "data" => {
                let (input, received) = mpsc::channel(QUEUE);
                self.inputs.insert(stream, input);
                Half::Data(stream, port, received)
            }
            _ => return None,
        };
        match (self.halves.remove(&request), half) {
            (None, half) => drop(self.halves.insert(request, half)),
            (Some(Half::Error(error)), Half::Data(data, port, input))
            | (Some(Half::Data(data, port, input)), Half::Error(error)) => {
                let streams = Streams {
                    error,
                    data,
                    answers: self.answers.clone(),
                };
                self.tasks
                    .spawn(connect(self.target.clone(), port, input, streams));
            }
            // Twice the same.
            _ => return None,
        }
        Some(())
    }
}

/// The way back to the client.
struct Streams {
    error: u32,
    data: u32,
    answers: mpsc::Sender<Answer>,
}

impl Streams {
    async fn send(&self, stream: u32, bytes: Vec<u8>, end: bool) -> bool {
        let answer = Answer::Data { stream, bytes, end };
        self.answers.send(answer).await.is_ok()
    }
}

async fn connect(target: Target, port: u16, input: mpsc::Receiver<Bytes>, streams: Streams) {
    let error = match dial(&target.netns, port).await {
        Ok(connection) => {
            copy(connection, input, &streams).await;
            Vec::new()
        }
        Err(error) => {
            let pod = &target.description;
            format!("error forwarding port {port} to {pod}: {error}").into_bytes()
        }
    };
    // The message first: kubectl looks for it when the data has ended.
    streams.send(streams.error, error, true).await;
    streams.send(streams.data, Vec::new(), true).await;
}

/// The server may listen on one of the loopback addresses only.
async fn dial(netns: &NodeNetns, port: u16) -> io::Result<TcpStream> {
    let connect = move || {
        let dial = |ip: IpAddr| {
            std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_TIMEOUT)
        };
        let stream = dial(Ipv4Addr::LOCALHOST.into())
            .or_else(|error| dial(Ipv6Addr::LOCALHOST.into()).map_err(|_also| error))?;
        stream.set_nonblocking(true)?;
        Ok::<_, io::Error>(stream)
    };
    let stream = netns
        .run_blocking(connect)
        .await
        .map_err(io::Error::other)?;
    TcpStream::from_std(stream?)
}

/// Both ways, until the server's side ends or the client resets its stream.
async fn copy(mut connection: TcpStream, mut input: mpsc::Receiver<Bytes>, streams: &Streams) {
    let (mut reader, mut writer) = connection.split();
    let up = async {
        let mut open = true;
        while let Some(bytes) = input.recv().await {
            // The server may have gone already; what it said before still counts.
            if bytes.is_empty() {
                writer.shutdown().await.ok();
                open = false;
            } else if open {
                open = writer.write_all(&bytes).await.is_ok();
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            if !streams.send(streams.data, bytes, false).await {
                return;
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}
