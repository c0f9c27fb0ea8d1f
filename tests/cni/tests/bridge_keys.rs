//! The bridge plugin's keys, each against what the kernel says.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use skiff_tests_cni::{Bench, TestNetns, raw::RawCall};

/// A connection that the kernel must not let through is given up after this.
const REFUSED: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(5);

fn connects(from: &TestNetns, to: &TestNetns, ip: &str, patience: Duration) -> bool {
    let ip: IpAddr = ip.parse().unwrap();
    let listener = to.run(|| TcpListener::bind((ip, 0))).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    from.run(|| TcpStream::connect_timeout(&address, patience))
        .is_ok()
}

fn json_of(netns: &TestNetns, command: &str) -> Value {
    let text = netns.sh(command);
    if text.trim().is_empty() {
        return json!([]);
    }
    serde_json::from_str(&text).unwrap()
}

fn link(netns: &TestNetns, name: &str) -> Value {
    json_of(netns, &format!("ip -d -j link show {name}"))[0].clone()
}

fn port_data(bench: &Bench) -> Value {
    link(&bench.node, &bench.veths()[0])["linkinfo"]["info_slave_data"].clone()
}

fn with(bench: &Bench, changes: &Value) -> Value {
    let mut conf = bench.bridge_conf();
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn checked(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// CHECK succeeds, and fails once `damage` has been done in the node.
#[track_caller]
fn assert_check_misses(bench: &Bench, conf: &Value, result: &Value, pod: &TestNetns, damage: &str) {
    let check = checked(conf, result);
    bench.call("CHECK", &check, "a", pod.path()).expect_ok();
    bench.node.sh(damage);
    let answer = bench.call("CHECK", &check, "a", pod.path());
    assert_eq!(answer.code(), Some(103), "{damage}: {}", answer.json);
}

#[track_caller]
fn assert_nothing_left(bench: &Bench, pod: &TestNetns) {
    assert!(bench.veths().is_empty(), "{:?}", bench.veths());
    assert!(bench.leases().is_empty(), "{:?}", bench.leases());
    assert!(pod.links().is_empty(), "{:?}", pod.links());
}

#[test]
fn isolated_ports_reach_the_node_but_not_each_other() {
    let bench = Bench::new();
    let (a, b) = (TestNetns::new("pod"), TestNetns::new("pod"));
    let conf = with(&bench, &json!({"portIsolation": true}));
    let result = bench.add(&conf, "a", &a);
    assert_eq!(port_data(&bench)["isolated"], true);
    let port = bench.veths()[0].clone();
    let second = bench.add(&conf, "b", &b);
    assert!(connects(&a, &bench.node, "10.99.0.1", PATIENCE));
    assert!(connects(&bench.node, &b, &second.ip(), PATIENCE));
    assert!(!connects(&a, &b, &second.ip(), REFUSED));
    assert_check_misses(
        &bench,
        &conf,
        &result.json,
        &a,
        &format!("ip link set {port} type bridge_slave isolated off"),
    );
}

#[test]
fn hairpin_and_promiscuity_are_set_and_checked() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let conf = with(&bench, &json!({"hairpinMode": true}));
    let result = bench.add(&conf, "a", &pod);
    assert_eq!(port_data(&bench)["hairpin"], true);
    assert_eq!(port_data(&bench)["isolated"], false);
    let off = format!(
        "ip link set {} type bridge_slave hairpin off",
        bench.veths()[0]
    );
    assert_check_misses(&bench, &conf, &result.json, &pod, &off);
    bench.del(&conf, "a", &pod);

    let conf = with(&bench, &json!({"promiscMode": true}));
    let result = bench.add(&conf, "a", &pod);
    let flags = link(&bench.node, "br0")["flags"].to_string();
    assert!(flags.contains("PROMISC"), "{flags}");
    let off = "ip link set br0 promisc off";
    assert_check_misses(&bench, &conf, &result.json, &pod, off);
}

#[test]
fn a_disabled_link_stays_down_and_without_addresses() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = with(&bench, &json!({"disableContainerInterface": true}));
    conf["ipam"] = json!({});
    let result = bench.add(&conf, "a", &pod).json;
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result.get("ips"), None);
    let eth0 = link(&pod, "eth0");
    assert!(!eth0["flags"].to_string().contains("\"UP\""), "{eth0}");
    bench
        .call("CHECK", &checked(&conf, &result), "a", pod.path())
        .expect_ok();
    bench.del(&conf, "a", &pod);
    assert_nothing_left(&bench, &pod);

    // Without IPAM and not disabled: up, without addresses.
    conf["disableContainerInterface"] = json!(false);
    bench.add(&conf, "a", &pod);
    assert!(link(&pod, "eth0")["flags"].to_string().contains("\"UP\""));
}

