use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::libcni::ExecError;

/// A plugin that logs its call, and whose ADD answers with the address `ip`.
fn plugin(dir: &Path, name: &str, ip: &str, failing: &str) {
    let path = dir.join(name);
    let text = format!(
        r#"#!/bin/sh
echo "$CNI_COMMAND {name} $(cat)" >> {log}
[ "$CNI_COMMAND" = "{failing}" ] && echo '{{"code":11,"msg":"later"}}' && exit 1
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion":"1.1.0","ips":[{{"address":"{ip}/24"}}]}}'
exit 0
"#,
        log = dir.join("log").display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn list() -> Conflist {
    let text = br#"{"cniVersion":"1.1.0","name":"net","plugins":[
        {"type":"one","capabilities":{"mac":true,"ips":false}},{"type":"two"}]}"#;
    Conflist::parse(text).unwrap()
}

fn attachment(container: &str) -> Attachment {
    Attachment {
        container_id: container.parse().unwrap(),
        netns: PathBuf::from("/nowhere"),
        ifname: "eth0".parse().unwrap(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: Map::from_iter([
            ("mac".to_owned(), json!("02:00:00:00:00:01")),
            ("ips".to_owned(), json!(["10.0.0.9/24"])),
            ("bandwidth".to_owned(), json!({})),
        ]),
    }
}

/// The calls since the last look: command and plugin, and what came on stdin.
fn calls(dir: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(dir.join("log")).unwrap_or_default();
    fs::remove_file(dir.join("log")).ok();
    text.lines()
        .map(|line| {
            let (call, conf) = line.split_at(line.find('{').unwrap());
            (call.trim().to_owned(), serde_json::from_str(conf).unwrap())
        })
        .collect()
}

fn names(calls: &[(String, Value)]) -> Vec<&str> {
    calls.iter().map(|(call, _)| call.as_str()).collect()
}

fn runner(dir: &Path) -> CniRunner {
    CniRunner::new(
        vec![dir.to_owned()],
        dir.join("cache"),
        NodeNetns::machine(),
    )
}

#[tokio::test]
async fn gc_waits_for_an_add_and_keeps_what_that_has_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let go = dir.join("go");
    let waiting = format!("#!/bin/sh\n[ $CNI_COMMAND = GC ] || cat {}\n", go.display());
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let two = fs::read_to_string(dir.join("two")).unwrap();
    let two = two.replacen("#!/bin/sh\n", &waiting, 1);
    fs::write(dir.join("two"), two).unwrap();
    let (runner, list, attachment) = (runner(dir), list(), attachment("c1"));
    let other = self::runner(dir);

    let collecting = async {
        let is_begun = || fs::read_to_string(dir.join("log")).is_ok_and(|log| !log.is_empty());
        while !is_begun() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let gc = other.gc_all_but(&list, |_| true);
        tokio::pin!(gc);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut gc).await;
        assert!(early.is_err(), "GC beside an ADD");
        tokio::fs::write(&go, "").await.unwrap();
        gc.await.unwrap();
    };
    let (added, ()) = tokio::join!(runner.add(&list, &attachment), collecting);
    added.unwrap();
    let calls = calls(dir);
    assert_eq!(names(&calls), ["ADD one", "ADD two", "GC one", "GC two"]);
    let valid = &calls[2].1["cni.dev/valid-attachments"];
    assert_eq!(*valid, json!([{"containerID": "c1", "ifname": "eth0"}]));

    let patient = other.with_timeout(Duration::from_millis(20));
    let held = patient.hold(&list, Holders::Many).await.unwrap();
    let error = patient.gc(&list, &[]).await.unwrap_err();
    assert_eq!(error.to_cni().code, code::TRY_AGAIN);
    drop(held);
    patient.gc(&list, &[attachment.key()]).await.unwrap();
}

