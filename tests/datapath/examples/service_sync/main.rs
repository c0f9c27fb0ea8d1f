//! How quickly Services get into the kernel's tables, and what it costs: for `cargo xtask bench service`.
//!
//!     service_sync sync MODE COUNT RUNS     from typed objects to a first connection, with nothing in the tables before
//!     service_sync api MODE COUNT RUNS      the same by the proxy itself, with an API server in this process
//!     service_sync update MODE COUNT RUNS   one endpoint of one Service changed while there are so many: from the watch event
//!     service_sync rss MODE COUNT           memory of a process that does nothing but this, MiB
//!     service_sync floor COUNT RUNS         as many entries into bare maps, a system call for each
//!
//! MODE: ebpf or iptables.
//! Prints numbers, one a line; times are in seconds. Each Service has five endpoints.
#![allow(clippy::print_stdout, reason = "speaks with the bench")]

mod floor;
mod objects;
mod stage;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Client, Config, ResourceExt as _};
use skiff_netns::NodeNetns;
use skiff_service_proxy::{
    Dataplane, ProxyConfig, ProxyHandle, ServiceInfo, ServiceName, ServiceProxy, SliceInfo, Tracker,
};
use skiff_tests_datapath::{
    NODE, Probe,
    api::{FakeApi, SERVICES, SLICES},
    protocol,
};
use tokio_util::sync::CancellationToken;

use objects::{address_of, service_object, slice_object};
use stage::{Mode, Stage};

/// The name of the node.
const NAME: &str = "node-1";
const PATIENCE: Duration = Duration::from_secs(120);
const USAGE: &str = "usage: see the source's first lines";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["sync", mode, count, runs] => sync(mode.parse()?, count.parse()?, runs.parse()?).await,
        ["api", mode, count, runs] => {
            through_the_api(mode.parse()?, count.parse()?, runs.parse()?).await
        }
        ["update", mode, count, runs] => update(mode.parse()?, count.parse()?, runs.parse()?).await,
        ["rss", mode, count] => rss(mode.parse()?, count.parse()?).await,
        ["floor", count, runs] => floor::run(count.parse()?, runs.parse()?),
        ["proxy", mode, url, place, pins] => {
            proxy(mode.parse()?, url, [place.into(), pins.into()]).await
        }
        _ => bail!(USAGE),
    }
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

async fn sync(mode: Mode, count: u32, runs: usize) -> Result<()> {
    let typed = |kind| (0..count).map(kind).map(serde_json::from_value);
    let services: Vec<Service> = typed(service_object).collect::<Result<_, _>>()?;
    let slices = (0..count).map(|number| slice_object(number, count));
    let slices: Vec<EndpointSlice> = slices
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?;
    for _ in 0..runs {
        let stage = Stage::new(mode)?;
        let _servers = stage.server()?;
        let mut client = stage.client()?;
        let mut dataplane = stage.open().await?;
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
        let diff = tracker.full_diff(dataplane.view());
        dataplane.apply(&diff)?;
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
    async fn start(client: Client, dataplane: Box<dyn Dataplane>) -> Result<Self> {
        let config = ProxyConfig {
            node_name: NAME.to_owned(),
            node_addresses: vec![NODE.into()],
            node_ports: 30_000..=32_767,
            node_netns_cookie: 0,
        };
        let proxy = ServiceProxy::new(client, config, dataplane);
        let (handle, token) = (proxy.handle(), CancellationToken::new());
        tokio::spawn(proxy.run(token.clone()));
        let running = Self { handle, token };
        tokio::time::timeout(PATIENCE, running.handle.synced())
            .await
            .context("not programmed")?;
        Ok(running)
    }
}

async fn through_the_api(mode: Mode, count: u32, runs: usize) -> Result<()> {
    let api = filled(count);
    for _ in 0..runs {
        let stage = Stage::new(mode)?;
        let _servers = stage.server()?;
        let mut client = stage.client()?;
        let dataplane = stage.open().await?;
        let begun = Instant::now();
        let _running = Running::start(api.client(), dataplane).await?;
        connect(&mut client, count)?;
        println!("{}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn update(mode: Mode, count: u32, runs: u32) -> Result<()> {
    let api = filled(count);
    let stage = Stage::new(mode)?;
    let running = Running::start(api.client(), stage.open().await?).await?;
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
async fn rss(mode: Mode, count: u32) -> Result<()> {
    let api = filled(count);
    let url = format!("http://{}", api.listen().await?);
    let stage = Stage::new(mode)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["proxy", mode.word(), &url]);
    command.args(stage.place());
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn proxy(mode: Mode, url: &str, place: [PathBuf; 2]) -> Result<()> {
    let dataplane: Box<dyn Dataplane> = match mode {
        Mode::Ebpf => Box::new(stage::open_ebpf(place)?),
        Mode::Iptables => stage::open_iptables(NodeNetns::open(&place[0])?).await?,
    };
    let client = Client::try_from(Config::new(url.parse()?))?;
    let _running = Running::start(client, dataplane).await?;
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