#[test]
fn a_container_cannot_send_under_a_foreign_hardware_address() {
    let bench = Bench::new();
    let (pod, other) = (TestNetns::new("pod"), TestNetns::new("pod"));
    let conf = with(&bench, &json!({"macspoofchk": true}));
    let result = bench.add(&conf, "a", &pod).json;
    let second = bench.add(&conf, "b", &other);
    let rules = || bench.node.sh("nft list ruleset");
    assert_eq!(rules().matches("ether saddr").count(), 2, "{}", rules());
    assert!(connects(&pod, &bench.node, "10.99.0.1", PATIENCE));
    pod.sh(
        "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up",
    );
    assert!(!connects(&pod, &bench.node, "10.99.0.1", REFUSED));
    assert!(connects(&other, &bench.node, "10.99.0.1", PATIENCE));
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    pod.sh(&format!(
        "ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up; ip route add default via 10.99.0.1"
    ));
    assert!(connects(&pod, &bench.node, "10.99.0.1", PATIENCE));
    assert_check_misses(
        &bench,
        &conf,
        &result,
        &pod,
        "nft delete rule bridge skiff-cni prerouting handle $(nft -a list chain bridge skiff-cni prerouting | sed -n 's/.*vmap.*handle //p')",
    );

    // The next one puts it right.
    let third = TestNetns::new("pod");
    bench.add(&conf, "c", &third);
    let check = checked(&conf, &result);
    bench.call("CHECK", &check, "a", pod.path()).expect_ok();
    bench.del(&conf, "a", &pod);
    bench.del(&conf, "a", &pod);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    bench.call("GC", &gc, "x", Path::new("")).expect_ok();
    assert_eq!(rules().matches("ether saddr").count(), 1, "{}", rules());
    assert!(connects(&bench.node, &other, &second.ip(), PATIENCE));
    // Also after its link is gone, and without its namespace.
    bench.node.sh(&format!("ip link del {}", bench.veths()[0]));
    bench.call("DEL", &conf, "b", Path::new("")).expect_ok();
    assert_eq!(rules().matches("ether saddr").count(), 0, "{}", rules());
}

#[test]
fn rules_of_a_failed_add_are_taken_back() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = with(&bench, &json!({"macspoofchk": true, "ipMasq": true}));
    conf["ipam"]["routes"] = json!([{"dst": "192.168.0.0/16", "gw": "172.16.0.1"}]);
    let answer = bench.call("ADD", &conf, "a", pod.path());
    assert_eq!(answer.code(), Some(100), "{}", answer.json);
    assert_nothing_left(&bench, &pod);
    let rules = bench.node.sh("nft list ruleset");
    assert!(
        !rules.contains("ether saddr") && !rules.contains("10.99.0.2"),
        "{rules}"
    );
}

#[test]
fn either_firewall_masquerades_and_is_cleaned_up() {
    for backend in ["iptables", "nftables"] {
        let bench = Bench::new();
        let pod = TestNetns::new("pod");
        let conf = with(&bench, &json!({"ipMasq": true, "ipMasqBackend": backend}));
        let result = bench.add(&conf, "a", &pod).json;
        assert!(
            bench.node.sh("nft list ruleset").contains("10.99.0.2"),
            "{backend}"
        );
        let check = checked(&conf, &result);
        bench.call("CHECK", &check, "a", pod.path()).expect_ok();
        bench.del(&conf, "a", &pod);
        let rules = bench.node.sh("nft list ruleset");
        assert!(!rules.contains("10.99.0.2"), "{backend}: {rules}");
    }
}

