//! Addresses, families and load balancers of Services.

use serde_json::{Value, json};

use super::*;

/// A Service of these fields and the usual rest.
fn service(fields: &Value) -> Value {
    let mut object = valid(Kind::Service);
    for (key, value) in fields.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    finish(Kind::Service, &object)
}

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Each error begins as expected, and there are no others.
fn assert_errors(errors: &[FieldError], expected: &[&str], case: &str) {
    let errors = texts(errors);
    let fits = errors.len() == expected.len()
        && errors.iter().zip(expected).all(|(e, x)| e.starts_with(x));
    assert!(fits, "{case}: {errors:#?}");
}

fn ips(list: &[&str]) -> Value {
    json!({"clusterIP": list.first().copied().unwrap_or_default(), "clusterIPs": list})
}

#[test]
fn addresses_fit_each_other_and_their_families() {
    let with = |mut object: Value, families: &[&str]| {
        object["ipFamilies"] = json!(families);
        object
    };
    let cases: &[(Value, &[&str])] = &[
        (ips(&["10.96.0.1"]), &[]),
        (ips(&["10.96.0.1", "fd00::1"]), &[]),
        (ips(&["None"]), &[]),
        (with(ips(&["fd00::1", "10.96.0.1"]), &["IPv6", "IPv4"]), &[]),
        (with(ips(&["fd00::1"]), &["IPv6", "IPv4"]), &[]),
        (
            ips(&["10.96.0"]),
            &["spec.clusterIPs[0]: Invalid value: \"10.96.0\": must be a valid IP address"],
        ),
        (
            ips(&["None", "10.96.0.1"]),
            &[
                "spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.1\"]: 'None' must be the first and only value",
            ],
        ),
        (
            ips(&["10.96.0.1", "10.96.0.2"]),
            &[
                "spec.clusterIPs: Invalid value: [\"10.96.0.1\",\"10.96.0.2\"]: may specify no more than one IP for each IP family",
            ],
        ),
        (
            ips(&["10.96.0.1", "fd00::1", "fd00::2"]),
            &[
                "spec.clusterIPs: Invalid value: [\"10.96.0.1\",\"fd00::1\",\"fd00::2\"]: may only hold up to 2 values",
            ],
        ),
        (
            json!({"clusterIPs": ["10.96.0.1"]}),
            &[
                "spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: must be empty when `clusterIP` is not specified",
            ],
        ),
        (
            json!({"clusterIP": "10.96.0.1"}),
            &["spec.clusterIPs: Required value"],
        ),
        (
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2"]}),
            &[
                "spec.clusterIPs: Invalid value: [\"10.96.0.2\"]: first value must match `clusterIP`",
            ],
        ),
        (
            with(ips(&["10.96.0.1"]), &["IPv6"]),
            &[
                "spec.clusterIPs[0]: Invalid value: \"10.96.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ],
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv4"]}),
            &["spec.ipFamilies[1]: Duplicate value: \"IPv4\""],
        ),
        (
            json!({"ipFamilies": ["IPv5"]}),
            &[
                "spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
            ],
        ),
        (
            json!({"ipFamilyPolicy": "DualStack"}),
            &[
                "spec.ipFamilyPolicy: Unsupported value: \"DualStack\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
            ],
        ),
    ];
    let resource = Registry::of(Kind::Service).unwrap();
    for (fields, expected) in cases {
        let errors = resource.validate(&service(fields));
        assert_errors(&errors, expected, &fields.to_string());
    }
}

#[test]
fn load_balancers_have_fields_of_their_own() {
    let balancer = |extra: Value| {
        let mut fields = extra;
        fields["type"] = json!("LoadBalancer");
        fields
    };
    let cases: &[(Value, &[&str])] = &[
        (
            balancer(json!({"loadBalancerClass": "example.com/lb"})),
            &[],
        ),
        (
            balancer(json!({"loadBalancerClass": "a b"})),
            &["spec.loadBalancerClass: Invalid value: \"a b\""],
        ),
        (
            balancer(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30001})),
            &[],
        ),
        (
            balancer(json!({"healthCheckNodePort": 30001})),
            &[
                "spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ],
        ),
        (
            json!({"loadBalancerClass": "example.com/lb", "allocateLoadBalancerNodePorts": true}),
            &[
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ],
        ),
    ];
    let resource = Registry::of(Kind::Service).unwrap();
    for (fields, expected) in cases {
        let errors = resource.validate(&service(fields));
        assert_errors(&errors, expected, &fields.to_string());
    }
}

