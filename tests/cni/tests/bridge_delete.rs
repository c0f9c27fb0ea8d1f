//! What the bridge plugin leaves behind: nothing of its own, everything of others.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs::{self, File, Permissions},
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::{Value, json};
use skiff_cni::host_veth_name;
use skiff_tests_cni::{Bench, TestNetns, raw::RawCall};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a deletion gives its links before it asks for them to go: "skif".
const GROUP: u32 = 0x736b_6966;

/// The turn to delete links in a namespace, held by the test until it is dropped.
struct HeldTurn {
    file: File,
}

impl HeldTurn {
    fn take(node: &TestNetns) -> Self {
        let netns = node
            .run(|| fs::metadata("/proc/thread-self/ns/net"))
            .unwrap();
        fs::create_dir_all("/run/skiff-cni").unwrap();
        let file = File::create(format!("/run/skiff-cni/delete-{}.lock", netns.ino())).unwrap();
        let byte = libc::flock {
            l_type: libc::F_WRLCK.try_into().unwrap(),
            l_whence: libc::SEEK_SET.try_into().unwrap(),
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)).unwrap();
        Self { file }
    }

    /// How many links wait to be deleted.
    fn waiting(&self) -> usize {
        let ours = format!(":{} ", self.file.metadata().unwrap().ino());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let of_file = locks.lines().filter(|lock| lock.contains(&ours));
        of_file.filter(|lock| lock.contains("READ")).count()
    }
}

/// The host's ends that are marked for deletion.
fn marked(bench: &Bench) -> usize {
    let links: Value = serde_json::from_str(&bench.node.sh("ip -j link")).unwrap();
    let groups = links.as_array().unwrap().iter();
    groups.filter(|link| link["group"] != "default").count()
}

#[track_caller]
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "{what} never happened");
        std::thread::yield_now();
    }
}

#[track_caller]
fn assert_success(mut child: Child) {
    let mut printed = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{printed}");
}

#[test]
fn fifty_deletions_at_once_go_together_and_take_nothing_else() {
    let bench = Bench::new();
    let conf = bench.bridge_conf();
    let pods: Vec<TestNetns> = (0..53).map(|_| TestNetns::new("pod")).collect();
    for (number, pod) in pods.iter().enumerate() {
        bench.add(&conf, &format!("c{number}"), pod);
    }
    bench
        .node
        .sh("ip link add stranger type veth peer name peer");
    let (going, staying) = pods.split_at(50);

    let turn = HeldTurn::take(&bench.node);
    let mut waiting: Vec<Child> = going
        .iter()
        .enumerate()
        .map(|(number, pod)| bench.start("DEL", &conf, &format!("c{number}"), pod.path()))
        .collect();
    wait_for("asking for 50 links", || turn.waiting() == 50);
    assert!(
        waiting
            .iter_mut()
            .all(|child| child.try_wait().unwrap().is_none())
    );
    assert_eq!(bench.veths().len(), 53);
    // Killed while they wait: nobody deletes their links for them, and the next DEL does.
    for mut child in waiting.drain(..10) {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    drop(turn);
    waiting.into_iter().for_each(assert_success);

    assert_eq!(bench.veths().len(), 13);
    assert!(going.iter().skip(10).all(|pod| pod.links().is_empty()));
    assert!(staying.iter().all(|pod| pod.links() == ["eth0"]));
    assert!(bench.node.links().contains(&"stranger".to_owned()));
    assert_eq!(bench.leases().len(), 13);
    for (number, pod) in going.iter().enumerate().take(10) {
        bench.del(&conf, &format!("c{number}"), pod);
    }
    assert_eq!(bench.veths().len(), 3);
    assert_eq!(bench.leases().len(), 3);
    assert_eq!(marked(&bench), 0);
}

#[test]
fn a_link_whose_deletion_was_killed_goes_with_the_next_group() {
    let bench = Bench::new();
    let conf = bench.bridge_conf();
    let pods = ["a", "b", "c"].map(|id| (id, TestNetns::new("pod")));
    for (id, pod) in &pods {
        bench.add(&conf, id, pod);
    }
    // As if it had been killed between the two requests.
    let name = host_veth_name(&"a".parse().unwrap(), &"eth0".parse().unwrap(), 0);
    bench.node.sh(&format!("ip link set {name} group {GROUP}"));
    assert_eq!(marked(&bench), 1);
    let turn = HeldTurn::take(&bench.node);
    let waiting = ["b", "c"].map(|id| bench.start("DEL", &conf, id, Path::new("")));
    wait_for("asking for two links", || turn.waiting() == 2);
    drop(turn);
    waiting.into_iter().for_each(assert_success);
    assert!(bench.veths().is_empty() && pods.iter().all(|(_, pod)| pod.links().is_empty()));
    bench.del(&conf, "a", &pods[0].1);
    assert!(bench.leases().is_empty());
}

#[test]
fn a_link_whose_deletion_was_killed_goes_with_its_next_one() {
    let bench = Bench::new();
    let conf = bench.bridge_conf();
    let pods = ["a", "b"].map(|id| (id, TestNetns::new("pod")));
    for (id, pod) in &pods {
        bench.add(&conf, id, pod);
        let name = host_veth_name(&id.parse().unwrap(), &"eth0".parse().unwrap(), 0);
        bench.node.sh(&format!("ip link set {name} group {GROUP}"));
    }
    bench.del(&conf, "a", &pods[0].1);
    bench.del(&conf, "b", &pods[1].1);
    assert!(bench.veths().is_empty() && bench.leases().is_empty());
}

#[test]
fn the_first_process_of_a_container_is_left_no_children() {
    let bench = Bench::new();
    let (conf, pod) = (bench.bridge_conf(), TestNetns::new("pod"));
    bench.add(&conf, "a", &pod);
    // The runtime is that process: nobody else would reap what a plugin leaves behind.
    let runtime = "printf %s \"$CONF\" | \"$CNI_PATH/bridge\" && echo /proc/[0-9]*";
    let mut call = std::process::Command::new("unshare");
    call.args(["--pid", "--fork", "--mount-proc", "sh", "-c", runtime])
        .env("CONF", conf.to_string())
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", "a")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", bench.plugins());
    let output = bench.node.run(|| call.output()).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/proc/1\n");
    assert!(bench.veths().is_empty() && bench.leases().is_empty());
}