#[tokio::test]
async fn plugins_run_in_order_and_hand_results_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let (runner, list, attachment) = (runner(dir), list(), attachment("c1"));

    let result = runner.add(&list, &attachment).await.unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.3/24");
    let added = calls(dir);
    assert_eq!(names(&added), ["ADD one", "ADD two"]);
    assert_eq!(
        added[0].1["runtimeConfig"],
        json!({"mac": "02:00:00:00:00:01"})
    );
    assert_eq!(added[0].1["name"], "net");
    assert!(added[0].1.get("prevResult").is_none());
    assert_eq!(added[1].1["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert!(added[1].1.get("runtimeConfig").is_none());
    let cached = fs::read_to_string(dir.join("cache/results/net-c1-eth0")).unwrap();
    let cached: Value = serde_json::from_str(&cached).unwrap();
    assert_eq!(cached["kind"], "cniCacheV1");
    assert_eq!(cached["cniArgs"], json!([["IgnoreUnknown", "1"]]));

    runner.check(&list, &attachment).await.unwrap();
    runner.del(&list, &attachment).await.unwrap();
    let rest = calls(dir);
    assert_eq!(
        names(&rest),
        ["CHECK one", "CHECK two", "DEL two", "DEL one"]
    );
    for (_, conf) in &rest {
        assert_eq!(conf["prevResult"]["ips"][0]["address"], "10.0.0.3/24");
    }
    assert!(!dir.join("cache/results/net-c1-eth0").exists());
    runner.del(&list, &attachment).await.unwrap();
    assert!(matches!(
        runner.check(&list, &attachment).await,
        Err(RunnerError::NotCached { .. })
    ));
}

#[tokio::test]
async fn a_failed_add_is_undone_and_its_error_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "ADD");
    let error = runner(dir)
        .add(&list(), &attachment("c1"))
        .await
        .unwrap_err();
    assert_eq!(error.cni().unwrap().code, 11);
    assert_eq!(
        names(&calls(dir)),
        ["ADD one", "ADD two", "DEL two", "DEL one"]
    );
}

#[tokio::test]
async fn del_goes_on_behind_a_failing_plugin_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "DEL");
    let (runner, list, attachment) = (runner(dir), list(), attachment("c1"));
    runner.add(&list, &attachment).await.unwrap();
    calls(dir);
    assert!(runner.del(&list, &attachment).await.is_err());
    assert_eq!(names(&calls(dir)), ["DEL two", "DEL one"]);
    plugin(dir, "two", "10.0.0.3", "");
    runner.del(&list, &attachment).await.unwrap();
    assert!(calls(dir)[0].1["prevResult"].is_object());
}

#[tokio::test]
async fn gc_detaches_what_is_not_valid() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let (runner, list) = (runner(dir), list());
    for container in ["keep", "stale"] {
        runner.add(&list, &attachment(container)).await.unwrap();
    }
    calls(dir);
    runner.gc(&list, &[attachment("keep").key()]).await.unwrap();
    let calls = calls(dir);
    assert_eq!(names(&calls), ["DEL two", "DEL one", "GC one", "GC two"]);
    assert_eq!(
        calls[2].1["cni.dev/valid-attachments"],
        json!([{"containerID": "keep", "ifname": "eth0"}])
    );
    assert!(dir.join("cache/results/net-keep-eth0").exists());
    assert!(!dir.join("cache/results/net-stale-eth0").exists());
}

#[tokio::test]
async fn status_asks_every_plugin_and_a_missing_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    plugin(dir.path(), "one", "10.0.0.2", "");
    let error = runner(dir.path()).status(&list()).await.unwrap_err();
    assert!(
        matches!(error, RunnerError::Plugin(ExecError::NotFound { .. })),
        "{error}"
    );
    plugin(dir.path(), "two", "10.0.0.3", "");
    runner(dir.path()).status(&list()).await.unwrap();
}

/// A plugin as [`plugin`] that speaks nothing newer than 1.0.0.
fn old_plugin(dir: &Path, name: &str, ip: &str) {
    let text = format!(
        r#"#!/bin/sh
conf="$(cat)"
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.4.0","1.0.0"]}}'
    exit 0
fi
case "$conf" in *'"cniVersion":"1.1.0"'*) echo '{{"code":1,"msg":"incompatible"}}'; exit 1;; esac
echo "$CNI_COMMAND {name} $conf" >> {log}
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion":"1.0.0","ips":[{{"address":"{ip}/24"}}]}}'
exit 0
"#,
        log = dir.join("log").display()
    );
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn an_older_plugin_is_met_at_a_version_that_the_list_offers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    fs::write(
        dir.join("one"),
        fs::read_to_string(dir.join("one")).unwrap().replace(
            "exit 0",
            r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"supportedVersions":["1.0.0","1.1.0"]}'; exit 0"#,
        ),
    )
    .unwrap();
    old_plugin(dir, "two", "10.0.0.3");
    let runner = runner(dir);
    // The list offers nothing older: the plugin's error says what is the matter.
    let error = runner.add(&list(), &attachment("c1")).await.unwrap_err();
    assert_eq!(error.cni().unwrap().code, code::VERSION);

    let text = br#"{"cniVersion":"1.1.0","cniVersions":["0.4.0","1.0.0"],"name":"net",
        "plugins":[{"type":"one"},{"type":"two"}]}"#;
    let list = Conflist::parse(text).unwrap();
    calls(dir);
    runner.add(&list, &attachment("c1")).await.unwrap();
    runner.check(&list, &attachment("c1")).await.unwrap();
    runner.status(&list).await.unwrap();
    runner.gc(&list, &[attachment("c1").key()]).await.unwrap();
    calls(dir);
    // What ADD spoke is remembered: no more attempts at 1.1.0.
    runner.detach(&list, &attachment("c1")).await.unwrap();
    let calls = calls(dir);
    assert_eq!(names(&calls), ["DEL two", "DEL one"]);
    assert_eq!(calls[1].1["cniVersion"], "1.0.0");
    assert_eq!(calls[1].1["prevResult"]["cniVersion"], "1.0.0");
}

