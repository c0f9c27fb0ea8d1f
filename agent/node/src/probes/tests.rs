use k8s_openapi::api::core::v1::HTTPGetAction;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use skiff_netns::NodeNetns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::testing::{TestNode, pod_named};

async fn serve(response: &'static str) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            drop(stream.read(&mut buffer).await);
            drop(stream.write_all(response.as_bytes()).await);
        }
    });
    address
}

fn get(port: u16) -> HttpTarget {
    let action = HTTPGetAction {
        path: Some("healthz".to_owned()),
        port: IntOrString::Int(i32::from(port)),
        ..HTTPGetAction::default()
    };
    HttpTarget::new(&action, &Container::default(), Some([127, 0, 0, 1].into())).unwrap()
}

#[tokio::test]
async fn http_probe_goes_by_the_status() {
    let netns = NodeNetns::machine();
    let second = Duration::from_secs(5);
    let good = serve("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(
        http::probe(&netns, &get(good.port()), second).await,
        ProbeOutcome::Success
    );
    let bad = serve("HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno").await;
    assert_eq!(
        http::probe(&netns, &get(bad.port()), second).await,
        ProbeOutcome::Failure("HTTP probe failed with statuscode: 500".to_owned())
    );
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    assert_eq!(
        http::probe(&netns, &get(closed), second).await,
        ProbeOutcome::Failure(format!(
            "Get \"http://127.0.0.1:{closed}/healthz\": dial tcp 127.0.0.1:{closed}: connect: connection refused"
        ))
    );
}

#[test]
fn ports_may_be_named() {
    let container: Container = serde_json::from_value(
        json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}),
    )
    .unwrap();
    let port = |port| run::port_number(&port, &container);
    assert_eq!(port(IntOrString::Int(80)), Some(80));
    assert_eq!(port(IntOrString::String("web".to_owned())), Some(8080));
    assert_eq!(port(IntOrString::String("81".to_owned())), Some(81));
    assert_eq!(port(IntOrString::String("x".to_owned())), None);
    assert_eq!(port(IntOrString::Int(70_000)), None);
}

#[tokio::test(start_paused = true)]
async fn exec_probes_follow_delay_period_and_thresholds() {
    let node = TestNode::new().await;
    let pod = Arc::new(pod_named("web"));
    let container: Container = serde_json::from_value(json!({
        "name": "c",
        "startupProbe": {"exec": {"command": ["start"]}, "periodSeconds": 2, "failureThreshold": 5},
        "readinessProbe": {"exec": {"command": ["ready"]}, "initialDelaySeconds": 0, "periodSeconds": 5},
        "livenessProbe": {"exec": {"command": ["live"]}, "periodSeconds": 3, "failureThreshold": 2},
    }))
    .unwrap();
    node.runtime.script_exec("start", &[1, 1, 0]);
    node.runtime.script_exec("ready", &[0]);
    node.runtime.script_exec("live", &[0, 0, 1, 1]);
    let wake = Arc::new(Notify::new());
    let mut probes = ProbeManager::new(Arc::clone(&wake));
    let started = tokio::time::Instant::now();
    let id = ContainerRef {
        pod_uid: "u".to_owned(),
        container_id: "id".to_owned(),
    };
    let target = ProbeTarget {
        pod,
        container,
        id,
        ip: None,
        started_at: node.context.clock.now(),
    };
    probes.sync(&node.context, vec![target], |_| None);
    assert_eq!(probes.verdicts()["id"], ProbeVerdict::default());
    let mut changes = Vec::new();
    loop {
        wake.notified().await;
        let verdict = probes.verdicts()["id"].clone();
        let failed = verdict.failed;
        changes.push((
            started.elapsed().as_secs(),
            verdict.started,
            verdict.ready,
            failed,
        ));
        if failed.is_some() {
            break;
        }
    }
    // Started at 4 s; ready at once; liveness at 4, 7, 10, 13 s.
    assert_eq!(changes[0].0, 4);
    assert_eq!(changes.last().unwrap(), &(13, true, true, Some("liveness")));
}

#[tokio::test(start_paused = true)]
async fn an_adopted_container_keeps_its_readiness() {
    let node = TestNode::new().await;
    let container: Container = serde_json::from_value(json!({
        "name": "c", "readinessProbe": {"exec": {"command": ["ready"]}, "initialDelaySeconds": 60},
    }))
    .unwrap();
    let mut probes = ProbeManager::new(Arc::new(Notify::new()));
    let id = ContainerRef {
        pod_uid: "u".to_owned(),
        container_id: "id".to_owned(),
    };
    let started_at = node.context.clock.now();
    let target = ProbeTarget {
        pod: Arc::new(pod_named("web")),
        container,
        id,
        ip: None,
        started_at,
    };
    let known = ProbeVerdict {
        started: true,
        ready: true,
        failed: None,
    };
    probes.sync(&node.context, vec![target], |_| Some(known.clone()));
    assert!(probes.verdicts()["id"].ready);
    probes.sync(&node.context, Vec::new(), |_| None);
    assert!(probes.verdicts().is_empty());
}