#[test]
fn nodes_do_not_wait_for_each_other() {
    let (first, second) = (Bench::new(), Bench::new());
    let (a, b) = (TestNetns::new("pod"), TestNetns::new("pod"));
    first.add(&first.bridge_conf(), "a", &a);
    second.add(&second.bridge_conf(), "b", &b);
    let turn = HeldTurn::take(&first.node);
    let mut waiting = first.start("DEL", &first.bridge_conf(), "a", a.path());
    wait_for("asking for the link", || turn.waiting() == 1);
    second.del(&second.bridge_conf(), "b", &b);
    assert!(second.veths().is_empty());
    assert!(waiting.try_wait().unwrap().is_none());
    assert_eq!(first.veths().len(), 1);
    drop(turn);
    assert_success(waiting);
    assert!(first.veths().is_empty());
}

#[test]
fn gc_finds_links_of_any_container_id() {
    let bench = Bench::new();
    let mut conf = bench.bridge_conf();
    let long = |letter: &str| letter.repeat(240);
    let pods: Vec<TestNetns> = (0..4).map(|_| TestNetns::new("pod")).collect();
    let ids = ["keep".to_owned(), "stale".to_owned(), long("k"), long("s")];
    for (id, pod) in ids.iter().zip(&pods) {
        bench.add(&conf, id, pod);
    }
    conf["cni.dev/valid-attachments"] = json!([
        {"containerID": ids[0], "ifname": "eth0"}, {"containerID": ids[2], "ifname": "eth0"},
    ]);
    bench.call("GC", &conf, "x", Path::new("")).expect_ok();
    let left: Vec<bool> = pods.iter().map(|pod| !pod.links().is_empty()).collect();
    assert_eq!(left, [true, false, true, false]);
    assert_eq!(bench.leases().len(), 2);
    bench.del(&conf, &ids[2], &pods[2]);
    bench.del(&conf, &ids[0], &pods[0]);
    assert!(bench.veths().is_empty() && bench.leases().is_empty());
}

