//! Metadata, configuration, nodes and endpoints.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use super::*;

#[test]
fn metadata() {
    let long = "a".repeat(300 * 1024);
    check(
        Kind::ConfigMap,
        &[
            (
                "/metadata/name",
                json!(null),
                &["metadata.name: Required value: name or generateName is required"],
            ),
            (
                "/metadata/name",
                json!("X"),
                &[
                    "metadata.name: Invalid value: \"X\": a lowercase RFC 1123 subdomain must consist of",
                ],
            ),
            ("/metadata/name", json!("a.b-c.1"), &[]),
            ("/metadata/generateName", json!("web-"), &[]),
            (
                "/metadata/generateName",
                json!("Web-"),
                &["metadata.generateName: Invalid value: \"Web-\": a lowercase"],
            ),
            (
                "/metadata/namespace",
                json!(null),
                &["metadata.namespace: Required value"],
            ),
            (
                "/metadata/namespace",
                json!("a.b"),
                &["metadata.namespace: Invalid value: \"a.b\": a lowercase RFC 1123 label"],
            ),
            (
                "/metadata/labels",
                json!({"a b": "x"}),
                &["metadata.labels: Invalid value: \"a b\": name part must consist of"],
            ),
            (
                "/metadata/labels",
                json!({"a": "x y"}),
                &["metadata.labels: Invalid value: \"x y\": a valid label must be"],
            ),
            (
                "/metadata/annotations",
                json!({"UPPER/a": "anything goes"}),
                &[],
            ),
            (
                "/metadata/annotations",
                json!({"a": long}),
                &["metadata.annotations: Too long: may not be more than 262144 bytes"],
            ),
            (
                "/metadata/finalizers",
                json!(["example.com/a", "orphan"]),
                &[],
            ),
            (
                "/metadata/finalizers",
                json!(["mine"]),
                &[
                    "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name",
                ],
            ),
            (
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "", "controller": true},
                    {"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "2", "controller": true}]),
                &[
                    "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty",
                    "metadata.ownerReferences: Invalid value: [",
                ],
            ),
        ],
    );
    check(
        Kind::Namespace,
        &[
            (
                "/metadata/name",
                json!("a.b"),
                &["metadata.name: Invalid value: \"a.b\": a lowercase RFC 1123 label"],
            ),
            (
                "/metadata/namespace",
                json!("x"),
                &["metadata.namespace: Forbidden: not allowed on this type"],
            ),
        ],
    );
    check(
        Kind::Service,
        &[
            (
                "/metadata/name",
                json!("1a"),
                &["metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of"],
            ),
            ("/spec/trafficDistribution", json!("PreferSameNode"), &[]),
            (
                "/spec/trafficDistribution",
                json!("Nearby"),
                &["spec.trafficDistribution: Unsupported value: \"Nearby\": supported values: "],
            ),
        ],
    );
    check(
        Kind::CoreEvent,
        &[
            ("/metadata/name", json!("web.17F_x"), &[]),
            (
                "/metadata/name",
                json!("a/b"),
                &["metadata.name: Invalid value: \"a/b\": may not contain '/'"],
            ),
            (
                "/involvedObject/namespace",
                json!("other"),
                &[
                    "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace",
                ],
            ),
        ],
    );
}

#[test]
fn configuration() {
    let big = "a".repeat(1024 * 1024 + 1);
    check(
        Kind::ConfigMap,
        &[
            (
                "/data",
                json!({"a/b": "x"}),
                &["data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"],
            ),
            (
                "/data",
                json!({"..": "x"}),
                &["data[..]: Invalid value: \"..\": must not be '..'"],
            ),
            (
                "/data",
                json!({"a": big}),
                &[": Too long: may not be more than 1048576 bytes"],
            ),
            (
                "/binaryData",
                json!({"a": "eA=="}),
                &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
            ),
        ],
    );
    check(
        Kind::Secret,
        &[
            (
                "/type",
                json!("kubernetes.io/tls"),
                &[
                    "data[tls.crt]: Required value",
                    "data[tls.key]: Required value",
                ],
            ),
            (
                "/type",
                json!("kubernetes.io/dockerconfigjson"),
                &["data[.dockerconfigjson]: Required value"],
            ),
            ("/type", json!("example.com/own"), &[]),
        ],
    );
    assert_eq!(
        update(Kind::Secret, "/type", &json!("a/a"), &json!("b/b")),
        ["type: Invalid value: \"b/b\": field is immutable"]
    );
    let mut frozen = valid(Kind::ConfigMap);
    frozen["immutable"] = true.into();
    let mut new = frozen.clone();
    new["data"]["a"] = "2".into();
    let errors = Registry::of(Kind::ConfigMap)
        .unwrap()
        .validate_update(&new, &frozen);
    assert_eq!(
        errors[0].to_string(),
        "data: Forbidden: field is immutable when `immutable` is set"
    );
    check(
        Kind::Lease,
        &[(
            "/spec/leaseDurationSeconds",
            json!(0),
            &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
        )],
    );
}

#[test]
fn nodes_and_endpoints() {
    check(
        Kind::Node,
        &[
            (
                "/spec/taints/1",
                json!({"key": "a", "effect": "NoSchedule"}),
                &["spec.taints[1]: Duplicate value: {"],
            ),
            (
                "/spec/taints/0/effect",
                json!("Maybe"),
                &["spec.taints[0].effect: Unsupported value"],
            ),
            (
                "/spec/podCIDRs",
                json!(["10.0.0.0"]),
                &["spec.podCIDRs[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR value"],
            ),
        ],
    );
    let errors = update(
        Kind::Node,
        "/spec/podCIDRs",
        &json!(["10.0.0.0/24"]),
        &json!(["10.0.1.0/24"]),
    );
    assert_eq!(
        errors,
        ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
    );
    check(
        Kind::EndpointSlice,
        &[
            (
                "/addressType",
                json!("IPX"),
                &[
                    "addressType: Unsupported value: \"IPX\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
                ],
            ),
            (
                "/endpoints/0/addresses",
                json!([]),
                &["endpoints[0].addresses: Required value: must contain at least 1 address"],
            ),
            (
                "/endpoints/0/addresses",
                json!(["::1"]),
                &["endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address"],
            ),
            (
                "/endpoints/0/addresses",
                json!(["127.0.0.1"]),
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range",
                ],
            ),
            (
                "/ports/1",
                json!({"name": "http", "port": 81}),
                &["ports[1].name: Duplicate value: \"http\""],
            ),
        ],
    );
    assert_eq!(
        update(
            Kind::EndpointSlice,
            "/addressType",
            &json!("IPv4"),
            &json!("FQDN")
        )
        .first()
        .map(String::as_str),
        Some("addressType: Invalid value: \"FQDN\": field is immutable")
    );
    check(
        Kind::Endpoints,
        &[(
            "/subsets/0/addresses",
            json!([{"ip": "x"}]),
            &["subsets[0].addresses[0].ip: Invalid value: \"x\""],
        )],
    );
}

#[test]
fn finalizers_are_not_added_while_an_object_goes_away() {
    let mut old = valid(Kind::ConfigMap);
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    old["metadata"]["finalizers"] = json!(["a/b"]);
    let resource = Registry::of(Kind::ConfigMap).unwrap();
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!([]);
    assert_eq!(resource.validate_update(&new, &old), []);
    new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
    let errors = resource.validate_update(&new, &old);
    assert_eq!(
        errors[0].to_string(),
        "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}"
    );
}
