//! Requests and limits as cgroup values.

use k8s_openapi::api::core::v1::Container;
use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources};

use crate::SpecError;
use crate::quantity::{parse_bytes, parse_millis};

/// Length of a CPU period: 100 ms.
const PERIOD: u64 = 100_000;

/// `cpu.shares` for thousandths of a CPU.
#[must_use]
pub fn cpu_shares(millis: i64) -> u64 {
    let millis = u64::try_from(millis).unwrap_or_default();
    (millis.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// Microseconds of CPU time in each period of 100 ms for thousandths of a CPU; `None` for no limit.
#[must_use]
pub fn cpu_quota(millis: i64) -> Option<i64> {
    // The kernel takes no less than 1 ms.
    (millis > 0).then(|| millis.saturating_mul(100).max(1000))
}

/// The request of a container in thousandths of a CPU or in bytes; a limit stands for a missing request.
pub(crate) fn request(container: &Container, name: &str) -> Result<Option<i64>, SpecError> {
    match amount(container, name, "requests")? {
        Some(amount) => Ok(Some(amount)),
        None => limit(container, name),
    }
}

/// The limit of a container in thousandths of a CPU or in bytes.
pub(crate) fn limit(container: &Container, name: &str) -> Result<Option<i64>, SpecError> {
    amount(container, name, "limits")
}

fn amount(container: &Container, name: &str, which: &str) -> Result<Option<i64>, SpecError> {
    let Some(resources) = &container.resources else {
        return Ok(None);
    };
    let list = if which == "requests" {
        &resources.requests
    } else {
        &resources.limits
    };
    let Some(quantity) = list.as_ref().and_then(|list| list.get(name)) else {
        return Ok(None);
    };
    let parsed = if name == "cpu" {
        parse_millis(&quantity.0)
    } else {
        parse_bytes(&quantity.0)
    };
    parsed.map(Some).map_err(|e| {
        SpecError::field(
            format!("containers[{}].resources.{which}[{name}]", container.name),
            e.to_string(),
        )
    })
}

/// Everything the cgroup of a container is given. `libcontainer` converts to cgroup v2 itself.
pub(crate) fn resources(
    container: &Container,
    pids_limit: Option<i64>,
    privileged: bool,
) -> Result<LinuxResources, SpecError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(cpu_shares(
        request(container, "cpu")?.unwrap_or_default(),
    )));
    if let Some(quota) = limit(container, "cpu")?.and_then(cpu_quota) {
        cpu.set_quota(Some(quota)).set_period(Some(PERIOD));
    }
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu));
    if let Some(bytes) = limit(container, "memory")?.filter(|bytes| *bytes > 0) {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(bytes));
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = pids_limit.filter(|limit| *limit > 0) {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    // The engine adds the usual devices (null, zero, random, tty, pts) to what is allowed.
    let mut devices = LinuxDeviceCgroup::default();
    devices
        .set_allow(privileged)
        .set_access(Some("rwm".to_owned()));
    resources.set_devices(Some(vec![devices]));
    Ok(resources)
}
