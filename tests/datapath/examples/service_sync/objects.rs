//! The API's objects, as its own controllers make them.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use skiff_tests_datapath::{PODS, TARGET};

const ENDPOINTS: u8 = 5;
const NAMESPACE: &str = "bench";

/// The ClusterIP of a Service.
pub(crate) fn address_of(number: u32) -> Ipv4Addr {
    let [_, high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 100 + high, middle, low)
}

pub(crate) fn service_object(number: u32) -> Value {
    let name = format!("service-{number}");
    let ip = address_of(number).to_string();
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": uid(number),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": name}},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": TARGET}]},
        "status": {"loadBalancer": {}}})
}

/// Five endpoints; of the last of `count` Services, one that exists.
pub(crate) fn slice_object(number: u32, count: u32) -> Value {
    let [existing, ..] = PODS;
    if number + 1 == count {
        return slice(number, &[existing]);
    }
    let [_, high, middle, low] = number.to_be_bytes();
    let addresses = [0, 1, 2, 3, 4]
        .map(|endpoint: u8| Ipv4Addr::new(10, 130 + ENDPOINTS * endpoint + high, middle, low));
    slice(number, &addresses)
}

/// The same with other endpoints every time.
pub(crate) fn changed_slice(number: u32, run: u32) -> Value {
    let [one, two, middle, low] = run.to_be_bytes();
    let addresses = [0, 1, 2, 3, 4].map(|endpoint| match endpoint {
        0 => Ipv4Addr::new(10, 200 + one + two, middle, low),
        _ => Ipv4Addr::new(10, 130 + endpoint, middle, 7),
    });
    slice(number, &addresses)
}

fn slice(number: u32, addresses: &[Ipv4Addr]) -> Value {
    let name = format!("service-{number}");
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|addr| {
            let pod = format!("{name}-{addr}");
            json!({"addresses": [addr.to_string()], "nodeName": "node-2",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": pod, "uid": uid(number)}})
        })
        .collect();
    let owner = json!({"apiVersion": "v1", "kind": "Service", "name": name, "uid": uid(number),
        "controller": true, "blockOwnerDeletion": true});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": NAMESPACE, "name": format!("{name}-abcde"), "uid": uid(number),
            "creationTimestamp": "2026-01-01T00:00:00Z", "generateName": format!("{name}-"),
            "ownerReferences": [owner],
            "labels": {"app": name, "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "ports": [{"name": "http", "port": TARGET, "protocol": "TCP"}], "endpoints": endpoints})
}

fn uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}
