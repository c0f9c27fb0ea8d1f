//! The daemon dies, the shim dies, and nothing is left behind.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use nix::{sys::signal::Signal, unistd::Pid};
use skiff_runtime::{ContainerState, Runtime, RuntimeEvent};
use skiff_tests_runtime::{DEADLINE, Node, eventually, log_lines};

#[tokio::test]
async fn a_new_daemon_finds_everything_as_it_was() -> Result<()> {
    let mut node = Node::new("adopt").await?;
    let sandbox = node.sandbox("u1").await?;
    let script = "echo before; until [ -e /tmp/go ]; do sleep 0.01; done; echo after; exit 9";
    let lasting = node
        .runtime()
        .start_container(node.shell("u1", "lasting", "sleep 1000"))
        .await?;
    let ending = node
        .runtime()
        .start_container(node.shell("u1", "ending", script))
        .await?;
    let before = node.runtime().list().await?;

    node.crash();
    // It ends while nobody is there.
    std::fs::write(node.rootfs().join("tmp/go"), "")?;
    let exit_file = node
        .run_dir()
        .join("pods/u1/containers")
        .join(&ending.container_id)
        .join("exit.json");
    eventually("the shim writes down its end", || exit_file.exists()).await?;
    node.reopen().await?;

    let after = node.runtime().list().await?;
    assert_eq!(after.len(), 1);
    let (old, new) = (before.first().unwrap(), after.first().unwrap());
    assert_eq!(new.sandbox, sandbox);
    assert_eq!(new.containers.first(), old.containers.first());
    let ContainerState::Exited(status) = node.state(&ending).await? else {
        panic!()
    };
    assert_eq!(status.exit_code, 9);
    assert_eq!(
        log_lines(&node.log("u1", "ending"))?,
        ["stdout F before", "stdout F after"]
    );
    // And rules it as before: commands, stop, a further container, the same sandbox.
    assert_eq!(node.exec(&lasting, "exit 6").await?.0, 6);
    assert_eq!(node.sandbox("u1").await?, sandbox);
    assert_eq!(
        node.runtime()
            .start_container(node.shell("u1", "lasting", "x"))
            .await?,
        lasting
    );
    node.runtime()
        .stop_container(&lasting, 15, Duration::from_millis(10))
        .await?;
    assert_eq!(node.exit(&lasting).await?.exit_code, 137);
    let (status, _) = node.run(node.shell("u1", "late", "exit 2")).await?;
    assert_eq!(status.exit_code, 2);
    Ok(())
}

#[tokio::test]
async fn what_a_dead_daemon_left_half_made_is_removed() -> Result<()> {
    let mut node = Node::new("half").await?;
    node.sandbox("u1").await?;
    node.crash();
    std::fs::remove_file(node.run_dir().join("pods/u1/sandbox.json"))?;
    node.reopen().await?;
    assert!(node.runtime().list().await?.is_empty());
    nothing_left(&node)?;
    node.sandbox("u1").await?;
    Ok(())
}

