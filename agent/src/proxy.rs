//! The Service proxy: as a part of `skiff up`, and alone with any Kubernetes API server (`skiff proxy`).

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use skiff_netns::NodeNetns;
use skiff_service_proxy::{Dataplane, ProxyConfig, ProxyHandle, ServiceProxy};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{PlaceArgs, ProxyMode},
    compose,
    config::{Place, ProxySettings},
    dataplane, lock, metrics,
    namespaces::{CgroupNamespaces, NodeSockets},
    shutdown,
    uplinks::{UplinkConfig, UplinkTask},
};

/// Another cluster's API server may give any port to a Service as its NodePort.
const ANY_PORT: RangeInclusive<u16> = 1..=u16::MAX;

/// Runs the proxy alone until it is told to end; the Services go on.
pub(crate) async fn run(settings: ProxySettings) -> Result<()> {
    let _lock = lock::acquire(&settings.place.run_dir)?;
    let client = connect(&settings.kubeconfig).await?;
    let health = bind_health(settings.healthz, &settings.place.netns).await?;
    let metrics = metrics::bind(settings.metrics, &settings.place.netns).await?;
    let (mode, limits) = (settings.mode, settings.limits);
    let opened = dataplane::open(&settings.place, mode, limits, &settings.ranges).await?;
    let mode = opened.mode;
    let addresses = settings.ranges.node_addresses.clone();
    let proxy = assemble(
        &settings.place,
        addresses.clone(),
        ANY_PORT,
        client,
        opened.dataplane,
    )?;
    let token = CancellationToken::new();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    tasks.spawn(serve_health(health, proxy.handle(), token.clone()));
    let serve = metrics::serve(
        metrics,
        proxy.handle(),
        settings.place.bpffs_dir.clone(),
        token.clone(),
    );
    tasks.spawn(serve);
    let uplinks = UplinkConfig {
        node_addresses: addresses,
        xdp: settings.xdp,
    };
    spawn(proxy, mode, &settings.place, uplinks, &mut tasks, &token);
    tracing::info!(
        node = settings.place.name,
        addresses = ?settings.ranges.node_addresses,
        ?mode,
        "the Service proxy runs"
    );
    let result = shutdown::requested(&mut tasks).await;
    tracing::info!("ending; Services go on");
    token.cancel();
    compose::join_all(tasks).await;
    result
}

/// Removes what [`run`] made.
pub(crate) async fn cleanup(mut args: PlaceArgs) -> Result<()> {
    // A namespace that is gone took what was in it along.
    let network_is_gone = args.node_netns.as_ref().is_some_and(|path| !path.exists());
    if network_is_gone {
        args.node_netns = None;
    }
    let place = Place::try_from(args)?;
    if place.run_dir.exists() {
        let _lock = lock::acquire(&place.run_dir)?;
        dataplane::remove_rules(&place, network_is_gone).await?;
        fs::remove_file(place.run_dir.join("lock")).context("removing the lock")?;
    }
    skiff_ebpf_loader::teardown(&place.bpffs_dir)?;
    remove_if_empty(&place.run_dir)
}

fn remove_if_empty(dir: &Path) -> Result<()> {
    match fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The proxy of this node, ready to run.
pub(crate) fn assemble(
    place: &Place,
    node_addresses: Vec<IpAddr>,
    node_ports: RangeInclusive<u16>,
    client: Client,
    dataplane: Box<dyn Dataplane>,
) -> Result<ServiceProxy> {
    let cookie = place.netns.run(skiff_ebpf_loader::netns_cookie)?;
    let config = ProxyConfig {
        node_name: place.name.clone(),
        node_addresses,
        node_ports,
        node_netns_cookie: cookie.context("asking for the node's namespace cookie")?,
    };
    let namespaces = CgroupNamespaces {
        cgroup: compose::cgroups(place)?.unified_root(),
        node: place.netns.clone(),
    };
    Ok(ServiceProxy::new(client, config, dataplane)
        .with_namespaces(Arc::new(namespaces))
        .with_listeners(Arc::new(NodeSockets(place.netns.clone()))))
}

/// Starts it, and what goes with its mode: the end of the other one, and with kernel programs the care for the links that
/// clients outside come in by.
pub(crate) fn spawn(
    proxy: ServiceProxy,
    mode: ProxyMode,
    place: &Place,
    uplinks: UplinkConfig,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) {
    let (handle, ending) = (proxy.handle(), token.clone());
    tasks.spawn(dataplane::retire_other(mode, place.clone(), handle, ending));
    if mode == ProxyMode::Ebpf {
        let uplinks = UplinkTask::new(place, uplinks, proxy.handle());
        let ending = token.clone();
        tasks.spawn(async move {
            uplinks.run(ending).await;
            Ok(())
        });
    }
    let ending = token.clone();
    tasks.spawn(async move { Ok(proxy.run(ending).await?) });
}

/// A client of the API server that a kubeconfig names.
pub(crate) async fn connect(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).context("--kubeconfig")?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    let config = config.with_context(|| format!("--kubeconfig {}", kubeconfig.display()))?;
    Client::try_from(config).context("making a client of the API")
}

/// Listens in the node's network namespace.
pub(crate) async fn bind_in_node(
    address: SocketAddr,
    netns: &NodeNetns,
) -> Result<tokio::net::TcpListener> {
    let make = move || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    };
    let made = netns.run_blocking(make).await??;
    Ok(tokio::net::TcpListener::from_std(made)?)
}

async fn bind_health(address: SocketAddr, netns: &NodeNetns) -> Result<tokio::net::TcpListener> {
    bind_in_node(address, netns)
        .await
        .with_context(|| format!("--healthz-bind-address: listening on {address}"))
}

/// Answers 503 until the Services are programmed, then 200.
async fn serve_health(
    listener: tokio::net::TcpListener,
    proxy: ProxyHandle,
    token: CancellationToken,
) -> Result<()> {
    let routes = Router::new()
        .route("/healthz", get(health))
        .route("/livez", get(health))
        .with_state(proxy);
    axum::serve(listener, routes)
        .with_graceful_shutdown(token.cancelled_owned())
        .await
        .context("serving health")
}

async fn health(State(proxy): State<ProxyHandle>) -> (StatusCode, &'static str) {
    if proxy.is_synced() {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "Services are not programmed yet",
        )
    }
}
