//! host-local and loopback as executables, the conflist runner over real plugins, and netlink on its own.

use std::{fs, path::PathBuf, process::Command};

use serde_json::{Map, json};
use skiff_cni::{
    libcni::{Attachment, CniRunner, Conflist},
    netlink::Netlink,
};
use skiff_netns::NodeNetns;
use skiff_tests_cni::{Bench, TestNetns, raw::RawCall};

#[test]
fn host_local_leases_and_releases_on_its_own() {
    let bench = Bench::new();
    let mut conf = bench.bridge_conf();
    conf["type"] = json!("host-local");
    conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    let pod = TestNetns::new("pod");
    let answer = bench.add(&conf, "a", &pod);
    assert_eq!(
        answer.json["ips"],
        json!([{"address": "10.99.0.2/24", "gateway": "10.99.0.1"}])
    );
    assert_eq!(answer.json["routes"], json!([{"dst": "0.0.0.0/0"}]));
    conf["prevResult"] = answer.json;
    bench.call("CHECK", &conf, "a", pod.path()).expect_ok();
    assert_eq!(
        bench.call("CHECK", &conf, "b", pod.path()).code(),
        Some(103)
    );
    bench.del(&conf, "a", &pod);
    assert!(bench.leases().is_empty());
}

#[test]
fn loopback_is_set_up_and_checked() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    pod.sh("ip link set lo down");
    let mut conf = json!({"cniVersion": "1.1.0", "name": "lo", "type": "loopback"});
    let answer = bench.add(&conf, "a", &pod);
    assert_eq!(answer.json["ips"][0]["address"], "127.0.0.1/8");
    conf["prevResult"] = answer.json;
    bench.call("CHECK", &conf, "a", pod.path()).expect_ok();
    pod.sh("ip link set lo down");
    assert_eq!(
        bench.call("CHECK", &conf, "a", pod.path()).code(),
        Some(103)
    );
    bench.del(&conf, "a", &pod);
}

#[test]
fn an_answer_gets_into_no_other_file_when_stdout_is_closed() {
    let bench = Bench::new();
    let (conf, pod) = (bench.bridge_conf(), TestNetns::new("pod"));
    let input = bench.dir.path().join("conf");
    fs::write(&input, conf.to_string()).unwrap();
    let mut call = Command::new("sh");
    call.args(["-c", "exec \"$CNI_PATH/bridge\" <\"$0\" >&- 2>&-"])
        .arg(&input)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "a")
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", bench.plugins());
    assert!(bench.node.run(|| call.status()).unwrap().success());
    assert_eq!(bench.leases().len(), 1);
    let leases = bench.dir.path().join("networks/net/lock");
    for lock in [PathBuf::from("/run/skiff-cni/attachments.lock"), leases] {
        assert_eq!(fs::read_to_string(&lock).unwrap(), "", "{}", lock.display());
    }
    bench.del(&conf, "a", &pod);
}

