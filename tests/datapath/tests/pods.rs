//! The way from pod to pod.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
};

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::{Datapath, PodPaths, TraceVerdict, Tracer, Want};
use skiff_netns::NetNs;
use skiff_tests_datapath::{
    POD_PORT, Pod, Probe, TestNode, bridge, ip,
    protocol::{Answer, Command as Say},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");

fn node() -> Result<(TestNode, Pod, Pod)> {
    let node = TestNode::new(PROGRAM)?;
    bridge(&node)?;
    let (one, two) = (Pod::new(&node, 2)?, Pod::new(&node, 3)?);
    Ok((node, one, two))
}

fn attach(node: &TestNode, paths: &PodPaths, pods: &[&Pod]) -> Result<()> {
    let netns = NetNs::open(&node.netns)?;
    for pod in pods {
        netns.run(|| paths.attach(&pod.port))??;
    }
    Ok(())
}

fn ask(client: &mut Probe, pod: &Pod, times: u32) -> Result<Answer> {
    let addr = SocketAddrV4::new(pod.addr, POD_PORT).into();
    client.tell(&Say::Tcp { addr, times })
}

fn direct(datapath: &Datapath) -> Result<u64> {
    Ok(datapath.counters()?.pod_direct)
}

#[test]
fn pods_reach_each_other_around_the_bridge_until_they_are_detached() -> Result<()> {
    let (node, one, two) = node()?;
    let datapath = node.open()?;
    let paths = datapath.pods()?;
    let _server = two.serve()?;
    let mut client = one.probe()?;
    assert_eq!(ask(&mut client, &two, 5)?.total(), 5);
    assert_eq!(direct(&datapath)?, 0, "by the bridge");
    attach(&node, &paths, &[&one, &two])?;
    // Twice is as good as once.
    attach(&node, &paths, &[&one, &two])?;
    assert_eq!(ask(&mut client, &two, 20)?.total(), 20);
    let counted = direct(&datapath)?;
    assert!(counted >= 20 * 6, "{counted} packets");
    // The node itself is reached as before.
    assert!(one.pings("eth0", Ipv4Addr::new(10, 77, 0, 1))?);
    let before = direct(&datapath)?;
    paths.detach(two.port.ifindex)?;
    paths.detach(one.port.ifindex)?;
    paths.detach(one.port.ifindex)?;
    assert_eq!(ask(&mut client, &two, 5)?.total(), 5);
    assert_eq!(direct(&datapath)?, before);
    Ok(())
}

#[test]
fn a_source_that_is_not_the_pods_is_dropped() -> Result<()> {
    let (node, one, two) = node()?;
    let datapath = node.open()?;
    for command in [
        ["address", "add", "10.77.0.99/24", "dev", "eth0"],
        ["neigh", "add", "10.77.0.3", "lladdr", "0a:58:0a:4d:00:03"],
    ]
    .map(|words| words.to_vec())
    {
        let words = match command.first() {
            Some(&"neigh") => [&command[..], &["dev", "eth0"]].concat(),
            _ => command,
        };
        ip(&one.netns, &words)?;
    }
    assert!(one.pings("10.77.0.99", two.addr)?, "before");
    attach(&node, &datapath.pods()?, &[&one, &two])?;
    assert!(!one.pings("10.77.0.99", two.addr)?);
    assert!(datapath.counters()?.pod_spoofed >= 1);
    assert!(one.pings("10.77.0.2", two.addr)?);
    let mut tracer = Tracer::start(&node.bpffs, Want::default())?;
    assert!(!one.pings("10.77.0.99", two.addr)?);
    let told = tracer.next_events()?;
    let told = told.iter().find(|e| e.verdict == TraceVerdict::Spoofed);
    let told = told.context("nothing was told")?;
    assert_eq!(told.client.ip(), Ipv4Addr::new(10, 77, 0, 99));
    assert_eq!(told.ifindex, Some(one.port.ifindex));
    drop(tracer);
    // Nor under another hardware address.
    let spoofed = datapath.counters()?.pod_spoofed;
    let change = ["link", "set", "eth0", "address", "0a:58:0a:4d:00:63"];
    ip(&one.netns, &change)?;
    assert!(!one.pings("10.77.0.2", two.addr)?);
    assert!(datapath.counters()?.pod_spoofed > spoofed);
    Ok(())
}

#[test]
fn a_pod_that_is_left_to_the_bridge_is_still_watched() -> Result<()> {
    let (node, mut one, two) = node()?;
    let datapath = node.open()?;
    let paths = datapath.pods()?;
    attach(&node, &paths, &[&one, &two])?;
    // From now on there is a limit at its link, say.
    one.port.direct = false;
    attach(&node, &paths, &[&one])?;
    let before = direct(&datapath)?;
    assert!(one.pings("eth0", two.addr)?);
    assert_eq!(direct(&datapath)?, before, "neither to it nor from it");
    ip(
        &one.netns,
        &["address", "add", "10.77.0.99/24", "dev", "eth0"],
    )?;
    assert!(!one.pings("10.77.0.99", two.addr)?);
    assert!(datapath.counters()?.pod_spoofed >= 1);
    Ok(())
}

#[test]
fn the_ways_outlive_the_daemon_and_are_adopted() -> Result<()> {
    let (node, one, two) = node()?;
    let datapath = node.open()?;
    attach(&node, &datapath.pods()?, &[&one, &two])?;
    drop(datapath);
    let _server = two.serve()?;
    let mut client = one.probe()?;
    assert_eq!(ask(&mut client, &two, 5)?.total(), 5);
    let datapath = node.open()?;
    let paths = datapath.pods()?;
    let before = direct(&datapath)?;
    assert!(before >= 5 * 6, "{before} packets without a daemon");
    assert_eq!(ask(&mut client, &two, 5)?.total(), 5);
    assert!(direct(&datapath)? > before);
    // What has gone meanwhile is swept.
    ip(&node.netns, &["link", "delete", "veth3"])?;
    paths.retain(&[one.port.ifindex])?;
    let pinned = std::fs::read_dir(node.bpffs.join("pods"))?;
    let pinned: Vec<_> = pinned.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
    assert_eq!(pinned, ["102"]);
    let missing = NetNs::open(&node.netns)?
        .run(|| paths.attach(&two.port))?
        .err()
        .context("the link has gone")?;
    assert!(
        missing.to_string().contains("attaching to a link"),
        "{missing}"
    );
    Ok(())
}

#[test]
fn other_frames_take_the_bridge_as_ever() -> Result<()> {
    let (node, one, two) = node()?;
    let datapath = node.open()?;
    attach(&node, &datapath.pods()?, &[&one, &two])?;
    // IPv6, with its multicast for neighbours, both by the bridge and directly.
    for pod in [&one, &two] {
        let addr = format!("fd00:77::{}/64", pod.addr.octets()[3]);
        ip(
            &pod.netns,
            &["address", "add", &addr, "dev", "eth0", "nodad"],
        )?;
    }
    // The first one or two may come before the links' own addresses are ready.
    let status = Command::new("nsenter")
        .arg(format!("--net={}", one.netns.display()))
        .args(["busybox", "ping", "-q", "-c", "5", "-W", "2", "fd00:77::3"])
        .stdout(std::process::Stdio::null())
        .status()?;
    assert!(status.success());
    // The echo and its answer.
    assert!(direct(&datapath)? >= 2);
    assert!(one.pings("eth0", two.addr)?);
    assert!(direct(&datapath)? >= 4);
    Ok(())
}
