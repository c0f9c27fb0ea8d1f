//! The node table as it changes: by the library as an agent uses it, by a state file, and by the conflist runner.

use std::fs;

use serde_json::{Map, Value, json};
use skiff_cni::{
    libcni::{Attachment, CniRunner, Conflist},
    overlay::{self, Changes, Overlay},
    types::AttachmentKey,
};
use skiff_tests_cni::TestNetns;

use crate::{
    cluster::{Cluster, Host, Outer, settings, table},
    traffic::{pings, tcp},
};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn reconcile(host: &Host, nodes: &Value) -> Changes {
    let overlay = Overlay::new(settings(), table(nodes)).unwrap();
    block_on(overlay::reconcile(&host.netns(), &overlay))
        .unwrap()
        .changes
}

const NOTHING: Changes = Changes {
    created: false,
    adjusted: false,
    set: 0,
    deleted: 0,
};

#[test]
fn the_library_makes_what_the_plugin_makes_and_only_once() {
    let cluster = Cluster::new(Outer::V4, 3);
    let made = reconcile(&cluster.hosts[0], &cluster.all());
    assert!(made.created);
    // Two others with one forwarding entry, two neighbours and two routes each, and an address of our own.
    assert_eq!((made.set, made.deleted), (11, 0));
    assert_eq!(reconcile(&cluster.hosts[0], &cluster.all()), NOTHING);
    let by_library = cluster.hosts[0].overlay_state();
    let pod = cluster.pod(0, "a");
    assert_eq!(cluster.hosts[0].overlay_state(), by_library);
    let _passes = cluster.check(0, &pod).expect_ok();
    assert_eq!(reconcile(&cluster.hosts[0], &cluster.all()), NOTHING);
}

#[test]
fn nodes_come_and_go() {
    let cluster = Cluster::new(Outer::V6, 3);
    let host = &cluster.hosts[0];
    let _made = reconcile(host, &cluster.nodes(&[1, 2]));
    let two = host.overlay_state();
    let joined = reconcile(host, &cluster.all());
    assert_eq!((joined.created, joined.set, joined.deleted), (false, 5, 0));
    let left = reconcile(host, &cluster.nodes(&[1, 2]));
    assert_eq!((left.created, left.set, left.deleted), (false, 0, 5));
    assert_eq!(host.overlay_state(), two);
    let alone = reconcile(host, &cluster.nodes(&[1]));
    assert_eq!((alone.set, alone.deleted), (0, 5));
    assert_eq!(host.counts(), [0, 0, 0]);

    let overlay = Overlay::new(settings(), table(&cluster.all())).unwrap();
    let delete = || {
        let settings = overlay.settings();
        block_on(overlay::delete(
            &host.netns(),
            settings.vni,
            &settings.cluster_cidrs,
        ))
        .unwrap();
    };
    delete();
    delete();
    assert_eq!(host.bench.node.links(), ["uplink"]);
    let routes = host.bench.node.sh("ip route; ip -6 route");
    assert!(!routes.contains("unreachable"), "{routes}");
}

#[test]
fn damage_is_found_by_check_and_repaired() {
    let cluster = Cluster::new(Outer::V4, 3);
    let (a, b) = (cluster.pod(0, "a"), cluster.pod(1, "b"));
    let host = &cluster.hosts[0];
    let whole = host.overlay_state();
    for damage in [
        "ip route delete 10.244.3.0/24 dev skvx7",
        "ip route flush dev skvx7",
        "ip -6 route delete fd00:244:0:2::/64 dev skvx7",
        "ip neigh flush dev skvx7 nud permanent",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:01 dev skvx7 nud permanent",
        "bridge fdb add 02:00:00:00:00:01 dev skvx7 dst 192.168.77.9",
        "bridge fdb add 00:00:00:00:00:00 dev skvx7 dst 192.168.77.9",
        "ip route add 10.244.9.0/24 via 10.244.9.0 dev skvx7 onlink",
        "ip address add 203.0.113.1/24 dev skvx7",
        "ip address delete 10.244.1.0/32 dev skvx7",
        "ip link set skvx7 down",
        "ip link set skvx7 mtu 1300",
        "ip link set skvx7 address 02:00:00:00:00:01",
        "ip link delete skvx7",
        "ip link delete skvx7 && ip link add skvx7 type vxlan id 7 local 192.168.77.1 dstport 8472",
    ] {
        host.bench.node.sh(damage);
        assert_eq!(cluster.check(0, &a).code(), Some(103), "{damage}");
        let _swept = cluster.gc(0, &cluster.all(), &[&a]).expect_ok();
        assert_eq!(host.overlay_state(), whole, "{damage}");
        let _passes = cluster.check(0, &a).expect_ok();
        assert!(pings(&a.netns, &b.ip(true)), "{damage}");
    }
    // An ADD, too, finds what takes the whole network away, and what an ADD that was killed left half done.
    for damage in [
        "ip link set skvx7 alias '' && ip route delete 10.244.3.0/24 dev skvx7 && bridge fdb flush dev skvx7",
        "ip route flush dev skvx7",
        "ip link set skvx7 down",
        "ip link delete skvx7",
    ] {
        host.bench.node.sh(damage);
        let pod = cluster.pod(0, "again");
        assert_eq!(host.overlay_state(), whole, "{damage}");
        cluster.del(0, &pod);
    }
}