#[test]
fn a_reader_that_has_gone_is_an_error_and_no_signal() {
    let bench = Bench::new();
    let (conf, pod) = (bench.bridge_conf(), TestNetns::new("pod"));
    let call = RawCall::new(bench.plugins(), "bridge")
        .env("CNI_NETNS", pod.path())
        .stdin(conf.to_string());
    let mut child = call.spawn(&bench.node);
    drop(child.stdout.take());
    call.feed(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    bench.del(&conf, "c1", &pod);
    assert!(bench.leases().is_empty() && bench.veths().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflist_runs_from_its_folder_to_the_last_trace() {
    let bench = Bench::new();
    let pods = [TestNetns::new("pod"), TestNetns::new("pod")];
    let mut bridge = bench.bridge_conf();
    bridge["ipMasq"] = json!(true);
    bridge["capabilities"] = json!({"mac": true, "ips": true});
    let net_d = bench.dir.path().join("net.d");
    fs::create_dir(&net_d).unwrap();
    let list = json!({
        "cniVersion": "1.1.0", "name": "net",
        "plugins": [bridge, {"type": "loopback"}],
    });
    fs::write(net_d.join("10-net.conflist"), list.to_string()).unwrap();
    let list = Conflist::load_dir(&net_d).unwrap();
    let cache = bench.dir.path().join("cache");
    let node = NodeNetns::open(bench.node.path()).unwrap();
    let runner = CniRunner::new(vec![bench.plugins().to_owned()], cache.clone(), node);
    runner.status(&list).await.unwrap();
    let attachment = |name: &str, pod: &TestNetns| Attachment {
        container_id: name.parse().unwrap(),
        netns: pod.path().to_owned(),
        ifname: "eth0".parse().unwrap(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: Map::from_iter([("mac".to_owned(), json!("02:00:00:00:00:05"))]),
    };
    let (first, second) = (attachment("a", &pods[0]), attachment("b", &pods[1]));
    let result = runner.add(&list, &first).await.unwrap();
    runner.add(&list, &second).await.unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.99.0.2/24");
    assert_eq!(result.interfaces[2].mac, "02:00:00:00:00:05");
    assert_eq!(bench.veths().len(), 2);
    runner.check(&list, &first).await.unwrap();
    pods[0].sh("ip addr del 10.99.0.2/24 dev eth0");
    assert_eq!(
        runner
            .check(&list, &first)
            .await
            .unwrap_err()
            .cni()
            .unwrap()
            .code,
        103
    );
    let gone = Attachment {
        netns: PathBuf::from("/nowhere"),
        ..attachment("c", &pods[0])
    };
    assert_eq!(
        runner
            .add(&list, &gone)
            .await
            .unwrap_err()
            .cni()
            .unwrap()
            .code,
        4
    );

    runner.gc(&list, &[first.key()]).await.unwrap();
    assert_eq!(bench.veths().len(), 1);
    runner.del(&list, &first).await.unwrap();
    runner.del(&list, &first).await.unwrap();
    assert_eq!((bench.veths().len(), bench.leases().len()), (0, 0));
    assert_eq!(fs::read_dir(cache.join("results")).unwrap().count(), 0);
    assert!(!bench.node.sh("iptables -w -t nat -S").contains("SKIFF"));
}

#[tokio::test]
async fn unreachable_routes_come_and_go() {
    let node = TestNetns::new("node");
    let netlink = Netlink::open_in_node(&NodeNetns::open(node.path()).unwrap()).unwrap();
    let cidr = "10.96.0.0/16".parse().unwrap();
    netlink.ensure_unreachable_route(cidr).await.unwrap();
    netlink.ensure_unreachable_route(cidr).await.unwrap();
    assert!(netlink.has_unreachable_route(cidr).await.unwrap());
    assert!(node.sh("ip route").contains("unreachable 10.96.0.0/16"));
    let refused = node
        .run(|| std::net::TcpStream::connect("10.96.0.1:443"))
        .unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::HostUnreachable);
    netlink.delete_unreachable_route(cidr).await.unwrap();
    netlink.delete_unreachable_route(cidr).await.unwrap();
    assert!(!netlink.has_unreachable_route(cidr).await.unwrap());
    assert!(node.sh("ip route").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_while_links_come_and_go_is_whole() {
    let node = TestNetns::new("node");
    node.sh("for i in $(seq 100); do echo \"link add keep$i type veth peer name peer$i\"; done | ip -b -");
    let netlink = Netlink::open_in_node(&NodeNetns::open(node.path()).unwrap()).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (stop, node) = (&stop, &node);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ =
                    node.sh("ip link add churn type veth peer name churn2 && ip link del churn");
            }
        });
        let handle = tokio::runtime::Handle::current();
        scope.spawn(move || {
            for _ in 0..50 {
                let links = handle.block_on(netlink.list_links("keep"));
                assert_eq!(links.unwrap().len(), 100);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}
