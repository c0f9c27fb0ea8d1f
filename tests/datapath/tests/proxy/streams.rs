//! What becomes of open TCP connections of a Service that loses their backend.

use anyhow::Result;
use serde_json::json;
use skiff_tests_datapath::protocol::{Answer, How};

use super::{udp::start, *};

fn put(api: &FakeApi, asked: bool, addresses: &[usize]) {
    let mut service = service("web", &VIP.ip().to_string());
    if asked {
        service["metadata"]["annotations"] = json!({"skiff.io/end-connections": "true"});
    }
    api.put(SERVICES, service);
    api.put(SLICES, slice("web", &pods(addresses)));
}

fn open(client: &mut Probe, id: u32) -> Result<()> {
    let opened = client.tell(&Command::Open {
        id,
        how: How::Tcp,
        addr: VIP.into(),
        patience_ms: 5_000,
    })?;
    assert_eq!(opened.errors, [].into());
    Ok(())
}

fn say(client: &mut Probe, id: u32) -> Result<Answer> {
    client.tell(&Command::Say {
        id,
        patience_ms: 5_000,
    })
}

/// Waits until connections lead there and nowhere else.
async fn leads(client: &mut Probe, addresses: &[usize]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while names(client)? != pods(addresses) {
        anyhow::ensure!(Instant::now() < deadline, "does not lead to {addresses:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_removed_backend_end_where_that_is_asked_for() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let api = FakeApi::default();
    put(&api, false, &[0]);
    let _servers = servers(&node)?;
    let proxy = start(&node, &api).await?;
    let mut client = node.pod()?;
    open(&mut client, 1)?;
    put(&api, false, &[1]);
    leads(&mut client, &[1]).await?;
    // Of the one that stays, which is none of those to be ended later.
    open(&mut client, 2)?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for (id, pod) in [(1, 0), (2, 1)] {
        let names = say(&mut client, id)?.names;
        assert_eq!(names.into_keys().collect::<Vec<_>>(), pods(&[pod]));
    }
    put(&api, true, &[1]);
    let deadline = Instant::now() + PATIENCE;
    while say(&mut client, 1)?.errors.is_empty() {
        anyhow::ensure!(Instant::now() < deadline, "the connection goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(say(&mut client, 2)?.errors, [].into());
    proxy.stop().await
}