#[test]
fn gc_does_not_work_beside_an_add() {
    let bench = Bench::new();
    let pods = ["slow", "b"].map(|id| (id, TestNetns::new("pod")));
    let mut gc = bench.bridge_conf();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    bench.add(&bench.bridge_conf(), "b", &pods[1].1);

    // An ADD whose firewall takes its time: its link is there meanwhile.
    let mut slow = bench.bridge_conf();
    slow["ipMasq"] = json!(true);
    slow["ipMasqBackend"] = json!("nftables");
    let go = bench.dir.path().join("go");
    mkfifo(&go, Mode::S_IRWXU).unwrap();
    let path = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\ncat {}; PATH={path} exec nft \"$@\"\n",
        go.display()
    );
    let programs = bench.dir.path().join("slow");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("nft"), script).unwrap();
    fs::set_permissions(programs.join("nft"), Permissions::from_mode(0o755)).unwrap();
    let add = RawCall::new(bench.plugins(), "bridge")
        .command("ADD")
        .env("CNI_CONTAINERID", pods[0].0)
        .env("CNI_NETNS", pods[0].1.path())
        .env("PATH", format!("{}:{path}", programs.display()))
        .stdin(slow.to_string());
    let mut adding = add.spawn(&bench.node);
    add.feed(&mut adding);
    wait_for("the link", || bench.veths().len() == 2);
    let answer = bench.call("GC", &gc, "x", Path::new(""));
    assert_eq!(answer.code(), Some(11), "{}", answer.json);
    // Another node's, and another network's, are no matter.
    let other = Bench::new();
    let mut others = other.bridge_conf();
    others["cni.dev/valid-attachments"] = json!([]);
    other.call("GC", &others, "x", Path::new("")).expect_ok();
    gc["name"] = json!("net2");
    bench.call("GC", &gc, "x", Path::new("")).expect_ok();
    gc["name"] = json!("net");
    assert_eq!((bench.veths().len(), bench.leases().len()), (2, 2));

    // As often as the program is called.
    let mut feeding = std::process::Command::new("sh")
        .args(["-c", "while :; do : >\"$0\"; done"])
        .arg(&go)
        .spawn()
        .unwrap();
    assert!(adding.wait().unwrap().success());
    feeding.kill().unwrap();
    feeding.wait().unwrap();
    assert_eq!(pods.each_ref().map(|(_, pod)| pod.links()), [["eth0"]; 2]);
    // Now it is one that nobody knows of.
    gc["ipMasq"] = json!(true);
    bench.call("GC", &gc, "x", Path::new("")).expect_ok();
    assert_eq!((bench.veths().len(), bench.leases().len()), (1, 1));
    bench.del(&slow, "b", &pods[1].1);
}

#[test]
fn a_strangers_link_of_our_name_is_left_alone() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let conf = bench.bridge_conf();
    let name = |salt| host_veth_name(&"a".parse().unwrap(), &"eth0".parse().unwrap(), salt);
    let occupy = |salt| {
        let (name, peer) = (name(salt), format!("peer{salt}"));
        bench
            .node
            .sh(&format!("ip link add {name} type veth peer name {peer}"));
    };
    occupy(0);
    let result = bench.add(&conf, "a", &pod).json;
    assert_eq!(result["interfaces"][1]["name"], name(1).as_str());
    let mut check = conf.clone();
    check["prevResult"] = result;
    bench.call("CHECK", &check, "a", pod.path()).expect_ok();
    bench.del(&conf, "a", &pod);
    assert_eq!(bench.veths(), [name(0)]);

    // It has gone before DEL, and so has the pod's namespace.
    bench.add(&conf, "a", &pod);
    bench.node.sh(&format!("ip link delete {}", name(0)));
    bench.call("DEL", &conf, "a", Path::new("")).expect_ok();
    assert_eq!(bench.veths(), Vec::<String>::new());
    occupy(0);

    // All of them taken.
    (1..4).for_each(occupy);
    let answer = bench.call("ADD", &conf, "a", pod.path());
    assert_eq!(answer.code(), Some(102), "{}", answer.json);
    assert!(bench.leases().is_empty() && pod.links().is_empty());
    bench.del(&conf, "a", &pod);
    assert_eq!(bench.veths().len(), 4);
}

#[test]
fn del_after_half_is_gone_takes_the_rest() {
    type Damage = fn(&Bench, &TestNetns);
    let damages: [(&str, Damage); 5] = [
        ("host end", |bench, _| {
            bench.node.sh(&format!("ip link del {}", bench.veths()[0]));
        }),
        ("port", |bench, _| {
            bench
                .node
                .sh(&format!("ip link set {} nomaster", bench.veths()[0]));
        }),
        ("alias", |bench, _| {
            bench
                .node
                .sh(&format!("ip link set {} alias ''", bench.veths()[0]));
        }),
        ("bridge", |bench, _| {
            bench.node.sh("ip link del br0");
        }),
        ("leases and rules", |bench, _| {
            fs::remove_dir_all(bench.dir.path().join("networks/net")).unwrap();
            bench.node.sh("nft flush ruleset");
        }),
    ];
    for (name, damage) in damages {
        let bench = Bench::new();
        let pod = TestNetns::new("pod");
        let mut conf = bench.bridge_conf();
        conf["ipMasq"] = json!(true);
        conf["macspoofchk"] = json!(true);
        bench.add(&conf, "a", &pod);
        damage(&bench, &pod);
        bench.del(&conf, "a", &pod);
        assert!(bench.veths().is_empty(), "{name}");
        assert!(pod.links().is_empty(), "{name}");
        assert!(bench.leases().is_empty(), "{name}");
        let rules = bench.node.sh("nft list ruleset");
        assert!(
            !rules.contains("10.99.0.2") && !rules.contains("ether saddr"),
            "{name}: {rules}"
        );
    }
}
