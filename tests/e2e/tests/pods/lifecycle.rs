//! Starting, ending and starting again.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skiff_test_harness::{
    eventually,
    scene::{Case, PATIENCE, Scene, condition, container, has, pod, runs, script},
};

pub(crate) const CASES: &[Case] = &[
    ("always", always_restarts_with_back_off),
    ("never", never_is_final),
    ("on-failure", on_failure_restarts_until_it_succeeds),
    ("init-order", init_containers_run_one_after_another),
    ("init-fails", a_failing_init_container_fails_the_pod),
    ("graceful", ending_is_asked_for_first),
    ("grace-exceeded", who_does_not_end_is_killed),
    ("deadline", an_active_deadline_ends_the_pod),
    ("one-of-two", a_container_ends_while_the_other_runs),
    ("message", the_last_words_are_in_the_status),
    ("logs", logs_are_kept_by_container_and_run),
    ("host-network", a_pod_in_the_nodes_network),
    ("localhost", containers_of_a_pod_share_localhost),
];

/// Where a container of [`writer`] leaves words that outlive its pod: a folder of the node.
fn host_dir(scene: &Scene<'_>) -> String {
    let dir = scene.cluster().data_dir().join("exchange");
    dir.join(scene.namespace()).display().to_string()
}

/// A pod of one container with the node's folder at /host.
fn writer(scene: &Scene<'_>, name: &str, main: Value, more: Value) -> Value {
    let mut main = main;
    main["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
    let path = host_dir(scene);
    let volumes =
        json!([{"name": "host", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}]);
    let mut pod = pod(name, json!({"containers": [main], "volumes": volumes}));
    if let (Some(spec), Value::Object(more)) = (pod["spec"].as_object_mut(), more) {
        spec.extend(more);
    }
    pod
}

fn written(scene: &Scene<'_>, file: &str) -> String {
    fs::read_to_string(format!("{}/{file}", host_dir(scene))).unwrap_or_default()
}

fn never_is_final(scene: &Scene<'_>) -> Result<()> {
    for (name, code, phase, reason) in [
        ("good", 0, "Succeeded", "Completed"),
        ("bad", 3, "Failed", "Error"),
    ] {
        let main = script("c", &format!("exit {code}"));
        scene.apply(&pod(
            name,
            json!({"restartPolicy": "Never", "containers": [main]}),
        ))?;
        let ended = scene.phase(name, phase)?;
        let status = container(&ended, "c");
        ensure!(status["restartCount"] == 0, "{ended:#}");
        ensure!(
            status["state"]["terminated"]["exitCode"] == code,
            "{ended:#}"
        );
        ensure!(
            status["state"]["terminated"]["reason"] == reason,
            "{ended:#}"
        );
        ensure!(condition(&ended, "Ready") == "False", "{ended:#}");
    }
    let table = scene.run(&["get", "pods"])?;
    let shown = |name: &str, state: &str| {
        table.lines().any(|line| {
            let cells: Vec<_> = line.split_whitespace().collect();
            cells.first() == Some(&name)
                && cells.get(1) == Some(&"0/1")
                && cells.get(2) == Some(&state)
        })
    };
    ensure!(
        shown("good", "Completed") && shown("bad", "Error"),
        "{table}"
    );
    Ok(())
}

fn on_failure_restarts_until_it_succeeds(scene: &Scene<'_>) -> Result<()> {
    // The volume outlives the container, its root file system does not.
    let main = runs(
        "c",
        &[
            "sh",
            "-c",
            "test ! -e /fresh || exit 9; touch /fresh; test -e /v/tried && exit 0; touch /v/tried; exit 5",
        ],
        json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
    );
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    scene.apply(&pod(
        "p",
        json!({"restartPolicy": "OnFailure", "containers": [main], "volumes": volumes}),
    ))?;
    let ended = scene.phase("p", "Succeeded")?;
    let status = container(&ended, "c");
    ensure!(status["restartCount"] == 1, "{ended:#}");
    ensure!(
        status["lastState"]["terminated"]["exitCode"] == 5,
        "{ended:#}"
    );
    Ok(())
}

fn always_restarts_with_back_off(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&pod("p", json!({"containers": [script("c", "exit 0")]})))?;
    let waiting = scene.pod("p", "a back-off", |pod| {
        container(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    let status = container(&waiting, "c");
    ensure!(status["restartCount"].as_u64() >= Some(1), "{waiting:#}");
    ensure!(
        status["lastState"]["terminated"]["exitCode"] == 0,
        "{waiting:#}"
    );
    ensure!(
        status["lastState"]["terminated"]["reason"] == "Completed",
        "{waiting:#}"
    );
    let message = status["state"]["waiting"]["message"]
        .as_str()
        .unwrap_or_default();
    has(
        message,
        "back-off 10s restarting failed container=c pod=p_always(",
    )?;
    scene.event(
        "p",
        "BackOff",
        "Back-off restarting failed container c in pod p_always(",
    )?;
    // It is held back, not given up.
    let restarts = status["restartCount"].as_u64();
    scene.pod("p", "the next run", |pod| {
        container(pod, "c")["restartCount"].as_u64() > restarts
    })?;
    Ok(())
}

fn init_containers_run_one_after_another(scene: &Scene<'_>) -> Result<()> {
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let step = |name: &str| {
        let text = format!("echo {name}-in >>/v/order; sleep 0.3; echo {name}-out >>/v/order");
        runs(name, &["sh", "-c", &text], mounts.clone())
    };
    let main = runs(
        "c",
        &["sh", "-c", "cat /v/order; exec sleep infinity"],
        mounts.clone(),
    );
    let spec = json!({
        "initContainers": [step("one"), step("two")],
        "containers": [main],
        "volumes": [{"name": "v", "emptyDir": {}}],
    });
    scene.apply(&pod("p", spec))?;
    scene.pod("p", "initialising", |pod| {
        container(pod, "c")["state"]["waiting"]["reason"] == "PodInitializing"
            && condition(pod, "Initialized") == "False"
    })?;
    let ready = scene.ready("p")?;
    for name in ["one", "two"] {
        ensure!(
            container(&ready, name)["state"]["terminated"]["reason"] == "Completed",
            "{ready:#}"
        );
    }
    let order = eventually(
        "the order",
        PATIENCE,
        || scene.logs("p", &["-c", "c"]),
        |log| !log.is_empty(),
    )?;
    ensure!(order == "one-in\none-out\ntwo-in\ntwo-out\n", "{order}");
    Ok(())
}

fn a_failing_init_container_fails_the_pod(scene: &Scene<'_>) -> Result<()> {
    let spec = |policy: &str| {
        json!({
            "restartPolicy": policy,
            "initContainers": [script("one", "exit 4"), script("two", "true")],
            "containers": [script("c", "true")],
        })
    };
    scene.apply(&json!([
        pod("never", spec("Never")),
        pod("always", spec("Always"))
    ]))?;
    let failed = scene.phase("never", "Failed")?;
    ensure!(
        container(&failed, "one")["state"]["terminated"]["exitCode"] == 4,
        "{failed:#}"
    );
    for name in ["two", "c"] {
        let waiting = &container(&failed, name)["state"]["waiting"];
        ensure!(waiting["reason"] == "PodInitializing", "{failed:#}");
    }
    scene.pod("always", "a back-off", |pod| {
        container(pod, "one")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && pod["status"]["phase"] == "Pending"
    })?;
    let table = scene.run(&["get", "pods"])?;
    has(&table, "Init:Error")?;
    has(&table, "Init:CrashLoopBackOff")
}

fn ending_is_asked_for_first(scene: &Scene<'_>) -> Result<()> {
    let text = "trap 'echo term >>/host/words; exit 0' TERM; echo up >>/host/words; while :; do sleep 0.1; done";
    let mut main = script("c", text);
    main["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo pre-stop >>/host/words"]}}});
    let grace = json!({"terminationGracePeriodSeconds": 60});
    scene.apply(&writer(scene, "p", main, grace))?;
    scene.ready("p")?;
    eventually(
        "the trap",
        PATIENCE,
        || Ok(written(scene, "words")),
        |words| words == "up\n",
    )?;
    scene.delete_pod("p", &[])?;
    ensure!(
        written(scene, "words") == "up\npre-stop\nterm\n",
        "{}",
        written(scene, "words")
    );
    scene.event("p", "Killing", "Stopping container c")?;
    Ok(())
}