#[test]
fn duplicate_detection_is_waited_for_and_heeded() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = with(&bench, &json!({"enabledad": true}));
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    bench.add(&conf, "a", &pod);
    let addresses = pod.sh("ip -6 addr show dev eth0");
    assert!(
        addresses.contains("fd99::2/64") && !addresses.contains("tentative"),
        "{addresses}"
    );
    let routes = pod.sh("ip -6 route show default");
    assert!(routes.contains("fd99::1"), "{routes}");
    bench.del(&conf, "a", &pod);
    assert_nothing_left(&bench, &pod);

    // Somebody has the next address already.
    bench.node.sh("ip addr add fd99::3/128 dev br0 nodad");
    let answer = bench.call("ADD", &conf, "b", pod.path());
    assert_eq!(answer.code(), Some(102), "{}", answer.json);
    assert_nothing_left(&bench, &pod);

    // Who does not ask does not see it.
    conf["enabledad"] = json!(false);
    bench.add(&conf, "c", &pod);
    let setting = pod.sh("cat /proc/sys/net/ipv6/conf/eth0/accept_dad");
    assert_eq!(setting.trim(), "0");
}

#[test]
fn routes_have_their_metrics_and_tables() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = bench.bridge_conf();
    conf["ipam"]["routes"] = json!([
        {"dst": "192.168.1.0/24", "mtu": 1300, "advmss": 1200, "priority": 77},
        {"dst": "192.168.2.0/24", "gw": "10.99.0.7", "table": 1234},
        {"dst": "192.168.3.0/24", "scope": 253},
    ]);
    let result = bench.add(&conf, "a", &pod).json;
    assert_eq!(result["routes"][0]["mtu"], 1300);
    let routes = pod.sh("ip route show table all");
    for expected in [
        "default via 10.99.0.1 dev eth0",
        "192.168.1.0/24 via 10.99.0.1 dev eth0 metric 77 mtu 1300 advmss 1200",
        "192.168.2.0/24 via 10.99.0.7 dev eth0 table 1234",
        "192.168.3.0/24 dev eth0 scope link",
    ] {
        assert!(routes.contains(expected), "{expected}: {routes}");
    }
    let check = checked(&conf, &result);
    bench.call("CHECK", &check, "a", pod.path()).expect_ok();
    pod.sh("ip route del 192.168.2.0/24 table 1234");
    let answer = bench.call("CHECK", &check, "a", pod.path());
    assert_eq!(answer.code(), Some(103), "{}", answer.json);
}

#[test]
fn the_most_specific_hardware_address_counts() {
    let bench = Bench::new();
    let mut conf = bench.bridge_conf();
    let sources = [
        ("02:00:00:00:00:01", json!({}), json!({})),
        (
            "02:00:00:00:00:02",
            json!({"cni": {"mac": "02:00:00:00:00:02"}}),
            json!({}),
        ),
        (
            "02:00:00:00:00:03",
            json!({"cni": {"mac": "02:00:00:00:00:02"}}),
            json!({"mac": "02:00:00:00:00:03"}),
        ),
    ];
    for (expected, args, runtime) in sources {
        let pod = TestNetns::new("pod");
        conf["args"] = args;
        conf["runtimeConfig"] = runtime;
        let answer = RawCall::new(bench.plugins(), "bridge")
            .env("CNI_NETNS", pod.path())
            .env("CNI_CONTAINERID", expected.replace(':', "-"))
            .env("CNI_ARGS", "IgnoreUnknown=1;MAC=02:00:00:00:00:01")
            .stdin(conf.to_string())
            .run(&bench.node);
        assert_eq!(answer.code(expected), None);
        assert_eq!(link(&pod, "eth0")["address"], expected);
    }
}

