//! Which endpoints are used: ready, serving, terminating.

use anyhow::Result;
use serde_json::json;

use crate::{
    expect::Expect::{Refused, To},
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
        Who::{B0, B1, B2, R0},
        at,
    },
};

const INTERNAL: &str = r#"{"internalTrafficPolicy": "Local"}"#;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "endpoints that are not ready are not used",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0), at(B1).unready()],
            checks: &[(Pod, Vip, To(&[B0])), (Host, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "no ready endpoint is as none",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).unready(), at(B1).unready()],
            checks: &[(Pod, Vip, Refused)],
        },
    },
    Case {
        name: "draining endpoints are not used while one is ready",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).draining(), at(B1)],
            checks: &[(Pod, Vip, To(&[B1]))],
        },
    },
    Case {
        name: "draining endpoints are used when none is ready",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).draining(), at(B1).draining(), at(B2).unready()],
            checks: &[(Pod, Vip, To(&[B0, B1])), (Host, Vip, To(&[B0, B1]))],
        },
    },
    Case {
        name: "draining endpoints serve a NodePort when none is ready",
        needs: &[],
        play: Look {
            spec: r#"{"type": "NodePort"}"#,
            endpoints: &[at(B0).draining(), at(R0).draining()],
            checks: &[(Pod, NodePort, To(&[B0, R0]))],
        },
    },
    Case {
        name: "terminating endpoints that do not serve are never used",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).dying(), at(B1).draining()],
            checks: &[(Pod, Vip, To(&[B1]))],
        },
    },
    Case {
        name: "only terminating endpoints that do not serve are as none",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).dying(), at(B1).dying()],
            checks: &[(Pod, Vip, Refused)],
        },
    },
    Case {
        name: "unknown conditions mean ready",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).unknown(), at(B1)],
            checks: &[(Pod, Vip, To(&[B0, B1]))],
        },
    },
    Case {
        name: "ready alone is enough",
        needs: &[],
        play: Look {
            spec: "{}",
            endpoints: &[at(B0).just_ready(), at(B1).just_unready()],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "internal Local falls back to draining endpoints of the node",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[at(B0).draining(), at(R0)],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "internal Local prefers the node's ready endpoints to draining ones",
        needs: &[],
        play: Look {
            spec: INTERNAL,
            endpoints: &[at(B0).draining(), at(B1), at(R0)],
            checks: &[(Pod, Vip, To(&[B1]))],
        },
    },
    Case {
        name: "publishNotReadyAddresses is the controller's: it says ready",
        needs: &[],
        play: Look {
            spec: r#"{"publishNotReadyAddresses": true}"#,
            endpoints: &[at(B0), at(B1).unready()],
            checks: &[(Pod, Vip, To(&[B0]))],
        },
    },
    Case {
        name: "an endpoint gets ready and unready again",
        needs: &[],
        play: Each(comes_and_goes),
    },
    Case {
        name: "a rollout drains its last old endpoint into the new one",
        needs: &[],
        play: Each(rollout),
    },
];

fn comes_and_goes(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0).unready()])?;
    stage.check(Pod, Vip, Refused)?;
    stage.endpoints("web-1", "web", &[at(B0)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.endpoints("web-1", "web", &[at(B0).unready()])?;
    stage.settle()?;
    stage.check(Pod, Vip, Refused)
}

fn rollout(stage: &mut Stage<'_, '_>) -> Result<()> {
    stage.web(json!({}), &[at(B0)])?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.endpoints("web-1", "web", &[at(B0).draining(), at(B1).unready()])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B0]))?;
    stage.endpoints("web-1", "web", &[at(B0).draining(), at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))?;
    stage.endpoints("web-1", "web", &[at(B1)])?;
    stage.settle()?;
    stage.check(Pod, Vip, To(&[B1]))
}
