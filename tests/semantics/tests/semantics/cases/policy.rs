//! `internalTrafficPolicy`, `externalTrafficPolicy`, `loadBalancerSourceRanges`.
//!
//! Clients in the cluster reach external addresses by all endpoints whatever the external policy: it is about clients
//! outside.

use anyhow::Result;
use serde_json::json;

use crate::{
    expect::Expect::{Dropped, Itself, Refused, To, Unanswered},
    proxy::Need,
    run::{
        Case,
        Play::{Each, Look},
    },
    stage::{
        Front::{Balancer, External, NodePort, Vip},
        Stage,
    },
    who::{
        Client::{Backend, Host, OtherOutside, Outside, Pod},
        Who::{B0, B1, R0, R1},
        at,
    },
};

const INTERNAL: &str = r#"{"internalTrafficPolicy": "Local"}"#;
const INTERNAL_NODE_PORT: &str = r#"{"type": "NodePort", "internalTrafficPolicy": "Local"}"#;
const NODE_PORT: &str = r#"{"type": "NodePort", "externalTrafficPolicy": "Local"}"#;
const BALANCER: &str = r#"{"type": "LoadBalancer", "externalTrafficPolicy": "Local"}"#;
const EXTERNAL: &str = r#"{"externalIPs": ["EXTERNAL"], "externalTrafficPolicy": "Local"}"#;
const BOTH: &str =
    r#"{"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}"#;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "internal Local leads to the node's own endpoints only",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[at(B0), at(B1), at(R0)],
            checks: &[(Pod, Vip, Itself(&[B0, B1])), (Host, Vip, To(&[B0, B1]))],
        },
    },
    Case {
        name: "internal Local without an endpoint on the node does not answer",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[at(R0), at(R1)],
            checks: &[(Pod, Vip, Unanswered), (Host, Vip, Unanswered)],
        },
    },
    Case {
        name: "internal Local without any endpoint refuses at once",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[],
            checks: &[(Pod, Vip, Refused), (Host, Vip, Refused)],
        },
    },
    Case {
        name: "internal Local lets a pod reach itself",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[at(B0), at(R0)],
            checks: &[(Backend, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "internal Local does not count for NodePorts",
        needs: &[],
        play: Look {
            spec: INTERNAL_NODE_PORT,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, NodePort, To(&[B0, R0])),
                (Host, NodePort, To(&[B0, R0])),
                (Pod, Vip, To(&[B0])),
            ],
        },
    },
    Case {
        name: "internal Local does not count an endpoint of no known node",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[at(B0), at(B1).nowhere()],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "external Local counts for NodePorts of clients outside, whose address stays",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Outside, NodePort, Itself(&[B0])),
                (OtherOutside, NodePort, Itself(&[B0])),
            ],
        },
    },
    Case {
        name: "external Local does not count for NodePorts of pods and the node",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, NodePort, To(&[B0, R0])),
                (Host, NodePort, To(&[B0, R0])),
                (Pod, Vip, Itself(&[B0, R0])),
                (Host, Vip, To(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "external Local without an endpoint on the node drops clients outside",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(R0)],
            checks: &[(Outside, NodePort, Dropped)],
        },
    },
    Case {
        name: "external Local without an endpoint on the node serves pods and the node",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(R0), at(R1)],
            checks: &[
                (Pod, NodePort, To(&[R0, R1])),
                (Host, NodePort, To(&[R0, R1])),
                (Pod, Vip, Itself(&[R0, R1])),
            ],
        },
    },
    Case {
        name: "external Local without any endpoint refuses",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[],
            checks: &[(Pod, NodePort, Refused), (Host, NodePort, Refused)],
        },
    },
    Case {
        name: "external Local without any endpoint refuses clients outside",
        needs: &[Need::RefusalOutside],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[],
            checks: &[(Outside, NodePort, Refused)],
        },
    },
    Case {
        name: "external Local counts for load balancers' addresses of clients outside",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[at(B0), at(B1), at(R0)],
            checks: &[
                (Outside, Balancer, Itself(&[B0, B1])),
                (Outside, NodePort, Itself(&[B0, B1])),
            ],
        },
    },
    Case {
        name: "external Local does not count for load balancers' addresses of pods and the node",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, Balancer, To(&[B0, R0])),
                (Host, Balancer, To(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "external Local drops at load balancers' addresses without an endpoint on the node",
        needs: &[],
        play: Look {
            spec: BALANCER,
            endpoints: &[at(R0)],
            checks: &[(Outside, Balancer, Dropped), (Pod, Balancer, To(&[R0]))],
        },
    },
    Case {
        name: "external Local counts for external IPs of clients outside",
        needs: &[],
        play: Look {
            spec: EXTERNAL,
            endpoints: &[at(B0), at(R0)],
            checks: &[(Outside, External, Itself(&[B0]))],
        },
    },
    Case {
        name: "external Local does not count for external IPs of pods and the node",
        needs: &[],
        play: Look {
            spec: EXTERNAL,
            endpoints: &[at(B0), at(R0)],
            checks: &[
                (Pod, External, To(&[B0, R0])),
                (Host, External, To(&[B0, R0])),
            ],
        },
    },
    Case {
        name: "external and internal Local each count for their own clients",
        needs: &[],
        play: Look {
            spec: BOTH,
            endpoints: &[at(B0), at(R0)],
            checks: &[(Pod, Vip, To(&[B0])), (Host, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "external Local falls back to draining endpoints of the node",
        needs: &[],
        play: Look {
            spec: NODE_PORT,
            endpoints: &[at(B0).draining(), at(R0)],
            checks: &[
                (Outside, NodePort, Itself(&[B0])),
                (Pod, NodePort, To(&[R0])),
            ],
        },
    },
    Case {
        name: "source ranges let their clients through",
        needs: &[Need::SourceRanges],
        play: Each(source_ranges),
    },
    Case {
        name: "source ranges count for load balancers' addresses only",
        needs: &[Need::SourceRanges],
        play: Each(source_ranges_elsewhere),
    },
    Case {
        name: "source ranges change",
        needs: &[Need::SourceRanges],
        play: Each(source_ranges_change),
    },
    Case {
        name: "source ranges count for pods",
        needs: &[Need::SourceRanges],
        play: Each(source_ranges_of_pods),
    },
    Case {
        name: "policies change while the Service stays",
        needs: &[],
        play: Each(policy_changes),
    },
];

fn ranges(stage: &Stage<'_, '_>, client: crate::who::Client) -> serde_json::Value {
    let length = if stage.family == crate::who::Family::V4 {
        32
    } else {
        128
    };
    let all = client.addresses(stage.family);
    let all: Vec<String> = all.iter().map(|ip| format!("{ip}/{length}")).collect();
    json!({"type": "LoadBalancer", "loadBalancerSourceRanges": all})
}

fn source_ranges(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(ranges(stage, Outside), &[at(B0), at(R0)])?;
    stage.check(Outside, Balancer, To(&[B0, R0]))?;
    stage.check(OtherOutside, Balancer, Dropped)
}

fn source_ranges_elsewhere(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(ranges(stage, Outside), &[at(B0)])?;
    stage.check(OtherOutside, Balancer, Dropped)?;
    stage.check(OtherOutside, NodePort, To(&[B0]))?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.check(Pod, NodePort, To(&[B0]))
}

fn source_ranges_change(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(ranges(stage, Outside), &[at(B0)])?;
    stage.check(OtherOutside, Balancer, Dropped)?;
    stage.change("web", ranges(stage, OtherOutside))?;
    stage.settle()?;
    stage.check(OtherOutside, Balancer, To(&[B0]))?;
    stage.check(Outside, Balancer, Dropped)?;
    stage.change("web", json!({"loadBalancerSourceRanges": null}))?;
    stage.settle()?;
    stage.check(Outside, Balancer, To(&[B0]))
}

fn source_ranges_of_pods(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(ranges(stage, Outside), &[at(B0)])?;
    stage.check(Pod, Balancer, Unanswered)?;
    stage.change("web", ranges(stage, Pod))?;
    stage.settle()?;
    stage.check(Pod, Balancer, To(&[B0]))
}

fn policy_changes(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0), at(R0)])?;
    stage.check(Pod, Vip, To(&[B0, R0]))?;
    stage.change("web", json!({"internalTrafficPolicy": "Local"}))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.change("web", json!({"internalTrafficPolicy": "Cluster"}))?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, R0]))
}
