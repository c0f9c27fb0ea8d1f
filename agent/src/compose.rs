//! Puts the parts of a one-machine cluster together and takes them apart again.
//!
//! ```text
//! RedbStore -> ApiServer -+-> HTTPS listeners
//!                         +-> in-process clients -> controllers, scheduler, node, service proxy, DNS
//! ```
//!
//! Everything that may be refused (a lock, a port, a kernel feature) is asked for before the first task starts.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::Router;
use skiff_apiserver::{ApiServer, ApiServerOptions};
use skiff_cni::libcni::CniRunner;
use skiff_controllers::ControllersConfig;
use skiff_dns::{DnsConfig, DnsServer};
use skiff_ebpf_loader::Policies;
use skiff_image::{ImageConfig, ImageStore, RegistriesConfig, RetryPolicy, UnpackLimits};
use skiff_node::{Node, NodeConfig};
use skiff_runtime::{Runtime, RuntimeConfig, ShimRuntime, cgroup::NodeCgroups};
use skiff_service_proxy::Dataplane;
use skiff_service_proxy::policy::{PolicyAgent, PolicyConfig};
use skiff_storage::redb::RedbStore;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    addons,
    cli::ProxyMode,
    config::{DNS_PORT, NodeSettings, Place, UpSettings},
    dataplane::{self, Opened, Ranges},
    in_process::{self, LocalKubelet},
    lock, memory, metrics,
    paths::PodPaths,
    pki::Authority,
    proxy,
    publish::Publisher,
    shutdown,
    uplinks::UplinkConfig,
};

/// How long the parts may take to end when asked to.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// NodePorts, as upstream.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Runs a one-machine cluster until it is told to end.
pub(crate) async fn up(settings: UpSettings) -> Result<()> {
    let _lock = lock::acquire(&settings.node.place.run_dir)?;
    let listeners = api_listeners(&settings).await?;
    let dns = bind_dns(&settings).await?;
    let metrics = metrics::bind(settings.metrics, &settings.node.place.netns).await?;
    let mut publishers = Vec::new();
    for publication in settings.publish.clone() {
        publishers.push(Publisher::bind(publication).await?);
    }

    // Read anew for every pull; a mistake is told now.
    RegistriesConfig::load(&settings.registries_config)?;
    let data_dir = &settings.node.data_dir;
    fs::create_dir_all(data_dir).with_context(|| format!("creating {}", data_dir.display()))?;
    let store = open_store(data_dir)?;
    let authority = Authority::open(&data_dir.join("pki"))?;
    let tls = authority.server_config(&settings)?;
    let images = open_images(&settings.node, Some(&settings.registries_config))?;
    // Last, because it changes the kernel: pods of an earlier daemon need it even if this one then fails.
    let services = prepare_node(&settings).await?;

    let kubelet = LocalKubelet::new(settings.node.place.name.clone());
    let api = ApiServer::new(
        Arc::clone(&store) as _,
        ApiServerOptions {
            service_cidrs: settings.node.service_cidr.all(),
            node_port_range: NODE_PORTS,
            advertise_address: Some((settings.node_ip, settings.api_bind.port()).into()),
            node_dialer: Some(Arc::clone(&kubelet) as _),
        },
    );
    let router = api.router();
    let token = CancellationToken::new();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    start_api(api, listeners, &tls, &mut tasks, &token);
    tasks.spawn({
        let token = token.clone();
        async move {
            memory::trim_loop(token).await;
            Ok(())
        }
    });
    start_control_plane(&settings, &router, &authority, &mut tasks, &token);
    start_dns(dns, &settings, &router, &mut tasks, &token);
    let programs = services.pods.zip(services.policies);
    let paths = start_policies(&settings, &router, programs, &mut tasks, &token);
    let serving = (services.mode, services.dataplane);
    start_proxy(&settings, &router, (serving, metrics), &mut tasks, &token)?;
    let parts = NodeParts {
        images,
        paths: Arc::new(paths),
        kubelet,
    };
    let runtime = start_node(&settings, parts, &router, &mut tasks, &token).await?;
    start_publishers(publishers, &settings, &router, &mut tasks, &token);
    let kubeconfig = settings.node.admin_kubeconfig();
    authority.write_admin_kubeconfig(&kubeconfig, settings.api_bind)?;
    tracing::info!(node = settings.node.place.name, kubeconfig = %kubeconfig.display(), "skiff is up");

    let result = shutdown::requested(&mut tasks).await;
    tracing::info!(
        "ending; containers {}",
        if settings.stop_pods {
            "end too"
        } else {
            "go on"
        }
    );
    token.cancel();
    join_all(tasks).await;
    if settings.stop_pods {
        runtime.remove_everything().await?;
    }
    // Queued writes are finished before the lock is given back.
    tokio::task::spawn_blocking(move || store.close()).await?;
    result
}

fn open_store(data_dir: &Path) -> Result<Arc<RedbStore>> {
    let path = data_dir.join("store.redb");
    let store = RedbStore::open(&path).with_context(|| format!("opening {}", path.display()))?;
    Ok(Arc::new(store))
}

