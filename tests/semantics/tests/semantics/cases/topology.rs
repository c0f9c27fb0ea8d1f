//! `trafficDistribution`: the hints of EndpointSlices. The node is in `zone-a`.

use anyhow::Result;
use serde_json::json;

use crate::{
    expect::Expect::To,
    proxy::Need,
    run::{
        Case,
        Play::{Each, Look},
    },
    stage::{
        Front::{NodePort, Vip},
        Stage,
    },
    who::{
        Client::{Host, Pod},
        NODE_NAME, OTHER_NODE,
        Who::{B0, B1, R0},
        ZONE, at,
    },
};

const HERE: &[&str] = &[ZONE];
const THERE: &[&str] = &["zone-b"];
const CLOSE: &str = r#"{"trafficDistribution": "PreferClose"}"#;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "hints lead to the endpoints of the node's zone",
        needs: &[Need::Hints],
        play: Look {
            spec: CLOSE,
            endpoints: &[at(B0).zones(HERE), at(B1).zones(THERE), at(R0).zones(HERE)],
            checks: &[(Pod, Vip, To(&[B0, R0])), (Host, Vip, To(&[B0, R0]))],
        },
    },
    Case {
        name: "hints count for NodePorts",
        needs: &[Need::Hints],
        play: Look {
            spec: r#"{"type": "NodePort", "trafficDistribution": "PreferClose"}"#,
            endpoints: &[at(B0).zones(HERE), at(B1).zones(THERE)],
            checks: &[(Pod, NodePort, To(&[B0]))],
        },
    },
    Case {
        name: "hints do not count while an endpoint has none",
        needs: &[],
        play: Look {
            spec: CLOSE,
            endpoints: &[at(B0).zones(HERE), at(B1)],
            checks: &[(Pod, Vip, To(&[B0, B1]))],
        },
    },
    Case {
        name: "hints do not count while none is of the node's zone",
        needs: &[],
        play: Look {
            spec: CLOSE,
            endpoints: &[at(B0).zones(THERE), at(B1).zones(&["zone-c"])],
            checks: &[(Pod, Vip, To(&[B0, B1]))],
        },
    },
    Case {
        name: "an endpoint may be hinted to several zones",
        needs: &[Need::Hints],
        play: Look {
            spec: CLOSE,
            endpoints: &[at(B0).zones(&["zone-b", ZONE]), at(B1).zones(THERE)],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "hints of endpoints that are not ready do not matter",
        needs: &[Need::Hints],
        play: Look {
            spec: CLOSE,
            endpoints: &[at(B0).zones(HERE), at(B1).zones(THERE), at(R0).unready()],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "hints do not bring a zone's unready endpoint back",
        needs: &[],
        play: Look {
            spec: CLOSE,
            endpoints: &[at(B0).zones(HERE).unready(), at(B1).zones(THERE)],
            checks: &[(Pod, Vip, To(&[B1]))],
        },
    },
    Case {
        name: "internal Local goes before hints",
        needs: &[],
        play: Look {
            spec: r#"{"internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"}"#,
            endpoints: &[at(B0).zones(THERE), at(R0).zones(HERE)],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "hints to nodes lead to the node's own endpoints",
        needs: &[Need::Hints],
        play: Look {
            spec: r#"{"trafficDistribution": "PreferSameNode"}"#,
            endpoints: &[
                at(B0).zones(HERE).nodes(&[NODE_NAME]),
                at(R0).zones(HERE).nodes(&[OTHER_NODE]),
            ],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "without a hint to the node those to its zone count",
        needs: &[Need::Hints],
        play: Look {
            spec: r#"{"trafficDistribution": "PreferSameNode"}"#,
            endpoints: &[
                at(R0).zones(HERE).nodes(&[OTHER_NODE]),
                at(B1).zones(THERE).nodes(&["node-3"]),
            ],
            checks: &[(Pod, Vip, To(&[R0]))],
        },
    },
    Case {
        name: "hints come and go",
        needs: &[Need::Hints],
        play: Each(come_and_go),
    },
];

fn come_and_go(stage: &mut Stage<'_, '_>) -> Result<()> {
    let spec = json!({"trafficDistribution": "PreferClose"});
    stage.web(spec, &[at(B0), at(B1)])?;
    stage.check(Pod, Vip, To(&[B0, B1]))?;
    let hinted = [at(B0).zones(HERE), at(B1).zones(THERE)];
    stage.endpoints("web-1", "web", &hinted)?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.endpoints("web-1", "web", &[at(B0), at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0, B1]))
}
