//! One run of one probe.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_netns::NodeNetns;
use skiff_runtime::{ContainerRef, ExecConfig};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use super::http::{self, HttpTarget};
use super::{ProbeTarget, seconds};
use crate::context::NodeContext;

/// How one run of a probe ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// Well.
    Success,
    /// Badly; what the user is told.
    Failure(String),
}

/// Longest output of a probe that is shown.
const MAX_OUTPUT: usize = 1024;

pub(super) async fn probe(
    ctx: &Arc<NodeContext>,
    target: &ProbeTarget,
    probe: &Probe,
) -> ProbeOutcome {
    let timeout = seconds(probe.timeout_seconds, 1);
    if let Some(action) = &probe.exec {
        return exec(ctx, &target.id, action, timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return match HttpTarget::new(action, &target.container, target.ip) {
            Ok(to) => http::probe(&ctx.config.node_netns, &to, timeout).await,
            Err(message) => ProbeOutcome::Failure(message),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        return tcp(&ctx.config.node_netns, target, action, timeout).await;
    }
    ProbeOutcome::Failure("gRPC probes are not supported".to_owned())
}

/// The number of a port that may be named.
pub(super) fn port_number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|number| *number > 0),
        IntOrString::String(text) => text.parse().ok().or_else(|| {
            let ports = container.ports.iter().flatten();
            let named = ports
                .into_iter()
                .find(|port| port.name.as_ref() == Some(text))?;
            u16::try_from(named.container_port).ok()
        }),
    }
}

async fn tcp(
    netns: &NodeNetns,
    target: &ProbeTarget,
    action: &TCPSocketAction,
    timeout: Duration,
) -> ProbeOutcome {
    let Some(port) = port_number(&action.port, &target.container) else {
        return ProbeOutcome::Failure(format!("couldn't find port: {:?}", action.port));
    };
    let host = action.host.as_deref().filter(|host| !host.is_empty());
    let ip: Option<IpAddr> = match host {
        Some(host) => host.parse().ok(),
        None => target.ip,
    };
    let Some(ip) = ip else {
        return ProbeOutcome::Failure("no address to connect to".to_owned());
    };
    match connect(netns, SocketAddr::new(ip, port), timeout).await {
        Ok(_stream) => ProbeOutcome::Success,
        Err(message) => ProbeOutcome::Failure(message),
    }
}

/// Connects from the node's namespace. A socket belongs to the namespace that it was made in.
pub(super) async fn connect(
    netns: &NodeNetns,
    to: SocketAddr,
    timeout: Duration,
) -> Result<TcpStream, String> {
    let make = move || {
        if to.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
    };
    let socket = if netns.path().is_none() {
        make()
    } else {
        netns
            .run_blocking(make)
            .await
            .map_err(|error| error.to_string())?
    };
    let socket = socket.map_err(|error| format!("dial tcp {to}: {error}"))?;
    match tokio::time::timeout(timeout, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(format!("dial tcp {to}: connect: connection refused"))
        }
        Ok(Err(error)) => Err(format!("dial tcp {to}: connect: {error}")),
        Err(_elapsed) => Err(format!("dial tcp {to}: i/o timeout")),
    }
}

async fn exec(
    ctx: &Arc<NodeContext>,
    id: &ContainerRef,
    action: &ExecAction,
    timeout: Duration,
) -> ProbeOutcome {
    let command = action.command.clone().unwrap_or_default();
    let run = exec_output(ctx, id, command.clone());
    match tokio::time::timeout(timeout, run).await {
        Ok(Ok((0, _))) => ProbeOutcome::Success,
        Ok(Ok((_, output))) => ProbeOutcome::Failure(output),
        Ok(Err(message)) => ProbeOutcome::Failure(message),
        Err(_elapsed) => ProbeOutcome::Failure(format!(
            "command timed out: \"{}\" timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
    }
}

/// Runs a command in a container; exit code and the beginning of its output.
pub(crate) async fn exec_output(
    ctx: &Arc<NodeContext>,
    id: &ContainerRef,
    command: Vec<String>,
) -> Result<(i32, String), String> {
    let config = ExecConfig {
        command,
        tty: false,
        stdin: false,
    };
    let session = ctx
        .runtime
        .exec(id, config)
        .await
        .map_err(|error| skiff_client::chain(&error).to_string())?;
    let (stdout, stderr) = tokio::join!(read(Some(session.stdout)), read(session.stderr));
    let code = session
        .exit
        .await
        .map_err(|error| skiff_client::chain(&error).to_string())?;
    let mut output = stdout;
    output.extend(stderr);
    output.truncate(MAX_OUTPUT);
    Ok((code, String::from_utf8_lossy(&output).into_owned()))
}

/// The first bytes of a stream; the rest is read and dropped, so that the writer never blocks.
async fn read(stream: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}