fn start_api(
    api: ApiServer,
    listeners: Vec<TcpListener>,
    tls: &Arc<rustls::ServerConfig>,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) {
    for listener in listeners {
        let (api, tls, token) = (api.clone(), Arc::clone(tls), token.clone());
        tasks.spawn(async move { Ok(api.serve(listener, tls, token).await?) });
    }
    let token = token.clone();
    tasks.spawn(async move { Ok(api.run(token).await?) });
}

/// Waits for the parts to end.
pub(crate) async fn join_all(mut tasks: JoinSet<Result<()>>) {
    let ended = tokio::time::timeout(END_PATIENCE, async {
        while tasks.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        tracing::warn!("not everything ended within {END_PATIENCE:?}");
    }
}

fn start_publishers(
    publishers: Vec<Publisher>,
    settings: &UpSettings,
    router: &Router,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) {
    for publisher in publishers {
        let client = in_process::client(router, "system:skiff:publish");
        let (netns, token) = (settings.node.place.netns.clone(), token.clone());
        tasks.spawn(async move {
            publisher.run(client, netns, token).await;
            Ok(())
        });
    }
}

/// Joins the node's cgroup and opens what serves its Services.
async fn prepare_node(settings: &UpSettings) -> Result<Opened> {
    let node = &settings.node;
    cgroups(&node.place)?.join_daemon()?;
    let ranges = Ranges {
        node_addresses: settings.node_ips(),
        pods: node.cluster_cidr.all(),
        services: node.service_cidr.all(),
    };
    let (mode, limits) = (settings.proxy_mode, settings.limits);
    dataplane::open(&node.place, mode, limits, &ranges).await
}

/// The node's part of the cgroup hierarchies.
pub(crate) fn cgroups(place: &Place) -> Result<NodeCgroups> {
    Ok(NodeCgroups::detect(Path::new(&place.cgroup_root))?)
}

/// The machine's own address, and inside the node's namespace if it has one: there pods reach the API.
async fn api_listeners(settings: &UpSettings) -> Result<Vec<TcpListener>> {
    let bind = settings.api_bind;
    let mut listeners = vec![
        TcpListener::bind(bind)
            .await
            .with_context(|| format!("--api-bind: listening on {bind}"))?,
    ];
    if settings.node.place.netns.path().is_some() {
        let inside = SocketAddr::from((Ipv4Addr::UNSPECIFIED, bind.port()));
        let make = move || {
            let listener = std::net::TcpListener::bind(inside)?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        };
        let made = settings.node.place.netns.run_blocking(make).await?;
        let made =
            made.with_context(|| format!("listening on {inside} in the node's namespace"))?;
        listeners.push(TcpListener::from_std(made)?);
    }
    Ok(listeners)
}

fn start_control_plane(
    settings: &UpSettings,
    router: &Router,
    authority: &Authority,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) {
    let config = ControllersConfig {
        cluster_ca_pem: Some(authority.certificate_pem().to_owned()),
        load_balancer_ranges: settings.load_balancer_ranges.clone(),
        ..ControllersConfig::default()
    };
    let client = in_process::client(router, "system:kube-controller-manager");
    let controllers = skiff_controllers::run(client, config, token.clone());
    tasks.spawn(async move {
        controllers.await;
        Ok(())
    });
    let client = in_process::client(router, "system:kube-scheduler");
    let scheduler = skiff_scheduler::run(client, token.clone());
    tasks.spawn(async move {
        scheduler.await;
        Ok(())
    });
}

async fn bind_dns(settings: &UpSettings) -> Result<DnsServer> {
    let config = DnsConfig {
        listen: (settings.node_ip, DNS_PORT).into(),
        node_netns: settings.node.place.netns.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        upstreams: settings.dns_upstreams.clone(),
    };
    Ok(DnsServer::bind(config).await?)
}

fn start_dns(
    server: DnsServer,
    settings: &UpSettings,
    router: &Router,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) {
    let client = in_process::client(router, "system:skiff:dns");
    let (service_ip, node_ip, token) = (settings.node.dns_ip(), settings.node_ip, token.clone());
    tasks.spawn(async move {
        let ensure = addons::ensure_dns(&client, service_ip, node_ip);
        if token.run_until_cancelled(ensure).await.is_some() {
            server.run(client, token).await;
        }
        Ok(())
    });
}

fn start_proxy(
    settings: &UpSettings,
    router: &Router,
    ((mode, dataplane), metrics): ((ProxyMode, Box<dyn Dataplane>), TcpListener),
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) -> Result<()> {
    let client = in_process::client(router, "system:kube-proxy");
    let addresses = settings.node_ips();
    let place = &settings.node.place;
    let proxy = proxy::assemble(place, addresses.clone(), NODE_PORTS, client, dataplane)?;
    let serve = metrics::serve(
        metrics,
        proxy.handle(),
        place.bpffs_dir.clone(),
        token.clone(),
    );
    tasks.spawn(serve);
    let uplinks = UplinkConfig {
        node_addresses: addresses,
        xdp: settings.xdp,
    };
    proxy::spawn(proxy, mode, place, uplinks, tasks, token);
    Ok(())
}

/// Starts to enforce policies, and makes the ways between pods, which are closed until that has begun.
fn start_policies(
    settings: &UpSettings,
    router: &Router,
    programs: Option<(skiff_ebpf_loader::PodPaths, Policies)>,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) -> PodPaths {
    let netns = settings.node.place.netns.clone();
    let Some((paths, policies)) = programs else {
        tracing::warn!("NetworkPolicies are not enforced: only kernel programs do that");
        return PodPaths::new(None, netns);
    };
    let config = PolicyConfig {
        node_name: settings.node.place.name.clone(),
        dns: Some((settings.node_ip, DNS_PORT).into()),
    };
    let client = in_process::client(router, "system:skiff:network-policy");
    let agent = PolicyAgent::new(client, config, policies);
    let handle = agent.handle();
    let token = token.clone();
    tasks.spawn(async move { Ok(agent.run(token).await?) });
    PodPaths::new(Some((paths, handle)), netns)
}

/// What the node agent works with.
struct NodeParts {
    images: ImageStore,
    paths: Arc<PodPaths>,
    kubelet: Arc<LocalKubelet>,
}

async fn start_node(
    settings: &UpSettings,
    parts: NodeParts,
    router: &Router,
    tasks: &mut JoinSet<Result<()>>,
    token: &CancellationToken,
) -> Result<Arc<ShimRuntime>> {
    let node = &settings.node;
    let runtime = Arc::new(open_runtime(node).await?);
    // What an earlier daemon left half-made has no pod; the node looks after those that have one.
    let known = runtime
        .list()
        .await?
        .into_iter()
        .map(|pod| pod.sandbox.config.pod_uid)
        .collect();
    if let Err(error) = runtime.sweep(&known).await {
        tracing::warn!(%error, "removing what no pod owns");
    }
    install_plugins(node)?;
    let config = NodeConfig {
        node_ips: settings.node_ips(),
        max_pods: settings.max_pods,
        cluster_domain: settings.cluster_domain.clone(),
        ..node_config(node)
    };
    let cni = cni_runner(&config);
    let client = in_process::client(router, &format!("system:node:{}", node.place.name));
    let node = Node::new(
        config,
        client,
        Arc::clone(&runtime) as _,
        Arc::new(parts.images),
        cni,
        parts.paths,
    );
    parts.kubelet.serve(node.kubelet_service());
    let token = token.clone();
    tasks.spawn(async move { Ok(node.run(token).await?) });
    Ok(runtime)
}

/// What the node agent must know, as far as the node's own parameters tell.
pub(crate) fn node_config(node: &NodeSettings) -> NodeConfig {
    NodeConfig {
        node_name: node.place.name.clone(),
        node_netns: node.place.netns.clone(),
        node_ips: Vec::new(),
        data_dir: node.data_dir.clone(),
        run_dir: node.place.run_dir.clone(),
        cluster_cidrs: node.cluster_cidr.all(),
        service_cidrs: node.service_cidr.all(),
        pod_cidrs: Vec::new(),
        cluster_dns: node.dns_ip().into(),
        cluster_domain: String::new(),
        max_pods: 0,
        cni_conf_dir: node.data_dir.join("cni/net.d"),
        cni_bin_dirs: vec![node.data_dir.join("cni/bin")],
        node_labels: Vec::new(),
        resolv_conf: "/etc/resolv.conf".into(),
        kubelet_port: 0,
    }
}

pub(crate) fn cni_runner(config: &NodeConfig) -> CniRunner {
    let cache = config.data_dir.join("cni/cache");
    CniRunner::new(
        config.cni_bin_dirs.clone(),
        cache,
        config.node_netns.clone(),
    )
}

/// Opens the containers of the node, those of an earlier daemon included.
pub(crate) async fn open_runtime(settings: &NodeSettings) -> Result<ShimRuntime> {
    let config = RuntimeConfig {
        run_dir: settings.place.run_dir.clone(),
        shim_path: settings.binaries.join("skiff-shim"),
        cgroup_root: settings.place.cgroup_root.clone().into(),
        node_netns: settings.place.netns.clone(),
        netns_dir: "/run/netns".into(),
    };
    Ok(ShimRuntime::open(config).await?)
}

/// Opens the node's images.
pub(crate) fn open_images(
    settings: &NodeSettings,
    registries: Option<&Path>,
) -> Result<ImageStore> {
    let config = ImageConfig {
        registries_file: registries.map(Path::to_owned),
        retry: RetryPolicy::default(),
        limits: UnpackLimits::default(),
    };
    Ok(ImageStore::open(&settings.data_dir.join("images"), config)?)
}

/// Links the plugins' names to the binary beside ours, as an upgrade may have moved it.
fn install_plugins(settings: &NodeSettings) -> Result<()> {
    let binary = settings.binaries.join("skiff-cni");
    let output = Command::new(&binary)
        .arg("--install")
        .arg(settings.data_dir.join("cni/bin"))
        .output()
        .with_context(|| format!("running {}", binary.display()))?;
    if !output.status.success() {
        bail!(
            "{} --install: {}",
            binary.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