fn who_does_not_end_is_killed(scene: &Scene<'_>) -> Result<()> {
    let text =
        "trap 'echo term >>/host/words' TERM; echo up >>/host/words; while :; do sleep 0.1; done";
    scene.apply(&writer(scene, "p", script("c", text), json!({})))?;
    scene.ready("p")?;
    eventually(
        "the trap",
        PATIENCE,
        || Ok(written(scene, "words")),
        |words| words == "up\n",
    )?;
    scene.run(&["delete", "pod", "p", "--wait=false", "--grace-period=3"])?;
    let ended = scene.pod("p", "its end", |pod| {
        container(pod, "c")["state"]["terminated"].is_object()
    })?;
    ensure!(
        container(&ended, "c")["state"]["terminated"]["exitCode"] == 137,
        "{ended:#}"
    );
    ensure!(
        ended["metadata"]["deletionGracePeriodSeconds"] == 3,
        "{ended:#}"
    );
    ensure!(
        written(scene, "words") == "up\nterm\n",
        "{}",
        written(scene, "words")
    );
    scene.run(&["wait", "--for=delete", "pod/p", "--timeout=90s"])?;
    Ok(())
}

fn an_active_deadline_ends_the_pod(scene: &Scene<'_>) -> Result<()> {
    let main = script("c", "exec sleep infinity");
    let spec = json!({"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 1, "containers": [main]});
    scene.apply(&pod("p", spec))?;
    let failed = scene.phase("p", "Failed")?;
    ensure!(
        failed["status"]["reason"] == "DeadlineExceeded",
        "{failed:#}"
    );
    let message = failed["status"]["message"].as_str().unwrap_or_default();
    has(
        message,
        "Pod was active on the node longer than the specified deadline",
    )?;
    let ended = scene.pod("p", "the container's end", |pod| {
        container(pod, "c")["state"]["terminated"]["exitCode"] == 137
    })?;
    ensure!(ended["status"]["phase"] == "Failed", "{ended:#}");
    Ok(())
}

fn a_container_ends_while_the_other_runs(scene: &Scene<'_>) -> Result<()> {
    let stays = script("stays", "exec sleep infinity");
    let ends = script("ends", "exit 6");
    scene.apply(&pod(
        "p",
        json!({"restartPolicy": "Never", "containers": [stays, ends]}),
    ))?;
    let half = scene.pod("p", "one ended, one runs", |pod| {
        container(pod, "ends")["state"]["terminated"]["exitCode"] == 6
            && container(pod, "stays")["state"]["running"].is_object()
    })?;
    ensure!(half["status"]["phase"] == "Running", "{half:#}");
    ensure!(condition(&half, "Ready") == "False", "{half:#}");
    ensure!(
        container(&half, "stays")["state"]["running"].is_object(),
        "{half:#}"
    );
    Ok(())
}

fn the_last_words_are_in_the_status(scene: &Scene<'_>) -> Result<()> {
    let file = script(
        "c",
        "echo to the log; printf 'well done' >/dev/termination-log",
    );
    let mut elsewhere = script("c", "printf 'elsewhere' >/tmp/words; exit 1");
    elsewhere["terminationMessagePath"] = json!("/tmp/words");
    let mut log = script("c", "echo the reason is in the log; exit 1");
    log["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    for (name, main, phase, words) in [
        ("file", file, "Succeeded", "well done"),
        ("elsewhere", elsewhere, "Failed", "elsewhere"),
        ("log", log, "Failed", "the reason is in the log\n"),
    ] {
        scene.apply(&pod(
            name,
            json!({"restartPolicy": "Never", "containers": [main]}),
        ))?;
        let ended = scene.phase(name, phase)?;
        ensure!(
            container(&ended, "c")["state"]["terminated"]["message"] == words,
            "{ended:#}"
        );
    }
    Ok(())
}

fn logs_are_kept_by_container_and_run(scene: &Scene<'_>) -> Result<()> {
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let text = "if test -e /v/ran; then echo second run; exec sleep infinity; fi; touch /v/ran; echo first run; printf 'no line end' >&2; exit 1";
    let spec = json!({
        "containers": [runs("a", &["sh", "-c", text], mounts), script("b", "echo steady; exec sleep infinity")],
        "volumes": [{"name": "v", "emptyDir": {}}],
    });
    scene.apply(&pod("p", spec))?;
    scene.pod("p", "the second run", |pod| {
        container(pod, "a")["restartCount"] == 1 && condition(pod, "Ready") == "True"
    })?;
    let log = |args: &[&str], expected: &str| {
        eventually(
            &format!("{args:?}"),
            PATIENCE,
            || scene.logs("p", args),
            |log| log == expected,
        )
    };
    log(&["-c", "a"], "second run\n")?;
    log(&["-c", "b"], "steady\n")?;
    log(&["-c", "a", "--previous"], "first run\nno line end\n")?;
    log(&["-c", "a", "--previous", "--tail=1"], "no line end\n")?;
    log(&["-c", "a", "--previous", "--limit-bytes=5"], "first")?;
    let stamped = scene.logs("p", &["-c", "a", "--timestamps"])?;
    let (stamp, rest) = stamped.split_once(' ').context("no stamp")?;
    ensure!(
        rest == "second run\n" && stamp.ends_with('Z') && stamp.contains('T'),
        "{stamped}"
    );
    let all = scene.logs("p", &["--all-containers", "--prefix"])?;
    has(&all, "[pod/p/a] second run\n")?;
    has(&all, "[pod/p/b] steady\n")?;
    let error = scene.fails(&["logs", "p", "-c", "b", "--previous"])?;
    has(
        &error,
        "previous terminated container \"b\" in pod \"p\" not found",
    )?;
    let error = scene.fails(&["logs", "p", "-c", "none"])?;
    has(&error, "container none is not valid for pod p")
}

fn a_pod_in_the_nodes_network(scene: &Scene<'_>) -> Result<()> {
    let main = script("c", "exec sleep infinity");
    scene.apply(&pod(
        "p",
        json!({"hostNetwork": true, "containers": [main]}),
    ))?;
    let ready = scene.ready("p")?;
    ensure!(
        ready["status"]["podIP"] == ready["status"]["hostIP"],
        "{ready:#}"
    );
    let links = scene.exec("p", &["cat", "/proc/net/dev"])?;
    let node = scene.cluster().node_exec(&["cat", "/proc/net/dev"])?;
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(name, _)| name.trim().to_owned())
            .filter(|name| !name.starts_with("veth"))
            .collect()
    };
    ensure!(names(&links) == names(&node), "{links}\n{node}");
    // Its programs reach Services as those of the node do.
    let connect =
        "import socket; socket.create_connection(('10.96.0.1', 443), 10); print('connected')";
    has(&scene.python("p", connect)?, "connected")
}

fn containers_of_a_pod_share_localhost(scene: &Scene<'_>) -> Result<()> {
    let serve = "import socket\ns = socket.create_server(('127.0.0.1', 9000))\nwhile True: s.accept()[0].sendall(b'hello')";
    let a = runs(
        "a",
        &["python3", "-c", serve],
        json!({"readinessProbe": {
            "exec": {"command": ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 9000))"]},
            "periodSeconds": 1,
        }}),
    );
    let b = script("b", "exec sleep infinity");
    scene.apply(&pod("p", json!({"containers": [a, b]})))?;
    scene.ready("p")?;
    let ask = "import socket; print(socket.create_connection(('localhost', 9000), 5).recv(9).decode(), socket.gethostname())";
    let said = scene.run(&["exec", "p", "-c", "b", "--", "python3", "-c", ask])?;
    ensure!(said == "hello p\n", "{said}");
    // Processes and root file systems are their own.
    let processes = scene.run(&[
        "exec",
        "p",
        "-c",
        "b",
        "--",
        "sh",
        "-c",
        "cat /proc/1/cmdline | tr '\\0' ' '",
    ])?;
    ensure!(processes == "sleep infinity ", "{processes}");
    Ok(())
}
