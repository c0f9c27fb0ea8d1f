//! `skiff trace`: the programs' decisions as they are made.

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::{Protocol, TraceHook, TraceVerdict, Traced, Tracer, Want};

use super::{bpffs_dir, names::Names, number, protocol_name, say};
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
    let hook = match event.hook {
        TraceHook::Connect => "connect",
        TraceHook::Sendmsg => "sendmsg",
        TraceHook::Recvmsg => "recvmsg",
        TraceHook::Bind => "bind",
        TraceHook::PodEgress => "pod_egress",
        TraceHook::PodIngress => "pod_ingress",
        TraceHook::Uplink => "uplink",
    };
    let protocol = match event.ip_protocol {
        0 => "-".to_owned(),
        number => protocol_name(number),
    };
    let service = event
        .protocol
        .and_then(|protocol| names.asked(event.asked, protocol));
    let asked = service.or_else(|| names.pod(event.asked.ip()));
    let asked = asked.map_or_else(String::new, |name| format!(" ({name})"));
    let target = event.backend.map_or_else(String::new, |backend| {
        let pod = names.pod(backend.ip());
        let pod = pod.map_or_else(String::new, |name| format!(" ({name})"));
        format!(" {backend}{pod}")
    });
    format!(
        "{:>13.6} {} {hook} {protocol} {}{asked}: {}{target}{}",
        event.time.as_secs_f64(),
        who(event, names),
        event.asked,
        verdict(event.verdict),
        packet(event),
    )
}

/// The pod that asks, or whose policies were asked.
fn who(event: &Traced, names: &Names) -> String {
    let own = match event.verdict {
        TraceVerdict::DeniedIngress => event.asked.ip(),
        _ => event.client.ip(),
    };
    match (event.netns_cookie, event.ifindex) {
        (Some(cookie), _) => names
            .namespace(cookie)
            .map_or_else(|| format!("netns {cookie}"), str::to_owned),
        (None, Some(index)) => names
            .pod(own)
            .map_or_else(|| format!("link {index}"), str::to_owned),
        (None, None) => "-".to_owned(),
    }
}

fn verdict(verdict: TraceVerdict) -> &'static str {
    match verdict {
        TraceVerdict::Pass => "no Service: passed",
        TraceVerdict::Backend => "backend",
        TraceVerdict::SameBackend => "same backend as before",
        TraceVerdict::Refused => "refused: no backend",
        TraceVerdict::Inconsistent => "refused: the tables changed under every look",
        TraceVerdict::Reply => "answer from",
        TraceVerdict::NodePortTaken => "refused: the port is a Service's NodePort",
        TraceVerdict::Spoofed => "dropped: not the pod's own address",
        TraceVerdict::DeniedEgress => "denied: no policy lets it out",
        TraceVerdict::DeniedIngress => "denied: no policy lets it in",
        TraceVerdict::PolicyUnknown => "dropped: the pod's policies are not known yet",
        TraceVerdict::NoLocal => "dropped: no backend on this node, and the Service wants one",
        TraceVerdict::NoWay => "dropped: no way or no free port to the backend's node",
        TraceVerdict::TableFull => "dropped: the table of connections is full",
        TraceVerdict::Expired => "dropped: on its way for too long",
        TraceVerdict::Stranger => "dropped: the client is in none of the Service's source ranges",
    }
}

/// Whose packet it was, and what policies took the two ends for.
fn packet(event: &Traced) -> String {
    let identities = event.identities.map_or_else(String::new, |(own, peer)| {
        format!(", identities {} and {}", number(own), number(peer))
    });
    let client = event.ifindex.map(|_| format!(", from {}", event.client));
    format!("{}{identities}", client.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_denied_packet_is_told_with_its_ends() {
        let event = Traced {
            time: Duration::from_secs(7),
            hook: TraceHook::PodEgress,
            verdict: TraceVerdict::DeniedIngress,
            protocol: Some(Protocol::Tcp),
            ip_protocol: 6,
            cookie: None,
            netns_cookie: None,
            ifindex: Some(9),
            identities: Some((0x8000_0012, 0x34)),
            client: "10.244.0.5:40000".parse().unwrap(),
            asked: "10.244.0.7:80".parse().unwrap(),
            backend: None,
        };
        assert_eq!(
            describe(&event, &Names::default()),
            "     7.000000 link 9 pod_egress TCP 10.244.0.7:80: denied: no policy lets it in, \
             from 10.244.0.5:40000, identities 00000012 and 00000034"
        );
    }
}