#[tokio::test]
async fn a_lost_shim_is_announced_and_its_containers_are_ended() -> Result<()> {
    for crashed in [false, true] {
        let mut node = Node::new(&format!("lost{crashed}")).await?;
        node.sandbox("u1").await?;
        let id = node
            .runtime()
            .start_container(node.shell("u1", "a", "sleep 1000"))
            .await?;
        let ContainerState::Running { pid, .. } = node.state(&id).await? else {
            panic!()
        };
        let shim = std::fs::read_to_string(node.run_dir().join("pods/u1/shim.pid"))?;
        let mut events = node.runtime().events();
        if crashed {
            node.crash();
        }
        nix::sys::signal::kill(Pid::from_raw(shim.parse()?), Signal::SIGKILL)?;
        if crashed {
            node.reopen().await?;
        } else {
            let lost = RuntimeEvent::ShimLost {
                pod_uid: "u1".into(),
            };
            let wait = async {
                while events.recv().await? != lost {}
                anyhow::Ok(())
            };
            tokio::time::timeout(DEADLINE, wait).await??;
        }
        let ContainerState::Exited(status) = node.state(&id).await? else {
            panic!()
        };
        assert_eq!(status.exit_code, 137);
        assert!(!std::path::Path::new(&format!("/proc/{pid}/root")).exists());
        assert!(
            node.runtime()
                .start_container(node.shell("u1", "b", "true"))
                .await
                .is_err()
        );
        node.runtime().remove_sandbox("u1").await?;
        nothing_left(&node)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_cycles_leave_nothing() -> Result<()> {
    let node = Node::new("cycles").await?;
    let before = census()?;
    for cycle in 0..100 {
        let uid = format!("u{cycle}");
        node.sandbox(&uid).await?;
        let id = node
            .runtime()
            .start_container(node.shell(&uid, "a", "sleep 1000 & wait"))
            .await?;
        if cycle % 2 == 0 {
            node.runtime()
                .stop_container(&id, 9, Duration::ZERO)
                .await?;
            node.runtime().remove_container(&id).await?;
        }
        node.runtime().remove_sandbox(&uid).await?;
        node.runtime().remove_sandbox(&uid).await?;
    }
    nothing_left(&node)?;
    eventually("the counts are as before", || {
        census().is_ok_and(|now| now == before)
    })
    .await?;
    node.runtime().remove_everything().await?;
    assert!(node.cgroups().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_pods_at_once_all_run() -> Result<()> {
    let node = Node::new("parallel").await?;
    for round in 0..5 {
        let all = (0..8).map(|number| {
            let node = &node;
            async move {
                let uid = format!("r{round}n{number}");
                node.sandbox(&uid).await?;
                let (status, lines) = node
                    .run(node.shell(&uid, "a", &format!("echo {number}; exit {number}")))
                    .await?;
                assert_eq!(
                    (status.exit_code, lines),
                    (number, vec![format!("stdout F {number}")])
                );
                node.runtime().remove_sandbox(&uid).await?;
                anyhow::Ok(())
            }
        });
        for result in futures::future::join_all(all).await {
            result?;
        }
    }
    nothing_left(&node)
}

#[tokio::test]
async fn a_sweep_removes_what_is_not_kept_and_no_more() -> Result<()> {
    let node = Node::new("sweep").await?;
    for uid in ["kept", "orphan"] {
        node.sandbox(uid).await?;
        node.runtime()
            .start_container(node.shell(uid, "a", "sleep 1000"))
            .await?;
    }
    // Of a third pod nothing is left but a cgroup.
    let stray = node.cgroups().first().unwrap().join("skiff/podstray");
    std::fs::create_dir(&stray)?;
    node.runtime()
        .sweep(&HashSet::from(["kept".to_owned()]))
        .await?;
    let pods = node.runtime().list().await?;
    assert_eq!(pods.len(), 1);
    let container = pods.first().unwrap().containers.first().unwrap();
    assert!(matches!(container.state, ContainerState::Running { .. }));
    assert!(!stray.exists() && !node.netns_dir().join("skiff-orphan").exists());
    Ok(())
}

/// Fails if any pod of the node has left a directory, a namespace, a cgroup or a process.
fn nothing_left(node: &Node) -> Result<()> {
    let mut left = Vec::new();
    let dirs = [node.run_dir().join("pods"), node.netns_dir()].into_iter();
    let cgroups = node.cgroups().into_iter().map(|dir| dir.join("skiff"));
    for dir in dirs.chain(cgroups) {
        let entries = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        left.extend(
            entries
                .filter(|e| e.path().is_dir() || dir == node.netns_dir())
                .map(|e| e.path()),
        );
    }
    assert!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let dir = node.dir().to_str().unwrap_or_default();
    let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(dir)).collect();
    assert!(mounts.is_empty(), "{mounts:?}");
    Ok(())
}

/// What this process has: children (zombies too) and descriptors.
fn census() -> Result<(usize, usize)> {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
    let zombies = std::fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let rest = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest)
                .unwrap_or_default();
            rest.split(' ').nth(1) == Some(&own.to_string())
        })
        .count();
    let fds = std::fs::read_dir("/proc/self/fd")?.count();
    Ok((
        children.split(' ').filter(|pid| !pid.is_empty()).count() + zombies,
        fds,
    ))
}

#[tokio::test]
async fn a_dropped_connection_is_made_anew_and_kills_nothing() -> Result<()> {
    let node = Node::new("reconnect").await?;
    node.sandbox("u1").await?;
    let id = node
        .runtime()
        .start_container(node.shell("u1", "a", "sleep 1000"))
        .await?;
    let before = node.state(&id).await?;
    let mut events = node.runtime().events();
    assert!(cut_connections()? > 0);
    let event = tokio::time::timeout(DEADLINE, events.recv()).await??;
    assert_eq!(
        event,
        RuntimeEvent::PodChanged {
            pod_uid: "u1".into()
        }
    );
    assert_eq!(node.state(&id).await?, before);
    assert_eq!(node.exec(&id, "exit 3").await?.0, 3);
    node.runtime()
        .stop_container(&id, 9, Duration::ZERO)
        .await?;
    assert_eq!(node.exit(&id).await?.exit_code, 137);
    Ok(())
}

/// Shuts down every connection to a shim that this process has.
fn cut_connections() -> Result<usize> {
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    let mut cut = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let Ok(target) = std::fs::read_link(&path) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        let Some(inode) = target
            .strip_prefix("socket:[")
            .and_then(|t| t.strip_suffix(']'))
        else {
            continue;
        };
        // Type 5 is SOCK_SEQPACKET.
        let is_shims = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(4) == Some(&"0005") && fields.get(6) == Some(&inode)
        };
        if sockets.lines().any(is_shims) {
            let fd = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse().ok());
            nix::sys::socket::shutdown(fd.unwrap_or(-1), nix::sys::socket::Shutdown::Both)?;
            cut += 1;
        }
    }
    Ok(cut)
}