#[test]
fn the_configurations_resolver_goes_before_ipams() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let conf = with(
        &bench,
        &json!({"dns": {"nameservers": ["10.99.0.53"], "domain": "x.example"}}),
    );
    let result = bench.add(&conf, "a", &pod).json;
    assert_eq!(result["dns"], conf["dns"]);
}

#[test]
fn a_foreign_bridge_keeps_its_hardware_address() {
    let bench = Bench::new();
    bench
        .node
        .sh("ip link add br0 type bridge && ip link set br0 up");
    let conf = bench.bridge_conf();
    let mut macs = Vec::new();
    let pods: Vec<TestNetns> = (0..4).map(|_| TestNetns::new("pod")).collect();
    for (number, pod) in pods.iter().enumerate() {
        let result = bench.add(&conf, &format!("c{number}"), pod).json;
        assert_eq!(
            result["interfaces"][0]["mac"],
            link(&bench.node, "br0")["address"]
        );
        macs.push(result["interfaces"][0]["mac"].clone());
    }
    // The first one's port came before the gateway's address.
    assert!(macs.iter().all(|mac| *mac == macs[0]), "{macs:?}");
}

/// Whether this kernel's bridges know VLANs; one that does not must be told of by the plugin.
fn has_vlans(bench: &Bench) -> bool {
    let made = bench
        .node
        .try_sh("ip link add probe type bridge vlan_filtering 1");
    if made.is_ok() {
        bench.node.sh("ip link del probe");
    }
    made.is_ok()
}

/// The VLANs of a port as `bridge vlan` shows them: `100P` is the untagged one.
fn vlans(bench: &Bench, port: &str) -> Vec<String> {
    let all = json_of(&bench.node, "bridge -j vlan");
    let Some(found) = all
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["ifname"] == port)
    else {
        return Vec::new();
    };
    let words = found["vlans"].as_array().unwrap().iter().map(|vlan| {
        let flags = vlan["flags"].to_string();
        let native = match (flags.contains("PVID"), flags.contains("Egress Untagged")) {
            (true, true) => "P",
            (false, true) => "U",
            (false, false) => "",
            (true, false) => panic!("{vlan}"),
        };
        format!("{}{native}", vlan["vlan"])
    });
    words.collect()
}

#[test]
fn a_port_has_the_networks_vlans_and_no_other() {
    let table = [
        (json!({"vlan": 100}), "100P"),
        (json!({"vlan": 100, "preserveDefaultVlan": true}), "1U 100P"),
        (json!({"vlan": 1}), "1P"),
        (
            json!({"vlanTrunk": [{"id": 5}, {"minID": 10, "maxID": 12}]}),
            "1P 5 10 11 12",
        ),
        (
            json!({"vlan": 7, "vlanTrunk": [{"id": 5}, {"minID": 7, "maxID": 8}]}),
            "5 7P 8",
        ),
        (
            json!({"vlan": 7, "vlanTrunk": [{"id": 5}], "preserveDefaultVlan": true}),
            "1U 5 7P",
        ),
        (json!({"vlanTrunk": []}), "1P"),
    ];
    for (changes, expected) in table {
        let bench = Bench::new();
        let pod = TestNetns::new("pod");
        let mut conf = with(&bench, &changes);
        conf["isDefaultGateway"] = json!(false);
        if !has_vlans(&bench) {
            let answer = bench.call("ADD", &conf, "a", pod.path());
            assert_eq!(answer.code(), Some(100), "{}", answer.json);
            assert!(
                answer.json["msg"].to_string().contains("VLAN"),
                "{}",
                answer.json
            );
            assert!(bench.node.links().is_empty());
            assert_nothing_left(&bench, &pod);
            continue;
        }
        let result = bench.add(&conf, "a", &pod).json;
        let port = bench.veths()[0].clone();
        assert_eq!(vlans(&bench, &port).join(" "), expected, "{changes}");
        let data = &link(&bench.node, "br0")["linkinfo"]["info_data"];
        assert_eq!(data["vlan_filtering"], 1, "{changes}");
        let check = checked(&conf, &result);
        bench.call("CHECK", &check, "a", pod.path()).expect_ok();
        if let Some(lost) = expected
            .split(' ')
            .next_back()
            .filter(|_| changes["vlanTrunk"] != json!([]))
        {
            let damage = format!(
                "bridge vlan del dev {port} vid {}",
                lost.trim_end_matches('P')
            );
            assert_check_misses(&bench, &conf, &result, &pod, &damage);
        }
        bench.del(&conf, "a", &pod);
        assert_nothing_left(&bench, &pod);
    }
}

