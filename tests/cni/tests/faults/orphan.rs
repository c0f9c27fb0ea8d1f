//! A program that outlives the plugin that started it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::scene::{Case, Scene};

/// Longer than a DEL takes that does not wait.
const DEL_WAITS: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills a plugin while `program`, which it has started, has not done its work yet.
pub(crate) fn assert_waits_for_orphan(case: &Case, program: &str) {
    let what = format!("{}: {program} outlives ADD", case.name);
    let scene = Scene::new(case, 0);
    let (container, pod) = (scene.container.as_str(), &scene.pod);
    let kept = scene.prepare(&scene.kept, &scene.keep, &what);
    scene.run("ADD", &scene.kept, &scene.keep, &kept, &what);
    let before = scene.state();

    let dir = scene.bench.dir.path().join("slow");
    let (started, go) = (dir.join("started"), dir.join("go"));
    fs::create_dir(&dir).unwrap();
    mkfifo(&go, Mode::S_IRWXU).unwrap();
    let path = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\n: >{}; cat {}; PATH={path} exec {program} \"$@\"\n",
        started.display(),
        go.display()
    );
    let slow = dir.join(program);
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, Permissions::from_mode(0o755)).unwrap();

    let conf = scene.prepare(container, pod, &what);
    let add = scene
        .call("ADD", container, pod, &conf)
        .env("PATH", format!("{}:{path}", dir.display()));
    let mut child = add.spawn(&scene.bench.node);
    add.feed(&mut child);
    let start = Instant::now();
    while !started.exists() {
        assert!(start.elapsed() < PATIENCE, "{what}: it is not started");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let del = scene.call("DEL", container, pod, &conf);
    let mut child = del.spawn(&scene.bench.node);
    del.feed(&mut child);
    let start = Instant::now();
    let mut ended = None;
    while ended.is_none() && start.elapsed() < DEL_WAITS {
        ended = child.try_wait().unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    fs::write(&go, "").unwrap();
    assert_eq!(ended, None, "{what}: DEL does not wait");
    assert!(child.wait().unwrap().success(), "{what}");
    scene.undo(container, pod, &conf, &what);
    scene.assert_state(&before, &what);
}
