//! Linux capabilities: their numbers, and taking some from a process.

use oci_spec::runtime::{Capabilities, Capability, Process};

/// In the order of the kernel's numbers.
const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Whether a set, as the kernel writes it with a bit for each number, has the capability. One that the table does not
/// know is left to the kernel to judge.
pub(crate) fn is_in(set: u64, capability: &Capability) -> bool {
    let number = CAPABILITIES.iter().position(|known| known == capability);
    number.is_none_or(|number| set & (1 << number) != 0)
}

/// Takes from all sets of a process what `keep` refuses.
pub(crate) fn retain(process: &mut Process, keep: impl Fn(&Capability) -> bool) {
    let Some(mut sets) = process.capabilities().clone() else {
        return;
    };
    let kept = |set: &Option<Capabilities>| {
        set.as_ref()
            .map(|set| set.iter().copied().filter(|c| keep(c)).collect())
    };
    let (bounding, effective, permitted) = (
        kept(sets.bounding()),
        kept(sets.effective()),
        kept(sets.permitted()),
    );
    let (inheritable, ambient) = (kept(sets.inheritable()), kept(sets.ambient()));
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    sets.set_inheritable(inheritable).set_ambient(ambient);
    process.set_capabilities(Some(sets));
}
