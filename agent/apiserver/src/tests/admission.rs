//! Allocation of addresses and ports, and the objects that every cluster has.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

fn small() -> ApiServerOptions {
    ApiServerOptions {
        service_cidr: "10.96.0.0/28".parse().unwrap(),
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
