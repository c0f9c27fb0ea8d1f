//! `skiff service`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::json;
use skiff_ebpf_loader::{
    Backend, FlowState, FlowTable, Frontend, Inspector, NatFlow, Protocol, SeenFrontend,
};

use super::{bpffs_dir, names::Names, say, table};
use crate::cli::{OutputFormat, ServiceArgs, ServiceVerb};

/// Prints what was asked for.
pub(crate) async fn run(args: &ServiceArgs) -> Result<()> {
    let inspector = Inspector::open(&bpffs_dir(&args.look))
        .context("no datapath here; --run-dir says where the node is")?;
    let names = super::names(&args.look).await;
    let text = match &args.verb {
        ServiceVerb::List => list(&inspector.frontends()?, &names, args.output),
        ServiceVerb::Backends { of } => {
            let mut all = inspector.frontends()?;
            all.retain(|seen| of.as_deref().is_none_or(|of| is_meant(seen, of, &names)));
            anyhow::ensure!(
                !all.is_empty() || of.is_none(),
                "no frontend is called {:?}: see `skiff service list`",
                of.as_deref().unwrap_or_default()
            );
            backends(&all, &names, args.output)
        }
        ServiceVerb::Conntrack => {
            let flows = FlowTable::open(&bpffs_dir(&args.look))?.list()?;
            conntrack(&inspector, &flows, &names, args.output)?
        }
        ServiceVerb::Tables => tables(&inspector, args.output)?,
    };
    say(&text).map(drop)
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// The frontend as it is typed and printed.
fn place(frontend: &Frontend) -> (String, &'static str) {
    match *frontend {
        Frontend::Address {
            addr,
            port,
            protocol: proto,
        } => (SocketAddr::new(addr, port).to_string(), protocol(proto)),
        Frontend::NodePort {
            family,
            port,
            protocol: proto,
        } => (
            format!("node-{family:?}:{port}").to_lowercase(),
            protocol(proto),
        ),
    }
}

/// By frontend, by Service, or by Service and port.
fn is_meant(seen: &SeenFrontend, of: &str, names: &Names) -> bool {
    let name = names.frontend(&seen.frontend).unwrap_or_default();
    let service = name.rsplit_once(':').map_or("", |(service, _port)| service);
    place(&seen.frontend).0 == of || name == of || service == of
}

fn list(all: &[SeenFrontend], names: &Names, output: OutputFormat) -> String {
    if output == OutputFormat::Json {
        let items = all.iter().map(|seen| {
            let (frontend, protocol) = place(&seen.frontend);
            json!({
                "frontend": frontend,
                "protocol": protocol,
                "service": names.frontend(&seen.frontend),
                "backends": seen.inside.len(),
                "backendsFromOutside": seen.outside.as_ref().map(Vec::len),
                "affinitySeconds": seen.affinity_seconds,
                "connections": seen.connections,
            })
        });
        return format!("{:#}", items.collect::<serde_json::Value>());
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|seen| {
            let (frontend, protocol) = place(&seen.frontend);
            let outside = seen.outside.as_ref();
            vec![
                frontend,
                protocol.to_owned(),
                names.frontend(&seen.frontend).unwrap_or("-").to_owned(),
                seen.inside.len().to_string(),
                outside.map_or_else(|| "-".to_owned(), |set| set.len().to_string()),
                match seen.affinity_seconds {
                    0 => "-".to_owned(),
                    seconds => format!("{seconds}s"),
                },
                seen.connections.to_string(),
            ]
        })
        .collect();
    let headings = [
        "FRONTEND",
        "PROTOCOL",
        "SERVICE",
        "BACKENDS",
        "OUTSIDE",
        "AFFINITY",
        "CONNECTIONS",
    ];
    table::render(&headings, &rows)
}

fn backends(all: &[SeenFrontend], names: &Names, output: OutputFormat) -> String {
    let state = |backend: &Backend| match (backend.terminating, backend.local) {
        (true, _) => "terminating",
        (false, true) => "local",
        (false, false) => "ready",
    };
    let rows = all.iter().flat_map(|seen| {
        let (frontend, protocol) = place(&seen.frontend);
        seen.inside.iter().map(move |backend| {
            let addr = SocketAddr::new(backend.addr, backend.port);
            let pod = names.pod(backend.addr).unwrap_or("-");
            [&frontend, protocol, &addr.to_string(), pod, state(backend)].map(str::to_owned)
        })
    });
    if output == OutputFormat::Json {
        let items = rows.map(|[frontend, protocol, backend, pod, state]| {
            json!({"frontend": frontend, "protocol": protocol, "backend": backend, "pod": pod, "state": state})
        });
        return format!("{:#}", items.collect::<serde_json::Value>());
    }
    let rows: Vec<Vec<String>> = rows.map(Vec::from).collect();
    table::render(&["FRONTEND", "PROTOCOL", "BACKEND", "POD", "STATE"], &rows)
}

/// A connection to a Service, from a socket of the node or from a client outside.
struct Tracked {
    client: String,
    asked: SocketAddr,
    backend: SocketAddr,
    service: Option<String>,
    state: &'static str,
}

fn conntrack(
    inspector: &Inspector,
    flows: &[NatFlow],
    names: &Names,
    output: OutputFormat,
) -> Result<String> {
    let name = |asked, protocol| names.asked(asked, protocol).map(str::to_owned);
    let sockets = inspector.sockets()?.into_iter().map(|socket| Tracked {
        client: format!("socket {:x}", socket.cookie),
        asked: socket.asked,
        backend: socket.backend,
        // The table does not say which protocol a socket speaks: the Service does, if only one of them has it.
        service: name(socket.asked, Protocol::Tcp).or_else(|| name(socket.asked, Protocol::Udp)),
        state: "socket",
    });
    let outside = flows.iter().map(|flow| Tracked {
        client: flow.client.to_string(),
        asked: flow.asked,
        backend: flow.backend,
        service: name(flow.asked, flow.protocol),
        state: match flow.state {
            FlowState::Opening => "opening",
            FlowState::Open => "open",
            FlowState::Closing => "closing",
            FlowState::Refused => "refused",
        },
    });
    let all = sockets.chain(outside);
    if output == OutputFormat::Json {
        let items = all.map(|tracked| {
            json!({
                "client": tracked.client,
                "asked": tracked.asked.to_string(),
                "backend": tracked.backend.to_string(),
                "service": tracked.service,
                "pod": names.pod(tracked.backend.ip()),
                "state": tracked.state,
            })
        });
        return Ok(format!("{:#}", items.collect::<serde_json::Value>()));
    }
    let rows: Vec<Vec<String>> = all
        .map(|tracked| {
            vec![
                tracked.client,
                tracked.asked.to_string(),
                tracked.backend.to_string(),
                tracked.service.unwrap_or_else(|| "-".to_owned()),
                names.pod(tracked.backend.ip()).unwrap_or("-").to_owned(),
                tracked.state.to_owned(),
            ]
        })
        .collect();
    let headings = ["CLIENT", "ASKED", "BACKEND", "SERVICE", "POD", "STATE"];
    Ok(table::render(&headings, &rows))
}

fn tables(inspector: &Inspector, output: OutputFormat) -> Result<String> {
    let all = inspector.pressure()?;
    if output == OutputFormat::Json {
        let items = all.iter().map(|table| {
            json!({
                "table": table.map, "used": table.used, "limit": table.limit,
                "bytes": table.bytes, "bytesPerEntry": table.bytes_each(), "grows": table.grows,
            })
        });
        return Ok(format!("{:#}", items.collect::<serde_json::Value>()));
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|table| {
            let percent = table.used * 100 / u64::from(table.limit.max(1));
            vec![
                table.map.to_owned(),
                table.used.to_string(),
                table.limit.to_string(),
                format!("{percent}%"),
                table.bytes.to_string(),
                (table.bytes_each()).map_or_else(|| "-".to_owned(), |each| each.to_string()),
                if table.grows { "as used" } else { "at start" }.to_owned(),
            ]
        })
        .collect();
    let headings = ["TABLE", "USED", "LIMIT", "FULL", "BYTES", "EACH", "TAKEN"];
    Ok(table::render(&headings, &rows))
}
