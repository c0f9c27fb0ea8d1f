//! Pods.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use super::*;

#[test]
fn containers() {
    const C: &str = "spec.containers[0]";
    let field = |rest: &str| format!("{C}.{rest}");
    let case = |pointer: &str, value: Value, expected: &[&str]| {
        let expected: Vec<String> = expected.iter().map(|e| field(e)).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(
            Kind::Pod,
            &[(&format!("/spec/containers/0{pointer}"), value, &expected)],
        );
    };
    case("/name", json!(null), &["name: Required value"]);
    case(
        "/name",
        json!("A"),
        &["name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of"],
    );
    case("/image", json!(null), &["image: Required value"]);
    case(
        "/image",
        json!(" a"),
        &["image: Invalid value: \" a\": must not have leading or trailing whitespace"],
    );
    case(
        "/imagePullPolicy",
        json!("Sometimes"),
        &[
            "imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    case(
        "/ports/0/containerPort",
        json!(0),
        &["ports[0].containerPort: Required value"],
    );
    case(
        "/ports/0/containerPort",
        json!(70000),
        &["ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"],
    );
    case(
        "/ports/0/protocol",
        json!("ICMP"),
        &[
            "ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    case(
        "/ports/0/name",
        json!("HTTP"),
        &[
            "ports[0].name: Invalid value: \"HTTP\": must contain only",
            "ports[0].name: Invalid value: \"HTTP\": must contain at least",
        ],
    );
    case(
        "/ports/1",
        json!({"name": "http", "containerPort": 81}),
        &["ports[1].name: Duplicate value: \"http\""],
    );
    case(
        "/env/0/name",
        json!("a=b"),
        &["env[0].name: Invalid value: \"a=b\": a valid environment variable name"],
    );
    case(
        "/env/0",
        json!({"name": "A", "valueFrom": {}}),
        &["env[0].valueFrom: Invalid value: \"\": must specify one of"],
    );
    case(
        "/env/0",
        json!({"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        &["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
    );
    case(
        "/env/0",
        json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.color"}}}),
        &[
            "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.color\": error converting fieldPath",
        ],
    );
    case(
        "/env/0",
        json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}}),
        &[],
    );
    case(
        "/env/0",
        json!({"name": "A", "valueFrom": {"secretKeyRef": {"key": "k"}}}),
        &["env[0].valueFrom.secretKeyRef.name: Required value"],
    );
    case(
        "/envFrom",
        json!([{}]),
        &["envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"],
    );
    case(
        "/volumeMounts/0/name",
        json!("w"),
        &["volumeMounts[0].name: Not found: \"w\""],
    );
    case(
        "/volumeMounts/1",
        json!({"name": "v", "mountPath": "/v"}),
        &["volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique"],
    );
    case(
        "/volumeMounts/0/subPath",
        json!("../x"),
        &["volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'"],
    );
    case(
        "/resources/requests/cpu",
        json!("2"),
        &["resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
    );
    case(
        "/resources/limits/memory",
        json!("-1"),
        &[
            "resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            "resources.requests: Invalid value: \"1Gi\": must be less than or equal to memory limit of -1",
        ],
    );
    case(
        "/resources/limits/apples",
        json!("1"),
        &[
            "resources.limits: Invalid value: \"apples\": must be a standard resource for containers",
            "resources.requests: Invalid value: \"apples\"",
        ],
    );
    case(
        "/livenessProbe",
        json!({}),
        &["livenessProbe: Required value: must specify a handler type"],
    );
    case(
        "/livenessProbe/successThreshold",
        json!(2),
        &["livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    case(
        "/livenessProbe/periodSeconds",
        json!(-1),
        &["livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"],
    );
    case(
        "/livenessProbe/tcpSocket",
        json!({"port": 80}),
        &["livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"],
    );
    case(
        "/livenessProbe",
        json!({"exec": {}}),
        &["livenessProbe.exec.command: Required value"],
    );
    case(
        "/securityContext",
        json!({"privileged": true, "allowPrivilegeEscalation": false}),
        &["securityContext: Invalid value: {"],
    );
    case(
        "/securityContext",
        json!({"runAsUser": -1}),
        &["securityContext.runAsUser: Invalid value: -1: must be between 0"],
    );
}

#[test]
fn pod_specs() {
    let container = json!({"name": "a", "image": "b"});
    check(
        Kind::Pod,
        &[
            (
                "/spec/containers",
                json!([]),
                &["spec.containers: Required value"],
            ),
            (
                "/spec/containers/1",
                container.clone(),
                &["spec.containers[1].name: Duplicate value: \"a\""],
            ),
            (
                "/spec/initContainers",
                json!([container]),
                &["spec.initContainers[0].name: Duplicate value: \"a\""],
            ),
            (
                "/spec/initContainers",
                json!([{"name": "i", "image": "b", "livenessProbe": {"exec": {"command": ["x"]}}}]),
                &[
                    "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
                ],
            ),
            (
                "/spec/restartPolicy",
                json!("Maybe"),
                &[
                    "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
                ],
            ),
            (
                "/spec/dnsPolicy",
                json!("None"),
                &[
                    "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver",
                ],
            ),
            (
                "/spec/activeDeadlineSeconds",
                json!(0),
                &[
                    "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                ],
            ),
            (
                "/spec/nodeSelector",
                json!({"a": "b c"}),
                &["spec.nodeSelector: Invalid value: \"b c\""],
            ),
            (
                "/spec/nodeName",
                json!("UPPER"),
                &["spec.nodeName: Invalid value: \"UPPER\""],
            ),
            (
                "/spec/volumes/0",
                json!({"name": "v", "secret": {}, "emptyDir": {}}),
                &["spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                "/spec/volumes/1",
                json!({"name": "v", "configMap": {}}),
                &[
                    "spec.volumes[1].name: Duplicate value: \"v\"",
                    "spec.volumes[1].configMap.name: Required value",
                ],
            ),
            (
                "/spec/volumes/1",
                json!({"name": "w", "hostPath": {"path": "/a/../b"}}),
                &[
                    "spec.volumes[1].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                ],
            ),
            (
                "/spec/volumes/1",
                json!({"name": "w", "configMap": {"name": "c", "defaultMode": 0o1777}}),
                &["spec.volumes[1].configMap.defaultMode: Invalid value: 1023"],
            ),
            (
                "/spec/volumes/1",
                json!({"name": "w", "configMap": {"name": "c", "items": [{"key": "k", "path": "/etc/passwd"}]}}),
                &[
                    "spec.volumes[1].configMap.items[0].path: Invalid value: \"/etc/passwd\": must be a relative path",
                ],
            ),
            (
                "/spec/tolerations/0",
                json!({"operator": "Equal"}),
                &[
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty",
                ],
            ),
            (
                "/spec/tolerations/0",
                json!({"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1}),
                &[
                    "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute'",
                ],
            ),
            (
                "/spec/hostAliases",
                json!([{"ip": "x", "hostnames": ["a"]}]),
                &["spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address"],
            ),
            (
                "/spec/affinity",
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
                &[
                    "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value",
                ],
            ),
        ],
    );
    let ports =
        json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8080}]);
    let duplicate = "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//8080\"";
    check(
        Kind::Pod,
        &[("/spec/containers/0/ports", ports, &[duplicate])],
    );
}

#[test]
fn pods_may_change_little() {
    let ok: &[(&str, Value, Value)] = &[
        ("/spec/containers/0/image", json!("a:1"), json!("a:2")),
        ("/spec/activeDeadlineSeconds", json!(null), json!(5)),
        ("/spec/activeDeadlineSeconds", json!(5), json!(4)),
        (
            "/spec/tolerations/2",
            json!({"key": "a", "operator": "Exists"}),
            json!({"key": "a", "operator": "Exists"}),
        ),
        (
            "/spec/schedulingGates",
            json!([{"name": "a/b"}]),
            json!(null),
        ),
        ("/metadata/labels", json!({"a": "1"}), json!({"a": "2"})),
    ];
    for (pointer, before, after) in ok {
        assert_eq!(
            update(Kind::Pod, pointer, before, after),
            Vec::<String>::new(),
            "{pointer}"
        );
    }
    let errors = update(
        Kind::Pod,
        "/spec/containers/0/env/0/value",
        &json!("1"),
        &json!("2"),
    );
    assert!(errors[0].starts_with(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"
    ));
    assert!(
        errors[0].ends_with("changed: spec.containers[0].env[0].value"),
        "{}",
        errors[0]
    );
    let bad: &[(&str, Value, Value, &str)] = &[
        (
            "/spec/activeDeadlineSeconds",
            json!(5),
            json!(6),
            "spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value",
        ),
        (
            "/spec/nodeName",
            json!("n1"),
            json!("n2"),
            "spec: Forbidden",
        ),
        (
            "/spec/containers/1",
            json!({"name": "b", "image": "c"}),
            json!({"name": "d", "image": "c"}),
            "spec: Forbidden",
        ),
        (
            "/metadata/uid",
            json!("1"),
            json!("2"),
            "metadata.uid: Invalid value: \"2\": field is immutable",
        ),
    ];
    for (pointer, before, after, expected) in bad {
        let errors = update(Kind::Pod, pointer, before, after);
        assert!(
            errors.first().is_some_and(|e| e.starts_with(expected)),
            "{pointer}: {errors:?}"
        );
    }
    let (old, mut new) = (valid(Kind::Pod), valid(Kind::Pod));
    set(
        &mut new,
        "/spec/containers/1",
        &json!({"name": "b", "image": "c"}),
    );
    let errors = Registry::of(Kind::Pod)
        .unwrap()
        .validate_update(&finish(Kind::Pod, &new), &old);
    assert_eq!(
        errors[0].to_string(),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
    let tolerations = update(
        Kind::Pod,
        "/spec/tolerations/0",
        &json!({"key": "a", "operator": "Exists"}),
        &json!({"key": "b", "operator": "Exists"}),
    );
    assert_eq!(
        tolerations,
        [
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
        ]
    );
}

#[test]
fn quality_of_service_classes() {
    let class = |resources: Value| {
        quality_of_service(&json!({"spec": {"containers": [{"resources": resources}]}}))
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "0"}})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
    assert_eq!(
        class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})),
        "Guaranteed"
    );
    assert_eq!(
        class(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}})
        ),
        "Guaranteed"
    );
    assert_eq!(
        class(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})
        ),
        "Burstable"
    );
}
