//! What another process sees of a node's datapath: its tables, and the decisions of its programs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use skiff_ebpf_loader::{
    Inspector, Protocol, TraceHook, TraceVerdict, Traced, Tracer, Want, netns_cookie,
};
use skiff_netns::NetNs;
use skiff_tests_datapath::{
    EMPTY, PODS, TARGET, TestNode, VIP, pods, program, protocol::Command, servers, tables, tcp,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");

/// Waits for an event that fits.
fn wait_for(tracer: &mut Tracer, fits: impl Fn(&Traced) -> bool) -> Result<Traced> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut seen = Vec::new();
    while Instant::now() < deadline {
        let events = tracer.next_events()?;
        if let Some(found) = events.iter().find(|event| fits(event)) {
            return Ok(*found);
        }
        seen.extend(events);
    }
    bail!("no such event among {seen:#?}")
}

#[test]
fn frontends_are_shown_with_their_backends_and_connections() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(2))?;
    let _servers = servers(&node)?;
    let inspector = Inspector::open(&node.bpffs)?;
    let find = || -> Result<_> {
        let all = inspector.frontends()?;
        assert_eq!(all.len(), 4);
        all.into_iter()
            .find(|seen| seen.frontend == tcp(VIP))
            .context("the frontend is missing")
    };
    let before = find()?;
    assert_eq!(before.inside, pods(2));
    assert_eq!((before.outside, before.connections), (None, 0));
    node.pod()?.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 7,
    })?;
    assert_eq!(find()?.connections, 7);
    let sockets = inspector.sockets()?;
    assert_eq!(sockets.len(), 7);
    let targets = PODS.map(|addr| SocketAddr::from((addr, TARGET)));
    for socket in sockets {
        assert_eq!(socket.asked, VIP.into());
        assert!(targets[..2].contains(&socket.backend), "{socket:?}");
    }
    let services = inspector.pressure()?.into_iter();
    let services = services.filter(|table| table.map == "LB_SERVICES");
    let used: Vec<_> = services.map(|table| (table.used, table.limit)).collect();
    assert_eq!(used, [(4, 1024)]);
    Ok(())
}

#[test]
fn a_tracer_hears_what_was_chosen_and_refused_and_nothing_else() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(1))?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    let mut tracer = Tracer::start(&node.bpffs, Want::default())?;
    let connect = |addr: SocketAddr| Command::Tcp { addr, times: 1 };
    client.tell(&connect(VIP.into()))?;
    let chosen = wait_for(&mut tracer, |event| event.hook == TraceHook::Connect)?;
    assert_eq!(chosen.verdict, TraceVerdict::Backend);
    assert_eq!(chosen.protocol, Some(Protocol::Tcp));
    assert_eq!(chosen.asked, VIP.into());
    assert_eq!(chosen.backend, Some((PODS[0], TARGET).into()));
    let cookie = NetNs::open(&node.pod_netns)?.run(netns_cookie)??;
    assert_eq!(chosen.netns_cookie, Some(cookie));
    client.tell(&connect(EMPTY.into()))?;
    let refused = wait_for(&mut tracer, |event| event.asked == EMPTY.into())?;
    assert_eq!(
        (refused.verdict, refused.backend),
        (TraceVerdict::Refused, None)
    );
    drop(tracer);

    // A filter leaves out the rest, and without a tracer nothing is told.
    client.tell(&connect(VIP.into()))?;
    let want = Want {
        addr: Some((*EMPTY.ip()).into()),
        ..Want::default()
    };
    let mut tracer = Tracer::start(&node.bpffs, want)?;
    client.tell(&connect(VIP.into()))?;
    client.tell(&connect(EMPTY.into()))?;
    let first = wait_for(&mut tracer, |_| true)?;
    assert_eq!(first.asked, EMPTY.into());
    Ok(())
}

#[test]
fn a_node_without_a_datapath_is_told_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let error = Inspector::open(folder.path()).err().context("an error")?;
    assert!(error.to_string().contains("finding"), "{error}");
    Ok(())
}
