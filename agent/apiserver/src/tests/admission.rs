//! Allocation of addresses and ports, and the objects that every cluster has.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

fn small() -> ApiServerOptions {
    ApiServerOptions {
        service_cidrs: vec!["10.96.0.0/28".parse().unwrap()],
        node_port_range: 30000..=30009,
        ..ApiServerOptions::default()
    }
}

#[tokio::test]
async fn every_cluster_has_its_namespaces_and_the_kubernetes_service() {
    let options = ApiServerOptions {
        advertise_address: Some("192.0.2.7:6443".parse().unwrap()),
        ..ApiServerOptions::default()
    };
    let server = Server::with(options).await;
    let namespaces = server.get(NAMESPACES).await.ok();
    let names: Vec<_> = namespaces["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["metadata"]["name"].clone())
        .collect();
    assert_eq!(
        names,
        ["default", "kube-node-lease", "kube-public", "kube-system"]
    );
    let service = server.get(&format!("{SERVICES}/kubernetes")).await.ok();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice = server
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .ok();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
    let endpoints = server
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .ok();
    assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], 6443);
}

#[tokio::test]
async fn services_race_for_addresses_and_none_gets_anothers() {
    let server = Server::with(small()).await;
    // 14 usable addresses, one is taken; 10 ports.
    let creations = (0..10).map(|n| {
        let server = &server;
        async move {
            server
                .post(
                    SERVICES,
                    &service(&format!("s{n}"), &json!({"type": "NodePort"})),
                )
                .await
                .ok()
        }
    });
    let services = futures::future::join_all(creations).await;
    let ips: BTreeSet<_> = services
        .iter()
        .map(|s| s["spec"]["clusterIP"].to_string())
        .collect();
    let ports: BTreeSet<_> = services
        .iter()
        .map(|s| s["spec"]["ports"][0]["nodePort"].to_string())
        .collect();
    assert_eq!((ips.len(), ports.len()), (10, 10));
    let answer = server
        .post(SERVICES, &service("late", &json!({"type": "NodePort"})))
        .await;
    assert!(answer.fails(500, "InternalError").contains("range is full"));
    // What is given back can be had again.
    server.delete(&format!("{SERVICES}/s3")).await.ok();
    let late = server
        .post(SERVICES, &service("late", &json!({"type": "NodePort"})))
        .await
        .ok();
    assert_eq!(
        late["spec"]["ports"][0]["nodePort"],
        services[3]["spec"]["ports"][0]["nodePort"]
    );
}

#[tokio::test]
async fn a_requested_address_is_granted_once() {
    let server = Server::start().await;
    let asked = json!({"clusterIP": "10.96.0.10"});
    assert_eq!(
        server.post(SERVICES, &service("dns", &asked)).await.ok()["spec"]["clusterIPs"],
        json!(["10.96.0.10"])
    );
    let answer = server.post(SERVICES, &service("other", &asked)).await;
    assert_eq!(
        answer.body["details"]["causes"][0]["field"],
        "spec.clusterIPs"
    );
    assert!(
        answer
            .fails(422, "Invalid")
            .contains("provided IP is already allocated")
    );
    server
        .post(SERVICES, &service("dns", &asked))
        .await
        .fails(409, "AlreadyExists");
    let answer = server
        .post(
            SERVICES,
            &service("far", &json!({"clusterIP": "10.97.0.1"})),
        )
        .await;
    assert!(
        answer
            .fails(422, "Invalid")
            .contains("not in the valid range")
    );
    let headless = server
        .post(
            SERVICES,
            &service("headless", &json!({"clusterIP": "None"})),
        )
        .await
        .ok();
    assert_eq!(headless["spec"]["clusterIP"], "None");
    let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 31000}]});
    server.post(SERVICES, &service("p", &port)).await.ok();
    let answer = server.post(SERVICES, &service("q", &port)).await;
    assert_eq!(
        answer.body["details"]["causes"][0]["field"],
        "spec.ports[0].nodePort"
    );
    answer.fails(422, "Invalid");
}

#[tokio::test]
async fn a_service_keeps_its_address_and_gives_ports_back() {
    let server = Server::start().await;
    let created = server
        .post(SERVICES, &service("s", &json!({"type": "NodePort"})))
        .await
        .ok();
    let path = format!("{SERVICES}/s");
    let node_port = created["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let updated = server
        .put(&path, &service("s", &json!({"type": "NodePort"})))
        .await
        .ok();
    assert_eq!(updated["spec"]["clusterIP"], created["spec"]["clusterIP"]);
    assert_eq!(updated["spec"]["ports"][0]["nodePort"], node_port);
    let plain = server
        .put(&path, &service("s", &json!({"type": "ClusterIP"})))
        .await
        .ok();
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null());
    let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": node_port}]});
    server.post(SERVICES, &service("t", &port)).await.ok();
}