#[test]
fn a_vlan_has_a_gateway_of_its_own() {
    let bench = Bench::new();
    let (a, b, stranger) = (
        TestNetns::new("pod"),
        TestNetns::new("pod"),
        TestNetns::new("pod"),
    );
    let conf = with(&bench, &json!({"vlan": 100, "mtu": 1400}));
    if !has_vlans(&bench) {
        let answer = bench.call("ADD", &conf, "a", a.path());
        assert_eq!(answer.code(), Some(100), "{}", answer.json);
        return;
    }
    let result = bench.add(&conf, "a", &a).json;
    assert_eq!(result["interfaces"][3]["name"], "br0.100");
    let gateway = link(&bench.node, "br0.100");
    assert_eq!(result["interfaces"][3]["mac"], gateway["address"]);
    assert_eq!(gateway["mtu"], 1400);
    let port = gateway["link"].as_str().unwrap();
    assert_eq!(vlans(&bench, port), ["100P"]);
    assert!(connects(&a, &bench.node, "10.99.0.1", PATIENCE));
    let second = bench.add(&conf, "b", &b);
    assert_eq!(second.json["interfaces"][3], result["interfaces"][3]);
    assert!(connects(&a, &b, &second.ip(), PATIENCE));

    // Another VLAN of the same bridge is another network.
    let mut other = with(&bench, &json!({"vlan": 200, "name": "other"}));
    other["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/24"}]]);
    bench.add(&other, "c", &stranger);
    stranger.sh("ip route add 10.99.0.0/24 dev eth0");
    assert!(!connects(&stranger, &b, &second.ip(), REFUSED));

    let damage = "ip addr del 10.99.0.1/24 dev br0.100";
    assert_check_misses(&bench, &conf, &result, &a, damage);
    bench.del(&conf, "a", &a);
    assert!(
        bench.node.links().contains(&"br0.100".to_owned()),
        "others need it"
    );
}

#[test]
fn an_uplink_lets_the_vlans_pass() {
    let bench = Bench::new();
    let pod = TestNetns::new("pod");
    let mut conf = with(
        &bench,
        &json!({"vlan": 7, "vlanTrunk": [{"minID": 5, "maxID": 9}], "uplinkInterface": "up0"}),
    );
    conf["isDefaultGateway"] = json!(false);
    let filtering = if has_vlans(&bench) {
        "vlan_filtering 1"
    } else {
        ""
    };
    bench.node.sh(&format!(
        "ip link add br0 type bridge {filtering} && ip link set br0 up && ip link add up0 type veth peer name up1 && ip link set up0 master br0"
    ));
    let answer = bench.call("ADD", &conf, "a", pod.path());
    if !has_vlans(&bench) {
        assert_eq!(answer.code(), Some(100), "{}", answer.json);
        assert_nothing_left(&bench, &pod);
        return;
    }
    answer.expect_ok();
    assert_eq!(vlans(&bench, "up0").join(" "), "1P 5 6 7 8 9");
    bench.node.sh("bridge vlan add dev up0 vid 6 untagged");
    bench.add(&conf, "b", &TestNetns::new("pod"));
    assert_eq!(
        vlans(&bench, "up0").join(" "),
        "1P 5 6U 7 8 9",
        "what passes is left alone"
    );
}
