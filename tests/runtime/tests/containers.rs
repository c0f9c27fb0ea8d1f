//! Containers from start to end.

use std::time::{Duration, Instant};

use anyhow::Result;
use oci_spec::runtime::{LinuxMemoryBuilder, LinuxResourcesBuilder, UserBuilder};
use skiff_runtime::{ContainerState, Runtime, SandboxConfig};
use skiff_tests_runtime::{Node, eventually, forbid_mkdir, log_lines, says};

#[tokio::test]
async fn a_container_runs_and_leaves_its_exit_code_and_its_lines() -> Result<()> {
    let node = Node::new("run").await?;
    node.sandbox("u1").await?;
    let script = "echo out; echo err >&2; hostname; pwd; echo $COLOUR $HOME; printf end; exit 3";
    let (status, mut lines) = node.run(node.shell("u1", "main", script)).await?;
    assert_eq!(
        (status.exit_code, status.signal, status.oom_killed),
        (3, None, false)
    );
    assert!(
        status
            .started_at
            .is_some_and(|started| started <= status.finished_at)
    );
    lines.sort();
    assert_eq!(
        lines,
        [
            "stderr F err",
            "stdout F /tmp",
            "stdout F blue /root",
            "stdout F end",
            "stdout F host-u1",
            "stdout F out",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named_in_known_words() -> Result<()> {
    let node = Node::new("missing").await?;
    node.sandbox("u1").await?;
    let config = node.container("u1", "main", &["no-such-command"]);
    let error = node.runtime().start_container(config).await.unwrap_err();
    let words = "exec: \"no-such-command\": executable file not found in $PATH";
    assert!(says(&error, words), "{error}");
    let pod = node.runtime().pod("u1").await?;
    let container = pod.containers.first().unwrap();
    let ContainerState::Exited(status) = &container.state else {
        panic!("{container:?}")
    };
    assert_eq!((status.exit_code, status.started_at), (128, None));
    assert!(status.message.as_ref().unwrap().contains(words));
    node.runtime().remove_container(&container.id).await?;
    assert!(node.runtime().pod("u1").await?.containers.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_no_program_and_what_may_not_be_executed_is_said_so() -> Result<()> {
    let node = Node::new("noexec").await?;
    node.sandbox("u1").await?;
    std::fs::write(
        node.rootfs().join("bin/garbage"),
        "\u{7f}ELF but not really",
    )?;
    std::fs::write(node.rootfs().join("bin/plain"), "text")?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(node.rootfs().join("bin/garbage"), executable)?;
    for (command, words) in [
        ("/bin/garbage", "exec /bin/garbage: exec format error"),
        ("/bin/plain", "exec: \"/bin/plain\": permission denied"),
        (
            "/absent",
            "exec: \"/absent\": stat /absent: no such file or directory",
        ),
    ] {
        let config = node.container("u1", command.trim_matches('/'), &[command]);
        let error = node.runtime().start_container(config).await.unwrap_err();
        assert!(says(&error, words), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn stopping_asks_first_and_kills_then() -> Result<()> {
    let node = Node::new("stop").await?;
    node.sandbox("u1").await?;
    let polite = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let id = node
        .runtime()
        .start_container(node.shell("u1", "polite", polite))
        .await?;
    let log = node.log("u1", "polite");
    eventually("the trap is set", || {
        log_lines(&log).is_ok_and(|lines| !lines.is_empty())
    })
    .await?;
    node.runtime()
        .stop_container(&id, 15, Duration::from_secs(10))
        .await?;
    assert_eq!(node.exit(&id).await?.exit_code, 7);
    assert_eq!(log_lines(&log)?, ["stdout F ready", "stdout F bye"]);

    // Without a handler an init is deaf to SIGTERM.
    let id = node
        .runtime()
        .start_container(node.shell("u1", "deaf", "sleep 1000"))
        .await?;
    let error = node.runtime().remove_container(&id).await.unwrap_err();
    assert!(says(&error, "still running"), "{error}");
    let begin = Instant::now();
    node.runtime()
        .stop_container(&id, 15, Duration::from_millis(200))
        .await?;
    assert!(begin.elapsed() >= Duration::from_millis(200));
    let status = node.exit(&id).await?;
    assert_eq!((status.exit_code, status.signal), (137, Some(9)));
    // Again, and of what is gone.
    node.runtime()
        .stop_container(&id, 15, Duration::ZERO)
        .await?;
    node.runtime().remove_container(&id).await?;
    node.runtime().remove_container(&id).await?;
    Ok(())
}

#[tokio::test]
async fn signals_and_pipes_are_as_a_program_expects_them() -> Result<()> {
    let node = Node::new("signals").await?;
    node.sandbox("u1").await?;
    let script =
        "grep -E '^Sig(Blk|Ign)' /proc/self/status; yes | head -n 1; ls /proc/self/fd | wc -l";
    let (_, lines) = node.run(node.shell("u1", "main", script)).await?;
    // stdin, stdout, stderr and the directory that ls reads.
    let expected = [
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "y",
        "4",
    ];
    assert_eq!(lines, expected.map(|line| format!("stdout F {line}")));
    Ok(())
}

#[tokio::test]
async fn much_output_arrives_whole_and_files_are_rotated() -> Result<()> {
    let node = Node::new("output").await?;
    node.sandbox("u1").await?;
    // 300,000 lines of 47 bytes with their headers: more than one file's worth.
    let (_, last) = node
        .run(node.shell("u1", "main", "seq 100001 400000"))
        .await?;
    let log = node.log("u1", "main");
    let mut files: Vec<_> = std::fs::read_dir(log.parent().unwrap())?
        .map(|entry| entry.unwrap().path())
        .filter(|path| *path != log)
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut lines = Vec::new();
    for file in files {
        lines.extend(log_lines(&file)?);
    }
    lines.extend(last);
    assert_eq!(lines.len(), 300_000);
    for (number, line) in (100_001..).zip(&lines) {
        assert_eq!(*line, format!("stdout F {number}"));
    }
    Ok(())
}

#[tokio::test]
async fn a_container_that_takes_too_much_memory_is_said_to_have() -> Result<()> {
    let node = Node::new("oom").await?;
    node.sandbox("u1").await?;
    let mut config = node.shell("u1", "main", "dd if=/dev/zero of=/dev/null bs=200M count=1");
    let memory = LinuxMemoryBuilder::default().limit(16_i64 << 20).build()?;
    let resources = LinuxResourcesBuilder::default().memory(memory).build()?;
    let mut linux = config.spec.linux().clone().unwrap();
    linux.set_resources(Some(resources));
    config.spec.set_linux(Some(linux));
    let (status, _) = node.run(config).await?;
    assert_eq!((status.exit_code, status.oom_killed), (137, true));
    // Killed by hand it is not.
    let id = node
        .runtime()
        .start_container(node.shell("u1", "other", "sleep 1000"))
        .await?;
    node.runtime()
        .stop_container(&id, 9, Duration::ZERO)
        .await?;
    assert!(!node.exit(&id).await?.oom_killed);
    Ok(())
}

#[tokio::test]
async fn containers_of_a_pod_share_network_and_host_name_but_no_processes() -> Result<()> {
    let node = Node::new("share").await?;
    let sandbox = node.sandbox("u1").await?;
    node.sandbox("u2").await?;
    let mut seen = Vec::new();
    for (pod, name) in [("u1", "a"), ("u1", "b"), ("u2", "a")] {
        let config = node.shell(pod, name, "sleep 1000");
        let id = node.runtime().start_container(config).await?;
        let ContainerState::Running { pid, .. } = node.state(&id).await? else {
            panic!()
        };
        let kinds = ["net", "ipc", "uts", "pid", "mnt", "cgroup"];
        seen.push(kinds.map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()));
    }
    let [a, b, other] = seen.as_slice() else {
        panic!()
    };
    assert_eq!(a[..3], b[..3]);
    assert!(a.iter().zip(b).skip(3).all(|(one, two)| one != two));
    assert!(a.iter().zip(other).all(|(mine, theirs)| mine != theirs));
    assert!(skiff_netns::NetNs::open(&sandbox.netns).is_ok());
    Ok(())
}

#[tokio::test]
async fn a_pod_on_the_host_network_is_on_it() -> Result<()> {
    let node = Node::new("hostnet").await?;
    let sandbox = node
        .runtime()
        .run_sandbox(SandboxConfig {
            pod_uid: "u1".into(),
            namespace: "default".into(),
            name: "p".into(),
            hostname: "h".into(),
            host_network: true,
        })
        .await?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    assert_eq!(std::fs::read_link(&sandbox.netns)?, own);
    let (_, lines) = node
        .run(node.shell("u1", "a", "ls -l /proc/self/ns/net"))
        .await?;
    assert!(
        lines.first().unwrap().ends_with(own.to_str().unwrap()),
        "{lines:?}"
    );
    assert!(!node.netns_dir().join("skiff-u1").exists());
    Ok(())
}

#[tokio::test]
async fn a_container_is_in_its_pods_cgroups_and_is_counted() -> Result<()> {
    let node = Node::new("cgroups").await?;
    node.sandbox("u1").await?;
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000";
    let id = node
        .runtime()
        .start_container(node.shell("u1", "a", script))
        .await?;
    let log = node.log("u1", "a");
    eventually("it has worked", || {
        log_lines(&log).is_ok_and(|lines| !lines.is_empty())
    })
    .await?;
    let ContainerState::Running { pid, .. } = node.state(&id).await? else {
        panic!()
    };
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    // cgroup-BPF goes by cgroup2 membership, which on hybrid machines is the shim's.
    let unified = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    assert!(
        unified.starts_with(&format!("{}/skiff/podu1/", node.cgroup_root())),
        "{unified}"
    );
    for line in cgroups
        .lines()
        .filter(|line| !line.contains("name=") && !line.starts_with("0:"))
    {
        assert!(
            line.ends_with(&format!("/skiff/podu1/{}", id.container_id)),
            "{line}"
        );
    }
    let stats = node.runtime().stats(&id).await?;
    assert!(stats.cpu_usage_nanos > 1_000_000, "{stats:?}");
    assert!(
        stats.memory_working_set_bytes > 0 && stats.pids >= 1,
        "{stats:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_container_with_a_terminal_has_one() -> Result<()> {
    let node = Node::new("tty").await?;
    node.sandbox("u1").await?;
    let mut config = node.shell("u1", "a", "tty; echo error >&2; test -t 0 && echo yes");
    config.tty = true;
    let (status, lines) = node.run(config).await?;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    assert_eq!(
        lines,
        [
            "stdout F /dev/pts/0\r",
            "stdout F error\r",
            "stdout F yes\r"
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_user_with_groups_is_only_what_the_spec_says() -> Result<()> {
    let node = Node::new("user").await?;
    node.sandbox("u1").await?;
    let mut config = node.shell(
        "u1",
        "a",
        "id; echo $HOME; grep Cap /proc/self/status; sleep 1000",
    );
    let user = UserBuilder::default()
        .uid(1000_u32)
        .gid(1000_u32)
        .additional_gids([2000])
        .build()?;
    config.spec.process_mut().as_mut().unwrap().set_user(user);
    forbid_mkdir(&mut config.spec)?;
    let log = config.log_path.clone();
    let id = node.runtime().start_container(config).await?;
    eventually("it has said it all", || {
        log_lines(&log).is_ok_and(|lines| lines.len() == 7)
    })
    .await?;
    let own: Vec<String> = log_lines(&log)?
        .iter()
        .map(|line| line.replace("stdout F ", ""))
        .collect();
    assert_eq!(own.first().unwrap(), "uid=1000(app) gid=1000 groups=2000");
    assert_eq!(own.get(1).unwrap(), "/home");
    // A command has the same of everything.
    let script = "id; echo $HOME; grep Cap /proc/self/status";
    let (code, out, err) = node.exec(&id, script).await?;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out.lines().collect::<Vec<_>>(), own);
    Ok(())
}