#[test]
fn a_podcidr_moves_from_one_node_to_another() {
    let cluster = Cluster::new(Outer::V4, 3);
    let a = cluster.pod(0, "a");
    // Host 2 hands its network to host 3.
    let mut moved = cluster.all();
    moved[1]["podCIDRs"] = json!(["10.244.20.0/24"]);
    moved[2]["podCIDRs"] = json!(["10.244.2.0/24"]);
    let changes = reconcile(&cluster.hosts[0], &moved);
    assert!(!changes.created);
    let mut conf = cluster.conf(2, &moved);
    conf["ipam"]["dataDir"] = json!(cluster.hosts[2].bench.dir.path());
    let c = cluster.pod_with(2, "c", &conf);
    // Its gateway and neighbour have changed hands.
    assert_eq!(c.ip(true), "10.244.2.2");
    assert_eq!(
        tcp(&a.netns, &c.netns, &c.ip(true)).peer.to_string(),
        a.ip(true)
    );
    assert_eq!(reconcile(&cluster.hosts[0], &moved), NOTHING);
}

#[test]
fn a_state_file_is_followed() {
    let cluster = Cluster::new(Outer::V4, 2);
    let host = &cluster.hosts[0];
    let path = host.bench.dir.path().join("nodes.json");
    let mut conf = cluster.conf(0, &Value::Null);
    conf["stateFile"] = json!(path);
    let pod = TestNetns::new("pod");
    let none = std::path::Path::new("");

    // Not written yet: that may change.
    assert_eq!(
        host.bench.call("ADD", &conf, "a", pod.path()).code(),
        Some(11)
    );
    assert_eq!(host.bench.call("STATUS", &conf, "", none).code(), Some(50));
    let mut del = host.bench.call("DEL", &conf, "a", pod.path());
    assert!(del.ok, "{del:?}");
    overlay::write_state_file(&path, &table(&cluster.nodes(&[1]))).unwrap();
    let _ready = host.bench.call("STATUS", &conf, "", none).expect_ok();
    let _a = host.bench.add(&conf, "a", &pod);
    assert_eq!(host.counts(), [0, 0, 0]);

    // The other host is there from the next call on.
    overlay::write_state_file(&path, &table(&cluster.all())).unwrap();
    let second = TestNetns::new("pod");
    let _b = host.bench.add(&conf, "b", &second);
    assert_eq!(host.counts(), [1, 2, 2]);
    overlay::write_state_file(&path, &table(&cluster.nodes(&[1]))).unwrap();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    let _swept = host.bench.call("GC", &conf, "", none).expect_ok();
    assert_eq!(host.counts(), [0, 0, 0]);
    assert_eq!(host.bench.veths().len(), 1);

    // What is no table says so, and the pods that are there can go.
    for text in ["", "{}", "[1]", r#"{"version":9,"nodes":[]}"#] {
        fs::write(&path, text).unwrap();
        let answer = host.bench.call("ADD", &conf, "c", second.path());
        assert_eq!(answer.code(), Some(7), "{text}: {answer:?}");
    }
    del = host.bench.call("DEL", &conf, "a", pod.path());
    assert!(del.ok, "{del:?}");
    assert!(host.bench.leases().is_empty());
}

#[test]
fn gc_makes_nothing_where_no_pod_was() {
    let cluster = Cluster::new(Outer::V4, 2);
    let _swept = cluster.gc(0, &cluster.all(), &[]).expect_ok();
    assert_eq!(cluster.hosts[0].bench.node.links(), ["uplink"]);
}

#[test]
fn a_conflist_runs_through_our_runner() {
    let cluster = Cluster::new(Outer::V4, 2);
    let other = cluster.pod(1, "b");
    let host = &cluster.hosts[0];
    let list = |nodes: &Value| {
        let mut plugin = cluster.conf(0, nodes);
        plugin.as_object_mut().unwrap().remove("cniVersion");
        plugin.as_object_mut().unwrap().remove("name");
        let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]});
        let dir = host.bench.dir.path().join("net.d");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("10-net.conflist"), list.to_string()).unwrap();
        Conflist::load_dir(&dir).unwrap()
    };
    let runner = CniRunner::new(
        vec![host.bench.plugins().to_owned()],
        host.bench.dir.path().join("cache"),
        host.netns(),
    );
    let pod = TestNetns::new("pod");
    let attachment = Attachment {
        container_id: "a".parse().unwrap(),
        netns: pod.path().to_owned(),
        ifname: "eth0".parse().unwrap(),
        args: Vec::new(),
        capability_args: Map::new(),
    };
    let all = list(&cluster.all());
    block_on(async {
        runner.status(&all).await.unwrap();
        let result = runner.add(&all, &attachment).await.unwrap();
        let ip = result
            .container_ips()
            .next()
            .unwrap()
            .address
            .ip()
            .to_string();
        assert_eq!(
            tcp(&pod, &other.netns, &other.ip(true)).peer.to_string(),
            ip
        );
        runner.check(&all, &attachment).await.unwrap();
    });
    // The other host leaves, this pod stays.
    let alone = list(&cluster.nodes(&[1]));
    let key: AttachmentKey = attachment.key();
    block_on(async {
        runner.gc(&alone, &[key]).await.unwrap();
        assert_eq!(host.counts(), [0, 0, 0]);
        runner.check(&alone, &attachment).await.unwrap();
        runner.gc(&alone, &[]).await.unwrap();
    });
    assert_eq!(
        (host.bench.veths().len(), host.bench.leases().len()),
        (0, 0)
    );
}
