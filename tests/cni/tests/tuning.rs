//! The tuning plugin: what it changes in a container, and gives back.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{fs, ops::Deref, path::Path};

use serde_json::{Value, json};
use skiff_tests_cni::{chained::Chained, raw::RawCall};

/// A container, and a place for backups.
struct Scene(Chained);

impl Deref for Scene {
    type Target = Chained;

    fn deref(&self) -> &Chained {
        &self.0
    }
}

impl Scene {
    fn new() -> Self {
        Self(Chained::new("tuning"))
    }

    fn link(&self) -> Value {
        let json: Value = serde_json::from_str(&self.pod.sh("ip -j link show eth0")).unwrap();
        json[0].clone()
    }

    fn sysctl(&self, path: &str) -> String {
        let text = self.pod.sh(&format!("cat /proc/sys/{path}"));
        text.trim().to_owned()
    }

    fn backups(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.bench.dir.path().join("tuning")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

fn flags(link: &Value) -> Vec<&str> {
    let flags = link["flags"].as_array().unwrap().iter();
    flags.map(|flag| flag.as_str().unwrap()).collect()
}

fn everything() -> Value {
    json!({
        "mac": "C2-11-22-33-44-55", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
        "sysctl": {
            "net.ipv4.conf.IFNAME.arp_filter": "1",
            "net/ipv4/ip_local_port_range": "20000 30000",
        },
    })
}

#[test]
fn every_setting_arrives_and_the_link_gets_its_own_back() {
    let scene = Scene::new();
    let before = scene.link();
    let answer = scene.add(&everything());
    let link = scene.link();
    assert_eq!(link["address"], "c2:11:22:33:44:55");
    assert_eq!((&link["mtu"], &link["txqlen"]), (&json!(1300), &json!(77)));
    assert!(flags(&link).contains(&"PROMISC") && flags(&link).contains(&"ALLMULTI"));
    assert_eq!(scene.sysctl("net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(scene.sysctl("net/ipv4/ip_local_port_range"), "20000\t30000");
    // The container's interface has the new address, the host's its own.
    assert_eq!(answer.json["interfaces"][1]["mac"], "c2:11:22:33:44:55");
    assert_eq!(
        answer.json["interfaces"][0],
        scene.first.json["interfaces"][0]
    );
    assert_eq!(answer.json["ips"], scene.first.json["ips"]);

    let conf = scene.conf(&everything());
    let check = || scene.bench.call("CHECK", &conf, "a", scene.pod.path());
    check().expect_ok();
    assert_eq!(scene.backups(), ["a_eth0.json"]);
    scene.del(&everything());
    let link = scene.link();
    for key in ["address", "mtu", "txqlen", "flags"] {
        assert_eq!(link[key], before[key], "{key}");
    }
    assert!(scene.backups().is_empty());
    assert_eq!(check().code(), Some(103));
    scene.del(&everything());
}

#[test]
fn a_result_that_tells_an_mtu_tells_the_new_one() {
    let mut scene = Scene::new();
    scene.0.first.json["interfaces"][1]["mtu"] = json!(1400);
    let answer = scene.add(&json!({"mtu": 1300}));
    assert_eq!(answer.json["interfaces"][1]["mtu"], 1300);
    assert_eq!(answer.json["interfaces"][0].get("mtu"), None);
}

#[test]
fn the_list_of_a_stock_configuration_changes_nothing() {
    let scene = Scene::new();
    let before = scene.link();
    assert_eq!(scene.add(&json!({})).json, scene.first.json);
    assert_eq!(scene.link(), before);
    scene.del(&json!({}));
    assert!(scene.backups().is_empty());
}

#[test]
fn who_asks_last_is_heard() {
    let scene = Scene::new();
    let mac = |keys: Value, args: &str| {
        let conf = scene.conf(&keys);
        let call = RawCall::new(scene.bench.plugins(), "tuning")
            .env("CNI_CONTAINERID", "a")
            .env("CNI_NETNS", scene.pod.path())
            .env("CNI_ARGS", args)
            .stdin(conf.to_string());
        let code = call.run(&scene.bench.node).code("ADD");
        assert_eq!(code, None);
        let mac = scene.link()["address"].as_str().unwrap().to_owned();
        scene.del(&keys);
        mac
    };
    let mut keys = json!({"mac": "02:00:00:00:00:01"});
    assert_eq!(mac(keys.clone(), ""), "02:00:00:00:00:01");
    let args = "IgnoreUnknown=1;K8S_POD_NAME=x;MAC=02:00:00:00:00:02";
    assert_eq!(mac(keys.clone(), args), "02:00:00:00:00:02");
    keys["runtimeConfig"] = json!({"mac": "02:00:00:00:00:03"});
    assert_eq!(mac(keys.clone(), args), "02:00:00:00:00:03");
    keys["args"] = json!({"cni": {"mac": "02:00:00:00:00:04"}});
    assert_eq!(mac(keys, args), "02:00:00:00:00:04");

    // The other keys of args.cni.
    let name = "net.ipv4.conf.IFNAME.arp_announce";
    let keys = json!({
        "mtu": 1300, "promisc": true, "txQLen": 10, "sysctl": {name: "1"},
        "args": {"cni": {
            "mtu": 1250, "promisc": false, "allmulti": true, "txQLen": 20, "sysctl": {name: "2"},
        }},
    });
    scene.add(&keys);
    let link = scene.link();
    assert_eq!((&link["mtu"], &link["txqlen"]), (&json!(1250), &json!(20)));
    assert!(!flags(&link).contains(&"PROMISC") && flags(&link).contains(&"ALLMULTI"));
    assert_eq!(scene.sysctl("net/ipv4/conf/eth0/arp_announce"), "2");
}

#[test]
fn check_names_what_differs() {
    let scene = Scene::new();
    scene.add(&everything());
    let conf = scene.conf(&everything());
    let check = |conf: &Value| scene.bench.call("CHECK", conf, "a", scene.pod.path());
    check(&conf).expect_ok();
    for (change, back, named) in [
        (
            "ip link set eth0 mtu 1301",
            "ip link set eth0 mtu 1300",
            "mtu",
        ),
        (
            "ip link set eth0 address 02:00:00:00:00:09",
            "ip link set eth0 address c2:11:22:33:44:55",
            "mac",
        ),
        (
            "ip link set eth0 promisc off",
            "ip link set eth0 promisc on",
            "promisc",
        ),
        (
            "ip link set eth0 allmulticast off",
            "ip link set eth0 allmulticast on",
            "allmulti",
        ),
        (
            "ip link set eth0 txqueuelen 78",
            "ip link set eth0 txqueuelen 77",
            "txQLen",
        ),
        (
            "echo 0 > /proc/sys/net/ipv4/conf/eth0/arp_filter",
            "echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_filter",
            "arp_filter",
        ),
    ] {
        scene.pod.sh(change);
        let answer = check(&conf);
        assert_eq!(answer.code(), Some(103), "{change}: {answer:?}");
        let msg = answer.json["msg"].as_str().unwrap();
        assert!(msg.contains(named), "{change}: {msg}");
        scene.pod.sh(back);
        check(&conf).expect_ok();
    }
    // What nobody wants promiscuous must not be.
    assert_eq!(check(&scene.conf(&json!({"mtu": 1300}))).code(), Some(103));
    scene.pod.sh("ip link del eth0");
    assert_eq!(check(&conf).code(), Some(103));
}

#[test]
fn a_failure_in_the_middle_gives_everything_back() {
    let scene = Scene::new();
    let link = scene.link();
    let filter = "net/ipv4/conf/eth0/arp_filter";
    let fails = |conf: &Value, ifname: &str, wanted: u64| {
        let call = RawCall::new(scene.bench.plugins(), "tuning")
            .env("CNI_CONTAINERID", "a")
            .env("CNI_IFNAME", ifname)
            .env("CNI_NETNS", scene.pod.path())
            .stdin(conf.to_string());
        let code = call.run(&scene.bench.node).code(&conf.to_string());
        assert_eq!(code, Some(wanted), "{conf}");
        assert_eq!(scene.sysctl(filter), "0", "{conf}");
        assert_eq!(scene.link(), link, "{conf}");
        assert!(scene.backups().is_empty(), "{conf}");
    };
    // The second setting is refused; then the backup; then the link.
    let sysctl = json!({"net.ipv4.conf.eth0.arp_filter": "1", "net.ipv4.ip_forward": "nonsense"});
    fails(
        &scene.conf(&json!({"sysctl": sysctl, "mtu": 1300})),
        "eth0",
        100,
    );
    let sysctl = json!({"net.ipv4.conf.eth0.arp_filter": "1"});
    let file = scene.bench.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut conf = scene.conf(&json!({"sysctl": sysctl, "mtu": 1300}));
    conf["dataDir"] = json!(file);
    fails(&conf, "eth0", 5);
    // A VXLAN's link takes another address, but no larger packets than the one below.
    scene
        .pod
        .sh("ip link add vx0 type vxlan id 7 dev eth0 dstport 4789");
    let state = || scene.pod.sh("ip -o link show vx0");
    let before = state();
    let keys = json!({"sysctl": sysctl, "mac": "02:00:00:00:00:01", "promisc": true, "mtu": 1500});
    fails(&scene.conf(&keys), "vx0", 100);
    assert_eq!(state(), before);
}

#[test]
fn the_allowlist_is_obeyed() {
    let scene = Scene::new();
    let plugin = scene.bench.plugins().join("tuning");
    // In a mount namespace: the machine's own file is none of ours.
    let add = |key: &str, line: &str| {
        let conf = scene.conf(&json!({"sysctl": {key: "1"}}));
        let stdin = scene.bench.dir.path().join("stdin");
        fs::write(&stdin, conf.to_string()).unwrap();
        let script = format!(
            "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning \
             && printf '%s\\n' '' '{line}' > /etc/cni/tuning/allowlist.conf \
             && CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_IFNAME=eth0 CNI_NETNS={} CNI_PATH={} {} < {}",
            scene.pod.path().display(),
            scene.bench.plugins().display(),
            plugin.display(),
            stdin.display(),
        );
        let script = script.replace('\'', "'\\''");
        // The answer says what went wrong, not the exit code.
        scene
            .bench
            .node
            .sh(&format!("unshare -m sh -c '{script}' || true"))
    };
    let pattern = r"^net\.ipv4\.conf\.IFNAME\.[a-z_]+$";
    let allowed = add("net.ipv4.conf.IFNAME.arp_filter", pattern);
    assert!(allowed.contains("\"interfaces\""), "{allowed}");
    assert_eq!(scene.sysctl("net/ipv4/conf/eth0/arp_filter"), "1");
    let refused = add("net.ipv4.ip_forward", pattern);
    assert!(
        refused.contains("\"code\": 7") && refused.contains("allowlist"),
        "{refused}"
    );
    assert_eq!(scene.sysctl("net/ipv4/ip_forward"), "0");
    let wrong = add("net.ipv4.ip_forward", "(");
    assert!(wrong.contains("\"code\": 7"), "{wrong}");
}

#[test]
fn del_succeeds_when_half_or_all_of_it_is_gone() {
    // The link; the namespace, told or not; the backup is garbage.
    let scene = Scene::new();
    scene.add(&everything());
    scene.pod.sh("ip link del eth0");
    scene.del(&everything());
    assert!(scene.backups().is_empty());

    for told in [true, false] {
        let scene = Scene::new();
        scene.add(&everything());
        let conf = scene.conf(&everything());
        let Chained { bench, pod, .. } = scene.0;
        let path = pod.path().to_owned();
        drop(pod);
        let path = if told { path.as_path() } else { Path::new("") };
        bench.call("DEL", &conf, "a", path).expect_ok();
        let dir = bench.dir.path().join("tuning");
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }

    let scene = Scene::new();
    scene.add(&json!({"mtu": 1300}));
    let file = scene.bench.dir.path().join("tuning/a_eth0.json");
    fs::write(&file, "{\"mac\": 7, \"mtu").unwrap();
    scene.del(&json!({"mtu": 1300}));
    assert!(!file.exists());
    assert_eq!(scene.link()["mtu"], 1300, "nothing says what it was");
}

#[test]
fn del_ends_also_where_the_kernel_refuses_what_was_there() {
    let scene = Scene::new();
    let conf = scene.conf(&json!({"mtu": 1300}));
    // Of a link that had the name before, or of somebody who means harm.
    for backup in [r#"{"mtu": 1}"#, r#"{"mac": "02:00:00:00:00:00:00:01"}"#] {
        scene.add(&json!({"mtu": 1300}));
        let file = scene.bench.dir.path().join("tuning/a_eth0.json");
        fs::write(file, backup).unwrap();
        let del = || scene.bench.call("DEL", &conf, "a", scene.pod.path());
        assert!(!del().ok, "{backup}");
        del().expect_ok();
        assert_eq!(scene.backups(), [""; 0]);
    }
}

#[test]
fn gc_forgets_what_no_valid_attachment_owns() {
    let scene = Scene::new();
    let keys = json!({"mtu": 1300});
    scene.add(&keys);
    let dir = scene.bench.dir.path().join("tuning");
    // Of another network, of the reference plugin, and no backup at all.
    for (name, text) in [
        ("b_eth0.json", r#"{"mtu": 1400, "network": "other"}"#),
        ("c_eth0.json", r#"{"mtu": 1400}"#),
        ("notes.txt", "x"),
        ("gone_eth0.json", r#"{"mtu": 1400, "network": "net"}"#),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let mut conf = scene.conf(&keys);
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    scene
        .bench
        .call("GC", &conf, "x", Path::new(""))
        .expect_ok();
    let mut left = scene.backups();
    left.sort();
    assert_eq!(
        left,
        ["a_eth0.json", "b_eth0.json", "c_eth0.json", "notes.txt"]
    );
    scene
        .bench
        .call("STATUS", &conf, "x", Path::new(""))
        .expect_ok();
}

#[test]
fn bad_configurations_are_refused_before_anything_is_changed() {
    let scene = Scene::new();
    let link = scene.link();
    let sysctl = |key: &str| json!({"sysctl": {key: "1"}});
    for (name, keys, code) in [
        ("setting of the kernel", sysctl("kernel.pid_max"), 7),
        ("way out", sysctl("net/../kernel/pid_max"), 7),
        ("no name", sysctl(""), 7),
        ("no such setting", sysctl("net.ipv4.nope"), 7),
        (
            "one setting twice",
            json!({"sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}}),
            7,
        ),
        (
            "value of wrong type",
            json!({"sysctl": {"net.ipv4.ip_forward": 1}}),
            6,
        ),
        ("mac", json!({"mac": "zz"}), 7),
        ("mac of a group", json!({"mac": "01:00:00:00:00:01"}), 7),
        ("mac of zeros", json!({"mac": "00:00:00:00:00:00"}), 7),
        (
            "mac of another kind of link",
            json!({"mac": "02:00:00:00:00:00:00:01"}),
            7,
        ),
        ("mac of wrong type", json!({"mac": 7}), 6),
        ("runtime's mac", json!({"runtimeConfig": {"mac": "x"}}), 7),
        ("mtu too small", json!({"mtu": 67}), 7),
        ("mtu negative", json!({"mtu": -1}), 7),
        ("mtu too large", json!({"mtu": 65536}), 7),
        ("mtu of wrong type", json!({"mtu": "big"}), 6),
        ("txQLen negative", json!({"txQLen": -1}), 7),
        ("txQLen too large", json!({"txQLen": 4_294_967_296_u64}), 7),
        ("promisc of wrong type", json!({"promisc": "yes"}), 6),
        ("relative dataDir", json!({"mtu": 1300, "dataDir": "x"}), 7),
        ("args of wrong type", json!({"args": []}), 6),
    ] {
        let answer = scene
            .bench
            .call("ADD", &scene.conf(&keys), "a", scene.pod.path());
        assert_eq!(answer.code(), Some(code), "{name}: {}", answer.json);
        assert_eq!(scene.link(), link, "{name}");
        assert!(scene.backups().is_empty(), "{name}");
    }
    let mut alone = scene.conf(&json!({"mtu": 1300}));
    alone.as_object_mut().unwrap().remove("prevResult");
    let answer = scene.bench.call("ADD", &alone, "a", scene.pod.path());
    assert_eq!(answer.code(), Some(7), "{}", answer.json);
    let answer = scene.bench.call(
        "ADD",
        &scene.conf(&json!({})),
        "a",
        Path::new("/run/netns/skiff-t-never-was"),
    );
    assert_eq!(answer.code(), Some(4), "{}", answer.json);
}

/// Debian's: the one that machines have.
const REFERENCE: &str = "/usr/lib/cni";

#[test]
fn either_undoes_what_the_reference_plugin_has_done() {
    let keys = json!({"mac": "02:00:00:00:00:01", "mtu": 1300, "promisc": true, "allmulti": true});
    for ours_first in [true, false] {
        let scene = Scene::new();
        let before = scene.link();
        let mut conf = scene.conf(&keys);
        conf["cniVersion"] = json!("1.0.0");
        conf["prevResult"]["cniVersion"] = json!("1.0.0");
        let call = |command: &str, ours: bool| {
            let plugins = if ours {
                scene.bench.plugins()
            } else {
                Path::new(REFERENCE)
            };
            let call = RawCall::new(plugins, "tuning")
                .command(command)
                .env("CNI_CONTAINERID", "a")
                .env("CNI_NETNS", scene.pod.path())
                .stdin(conf.to_string());
            let answer = call.run(&scene.bench.node);
            assert_eq!(answer.exit, Some(0), "{}", answer.stderr);
        };
        call("ADD", ours_first);
        assert_eq!(scene.link()["mtu"], 1300);
        call("CHECK", !ours_first);
        call("DEL", !ours_first);
        let link = scene.link();
        for key in ["address", "mtu", "flags"] {
            assert_eq!(link[key], before[key], "{key}");
        }
        assert!(scene.backups().is_empty());
    }
}
