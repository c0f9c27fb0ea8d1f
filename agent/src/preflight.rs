//! What the machine must offer, told in one line before anything is changed.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use skiff_cni::firewall::Backend;

/// Checks privileges, programs and kernel features that a whole node needs.
pub(crate) fn check() -> Result<()> {
    check_privileges()?;
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if let Some(what) = missing_for_pods(&filesystems) {
        bail!("this kernel lacks {what}");
    }
    Backend::choose(None)
        .map(drop)
        .context("what pods send out of the cluster cannot be masqueraded")
}

/// Checks privileges.
pub(crate) fn check_privileges() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("must run as root: it makes network namespaces, mounts and cgroups");
    }
    Ok(())
}

/// The first thing that is not there for pods.
fn missing_for_pods(filesystems: &str) -> Option<&'static str> {
    // May be a module that is loaded at the first mount.
    let overlay = knows(filesystems, "overlay") || Path::new("/lib/modules").exists();
    (!overlay).then_some("overlayfs (CONFIG_OVERLAY_FS)")
}

/// The first thing that is not there for Services by kernel programs.
pub(crate) fn missing_for_ebpf() -> Option<&'static str> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    missing_for_services(&filesystems, &mounts)
}

fn missing_for_services(filesystems: &str, mounts: &str) -> Option<&'static str> {
    if !knows(filesystems, "bpf") {
        return Some("the BPF file system (CONFIG_BPF_SYSCALL)");
    }
    let mut kinds = mounts.lines().map(|line| line.split(' ').nth(2));
    if !kinds.any(|kind| kind == Some("cgroup2")) {
        return Some("a mounted cgroup2 hierarchy");
    }
    None
}

fn knows(filesystems: &str, kind: &str) -> bool {
    let mut lines = filesystems.lines();
    lines.any(|line| line.split('\t').nth(1) == Some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILESYSTEMS: &str = "nodev\tbpf\nnodev\toverlay\n\text4\n";
    const MOUNTS: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";

    #[test]
    fn a_missing_feature_is_named() {
        assert_eq!(missing_for_pods(FILESYSTEMS), None);
        assert_eq!(missing_for_services(FILESYSTEMS, MOUNTS), None);
        let message = missing_for_services("nodev\toverlay\n", MOUNTS).unwrap();
        assert!(message.contains("CONFIG_BPF_SYSCALL"), "{message}");
        let message =
            missing_for_services(FILESYSTEMS, "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n").unwrap();
        assert!(message.contains("cgroup2"), "{message}");
    }
}
