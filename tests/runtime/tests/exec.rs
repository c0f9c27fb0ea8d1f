//! Commands in running containers.

use anyhow::Result;
use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType};
use skiff_runtime::{ContainerRef, ExecConfig, Runtime};
use skiff_tests_runtime::{DEADLINE, Node, eventually, forbid_mkdir, says};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn sleeper(node: &Node) -> Result<ContainerRef> {
    node.sandbox("u1").await?;
    Ok(node
        .runtime()
        .start_container(node.shell("u1", "main", "sleep 1000"))
        .await?)
}

fn command(words: &[&str]) -> ExecConfig {
    let command = words.iter().map(|&word| word.to_owned()).collect();
    ExecConfig {
        command,
        tty: false,
        stdin: false,
    }
}

#[tokio::test]
async fn a_command_has_streams_and_an_exit_code() -> Result<()> {
    let node = Node::new("exec").await?;
    let id = sleeper(&node).await?;
    let (code, out, err) = node
        .exec(&id, "echo out; echo err >&2; pwd; echo $COLOUR; exit 5")
        .await?;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (5, "out\n/tmp\nblue\n", "err\n")
    );
    let (code, ..) = node.exec(&id, "kill -9 $$").await?;
    assert_eq!(code, 137);
    // It is in the container: sees its init, and goes with it.
    let (_, out, _) = node.exec(&id, "cat /proc/1/cmdline; hostname").await?;
    assert!(out.starts_with("sleep\x001000\x00"), "{out:?}");
    assert!(out.ends_with("host-u1\n"), "{out:?}");
    Ok(())
}

#[tokio::test]
async fn stdin_reaches_the_command_and_its_end_too() -> Result<()> {
    let node = Node::new("stdin").await?;
    let id = sleeper(&node).await?;
    let config = ExecConfig {
        stdin: true,
        ..command(&["cat"])
    };
    let mut session = node.runtime().exec(&id, config).await?;
    let mut stdin = session.stdin.take().unwrap();
    let text = "some text\n".repeat(50_000);
    let mut echoed = String::new();
    let write = async {
        stdin.write_all(text.as_bytes()).await?;
        drop(stdin);
        anyhow::Ok(())
    };
    let (written, read) = tokio::join!(write, session.stdout.read_to_string(&mut echoed));
    written?;
    read?;
    assert!(echoed == text);
    assert_eq!(session.exit.await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_one_and_can_be_resized() -> Result<()> {
    let node = Node::new("exectty").await?;
    let id = sleeper(&node).await?;
    let config = ExecConfig {
        tty: true,
        stdin: true,
        ..command(&["sh"])
    };
    let mut session = node.runtime().exec(&id, config).await?;
    session.resize.take().unwrap().send((132, 43)).await?;
    let mut stdin = session.stdin.take().unwrap();
    stdin
        .write_all(b"tty; until stty size | grep '43 132'; do sleep 0.01; done; exit 4\n")
        .await?;
    let mut out = String::new();
    tokio::time::timeout(DEADLINE, session.stdout.read_to_string(&mut out)).await??;
    assert!(
        out.contains("/dev/pts/0") && out.contains("43 132"),
        "{out:?}"
    );
    assert!(session.stderr.is_none());
    assert_eq!(session.exit.await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_command_is_under_the_containers_seccomp_profile() -> Result<()> {
    for no_new_privileges in [false, true] {
        let node = Node::new(&format!("seccomp{no_new_privileges}")).await?;
        node.sandbox("u1").await?;
        let mut config = node.shell("u1", "main", "sleep 1000");
        forbid_mkdir(&mut config.spec)?;
        let process = config.spec.process_mut().as_mut().unwrap();
        process.set_no_new_privileges(Some(no_new_privileges));
        let id = node.runtime().start_container(config).await?;
        let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; mkdir /tmp/forbidden";
        let (code, out, err) = node.exec(&id, script).await?;
        let nnp = u8::from(no_new_privileges);
        assert_eq!(out, format!("NoNewPrivs:\t{nnp}\nSeccomp:\t2\n"));
        assert!(
            code != 0 && err.contains("Operation not permitted"),
            "{code} {err}"
        );
        assert!(!node.rootfs().join("tmp/forbidden").exists());
    }
    // Without a profile the same command may.
    let node = Node::new("noseccomp").await?;
    let id = sleeper(&node).await?;
    let (code, out, _) = node
        .exec(&id, "grep ^Seccomp: /proc/self/status; mkdir /tmp/x")
        .await?;
    assert_eq!((code, out.as_str()), (0, "Seccomp:\t0\n"));
    Ok(())
}

#[tokio::test]
async fn a_command_has_the_containers_limits_capabilities_and_places() -> Result<()> {
    let node = Node::new("execlimits").await?;
    node.sandbox("u1").await?;
    let script = "ulimit -n; grep ^Cap /proc/self/status; cat /proc/self/cgroup; \
                  ls -l /proc/self/ns | grep -o '[a-z_]*:.[0-9]*.$'";
    let mut config = node.shell("u1", "main", &format!("{script}; sleep 1000"));
    let limit = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(77_u64)
        .hard(88_u64)
        .build()?;
    config
        .spec
        .process_mut()
        .as_mut()
        .unwrap()
        .set_rlimits(Some(vec![limit]));
    let log = config.log_path.clone();
    let id = node.runtime().start_container(config).await?;
    let (code, out, err) = node.exec(&id, script).await?;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("77\n"), "{out}");
    let lines = || skiff_tests_runtime::log_lines(&log).unwrap_or_default();
    let count = out.lines().count();
    eventually("the container has said it all", || lines().len() == count).await?;
    let own: Vec<String> = lines()
        .iter()
        .map(|line| line.replace("stdout F ", ""))
        .collect();
    assert_eq!(out.lines().collect::<Vec<_>>(), own);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_run_is_said_so() -> Result<()> {
    let node = Node::new("execerr").await?;
    let id = sleeper(&node).await?;
    let error = node
        .runtime()
        .exec(&id, command(&["nope"]))
        .await
        .err()
        .unwrap();
    assert!(
        says(&error, "exec: \"nope\": executable file not found in $PATH"),
        "{error}"
    );
    node.runtime()
        .stop_container(&id, 9, std::time::Duration::ZERO)
        .await?;
    let error = node
        .runtime()
        .exec(&id, command(&["true"]))
        .await
        .err()
        .unwrap();
    assert!(says(&error, "not running"), "{error}");
    Ok(())
}

#[tokio::test]
async fn many_commands_at_once_do_not_mix() -> Result<()> {
    let node = Node::new("execmany").await?;
    let id = sleeper(&node).await?;
    let all = (0..20).map(|number| {
        let (node, id) = (&node, &id);
        async move {
            let (code, out, _) = node
                .exec(id, &format!("echo {number}; exit {number}"))
                .await?;
            assert_eq!((code, out), (number, format!("{number}\n")));
            anyhow::Ok(())
        }
    });
    for result in futures::future::join_all(all).await {
        result?;
    }
    Ok(())
}