#[test]
fn source_ranges_are_prefixes_and_a_load_balancer_s() {
    let with = |kind: &str, ranges: Value, annotation: Option<&str>| {
        let mut object = service(&json!({"type": kind, "loadBalancerSourceRanges": ranges}));
        if let Some(text) = annotation {
            let key = "service.beta.kubernetes.io/load-balancer-source-ranges";
            object["metadata"]["annotations"] = json!({key: text});
        }
        object
    };
    let only = "may only be used when `type` is 'LoadBalancer'";
    let field = "spec.LoadBalancerSourceRanges";
    let annotation = "metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]";
    let cases = [
        (
            "LoadBalancer",
            json!(["10.0.0.0/8", " fd00::/8 "]),
            None,
            vec![],
        ),
        ("ClusterIP", json!([]), None, vec![]),
        (
            "LoadBalancer",
            json!(["10.0.0.0/8", "10.0.0.1", "10.0.0.0/33", ""]),
            Some("ignored"),
            [1, 2, 3]
                .map(|i| format!("{field}[{i}]: Invalid value"))
                .into(),
        ),
        (
            "NodePort",
            json!(["10.0.0.0/8"]),
            None,
            vec![format!("{field}: Forbidden: {only}")],
        ),
        (
            "LoadBalancer",
            json!([]),
            Some("10.0.0.0/8, fd00::/8"),
            vec![],
        ),
        (
            "LoadBalancer",
            json!([]),
            Some("10.0.0.0/8,nowhere"),
            vec![format!("{annotation}: Invalid value: \"nowhere\"")],
        ),
        (
            "ClusterIP",
            json!([]),
            Some("10.0.0.0/8"),
            vec![format!("{annotation}: Forbidden: {only}")],
        ),
    ];
    let resource = Registry::of(Kind::Service).unwrap();
    for (kind, ranges, annotation, expected) in cases {
        let case = format!("{kind} {ranges} {annotation:?}");
        let errors = resource.validate(&with(kind, ranges, annotation));
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        assert_errors(&errors, &expected, &case);
    }
}

#[test]
fn updates_keep_what_is_first_and_say_single_stack_to_drop_the_second() {
    let dual = || {
        let mut fields = ips(&["10.96.0.1", "fd00::1"]);
        fields["ipFamilies"] = json!(["IPv4", "IPv6"]);
        fields["ipFamilyPolicy"] = json!("PreferDualStack");
        fields
    };
    let single = |policy: &str| {
        let mut fields = ips(&["10.96.0.1"]);
        fields["ipFamilies"] = json!(["IPv4"]);
        fields["ipFamilyPolicy"] = json!(policy);
        fields
    };
    let local = |port: i64, class: &str| {
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port, "loadBalancerClass": class})
    };
    let cases: &[(Value, Value, &[&str])] = &[
        (single("SingleStack"), dual(), &[]),
        (dual(), single("SingleStack"), &[]),
        (
            dual(),
            single("PreferDualStack"),
            &[
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP",
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary ipFamily",
            ],
        ),
        (
            ips(&["10.96.0.1"]),
            ips(&["10.96.0.2"]),
            &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"],
        ),
        (
            ips(&["10.96.0.1", "fd00::1"]),
            ips(&["10.96.0.1", "fd00::2"]),
            &[
                "spec.clusterIPs[1]: Invalid value: [\"10.96.0.1\",\"fd00::2\"]: may not change once set",
            ],
        ),
        (
            ips(&["10.96.0.1"]),
            ips(&["None"]),
            &["spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"],
        ),
        (
            ips(&["10.96.0.1"]),
            json!({}),
            &["spec.clusterIPs[0]: Invalid value: []: primary clusterIP can not be unset"],
        ),
        (
            json!({"ipFamilies": ["IPv4"]}),
            json!({"ipFamilies": ["IPv6"]}),
            &["spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set"],
        ),
        (local(30001, "a/b"), local(30001, "a/b"), &[]),
        (
            local(30001, "a/b"),
            local(30002, "a/c"),
            &[
                "spec.healthCheckNodePort: Forbidden: field is immutable",
                "spec.loadBalancerClass: Invalid value: \"a/c\": may not change once set",
            ],
        ),
    ];
    let resource = Registry::of(Kind::Service).unwrap();
    for (before, after, expected) in cases {
        let errors = resource.validate_update(&service(after), &service(before));
        assert_errors(&errors, expected, &format!("{before} -> {after}"));
    }
}
