//! `skiff trace`: the programs' decisions as they are made.

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::{Protocol, TraceHook, TraceVerdict, Traced, Tracer, Want};

use super::{bpffs_dir, names::Names, say};
use crate::cli::{ProtocolArg, TraceArgs};

/// Prints decisions until it has printed as many as asked for, is interrupted, or nobody reads any more.
pub(crate) async fn run(args: &TraceArgs) -> Result<()> {
    let names = super::names(&args.look).await;
    let want = Want {
        addr: args.address,
        port: args.port,
        protocol: args.protocol.map(|protocol| match protocol {
            ProtocolArg::Tcp => Protocol::Tcp,
            ProtocolArg::Udp => Protocol::Udp,
        }),
    };
    let tracer = Tracer::start(&bpffs_dir(&args.look), want)
        .context("no datapath here; --run-dir says where the node is")?;
    let left = args.count;
    // Waiting for the programs blocks.
    let listening = tokio::task::spawn_blocking(move || listen(tracer, &names, left));
    tokio::select! {
        ended = listening => ended?,
        // The programs fall silent by themselves.
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

fn listen(mut tracer: Tracer, names: &Names, mut left: Option<u64>) -> Result<()> {
    loop {
        for event in tracer.next_events()? {
            if left == Some(0) || !say(&describe(&event, names))? {
                return Ok(());
            }
            left = left.map(|left| left - 1);
        }
        if left == Some(0) {
            return Ok(());
        }
    }
}

/// One line: when, who, what program, where to, what became of it.
fn describe(event: &Traced, names: &Names) -> String {
    let who = match (event.netns_cookie, event.ifindex) {
        (Some(cookie), _) => names
            .namespace(cookie)
            .map_or_else(|| format!("netns {cookie}"), str::to_owned),
        (None, Some(index)) => names
            .pod(event.client.ip())
            .map_or_else(|| format!("link {index}"), str::to_owned),
        (None, None) => "-".to_owned(),
    };
    let hook = match event.hook {
        TraceHook::Connect => "connect",
        TraceHook::Sendmsg => "sendmsg",
        TraceHook::Recvmsg => "recvmsg",
        TraceHook::Bind => "bind",
        TraceHook::PodEgress => "pod_egress",
        TraceHook::Uplink => "uplink",
    };
    let protocol = match event.protocol {
        Some(Protocol::Tcp) => "TCP",
        Some(Protocol::Udp) => "UDP",
        None => "-",
    };
    let service = event
        .protocol
        .and_then(|protocol| names.asked(event.asked, protocol));
    let service = service.map_or_else(String::new, |name| format!(" ({name})"));
    let target = event.backend.map_or_else(String::new, |backend| {
        let pod = names.pod(backend.ip());
        let pod = pod.map_or_else(String::new, |name| format!(" ({name})"));
        format!(" {backend}{pod}")
    });
    let verdict = match event.verdict {
        TraceVerdict::Pass => "no Service: passed",
        TraceVerdict::Backend => "backend",
        TraceVerdict::SameBackend => "same backend as before",
        TraceVerdict::Refused => "refused: no backend",
        TraceVerdict::Inconsistent => "refused: the tables changed under every look",
        TraceVerdict::Reply => "answer from",
        TraceVerdict::NodePortTaken => "refused: the port is a Service's NodePort",
        TraceVerdict::PodDirect => "right into the pod",
        TraceVerdict::Spoofed => "dropped: not the pod's own address",
    };
    format!(
        "{:>13.6} {who} {hook} {protocol} {}{service}: {verdict}{target}",
        event.time.as_secs_f64(),
        event.asked,
    )
}
