//! Runs a program on a packet that nobody has sent: for tests and benches.

use std::{os::fd::AsFd as _, path::Path, time::Duration};

use crate::{DatapathError, sys};

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What it returned: `TC_ACT_*` or `XDP_*`.
    pub verdict: u32,
    /// The packet as it left it.
    pub packet: Vec<u8>,
    /// The mean time of a run.
    pub duration: Duration,
}

/// Runs the program that is pinned as `name` in `bpffs_dir`, as often as `repeat` says, on a packet that came in by the
/// loopback link. Repeated runs see the packet as the run before left it.
///
/// # Errors
/// [`DatapathError::Io`] if there is no such program, or the kernel refuses the packet.
pub fn test_run(
    bpffs_dir: &Path,
    name: &str,
    packet: &[u8],
    repeat: u32,
) -> Result<TestRun, DatapathError> {
    run(bpffs_dir, name, packet, repeat, None)
}

/// As [`test_run`], for an XDP program and a packet that came in by a link of the calling thread's network namespace; some XDP
/// program must be attached to that.
///
/// # Errors
/// As [`test_run`], and if the link is none of that kind.
pub fn test_run_xdp(
    bpffs_dir: &Path,
    name: &str,
    packet: &[u8],
    repeat: u32,
    ifindex: u32,
) -> Result<TestRun, DatapathError> {
    run(bpffs_dir, name, packet, repeat, Some(ifindex))
}

fn run(
    bpffs_dir: &Path,
    name: &str,
    packet: &[u8],
    repeat: u32,
    xdp_link: Option<u32>,
) -> Result<TestRun, DatapathError> {
    let pin = bpffs_dir.join(name);
    let program = sys::obj_get(&pin).map_err(|e| DatapathError::io("opening", &pin, e))?;
    let (verdict, packet, nanos) = sys::prog_test_run(program.as_fd(), packet, repeat, xdp_link)
        .map_err(|e| DatapathError::io("running", &pin, e))?;
    Ok(TestRun {
        verdict,
        packet,
        duration: Duration::from_nanos(nanos.into()),
    })
}
