//! The manager, its workers and all they use, over fakes and paused time.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skiff_runtime::Runtime;

use crate::manager::Manager;
use crate::testing::{TestNode, pod_from, pod_named, pod_path};

struct Running {
    node: TestNode,
    manager: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn new() -> Self {
        Self::on(TestNode::new().await)
    }

    fn on(node: TestNode) -> Self {
        let manager = Manager::new(Arc::clone(&node.context), node.token.clone());
        Self {
            manager: tokio::spawn(manager.run()),
            node,
        }
    }

    async fn until(&self, pod: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let path = pod_path(pod);
        let check = |pod: Option<Value>| pod.is_some_and(|pod| condition(&pod));
        self.node.api.until(what, |api| check(api.get(&path))).await;
        self.node.pod(pod)
    }

    async fn until_running(&self, pod: &str) -> Value {
        self.until(pod, "Running", |pod| pod["status"]["phase"] == "Running")
            .await
    }

    async fn until_ready(&self, pod: &str) -> Value {
        self.until(pod, "Ready", |pod| condition(pod, "Ready") == "True")
            .await
    }

    /// As `kubectl delete` does.
    fn delete(&self, name: &str, grace: i64) {
        let mut pod = self.node.pod(name);
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:06Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.node.api.put(&pod_path(name), pod);
    }