fn dual() -> ApiServerOptions {
    ApiServerOptions {
        service_cidrs: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:96::/112".parse().unwrap(),
        ],
        ..ApiServerOptions::default()
    }
}

#[tokio::test]
async fn a_service_gets_a_second_family_gives_it_back_and_gets_it_again() {
    let server = Server::with(dual()).await;
    let path = format!("{SERVICES}/s");
    let prefer = json!({"ipFamilyPolicy": "PreferDualStack"});
    let created = server.post(SERVICES, &service("s", &prefer)).await.ok();
    let spec = &created["spec"];
    assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
    let ips: Vec<&str> = spec["clusterIPs"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|ip| ip.as_str())
        .collect();
    let [four, six] = ips[..] else {
        panic!("{spec}")
    };
    assert_eq!(spec["clusterIP"], four);
    assert!(
        four.starts_with("10.96.") && six.starts_with("fd00:96::"),
        "{spec}"
    );

    // A client that knows nothing of families changes nothing.
    let same = server.put(&path, &service("s", &json!({}))).await.ok();
    assert_eq!(same["spec"]["clusterIPs"], spec["clusterIPs"]);
    assert_eq!(same["spec"]["ipFamilyPolicy"], "PreferDualStack");

    let single = json!({"ipFamilyPolicy": "SingleStack"});
    let down = server.put(&path, &service("s", &single)).await.ok();
    assert_eq!(down["spec"]["clusterIPs"], json!([four]));
    assert_eq!(down["spec"]["ipFamilies"], json!(["IPv4"]));
    // What was given back can be had by another.
    let asks = json!({"clusterIP": six, "clusterIPs": [six], "ipFamilies": ["IPv6"]});
    let other = server.post(SERVICES, &service("other", &asks)).await.ok();
    assert_eq!(other["spec"]["clusterIP"], six);

    let require = json!({"ipFamilyPolicy": "RequireDualStack"});
    let up = server.put(&path, &service("s", &require)).await.ok();
    let again = up["spec"]["clusterIPs"].as_array().unwrap();
    assert_eq!((again.len(), &again[0]), (2, &json!(four)));
    assert_ne!(again[1], six);
    let wrong = json!({"clusterIP": "fd01::1", "clusterIPs": ["fd01::1"]});
    let answer = server.post(SERVICES, &service("far", &wrong)).await;
    assert!(
        answer
            .fails(422, "Invalid")
            .contains("The range of valid IPs is fd00:96::/112")
    );
}

#[tokio::test]
async fn a_local_load_balancer_has_a_health_check_port_as_long_as_it_is_one() {
    let server = Server::start().await;
    let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": false});
    let created = server.post(SERVICES, &service("s", &balancer)).await.ok();
    let spec = &created["spec"];
    assert!(spec["ports"][0]["nodePort"].is_null(), "{spec}");
    let port = spec["healthCheckNodePort"].as_u64().unwrap();
    let asks = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let taken = server.post(SERVICES, &service("other", &asks)).await;
    assert!(taken.fails(422, "Invalid").contains("already allocated"));
    let path = format!("{SERVICES}/s");
    let kept = server.put(&path, &service("s", &balancer)).await.ok();
    assert_eq!(kept["spec"]["healthCheckNodePort"], port);
    let plain = json!({"type": "ClusterIP"});
    let plain = server.put(&path, &service("s", &plain)).await.ok();
    assert!(plain["spec"]["healthCheckNodePort"].is_null());
    server.post(SERVICES, &service("other", &asks)).await.ok();
}

#[tokio::test]
async fn allocations_are_rebuilt_from_the_services_at_start() {
    use skiff_storage::{Op, Txn};

    const IPS: &str = "/registry/allocations/clusterips/";
    let first = Server::start().await;
    let made = json!({"clusterIP": "10.96.7.7"});
    first.post(SERVICES, &service("s", &made)).await.ok();
    let store = Arc::clone(&first.server.core().store);
    let damage = Txn {
        preconditions: Vec::new(),
        ops: vec![
            Op::Delete {
                key: format!("{IPS}10.96.7.7"),
            },
            Op::Put {
                key: format!("{IPS}10.96.8.8"),
                value: "default/gone".into(),
            },
        ],
    };
    store.txn(damage).await.unwrap();
    crate::admission::service::repair(first.server.core())
        .await
        .unwrap();
    let asks = |name, ip| service(name, &json!({"clusterIP": ip}));
    let answer = first.post(SERVICES, &asks("t", "10.96.7.7")).await;
    assert!(answer.fails(422, "Invalid").contains("already allocated"));
    first.post(SERVICES, &asks("u", "10.96.8.8")).await.ok();
}
