//! `/metrics` of the Service proxy: what it did, what the kernel counted, how full the tables are.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use skiff_ebpf_loader::{Counters, Frontend, Inspector, Pressure, SeenFrontend};
use skiff_netns::NodeNetns;
use skiff_service_proxy::{ProxyCounters, ProxyHandle, ServiceName};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::proxy;

/// Listens in the node's network namespace.
pub(crate) async fn bind(address: SocketAddr, netns: &NodeNetns) -> Result<TcpListener> {
    proxy::bind_in_node(address, netns)
        .await
        .with_context(|| format!("--metrics-bind-address: listening on {address}"))
}

#[derive(Clone)]
struct Source {
    proxy: ProxyHandle,
    bpffs_dir: PathBuf,
}

/// Answers until `token` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    proxy: ProxyHandle,
    bpffs_dir: PathBuf,
    token: CancellationToken,
) -> Result<()> {
    let routes = Router::new()
        .route("/metrics", get(page))
        .with_state(Source { proxy, bpffs_dir });
    axum::serve(listener, routes)
        .with_graceful_shutdown(token.cancelled_owned())
        .await
        .context("serving metrics")
}

async fn page(State(source): State<Source>) -> (StatusCode, String) {
    let owners = source.proxy.owners().await;
    // Reading tables is many system calls.
    let read = tokio::task::spawn_blocking(move || {
        let kernel = source.proxy.kernel_counters()?;
        // Rules count nothing, and have no tables of a fixed size.
        let tables = match (&kernel, Inspector::open(&source.bpffs_dir)) {
            (Some(_), Ok(tables)) => Some((tables.frontends()?, tables.pressure()?)),
            _ => None,
        };
        let proxy = source.proxy.counters();
        anyhow::Ok(render(&proxy, kernel.as_ref(), tables.as_ref(), &owners))
    });
    match read.await.map_err(Into::into).and_then(|page| page) {
        Ok(page) => (StatusCode::OK, page),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    }
}

/// Prometheus' text format.
fn render(
    proxy: &ProxyCounters,
    kernel: Option<&Counters>,
    tables: Option<&(Vec<SeenFrontend>, Vec<Pressure>)>,
    owners: &[(Frontend, ServiceName)],
) -> String {
    let mut page = Page::default();
    page.proxy(proxy);
    if let Some(kernel) = kernel {
        page.kernel(kernel);
    }
    if let Some((frontends, pressure)) = tables {
        page.connections(frontends, owners);
        page.pressure(pressure);
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _infallible = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _infallible = writeln!(self.0, "{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn proxy(&mut self, proxy: &ProxyCounters) {
        let (gauge, counter) = ("gauge", "counter");
        let name = "skiff_proxy_services";
        self.single(name, gauge, "Services with frontends.", proxy.services);
        let name = "skiff_proxy_frontend_conflicts";
        let help = "Frontends that more than one Service claims.";
        self.single(name, gauge, help, proxy.conflicts);
        let name = "skiff_proxy_changes_applied_total";
        self.single(name, counter, "Changes of tables made.", proxy.applied);
        let name = "skiff_proxy_changes_failed_total";
        let help = "Changes of tables that failed and were tried again.";
        self.single(name, counter, help, proxy.failed);
        let name = "skiff_proxy_backend_sets_published_total";
        self.single(
            name,
            counter,
            "Backend sets published.",
            proxy.sets_published,
        );
        let name = "skiff_proxy_first_sync_duration_seconds";
        let help = "How long it took to plan and write everything for the first time.";
        self.single(name, gauge, help, proxy.first_sync.as_secs_f64());
        let name = "skiff_proxy_last_change_duration_seconds";
        let help = "How long it took to plan and write the last change.";
        self.single(name, gauge, help, proxy.last_apply.as_secs_f64());
    }

    fn kernel(&mut self, kernel: &Counters) {
        for (name, help, value) in kernel.named() {
            let name = format!("skiff_datapath_{name}_total");
            self.single(&name, "counter", help, value);
        }
    }

    /// Connections by Service: those of its ports together.
    fn connections(&mut self, frontends: &[SeenFrontend], owners: &[(Frontend, ServiceName)]) {
        let owners: HashMap<_, _> = owners
            .iter()
            .map(|(frontend, name)| (frontend, name))
            .collect();
        let mut counted = HashSet::new();
        let mut sums: BTreeMap<&ServiceName, u64> = BTreeMap::new();
        for seen in frontends {
            // Frontends of one port share a set and its counter.
            if let Some(owner) = owners.get(&seen.frontend)
                && counted.insert(seen.set)
            {
                *sums.entry(owner).or_default() += seen.connections;
            }
        }
        let name = "skiff_service_connections_total";
        let help = "Connections (TCP, and UDP by connect) sent to a backend of the Service.";
        self.head(name, "counter", help);
        for (service, sum) in sums {
            let (namespace, service) = (&service.namespace, &service.name);
            let labels = format!("{{namespace={namespace:?},service={service:?}}}");
            self.line(name, &labels, sum);
        }
    }

    fn pressure(&mut self, tables: &[Pressure]) {
        for (name, help, value) in [
            (
                "skiff_datapath_table_entries",
                "Entries in a table.",
                (|table| table.used) as fn(&Pressure) -> u64,
            ),
            (
                "skiff_datapath_table_entries_limit",
                "How many entries a table can have.",
                |table| u64::from(table.limit),
            ),
            (
                "skiff_datapath_table_bytes",
                "The kernel's memory for a table.",
                |table| table.bytes,
            ),
        ] {
            self.head(name, "gauge", help);
            for table in tables {
                self.line(name, &format!("{{table={:?}}}", table.map), value(table));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_ebpf_loader::Protocol;

    use super::*;

    fn seen(addr: &str, set: u32, connections: u64) -> SeenFrontend {
        SeenFrontend {
            frontend: Frontend::Address {
                addr: addr.parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            inside: Vec::new(),
            outside: None,
            affinity_seconds: 0,
            set,
            connections,
        }
    }

    #[test]
    fn connections_are_summed_by_service_and_shared_sets_count_once() {
        let all = vec![
            seen("10.96.0.5", 1, 7),
            seen("203.0.113.7", 1, 7),
            seen("10.96.0.6", 2, 1),
            seen("10.96.0.7", 3, 9),
        ];
        let owner = |seen: &SeenFrontend, name| (seen.frontend, ServiceName::new("shop", name));
        let owners = [
            owner(&all[0], "web"),
            owner(&all[1], "web"),
            owner(&all[2], "web"),
        ];
        let pressure = vec![Pressure {
            map: "LB_SERVICES",
            used: 4,
            limit: 10,
            bytes: 1000,
            grows: false,
        }];
        let page = render(
            &ProxyCounters::default(),
            Some(&Counters::default()),
            Some(&(all, pressure)),
            &owners,
        );
        for line in [
            "skiff_service_connections_total{namespace=\"shop\",service=\"web\"} 8",
            "skiff_datapath_table_entries{table=\"LB_SERVICES\"} 4",
            "skiff_datapath_table_entries_limit{table=\"LB_SERVICES\"} 10",
            "skiff_datapath_table_bytes{table=\"LB_SERVICES\"} 1000",
            "skiff_datapath_connects_total 0",
            "skiff_proxy_services 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
