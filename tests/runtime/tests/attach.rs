//! Clients at the streams of running containers.

use anyhow::{Context as _, Result};
use skiff_runtime::{AttachConfig, ContainerRef, Runtime, Stdin};
use skiff_tests_runtime::{DEADLINE, Node};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

const ALL: AttachConfig = AttachConfig {
    stdin: true,
    stdout: true,
    stderr: true,
};

async fn start(node: &Node, script: &str, stdin: Stdin, tty: bool) -> Result<ContainerRef> {
    node.sandbox("u1").await?;
    let mut config = node.shell("u1", "main", script);
    config.stdin = stdin;
    config.tty = tty;
    Ok(node.runtime().start_container(config).await?)
}

async fn read_line(from: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut line = Vec::new();
    let read = async {
        while !line.ends_with(b"\n") {
            line.push(from.read_u8().await?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, read)
        .await
        .context("no line comes")??;
    Ok(String::from_utf8(line)?)
}

#[tokio::test]
async fn input_and_both_outputs_are_connected_and_logged() -> Result<()> {
    let node = Node::new("attach").await?;
    let script = "while read line; do echo $line; echo oops $line >&2; done; echo end";
    let id = start(&node, script, Stdin::Once, false).await?;
    let mut session = node.runtime().attach(&id, ALL).await?;
    let mut stdin = session.stdin.take().context("no stdin")?;
    let mut stdout = session.stdout.take().context("no stdout")?;
    let mut stderr = session.stderr.take().context("no stderr")?;
    stdin.write_all(b"one\n").await?;
    assert_eq!(read_line(&mut stdout).await?, "one\n");
    assert_eq!(read_line(&mut stderr).await?, "oops one\n");
    // Once only: the second client may look, and the first one's end is the input's end.
    let mut second = node.runtime().attach(&id, ALL).await?;
    assert!(second.stdin.is_none());
    let mut also = second.stdout.take().context("no stdout")?;
    drop(stdin);
    let (mut rest, mut seen) = (String::new(), String::new());
    stdout.read_to_string(&mut rest).await?;
    also.read_to_string(&mut seen).await?;
    assert_eq!((rest.as_str(), seen.as_str()), ("end\n", "end\n"));
    assert_eq!(node.exit(&id).await?.exit_code, 0);
    let log = std::fs::read_to_string(node.log("u1", "main"))?;
    for line in ["stdout F one", "stderr F oops one", "stdout F end"] {
        assert!(log.contains(line), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn input_that_stays_open_takes_one_client_after_the_other() -> Result<()> {
    let node = Node::new("attachopen").await?;
    let id = start(
        &node,
        "while read line; do echo $line; done",
        Stdin::Open,
        false,
    )
    .await?;
    for word in ["first\n", "second\n"] {
        let mut session = node.runtime().attach(&id, ALL).await?;
        let mut stdin = session.stdin.take().context("no stdin")?;
        stdin.write_all(word.as_bytes()).await?;
        let mut stdout = session.stdout.take().context("no stdout")?;
        assert_eq!(read_line(&mut stdout).await?, word);
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_the_container_up_until_it_leaves() -> Result<()> {
    let node = Node::new("attachslow").await?;
    let script = "read go; yes | head -n 500000 | md5sum; yes | head -n 500000";
    let id = start(&node, script, Stdin::Open, false).await?;
    let mut slow = node.runtime().attach(&id, ALL).await?;
    let mut quick = node.runtime().attach(&id, ALL).await?;
    slow.stdin
        .take()
        .context("no stdin")?
        .write_all(b"\n")
        .await?;
    let mut first = quick.stdout.take().context("no stdout")?;
    read_line(&mut first).await?;
    drop(slow);
    let mut rest = String::new();
    tokio::time::timeout(DEADLINE, first.read_to_string(&mut rest)).await??;
    assert!(rest == "y\n".repeat(500_000), "{} bytes", rest.len());
    assert_eq!(node.exit(&id).await?.exit_code, 0);
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_attached_and_resized() -> Result<()> {
    let node = Node::new("attachtty").await?;
    let id = start(&node, "sh", Stdin::Open, true).await?;
    let session = node.runtime().attach(&id, ALL).await?;
    session.resize.send((132, 43)).await?;
    let mut stdin = session.stdin.context("no stdin")?;
    let script = b"until stty size | grep '43 132'; do sleep 0.01; done; exit 4\n";
    stdin.write_all(script).await?;
    let mut out = String::new();
    let mut stdout = session.stdout.context("no stdout")?;
    tokio::time::timeout(DEADLINE, stdout.read_to_string(&mut out)).await??;
    assert!(out.contains("\n43 132"), "{out:?}");
    let mut nothing = String::new();
    let mut stderr = session.stderr.context("no stderr")?;
    stderr.read_to_string(&mut nothing).await?;
    assert_eq!(nothing, "");
    assert_eq!(node.exit(&id).await?.exit_code, 4);
    // There is nobody to attach to any more.
    assert!(node.runtime().attach(&id, ALL).await.is_err());
    Ok(())
}
