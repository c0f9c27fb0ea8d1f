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
    let pin = bpffs_dir.join(name);
    let program = sys::obj_get(&pin).map_err(|e| DatapathError::io("opening", &pin, e))?;
    let (verdict, packet, nanos) = sys::prog_test_run(program.as_fd(), packet, repeat)
        .map_err(|e| DatapathError::io("running", &pin, e))?;
    Ok(TestRun {
        verdict,
        packet,
        duration: Duration::from_nanos(nanos.into()),
    })
}
