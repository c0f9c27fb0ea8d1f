//! What a pod's spec promises, seen from inside the pod and through kubectl.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test file is a test module"
)]

mod config;
mod crash;
mod exec;
mod lifecycle;
mod probes;
mod resources;
mod security;
mod volumes;

use anyhow::Result;
use skiff_test_harness::{
    Cluster,
    scene::{Case, play},
};

#[test]
fn pods_do_what_their_specs_say() -> Result<()> {
    let cluster = Cluster::up("pods")?;
    let cases: Vec<Case> = [
        lifecycle::CASES,
        probes::CASES,
        resources::CASES,
        config::CASES,
        volumes::CASES,
        security::CASES,
        exec::CASES,
    ]
    .concat();
    play(&cluster, &cases)?;
    cluster.down()
}

#[test]
fn pods_outlive_what_watches_over_them_and_leave_nothing() -> Result<()> {
    let mut cluster = Cluster::up("crash")?;
    crash::a_container_that_ends_while_no_daemon_lives(&mut cluster)?;
    crash::a_pod_whose_shim_is_killed(&cluster)?;
    crash::thirty_pods_leave_nothing(&cluster)?;
    cluster.down()
}
