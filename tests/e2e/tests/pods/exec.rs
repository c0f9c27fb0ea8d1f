//! `kubectl exec`.

use std::process::Stdio;

use anyhow::{Result, ensure};
use serde_json::json;
use skiff_test_harness::scene::{Case, Scene, has, pod, script};

pub(crate) const CASES: &[Case] = &[
    ("exec", commands_run_in_a_container),
    ("tty", a_terminal_is_a_terminal),
];

fn sleeper(scene: &Scene<'_>) -> Result<()> {
    let (a, b) = (
        script("a", "exec sleep infinity"),
        script("b", "exec sleep infinity"),
    );
    scene.apply(&pod("p", json!({"containers": [a, b]})))?;
    scene.ready("p").map(drop)
}

fn commands_run_in_a_container(scene: &Scene<'_>) -> Result<()> {
    sleeper(scene)?;
    // Every byte arrives, in both directions, and the end of stdin too.
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|n| n.to_le_bytes()[(n % 3) as usize])
        .collect();
    let output = scene.feed(&["exec", "-i", "p", "--", "cat"], &bytes)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.stdout == bytes,
        "{} of {} bytes",
        output.stdout.len(),
        bytes.len()
    );
    // The outputs are kept apart; the exit code is the command's.
    let output = scene.feed(
        &[
            "exec",
            "p",
            "-c",
            "b",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 42",
        ],
        b"",
    )?;
    ensure!(output.stdout == b"out\n", "{output:?}");
    has(
        &String::from_utf8_lossy(&output.stderr),
        "err\ncommand terminated with exit code 42",
    )?;
    ensure!(output.status.code() == Some(42), "{output:?}");
    let output = scene.feed(&["exec", "p", "--", "sh", "-c", "kill -9 $$"], b"")?;
    ensure!(output.status.code() == Some(137), "{output:?}");
    // What cannot run says so.
    let error = scene.fails(&["exec", "p", "--", "no-such-program"])?;
    has(
        &error,
        "\"no-such-program\": executable file not found in $PATH",
    )?;
    let error = scene.fails(&["exec", "p", "-c", "none", "--", "true"])?;
    has(&error, "container none is not valid for pod p")?;
    let error = scene.fails(&["exec", "q", "--", "true"])?;
    has(&error, "pods \"q\" not found")?;
    // Its processes do not outlive the container's.
    ensure!(
        scene.sh("p", "echo $HOSTNAME")? == "p\n",
        "the container's environment"
    );
    Ok(())
}

fn a_terminal_is_a_terminal(scene: &Scene<'_>) -> Result<()> {
    sleeper(scene)?;
    let kubectl = scene.cluster().kubectl().command();
    let mut words: Vec<_> = [kubectl.get_program()]
        .into_iter()
        .chain(kubectl.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let inside = "'test -t 0 && test -t 1 && echo both; until test \"$(stty size)\" = \"33 77\"; do sleep 0.05; done; stty size; read line; echo got $line'";
    words.push(format!(
        "-n {} exec -it p -c a -- sh -c {inside}",
        scene.namespace()
    ));
    // `script` gives kubectl a terminal of its own, with a size.
    let mut command = std::process::Command::new("script");
    command.args(["--quiet", "--return", "--command"]);
    command
        .arg(format!("stty rows 33 cols 77; {}", words.join(" ")))
        .arg("/dev/null");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(stdin) = child.stdin.as_mut() {
        std::io::Write::write_all(stdin, b"typed\n")?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}");
    for part in ["both\r\n", "33 77\r\n", "got typed\r\n"] {
        has(&said, part)?;
    }
    Ok(())
}
