//! From API objects to connections: the Service proxy with a real datapath.

mod streams;
mod udp;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::Datapath;
use skiff_service_proxy::{ProxyConfig, ProxyError, ProxyHandle, ServiceProxy};
use skiff_tests_datapath::{
    PODS, Probe, TestNode, VIP,
    api::{FakeApi, SERVICES, SLICES, service, slice},
    protocol::Command,
    servers,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
const PATIENCE: Duration = Duration::from_secs(20);

fn config(node: &TestNode) -> Result<ProxyConfig> {
    let settings = node.settings()?;
    Ok(ProxyConfig {
        node_name: "node-1".into(),
        node_addresses: settings.addresses,
        node_ports: settings.node_ports,
        node_netns_cookie: settings.netns_cookie,
    })
}

struct Running {
    token: CancellationToken,
    handle: ProxyHandle,
    task: JoinHandle<Result<(), ProxyError>>,
}

impl Running {
    async fn start(node: &TestNode, datapath: Datapath, api: &FakeApi) -> Result<Self> {
        Self::of(ServiceProxy::new(api.client(), config(node)?, datapath)).await
    }

    async fn of(proxy: ServiceProxy) -> Result<Self> {
        let (token, handle) = (CancellationToken::new(), proxy.handle());
        let task = tokio::spawn(proxy.run(token.clone()));
        tokio::time::timeout(PATIENCE, handle.synced())
            .await
            .context("not synced")?;
        Ok(Self {
            token,
            handle,
            task,
        })
    }

    async fn stop(self) -> Result<()> {
        self.token.cancel();
        Ok(self.task.await??)
    }

    /// Waits until that many changes were applied.
    async fn applied(&self, count: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.handle.counters().applied < count {
            anyhow::ensure!(Instant::now() < deadline, "{:?}", self.handle.counters());
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

fn names(client: &mut Probe) -> Result<Vec<String>> {
    let answer = client.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 30,
    })?;
    anyhow::ensure!(answer.errors.is_empty(), "{:?}", answer.errors);
    Ok(answer.names.into_keys().collect())
}

fn pods(numbers: &[usize]) -> Vec<String> {
    numbers
        .iter()
        .map(|number| PODS[*number].to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_the_api_answer_and_follow_its_changes() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    api.put(SERVICES, service("web", &VIP.ip().to_string()));
    api.put(SLICES, slice("web", &pods(&[0, 1])));
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let proxy = Running::start(&node, node.open()?, &api).await?;
    assert_eq!(names(&mut client)?, pods(&[0, 1]));

    api.put(SLICES, slice("web", &pods(&[1, 4])));
    proxy.applied(2).await?;
    assert_eq!(names(&mut client)?, pods(&[1, 4]));
    assert_eq!(proxy.handle.counters().sets_published, 2);

    api.put(SLICES, slice("web", &[]));
    proxy.applied(3).await?;
    let answer = client.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 1,
    })?;
    assert_eq!(answer.errors, [(111, 1)].into());

    api.put(SLICES, slice("web", &pods(&[2])));
    proxy.applied(4).await?;
    api.delete(SERVICES, "web");
    proxy.applied(5).await?;
    // No Service any more: the address is nobody's.
    let answer = client.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 1,
    })?;
    assert_eq!(answer.errors, [(113, 1)].into());
    proxy.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_writes_only_what_changed_meanwhile() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    for number in 0..20 {
        let name = format!("s{number}");
        api.put(SERVICES, service(&name, &format!("10.96.1.{number}")));
        api.put(SLICES, slice(&name, &pods(&[0, 1])));
    }
    api.put(SERVICES, service("web", &VIP.ip().to_string()));
    api.put(SLICES, slice("web", &pods(&[0])));
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    Running::start(&node, node.open()?, &api)
        .await?
        .stop()
        .await?;
    assert_eq!(names(&mut client)?, pods(&[0]), "while nobody runs");

    api.put(SLICES, slice("web", &pods(&[0, 3])));
    api.delete(SERVICES, "s7");
    let proxy = Running::start(&node, node.open()?, &api).await?;
    assert_eq!(proxy.handle.counters().sets_published, 1);
    assert_eq!(names(&mut client)?, pods(&[0, 3]));
    proxy.stop().await?;
    let left = node.open()?;
    assert_eq!(left.state().frontends().count(), 20);
    assert_eq!(left.state().set_ids().count(), 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_table_is_an_event_of_the_node_and_of_what_is_not_served() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    let mut config = node.config();
    config.limits.services = 4;
    api.put(SERVICES, service("web", &VIP.ip().to_string()));
    api.put(SLICES, slice("web", &pods(&[0])));
    let proxy = Running::start(&node, Datapath::open(&config)?, &api).await?;
    for number in 0..5 {
        let name = format!("s{number}");
        api.put(SERVICES, service(&name, &format!("10.96.1.{number}")));
        api.put(SLICES, slice(&name, &pods(&[0])));
    }
    let deadline = Instant::now() + PATIENCE;
    let is_told = |of: &str| {
        let events = api.events();
        let mut told = events
            .iter()
            .filter(|(_, reason, _)| reason == "DatapathTableFull");
        told.any(|(about, _, words)| {
            about.starts_with(of) && words.contains("LB_SERVICES on node node-1 is full: 4")
        })
    };
    while !(is_told("Node/node-1") && is_told("Service/s")) {
        anyhow::ensure!(Instant::now() < deadline, "{:?}", api.events());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What was served is; and the rest as soon as there is room.
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    assert_eq!(names(&mut client)?, pods(&[0]));
    let before = proxy.handle.counters();
    for number in 0..3 {
        api.delete(SERVICES, &format!("s{number}"));
    }
    proxy.applied(before.applied + 1).await?;
    // By hand, as a part of the node does it.
    proxy.handle.warn("Test", "words".to_owned());
    let warned = ("Node/node-1".into(), "Test".into(), "words".into());
    while !api.events().contains(&warned) {
        anyhow::ensure!(Instant::now() < deadline, "{:?}", api.events());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    proxy.stop().await
}

/// Not a benchmark (this build is not optimised): that the cost of one change does not grow with what exists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_services_are_programmed_and_one_change_stays_small() -> Result<()> {
    const SERVICES_COUNT: usize = 10_000;
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    for number in 0..SERVICES_COUNT {
        let name = format!("s{number}");
        let [high, low] = u16::try_from(number)?.to_be_bytes();
        api.put(SERVICES, service(&name, &format!("10.97.{high}.{low}")));
        let addresses: Vec<String> = (1..=5)
            .map(|pod| format!("10.24{pod}.{high}.{low}"))
            .collect();
        api.put(SLICES, slice(&name, &addresses));
    }
    let config = skiff_ebpf_loader::DatapathConfig {
        limits: skiff_ebpf_loader::Limits::default(),
        ..node.config()
    };
    let begun = Instant::now();
    let datapath = Datapath::open(&config)?;
    println!(
        "opening with tables of the default size: {:?}",
        begun.elapsed()
    );
    let proxy = Running::start(&node, datapath, &api).await?;
    let first = proxy.handle.counters();
    println!(
        "{SERVICES_COUNT} Services with 5 endpoints, planned and written: {:?}",
        first.first_sync
    );
    assert_eq!(
        (first.services, first.sets_published),
        (SERVICES_COUNT, 10_000)
    );
    let mut fastest = Duration::MAX;
    for round in 0..50_u64 {
        api.put(SLICES, slice("s5000", &[format!("10.1.1.{round}")]));
        proxy.applied(first.applied + round + 1).await?;
        let now = proxy.handle.counters();
        assert_eq!(now.sets_published, first.sets_published + round + 1);
        fastest = fastest.min(now.last_apply);
    }
    println!("one endpoint changed, planned and written: {fastest:?}");
    // 50 times what it takes: a change that planned or compared everything would take 100 times that. The fastest of many,
    // because others may have the machine meanwhile.
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    proxy.stop().await?;
    let begun = Instant::now();
    let again = Datapath::open(&config)?;
    println!("adopting them: {:?}", begun.elapsed());
    assert_eq!(again.state().frontends().count(), SERVICES_COUNT);
    Ok(())
}