    async fn until_gone(&self, name: &str) {
        self.node
            .api
            .until("deletion", |api| api.get(&pod_path(name)).is_none())
            .await;
        let context = &self.node.context;
        // The worker ends after the object.
        while !context.pods.read().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    fn assert_nothing_left(&self) {
        assert!(self.node.runtime.pods().is_empty());
        assert!(self.node.network.attached.lock().is_empty());
        assert!(self.node.images.roots.lock().is_empty());
        let data = &self.node.context.config.data_dir;
        for directory in ["pods", "logs/pods"] {
            let left = std::fs::read_dir(data.join(directory))
                .into_iter()
                .flatten()
                .count();
            assert_eq!(left, 0, "{directory}");
        }
    }

    /// The daemon goes; everything else stays. The next one is a new node on the same fakes.
    async fn restart(mut self) -> Self {
        self.node.token.cancel();
        self.manager.await.unwrap();
        while self.node.tasks.join_next().await.is_some() {}
        let node = self.node.again().await;
        Self::on(node)
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    found
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or("")
}

fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let all = ["containerStatuses", "initContainerStatuses"];
    let found = all
        .iter()
        .filter_map(|list| pod["status"][list].as_array())
        .flatten()
        .find(|status| status["name"] == container);
    found.unwrap_or(&Value::Null)
}

fn with_policy(name: &str, policy: &str) -> Pod {
    let mut pod = pod_named(name);
    pod.spec.as_mut().unwrap().restart_policy = Some(policy.to_owned());
    pod
}

#[tokio::test(start_paused = true)]
async fn a_pod_comes_up_and_tells_all_about_it() {
    let running = Running::new().await;
    let start = tokio::time::Instant::now();
    running.node.put_pod(&pod_named("web"));
    let pod = running.until_ready("web").await;
    assert!(start.elapsed().as_millis() < 1000, "no artificial delays");
    let shown = &pod["status"];
    assert_eq!(shown["phase"], "Running");
    assert_eq!(shown["podIP"], "10.244.0.2");
    assert_eq!(shown["podIPs"], json!([{"ip": "10.244.0.2"}]));
    assert_eq!(shown["hostIP"], "192.0.2.1");
    assert_eq!(shown["qosClass"], "BestEffort");
    assert_eq!(shown["observedGeneration"], 1);
    for kind in [
        "PodScheduled",
        "Initialized",
        "ContainersReady",
        "PodReadyToStartContainers",
    ] {
        assert_eq!(condition(&pod, kind), "True", "{kind}");
    }
    let container = status(&pod, "c");
    assert!(
        container["containerID"]
            .as_str()
            .unwrap()
            .starts_with("skiff://")
    );
    assert_eq!(container["imageID"], "redis:6@sha256:00");
    assert_eq!(container["ready"], true);
    assert_eq!(container["restartCount"], 0);
    let data = &running.node.context.config.data_dir;
    let hosts = std::fs::read_to_string(data.join("pods/uid-web/etc/hosts")).unwrap();
    assert!(hosts.contains("10.244.0.2\tweb\n"));
    let (_, _, mounts) = running.node.specs.seen.lock()[0].clone();
    assert_eq!(
        mounts,
        [
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/termination-log"
        ]
    );

    running
        .node
        .api
        .until("events", |api| api.events().len() >= 4)
        .await;
    let events = running.node.api.events();
    let reasons: Vec<&str> = events.iter().map(|(reason, _)| reason.as_str()).collect();
    assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started"]);
    assert_eq!(events[0].1, "Pulling image \"redis:6\"");
    assert!(
        events[1]
            .1
            .ends_with("including waiting). Image size: 42 bytes."),
        "{}",
        events[1].1
    );
    assert_eq!(events[2].1, "Created container: c");
    assert_eq!(events[3].1, "Started container c");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_gets_its_grace_and_leaves_nothing() {
    let running = Running::new().await;
    running.node.runtime.make_stubborn();
    running.node.put_pod(&pod_named("web"));
    running.until_ready("web").await;
    let start = tokio::time::Instant::now();
    running.delete("web", 7);
    running.until_gone("web").await;
    assert_eq!(start.elapsed().as_secs(), 7);
    assert!(
        running
            .node
            .runtime
            .calls()
            .contains(&"stop 15 7".to_owned())
    );
    running.assert_nothing_left();
    let events = running.node.api.events();
    assert!(events.contains(&("Killing".to_owned(), "Stopping container c".to_owned())));
    // The end was shown before the object went.
    let requests = running.node.api.requests();
    let delete = requests
        .iter()
        .position(|r| r.starts_with("DELETE"))
        .unwrap();
    assert!(
        requests[..delete]
            .iter()
            .filter(|r| r.starts_with("PATCH"))
            .count()
            >= 2
    );
}

#[tokio::test(start_paused = true)]
async fn a_forced_deletion_does_not_wait() {
    let running = Running::new().await;
    running.node.runtime.make_stubborn();
    running.node.put_pod(&pod_named("web"));
    running.until_ready("web").await;
    running.delete("web", 600);
    let stops = || {
        running
            .node
            .runtime
            .calls()
            .iter()
            .any(|call| call.starts_with("stop 15"))
    };
    while !stops() {
        tokio::task::yield_now().await;
    }
    let start = tokio::time::Instant::now();
    running.node.api.remove(&pod_path("web"));
    running.until_gone("web").await;
    assert!(start.elapsed().as_secs() < 2);
    running.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off() {
    let running = Running::new().await;
    running.node.put_pod(&pod_named("web"));
    running.until_ready("web").await;
    running.node.runtime.exit("uid-web", "c", 1);
    // The first restart is immediate.
    let pod = running
        .until("web", "restart", |pod| {
            status(pod, "c")["restartCount"] == 1
        })
        .await;
    assert_eq!(status(&pod, "c")["lastState"]["terminated"]["exitCode"], 1);
    running
        .until("web", "running again", |pod| {
            status(pod, "c")["ready"] == true
        })
        .await;
    let start = tokio::time::Instant::now();
    running.node.runtime.exit("uid-web", "c", 2);
    let pod = running
        .until("web", "CrashLoopBackOff", |pod| {
            status(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=c pod=web_default(uid-web)"
    );
    assert_eq!(status(&pod, "c")["lastState"]["terminated"]["exitCode"], 2);
    assert_eq!(pod["status"]["phase"], "Running");
    running
        .until("web", "second restart", |pod| {
            status(pod, "c")["restartCount"] == 2
        })
        .await;
    assert_eq!(start.elapsed().as_secs(), 10);
    let back_offs = || {
        let events = running.node.api.events();
        events
            .iter()
            .filter(|(reason, _)| reason == "BackOff")
            .count()
    };
    assert_eq!(back_offs(), 1);
    // One ended instance is kept for its log, older ones go.
    running.node.runtime.exit("uid-web", "c", 3);
    running
        .until("web", "third restart", |pod| {
            status(pod, "c")["restartCount"] == 3
        })
        .await;
    while running.node.runtime.pods()[0].containers.len() > 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.node.images.roots.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_tried_again() {
    let running = Running::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "missing:1"}]});
    running.node.put_pod(&pod_from("web", spec));
    let waiting = |reason: &'static str| {
        move |pod: &Value| status(pod, "c")["state"]["waiting"]["reason"] == reason
    };
    let pod = running
        .until("web", "ErrImagePull", waiting("ErrImagePull"))
        .await;
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["message"],
        "manifest unknown"
    );
    assert_eq!(pod["status"]["phase"], "Pending");
    let pod = running
        .until("web", "ImagePullBackOff", waiting("ImagePullBackOff"))
        .await;
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["message"],
        "Back-off pulling image \"missing:1\": ErrImagePull: manifest unknown"
    );
    let events = running.node.api.events();
    let has =
        |reason: &str, message: &str| events.contains(&(reason.to_owned(), message.to_owned()));
    assert!(
        has(
            "Failed",
            "Failed to pull image \"missing:1\": manifest unknown"
        ),
        "{events:?}"
    );
    assert!(has("Failed", "Error: ErrImagePull"));
    assert!(has("BackOff", "Back-off pulling image \"missing:1\""));
    running
        .node
        .images
        .all_there
        .store(true, std::sync::atomic::Ordering::SeqCst);
    running.until_ready("web").await;
    running.delete("web", 1);
    running.until_gone("web").await;
    running.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn policies_decide_the_end() {
    let running = Running::new().await;
    for (name, policy, code, phase) in [
        ("a", "Never", 0, "Succeeded"),
        ("b", "Never", 3, "Failed"),
        ("d", "OnFailure", 0, "Succeeded"),
    ] {
        running.node.put_pod(&with_policy(name, policy));
        running.until_running(name).await;
        running.node.runtime.exit(&format!("uid-{name}"), "c", code);
        let pod = running
            .until(name, phase, |pod| pod["status"]["phase"] == phase)
            .await;
        let state = &status(&pod, "c")["state"]["terminated"];
        assert_eq!(state["exitCode"], code);
        assert_eq!(condition(&pod, "Ready"), "False");
        let torn_down = || running.node.runtime.pods().is_empty();
        while !torn_down() {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            status(&running.node.pod(name), "c")["state"]["terminated"]["exitCode"],
            code
        );
    }
    assert!(running.node.network.attached.lock().is_empty());
    running.delete("a", 1);
    running
        .node
        .api
        .until("deletion", |api| api.get(&pod_path("a")).is_none())
        .await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_stay() {
    let running = Running::new().await;
    let spec = json!({
        "initContainers": [
            {"name": "one", "image": "i:1"},
            {"name": "side", "image": "i:1", "restartPolicy": "Always"},
            {"name": "two", "image": "i:1"},
        ],
        "containers": [{"name": "c", "image": "i:1"}],
    });
    running.node.put_pod(&pod_from("web", spec));
    let is_up =
        |name: &'static str| move |pod: &Value| status(pod, name)["state"]["running"].is_object();
    let pod = running.until("web", "one", is_up("one")).await;
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(condition(&pod, "Initialized"), "False");
    running.node.runtime.exit("uid-web", "one", 0);
    running.until("web", "two", is_up("two")).await;
    running.node.runtime.exit("uid-web", "two", 0);
    let pod = running.until_ready("web").await;
    assert_eq!(condition(&pod, "Initialized"), "True");
    assert!(is_up("side")(&pod));
    let starts: Vec<String> = running
        .node
        .runtime
        .calls()
        .into_iter()
        .filter(|c| c.starts_with("start"))
        .collect();
    assert_eq!(
        starts,
        ["start one 0", "start side 0", "start two 0", "start c 0"]
    );
    running.delete("web", 5);
    running.until_gone("web").await;
    running.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_missing_key_is_told_and_waited_for() {
    let running = Running::new().await;
    let spec = json!({"containers": [{
        "name": "c", "image": "i:1",
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "a"}}}],
    }]});
    running.node.put_pod(&pod_from("web", spec));
    let pod = running
        .until("web", "config error", |pod| {
            status(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["message"],
        "configmap \"cfg\" not found"
    );
    running.node.api.put(
        "/api/v1/namespaces/default/configmaps/cfg",
        json!({"metadata": {"name": "cfg", "namespace": "default"}, "data": {"a": "1"}}),
    );
    running.until_ready("web").await;
    let (_, env, _) = running.node.specs.seen.lock().last().unwrap().clone();
    assert_eq!(env["A"], "1");
}

#[tokio::test(start_paused = true)]
async fn a_volume_waits_for_its_config_map_and_follows_it() {
    let running = Running::new().await;
    let spec = json!({
        "volumes": [{"name": "v", "configMap": {"name": "cfg"}}],
        "containers": [{"name": "c", "image": "i:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
    });
    running.node.put_pod(&pod_from("web", spec));
    let told = |api: &crate::testing::FakeApi| {
        api.events().iter().any(|(reason, message)| {
            reason == "FailedMount"
                && message
                    == "MountVolume.SetUp failed for volume \"v\" : configmap \"cfg\" not found"
        })
    };
    running.node.api.until("FailedMount", told).await;
    let put = |value: &str| {
        running.node.api.put(
            "/api/v1/namespaces/default/configmaps/cfg",
            json!({"metadata": {"name": "cfg", "namespace": "default"}, "data": {"k": value}}),
        );
    };
    put("one");
    running.until_ready("web").await;
    let file = running
        .node
        .context
        .config
        .pod_dir("uid-web")
        .join("volumes/files/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    put("two");
    while std::fs::read_to_string(&file).unwrap() != "two" {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_daemon_adopts_what_runs_and_ends_what_nobody_wants() {
    let running = Running::new().await;
    running.node.put_pod(&pod_named("web"));
    running.node.put_pod(&with_policy("job", "Never"));
    running.node.put_pod(&pod_named("old"));
    for name in ["web", "job", "old"] {
        running.until_ready(name).await;
    }
    running.node.runtime.exit("uid-web", "c", 1);
    running
        .until("web", "restart", |pod| {
            status(pod, "c")["restartCount"] == 1
        })
        .await;
    let before = running.until_ready("web").await;
    let node = running;
    node.node.token.cancel();
    // While no daemon is there: one container ends, one pod is deleted.
    node.node.runtime.exit("uid-job", "c", 5);
    node.node.api.remove(&pod_path("old"));
    let starts = |node: &TestNode| {
        node.runtime
            .calls()
            .iter()
            .filter(|call| call.starts_with("start"))
            .count()
    };
    let started = starts(&node.node);

    let running = node.restart().await;
    let pod = running
        .until("job", "Failed", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(status(&pod, "c")["state"]["terminated"]["exitCode"], 5);
    while running.node.runtime.pods().len() > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(running.node.runtime.pods()[0].sandbox.config.name, "web");
    assert_eq!(starts(&running.node), started, "nothing was started again");
    let after = running.node.pod("web");
    assert_eq!(
        after["status"]["containerStatuses"],
        before["status"]["containerStatuses"]
    );
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    // It is looked after again.
    running.node.runtime.exit("uid-web", "c", 1);
    running
        .until("web", "second restart", |pod| {
            status(pod, "c")["restartCount"] == 2
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_shim_gets_a_new_sandbox_and_counts_a_restart() {
    let running = Running::new().await;
    running.node.put_pod(&pod_named("web"));
    running.until_ready("web").await;
    running.node.runtime.lose("uid-web");
    let pod = running
        .until("web", "restart", |pod| {
            status(pod, "c")["restartCount"] == 1
        })
        .await;
    assert_eq!(
        status(&pod, "c")["lastState"]["terminated"]["exitCode"],
        255
    );
    running.until_ready("web").await;
    let sandboxes = |call: &&String| call.starts_with("run_sandbox");
    assert_eq!(
        running
            .node
            .runtime
            .calls()
            .iter()
            .filter(sandboxes)
            .count(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_refuses_is_told_and_tried_again() {
    let running = Running::new().await;
    *running.node.network.failures.lock() = 1;
    running
        .node
        .runtime
        .refuse_start("c", Some("exec: \"nope\": not found"));
    running.node.put_pod(&pod_named("web"));
    let pod = running
        .until("web", "RunContainerError", |pod| {
            status(pod, "c")["state"]["waiting"]["reason"] == "RunContainerError"
        })
        .await;
    assert_eq!(
        status(&pod, "c")["state"]["waiting"]["message"],
        "start: exec: \"nope\": not found"
    );
    let sandbox = "Failed to create pod sandbox: plugin failed to set up pod \"web_default\" network: no addresses left";
    let events = running.node.api.events();
    assert!(
        events.contains(&("FailedCreatePodSandBox".to_owned(), sandbox.to_owned())),
        "{events:?}"
    );
    running.node.runtime.refuse_start("c", None);
    running.until_ready("web").await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused() {
    let running = Running::new().await;
    let spec = json!({"containers": [
        {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "99"}}},
    ]});
    running.node.put_pod(&pod_from("web", spec));
    let pod = running
        .until("web", "Failed", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert!(
        running
            .node
            .runtime
            .calls()
            .iter()
            .all(|call| !call.starts_with("run_sandbox"))
    );
}

#[tokio::test(start_paused = true)]
async fn the_active_deadline_ends_a_pod() {
    let running = Running::new().await;
    let spec = json!({
        "activeDeadlineSeconds": 20, "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "i:1"}],
    });
    let start = tokio::time::Instant::now();
    running.node.put_pod(&pod_from("web", spec));
    let pod = running
        .until("web", "Failed", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(start.elapsed().as_secs(), 20);
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    while !running.node.runtime.pods().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_and_probes_act() {
    let running = Running::new().await;
    let spec = json!({"containers": [{
        "name": "c", "image": "i:1",
        "lifecycle": {
            "postStart": {"exec": {"command": ["hello"]}},
            "preStop": {"exec": {"command": ["bye"]}},
        },
        "readinessProbe": {"exec": {"command": ["ready"]}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["live"]}, "periodSeconds": 10, "failureThreshold": 1},
    }]});
    running.node.runtime.script_exec("ready", &[1, 1, 0]);
    running.node.runtime.script_exec("live", &[0, 1, 0]);
    running.node.put_pod(&pod_from("web", spec));
    let pod = running.until_running("web").await;
    assert_eq!(condition(&pod, "Ready"), "False");
    running.until_ready("web").await;
    running
        .until("web", "restart", |pod| {
            status(pod, "c")["restartCount"] == 1
        })
        .await;
    running.until_ready("web").await;
    let calls = running.node.runtime.calls();
    let position = |wanted: &str| calls.iter().position(|call| call == wanted);
    assert!(position("exec hello") > position("start c 0"));
    assert!(position("exec bye") < position("start c 1"));
    running
        .node
        .api
        .until("events", |api| {
            api.events().iter().any(|(r, _)| r == "Killing")
        })
        .await;
    let events = running.node.api.events();
    for (reason, message) in [
        ("Unhealthy", "Readiness probe failed: outerr"),
        ("Unhealthy", "Liveness probe failed: outerr"),
        (
            "Killing",
            "Container c failed liveness probe, will be restarted",
        ),
    ] {
        let wanted = (reason.to_owned(), message.to_owned());
        assert!(events.contains(&wanted), "{wanted:?} in {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn termination_messages_are_read() {
    let running = Running::new().await;
    running.node.put_pod(&with_policy("web", "Never"));
    running.until_ready("web").await;
    let record = running.node.runtime.pod("uid-web").await.unwrap();
    let path = &record.containers[0].annotations[crate::annotations::TERMINATION_LOG];
    std::fs::write(path, "no disk left").unwrap();
    running.node.runtime.exit("uid-web", "c", 1);
    let pod = running
        .until("web", "Failed", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(
        status(&pod, "c")["state"]["terminated"]["message"],
        "no disk left"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_died_unheard_is_noticed_at_the_next_start() {
    let running = Running::new().await;
    running.node.put_pod(&pod_named("web"));
    running.until_ready("web").await;
    running.node.token.cancel();
    running.node.runtime.lose_unheard("uid-web");
    let running = running.restart().await;
    running
        .until("web", "restart", |pod| {
            status(pod, "c")["restartCount"] == 1
        })
        .await;
    running.until_ready("web").await;
}

#[tokio::test(start_paused = true)]
async fn every_instance_has_its_own_root_filesystem() {
    let running = Running::new().await;
    running.node.runtime.refuse_start("c", Some("no"));
    running.node.put_pod(&pod_named("web"));
    let fails = |count: usize| {
        let starts = running.node.runtime.calls();
        starts
            .iter()
            .filter(|call| call.starts_with("start"))
            .count()
            >= count
    };
    while !fails(4) {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    running.node.runtime.refuse_start("c", None);
    running.until_ready("web").await;
    let record = running.node.runtime.pod("uid-web").await.unwrap();
    let key = record.containers.last().unwrap().annotations[crate::annotations::SNAPSHOT].clone();
    assert!(running.node.images.roots.lock().contains(&key), "{key}");
    let mut keys: Vec<&String> = record
        .containers
        .iter()
        .map(|c| &c.annotations[crate::annotations::SNAPSHOT])
        .collect();
    keys.dedup();
    assert_eq!(keys.len(), record.containers.len());
}

#[tokio::test(start_paused = true)]
async fn an_adopted_container_that_never_restarted_has_no_last_state() {
    let running = Running::new().await;
    running.node.put_pod(&pod_named("web"));
    running.until_ready("web").await;
    let running = running.restart().await;
    // Anything that makes the new daemon write the status.
    let mut pod = running.node.pod("web");
    pod["metadata"]["generation"] = json!(2);
    running.node.api.put(&pod_path("web"), pod);
    let pod = running
        .until("web", "status", |pod| {
            pod["status"]["observedGeneration"] == 2
        })
        .await;
    assert_eq!(status(&pod, "c")["lastState"], Value::Null);
    assert_eq!(status(&pod, "c")["restartCount"], 0);
}
