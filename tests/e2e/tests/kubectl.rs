//! kubectl's verbs as everyday users and upstream's own tests use them: what it prints and how it ends.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use skiff_test_harness::{
    Cluster,
    scene::{Case, Scene, play},
};

mod kubectl_cases {
    pub(super) mod api;
    pub(super) mod apply;
    pub(super) mod changes;
    pub(super) mod containers;
    pub(super) mod objects;
    pub(super) mod rollout;
}
use kubectl_cases::{api, apply, changes, containers, objects, rollout};

/// A shell script, its exit code, and pieces of what it prints, in order; how columns are padded does not count.
/// `k` is kubectl in the case's namespace, `$DIR` a folder of its own, `$NS`, `$NODE`, `$PYTHON` and `$REDIS` what they
/// say. A piece that begins with `!` must not be printed.
type Step = (&'static str, i32, &'static [&'static str]);

/// A Deployment of three web servers that are ready when they answer; one may be missing during a rollout.
const WEB: &str = include_str!("kubectl_cases/web.yaml");

const CASES: &[Case] = &[
    ("rollouts", |s| steps(s, rollout::ROLLS_OUT_AND_BACK)),
    ("rollout without a gap", rollout::keeps_enough_available),
    ("containers", |s| steps(s, containers::LOGS_EXEC_ATTACH_CP)),
    ("run and expose", |s| steps(s, containers::RUN_AND_EXPOSE)),
    ("wait", |s| steps(s, objects::WAIT_FOR_IT)),
    ("apply", |s| steps(s, apply::APPLY_AND_DIFF)),
    ("apply many", |s| steps(s, apply::LISTS_FOLDERS_PRUNE)),
    ("create", |s| steps(s, objects::CREATE_EVERYTHING)),
    ("get", |s| steps(s, objects::GET_IN_EVERY_FORM)),
    ("change", |s| steps(s, changes::PATCH_LABEL_EDIT_REPLACE)),
    ("delete", |s| steps(s, changes::DELETE_IN_EVERY_WAY)),
    ("writers", |s| steps(s, api::WRITERS_MEET)),
    ("watch", |s| steps(s, api::WATCHES_MISS_NOTHING)),
    ("raw", |s| steps(s, api::STATUSES_AND_CREDENTIALS)),
    ("identity", |s| steps(s, api::WHO_MAY_WHAT)),
    ("discovery", |s| steps(s, api::DISCOVERY_AND_EXPLAIN)),
];

#[test]
fn everyday_verbs() -> Result<()> {
    let cluster = Cluster::up("kubectl")?;
    play(&cluster, CASES)?;
    // These touch the node, so they have it to themselves.
    steps(&Scene::open(&cluster, "drain")?, objects::NODE_MAINTENANCE)?;
    cluster.down()
}

/// Runs steps one after the other; the first that goes wrong ends it.
fn steps(scene: &Scene<'_>, steps: &[Step]) -> Result<()> {
    for (script, code, pieces) in steps {
        let (ended, printed) = shell(scene, script)?;
        ensure!(
            ended == Some(*code),
            "{script}\nended with {ended:?} instead of {code}:\n{printed}"
        );
        let text = unpadded(&printed);
        let mut rest = text.as_str();
        for piece in pieces.iter().map(|piece| unpadded(piece)) {
            if let Some(absent) = piece.strip_prefix('!') {
                ensure!(
                    !text.contains(absent),
                    "{script}\nprinted {absent:?}:\n{printed}"
                );
            } else if let Some((_, after)) = rest.split_once(&piece) {
                rest = after;
            } else {
                bail!("{script}\nlacks {piece:?} (in this order):\n{printed}");
            }
        }
    }
    Ok(())
}

/// One blank for each run of them.
fn unpadded(text: &str) -> String {
    let mut last = '\n';
    let keep = |c: &char| {
        let blank = |c: char| c == ' ' || c == '\t';
        let keep = !blank(*c) || !blank(last);
        last = *c;
        keep
    };
    let mut kept: String = text.chars().filter(keep).collect();
    kept = kept.replace('\t', " ");
    kept
}

/// What a script that must succeed prints.
fn out(scene: &Scene<'_>, script: &str) -> Result<String> {
    let (code, printed) = shell(scene, script)?;
    ensure!(code == Some(0), "{script}\nended with {code:?}:\n{printed}");
    Ok(printed)
}

/// Exit code, and stdout and stderr together.
fn shell(scene: &Scene<'_>, script: &str) -> Result<(Option<i32>, String)> {
    let cluster = scene.cluster();
    let namespace = scene.namespace();
    let dir = cluster.run_dir().join(format!("kubectl-{namespace}"));
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("web.yaml"), WEB)?;
    let kubectl = cluster.kubectl().command();
    let mut words = vec![kubectl.get_program()];
    words.extend(kubectl.get_args());
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let script = format!(
        "exec 2>&1\nk() {{ {} --namespace \"$NS\" \"$@\"; }}\n{script}",
        words.join(" ")
    );
    // Longer than any step may wait by itself.
    let output = dir.join("output");
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "120", "bash", "-c", &script])
        .current_dir(kubectl.get_current_dir().context("no directory")?)
        .env("DIR", &dir)
        // Where kubectl leaves copies of edits that were refused.
        .env("TMPDIR", &dir)
        .env("NS", namespace)
        .env("NODE", cluster.name())
        .env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig"))
        .env("PYTHON", skiff_test_harness::scene::PYTHON)
        .env("REDIS", skiff_test_harness::scene::REDIS)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&output)?)
        .spawn()?;
    let ended = child.wait()?;
    // What a script left running in the background; `timeout` made a process group of its own.
    killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL).ok();
    let printed = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
    Ok((ended.code(), printed))
}
