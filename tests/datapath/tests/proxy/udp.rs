//! What becomes of UDP sockets that are connected to a Service when its backends change.

use std::{collections::BTreeMap, error::Error, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Result;
use serde_json::json;
use skiff_netns::NetNs;
use skiff_service_proxy::NodeNamespaces;
use skiff_tests_datapath::{
    PODS, Probe, TARGET, TestNode, VIP,
    protocol::{Answer, Command, How},
    servers,
};

use super::*;

const ECONNREFUSED: i32 = 111;
const PATIENCE_MS: u64 = 5_000;
/// What `send` says on a socket that was ended, and what `recv` says if it was waiting.
const ENDED: [i32; 2] = [89, 103];

struct Namespaces([PathBuf; 2]);

impl NodeNamespaces for Namespaces {
    fn run_in_each(
        &self,
        f: &mut (dyn FnMut() + Send),
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        for path in &self.0 {
            NetNs::open(path)?.run(&mut *f)?;
        }
        Ok(())
    }
}

pub(super) async fn start(node: &TestNode, api: &FakeApi) -> Result<Running> {
    let namespaces = Namespaces([node.netns.clone(), node.pod_netns.clone()]);
    let proxy = ServiceProxy::new(api.client(), config(node)?, node.open()?);
    Running::of(proxy.with_namespaces(Arc::new(namespaces))).await
}

fn dns(addresses: &[usize], terminating: bool) -> [serde_json::Value; 2] {
    let mut service = service("dns", &VIP.ip().to_string());
    service["spec"]["ports"] = json!([{"port": VIP.port(), "protocol": "UDP"}]);
    let mut slice = slice("dns", &pods(addresses));
    slice["ports"] = json!([{"port": TARGET, "protocol": "UDP"}]);
    if terminating {
        slice["endpoints"][0]["conditions"] =
            json!({"ready": false, "serving": true, "terminating": true});
    }
    [service, slice]
}

fn put(api: &FakeApi, addresses: &[usize]) {
    let [service, slice] = dns(addresses, false);
    api.put(SERVICES, service);
    api.put(SLICES, slice);
}

/// Connects a socket to each address, which stays open.
fn open(client: &mut Probe, addrs: &[SocketAddr]) -> Result<()> {
    for (id, addr) in (0..).zip(addrs) {
        let (how, addr, patience_ms) = (How::Udp, *addr, PATIENCE_MS);
        client.tell(&Command::Open {
            id,
            how,
            addr,
            patience_ms,
        })?;
    }
    Ok(())
}

/// Asks on the first sockets that the client keeps.
fn say(client: &mut Probe, sockets: u32) -> Result<Answer> {
    let mut all = Answer::default();
    for id in 0..sockets {
        let patience_ms = PATIENCE_MS;
        all.add(client.tell(&Command::Say { id, patience_ms })?);
    }
    Ok(all)
}

/// Asks on the first sockets that the client keeps until so many of them turn out to be ended.
async fn until_ended(client: &mut Probe, sockets: u32, expected: u32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let errors = say(client, sockets)?.errors;
        let ended = errors.keys().all(|errno| ENDED.contains(errno));
        let count: u32 = errors.values().sum();
        anyhow::ensure!(ended && count <= expected, "{errors:?}");
        if count == expected {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "sockets live on: {errors:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn asked(client: &mut Probe, sockets: u32) -> Result<BTreeMap<String, u32>> {
    let answer = say(client, sockets)?;
    anyhow::ensure!(answer.errors.is_empty(), "{:?}", answer.errors);
    Ok(answer.names)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_a_removed_backend_are_ended_and_no_others() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    put(&api, &[0]);
    let _servers = servers(&node)?;
    let proxy = start(&node, &api).await?;
    let mapped = SocketAddr::new(VIP.ip().to_ipv6_mapped().into(), VIP.port());
    let (mut pod, mut six, mut host) = (node.pod()?, node.pod()?, node.host()?);
    let (mut direct, mut outsider) = (node.pod()?, node.outsider()?);
    let backend = SocketAddr::from((PODS[0], TARGET));
    open(&mut pod, &[VIP.into()])?;
    open(&mut six, &[mapped])?;
    open(&mut host, &[VIP.into()])?;
    open(&mut direct, &[backend])?;
    open(&mut outsider, &[backend])?;
    let mut clients = [pod, six, host];
    for client in &mut clients {
        assert_eq!(asked(client, 1)?, [(PODS[0].to_string(), 1)].into());
    }

    put(&api, &[0, 1]);
    proxy.applied(2).await?;
    put(&api, &[1]);
    for client in &mut clients {
        until_ended(client, 1, 1).await?;
        let addr = VIP.into();
        let again = client.tell(&Command::UdpConnected { addr, times: 1 })?;
        assert_eq!(again.names, [(PODS[1].to_string(), 1)].into());
    }
    // Who talks to the pod itself goes on.
    assert_eq!(asked(&mut direct, 1)?, [(PODS[0].to_string(), 1)].into());
    assert_eq!(asked(&mut outsider, 1)?, [(PODS[0].to_string(), 1)].into());
    proxy.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_service_takes_its_flows_along_and_one_without_backends_refuses_new_ones()
-> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    // Not ready yet: refused, so that the client asks again, and then has what it wants.
    put(&api, &[]);
    let _servers = servers(&node)?;
    let proxy = start(&node, &api).await?;
    let mut client = node.pod()?;
    let addr = VIP.into();
    let early = client.tell(&Command::UdpConnected { addr, times: 1 })?;
    assert_eq!(early.errors, [(ECONNREFUSED, 1)].into());
    put(&api, &[2]);
    proxy.applied(2).await?;
    open(&mut client, &[addr])?;
    assert_eq!(asked(&mut client, 1)?, [(PODS[2].to_string(), 1)].into());

    // The pod still is there and still answers: the Service does not.
    api.delete(SERVICES, "dns");
    until_ended(&mut client, 1, 1).await?;
    proxy.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_ends_no_flow_but_those_whose_backend_went_meanwhile() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    put(&api, &[0, 1, 2]);
    let _servers = servers(&node)?;
    let proxy = start(&node, &api).await?;
    let mut client = node.pod()?;
    open(&mut client, &[VIP.into(); 20])?;
    let before = asked(&mut client, 20)?;
    proxy.stop().await?;

    let proxy = start(&node, &api).await?;
    assert_eq!(asked(&mut client, 20)?, before);
    proxy.stop().await?;
    let gone = before.get(&PODS[0].to_string()).copied().unwrap_or(0);
    assert!((1..20).contains(&gone), "{before:?}");
    put(&api, &[1, 2]);
    let proxy = start(&node, &api).await?;
    until_ended(&mut client, 20, gone).await?;
    proxy.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_on_its_way_out_keeps_its_flows_as_long_as_it_serves() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    put(&api, &[0]);
    let _servers = servers(&node)?;
    let proxy = start(&node, &api).await?;
    let mut client = node.pod()?;
    open(&mut client, &[VIP.into()])?;
    let [_, leaving] = dns(&[0, 1], true);
    api.put(SLICES, leaving);
    proxy.applied(2).await?;
    let addr = VIP.into();
    let new = client.tell(&Command::UdpConnected { addr, times: 10 })?;
    assert_eq!(new.names, [(PODS[1].to_string(), 10)].into());
    // A sweep follows at once and another one a second later.
    let deadline = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < deadline {
        assert_eq!(asked(&mut client, 1)?, [(PODS[0].to_string(), 1)].into());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    put(&api, &[1]);
    until_ended(&mut client, 1, 1).await?;
    proxy.stop().await
}