#[tokio::test]
async fn detach_uses_the_list_and_the_arguments_of_add() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let (runner, list) = (runner(dir), list());
    runner.add(&list, &attachment("c1")).await.unwrap();
    calls(dir);
    let other = br#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"three"}]}"#;
    let other = Conflist::parse(other).unwrap();
    let bare = Attachment {
        netns: PathBuf::new(),
        args: Vec::new(),
        capability_args: Map::new(),
        ..attachment("c1")
    };
    runner.detach(&other, &bare).await.unwrap();
    let calls = calls(dir);
    assert_eq!(names(&calls), ["DEL two", "DEL one"]);
    assert_eq!(
        calls[1].1["runtimeConfig"],
        json!({"mac": "02:00:00:00:00:01"})
    );
    // Nothing is cached any more: the list that is given counts.
    let error = runner.detach(&other, &bare).await.unwrap_err();
    assert!(
        matches!(error, RunnerError::Plugin(ExecError::NotFound { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn attachments_of_a_network_that_is_configured_no_more_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let (runner, list) = (runner(dir), list());
    for container in ["keep", "stale"] {
        runner.add(&list, &attachment(container)).await.unwrap();
    }
    let other = br#"{"cniVersion":"1.1.0","name":"other","plugins":[{"type":"one"}]}"#;
    let other = Conflist::parse(other).unwrap();
    calls(dir);
    let valid = [attachment("keep").key()];
    runner.gc(&other, &valid).await.unwrap();
    assert_eq!(names(&calls(dir)), ["GC one"]);
    runner.detach_all_but(&valid).await.unwrap();
    assert_eq!(names(&calls(dir)), ["DEL two", "DEL one"]);
    runner.detach_all_but(&valid).await.unwrap();
    assert!(calls(dir).is_empty());
    assert_eq!(runner.attachments(&list.name).unwrap().len(), 1);
}

#[tokio::test]
async fn an_add_without_an_answer_is_an_error_and_undone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let silent = fs::read_to_string(dir.join("one")).unwrap();
    fs::write(dir.join("one"), silent.replace("= ADD", "= none")).unwrap();
    let runner = runner(dir);
    let error = runner.add(&list(), &attachment("c1")).await.unwrap_err();
    assert!(matches!(error, RunnerError::Result { .. }), "{error}");
    assert_eq!(names(&calls(dir)), ["ADD one", "DEL two", "DEL one"]);
}

#[tokio::test]
async fn a_result_goes_on_in_the_lists_version() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    plugin(dir, "one", "10.0.0.2", "");
    plugin(dir, "two", "10.0.0.3", "");
    let text = br#"{"cniVersion":"0.4.0","name":"net","plugins":[{"type":"one"},{"type":"two"}]}"#;
    let old = Conflist::parse(text).unwrap();
    let runner = runner(dir);
    runner.add(&old, &attachment("c1")).await.unwrap();
    // Its plugins answer in 1.1.0.
    let prev = calls(dir)[1].1["prevResult"].clone();
    assert_eq!(
        (&prev["cniVersion"], &prev["ips"][0]["version"]),
        (&json!("0.4.0"), &json!("4"))
    );
    // The list was moved to another version while the container ran.
    runner.check(&list(), &attachment("c1")).await.unwrap();
    let prev = calls(dir)[0].1["prevResult"].clone();
    assert_eq!(prev["cniVersion"], "1.1.0");
    assert!(prev["ips"][0].get("version").is_none());
}
