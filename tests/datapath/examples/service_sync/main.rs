//! How quickly Services get into the kernel's tables, and what it costs: for `cargo xtask bench service`.
//!
//!     service_sync sync COUNT RUNS     from typed objects to a first connection, with nothing in the tables before
//!     service_sync api COUNT RUNS      the same by the proxy itself, with an API server in this process
//!     service_sync update COUNT RUNS   one endpoint of one Service changed while there are so many: from the watch event
//!     service_sync floor COUNT RUNS    as many entries into bare maps, a system call for each
//!     service_sync rss COUNT           memory of a process that does nothing but this, MiB
//!
//! Prints numbers, one a line; times are in seconds. Each Service has five endpoints.
#![allow(clippy::print_stdout, reason = "speaks with the bench")]

mod floor;
mod objects;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Client, Config, ResourceExt as _};
use skiff_ebpf_loader::{Datapath, DatapathConfig, Limits};
use skiff_service_proxy::{
    ProxyConfig, ProxyHandle, ServiceInfo, ServiceName, ServiceProxy, SliceInfo, Tracker,
};
use skiff_tests_datapath::{
    NODE, PODS, Probe, TARGET, TestNode,
    api::{FakeApi, SERVICES, SLICES},
    protocol,
};
use tokio_util::sync::CancellationToken;

use objects::{address_of, service_object, slice_object};

/// The name of the node.
const NAME: &str = "node-1";
const PATIENCE: Duration = Duration::from_secs(120);
const USAGE: &str = "usage: see the source's first lines";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["sync", count, runs] => sync(count.parse()?, runs.parse()?),
        ["api", count, runs] => through_the_api(count.parse()?, runs.parse()?).await,
        ["update", count, runs] => update(count.parse()?, runs.parse()?).await,
        ["floor", count, runs] => floor::run(count.parse()?, runs.parse()?),
        ["rss", count] => rss(count.parse()?).await,
        ["proxy", url, cgroup, pins] => proxy(url, cgroup, pins).await,
        _ => bail!(USAGE),
    }
}

fn test_node() -> Result<TestNode> {
    let own = std::env::current_exe()?;
    let binaries = own
        .ancestors()
        .nth(2)
        .context("this executable lies nowhere")?;
    TestNode::new(&binaries.join("datapath-probe").to_string_lossy())
}

fn config(cgroup: PathBuf, pins: PathBuf) -> DatapathConfig {
    DatapathConfig {
        cgroup_path: cgroup,
        bpffs_dir: pins,
        limits: Limits::default(),
    }
}

fn open(node: &TestNode) -> Result<Datapath> {
    let mut datapath = Datapath::open(&config(node.cgroup.clone(), node.bpffs.clone()))?;
    datapath.set_node(&node.settings()?)?;
    Ok(datapath)
}

fn server(node: &TestNode) -> Result<Probe> {
    let mut server = node.pod()?;
    let [addr, ..] = PODS;
    server.tell(&protocol::Command::TcpServe {
        addr: (addr, TARGET).into(),
        name: "here".to_owned(),
    })?;
    Ok(server)
}

/// One connection to the last Service, the only one that has an endpoint which exists.
fn connect(client: &mut Probe, count: u32) -> Result<()> {
    let answer = client.tell(&protocol::Command::Tcp {
        addr: (address_of(count - 1), 80).into(),
        times: 1,
    })?;
    ensure!(answer.total() == 1, "{answer:?}");
    Ok(())
}

fn sync(count: u32, runs: usize) -> Result<()> {
    let typed = |kind| (0..count).map(kind).map(serde_json::from_value);
    let services: Vec<Service> = typed(service_object).collect::<Result<_, _>>()?;
    let slices = (0..count).map(|number| slice_object(number, count));
    let slices: Vec<EndpointSlice> = slices
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?;
    for _ in 0..runs {
        let node = test_node()?;
        let _server = server(&node)?;
        let mut client = node.pod()?;
        let mut datapath = open(&node)?;
        let begun = Instant::now();
        let mut tracker = Tracker::default();
        for service in &services {
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let name = ServiceName::new(namespace, &service.name_any());
            tracker.set_service(name, ServiceInfo::of(service));
        }
        for slice in &slices {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            tracker.set_slice(namespace, &slice.name_any(), SliceInfo::of(slice, NAME));
        }
        let diff = tracker.full_diff(datapath.state());
        datapath.apply(&diff)?;
        connect(&mut client, count)?;
        println!("{}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

fn filled(count: u32) -> FakeApi {
    let api = FakeApi::default();
    for number in 0..count {
        api.put(SERVICES, service_object(number));
        api.put(SLICES, slice_object(number, count));
    }
    api
}

/// A proxy that runs until this is dropped.
struct Running {
    handle: ProxyHandle,
    token: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl Running {
    async fn start(client: Client, datapath: Datapath) -> Result<Self> {
        let config = ProxyConfig {
            node_name: NAME.to_owned(),
            node_addresses: vec![NODE.into()],
            node_ports: 30_000..=32_767,
            node_netns_cookie: 0,
        };
        let proxy = ServiceProxy::new(client, config, datapath);
        let (handle, token) = (proxy.handle(), CancellationToken::new());
        tokio::spawn(proxy.run(token.clone()));
        let running = Self { handle, token };
        tokio::time::timeout(PATIENCE, running.handle.synced())
            .await
            .context("not programmed")?;
        Ok(running)
    }
}

async fn through_the_api(count: u32, runs: usize) -> Result<()> {
    let api = filled(count);
    for _ in 0..runs {
        let node = test_node()?;
        let _server = server(&node)?;
        let mut client = node.pod()?;
        let datapath = open(&node)?;
        let begun = Instant::now();
        let _running = Running::start(api.client(), datapath).await?;
        connect(&mut client, count)?;
        println!("{}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn update(count: u32, runs: u32) -> Result<()> {
    let api = filled(count);
    let node = test_node()?;
    let running = Running::start(api.client(), open(&node)?).await?;
    let before = running.handle.counters();
    for run in 0..runs {
        let applied = running.handle.counters().applied;
        let number = run * 7 % (count - 1);
        let changed = objects::changed_slice(number, run);
        let begun = Instant::now();
        api.put(SLICES, changed);
        while running.handle.counters().applied == applied {
            ensure!(begun.elapsed() < PATIENCE, "the change was not applied");
            std::hint::spin_loop();
        }
        println!("{}", begun.elapsed().as_secs_f64());
    }
    let after = running.handle.counters();
    let written = after.sets_published - before.sets_published;
    ensure!(
        written == u64::from(runs),
        "{runs} changes published {written} sets"
    );
    Ok(())
}

/// Two processes, for the API's objects are not the proxy's.
async fn rss(count: u32) -> Result<()> {
    let api = filled(count);
    let url = format!("http://{}", api.listen().await?);
    let node = test_node()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("proxy").arg(url);
    command.args([&node.cgroup, &node.bpffs]);
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn proxy(url: &str, cgroup: &str, pins: &str) -> Result<()> {
    let datapath = Datapath::open(&config(cgroup.into(), pins.into()))?;
    let client = Client::try_from(Config::new(url.parse()?))?;
    let _running = Running::start(client, datapath).await?;
    println!("{}", resident_mib("VmRSS:")?);
    println!("{}", resident_mib("VmHWM:")?);
    Ok(())
}

fn resident_mib(field: &str) -> Result<f64> {
    let status = fs::read_to_string(Path::new("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    Ok(kib.context("no such field")?.parse::<f64>()? / 1024.0)
}
