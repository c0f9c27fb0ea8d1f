//! Services and workloads.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use super::*;

#[test]
fn services() {
    check(
        Kind::Service,
        &[
            ("/spec/ports", json!([]), &["spec.ports: Required value"]),
            (
                "/spec/ports/1",
                json!({"port": 81}),
                &["spec.ports[1].name: Required value"],
            ),
            (
                "/spec/ports/1",
                json!({"name": "http", "port": 81}),
                &["spec.ports[1].name: Duplicate value: \"http\""],
            ),
            (
                "/spec/ports/1",
                json!({"name": "b", "port": 80}),
                &["spec.ports[1]: Duplicate value: {"],
            ),
            (
                "/spec/ports/0/port",
                json!(0),
                &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (
                "/spec/ports/0/targetPort",
                json!("Bad"),
                &["spec.ports[0].targetPort: Invalid value: \"Bad\""],
            ),
            (
                "/spec/ports/0/nodePort",
                json!(30000),
                &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                "/spec/type",
                json!("Other"),
                &[
                    "spec.type: Unsupported value: \"Other\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                "/spec/sessionAffinity",
                json!("Sticky"),
                &[
                    "spec.sessionAffinity: Unsupported value: \"Sticky\": supported values: \"ClientIP\", \"None\"",
                ],
            ),
            (
                "/spec/selector",
                json!({"a": "b c"}),
                &["spec.selector: Invalid value: \"b c\""],
            ),
            (
                "/spec/externalIPs",
                json!(["127.0.0.1"]),
                &[
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range",
                ],
            ),
            (
                "/spec/internalTrafficPolicy",
                json!("Nowhere"),
                &["spec.internalTrafficPolicy: Unsupported value"],
            ),
        ],
    );
}

#[test]
fn workloads() {
    for kind in [Kind::Deployment, Kind::ReplicaSet] {
        check(
            kind,
            &[
                (
                    "/spec/replicas",
                    json!(-1),
                    &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
                ),
                (
                    "/spec/selector",
                    json!({}),
                    &[
                        "spec.selector: Required value",
                        "spec.template.metadata.labels: Invalid value",
                    ],
                ),
                (
                    "/spec/selector/matchLabels",
                    json!({"app": "y"}),
                    &[
                        "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
                    ],
                ),
                (
                    "/spec/template/spec/restartPolicy",
                    json!("Never"),
                    &[
                        "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                    ],
                ),
                (
                    "/spec/template/spec/containers/0/image",
                    json!(null),
                    &["spec.template.spec.containers[0].image: Required value"],
                ),
                (
                    "/spec/selector/matchExpressions",
                    json!([{"key": "app", "operator": "In"}]),
                    &[
                        "spec.selector.matchExpressions[0].values: Required value",
                        "spec.template.metadata.labels: Invalid value",
                    ],
                ),
            ],
        );
        let errors = update(
            kind,
            "/spec/selector/matchExpressions",
            &json!([]),
            &json!([{"key": "app", "operator": "Exists"}]),
        );
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].starts_with("spec.selector: Invalid value: {"),
            "{}",
            errors[0]
        );
        assert!(errors[0].ends_with("field is immutable"));
    }
    check(
        Kind::Deployment,
        &[
            (
                "/spec/strategy/type",
                json!("Magic"),
                &["spec.strategy.type: Unsupported value: \"Magic\""],
            ),
            (
                "/spec/strategy/type",
                json!("Recreate"),
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": 0}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                "/spec/strategy/rollingUpdate/maxSurge",
                json!("a%"),
                &[
                    "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"a%\": a valid percent string",
                ],
            ),
            (
                "/spec/progressDeadlineSeconds",
                json!(0),
                &[
                    "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
                ],
            ),
        ],
    );
}
