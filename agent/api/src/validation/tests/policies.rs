//! NetworkPolicies.

use super::*;

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn network_policies() {
    let port = "/spec/ingress/0/ports/0";
    let peer = "/spec/ingress/0/from/0";
    check(
        Kind::NetworkPolicy,
        &[
            ("/spec/podSelector", json!({}), &[]),
            (
                "/spec/podSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]}),
                &["spec.podSelector.matchExpressions[0].operator: Invalid value: \"Like\""],
            ),
            (
                port,
                json!({"protocol": "ICMP"}),
                &[
                    "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                port,
                json!({"port": 0}),
                &[
                    "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                port,
                json!({"port": "UP"}),
                &[
                    "spec.ingress[0].ports[0].port: Invalid value: \"UP\": must contain only alpha-numeric",
                    "spec.ingress[0].ports[0].port: Invalid value: \"UP\": must contain at least one letter",
                ],
            ),
            (port, json!({"port": 80, "endPort": 80}), &[]),
            (
                port,
                json!({"port": 80, "endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
                ],
            ),
            (
                port,
                json!({"port": "http", "endPort": 80}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
                ],
            ),
            (
                port,
                json!({"endPort": 80}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is not specified",
                ],
            ),
            (port, json!({"protocol": "SCTP"}), &[]),
            (
                peer,
                json!({}),
                &["spec.ingress[0].from[0]: Required value: must specify a peer"],
            ),
            (
                peer,
                json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
                &[
                    "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
                ],
            ),
            (
                peer,
                json!({"ipBlock": {"cidr": ""}}),
                &["spec.ingress[0].from[0].ipBlock.cidr: Required value"],
            ),
            (
                peer,
                json!({"ipBlock": {"cidr": "10.0.0.1"}}),
                &[
                    "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.1\": must be a valid CIDR value",
                ],
            ),
            (
                peer,
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "11.0.0.0/16", "x"]}}),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                    "spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                    "spec.ingress[0].from[0].ipBlock.except[2]: Invalid value: \"x\": must be a valid CIDR value",
                ],
            ),
            (
                "/spec/egress/0/to/0",
                json!({"namespaceSelector": {"matchLabels": {"a b": "c"}}}),
                &["spec.egress[0].to[0].namespaceSelector.matchLabels: Invalid value: \"a b\""],
            ),
            (
                "/spec/policyTypes/0",
                json!("Sideways"),
                &[
                    "spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \"Egress\", \"Ingress\"",
                ],
            ),
            (
                "/spec/policyTypes",
                json!(["Ingress", "Egress", "Ingress"]),
                &[
                    "spec.policyTypes: Invalid value: [\"Ingress\",\"Egress\",\"Ingress\"]: may not specify more than two policyTypes",
                ],
            ),
        ],
    );
}
