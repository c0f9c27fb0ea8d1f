//! What the machine must offer, told in one line before anything is changed.

use std::fs;

use anyhow::{Context, Result, bail};
use skiff_cni::firewall::Backend;

/// Checks privileges, programs and kernel features.
pub(crate) fn check() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("must run as root: it makes network namespaces, mounts and cgroups");
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    match missing(&filesystems, &mounts) {
        Some(what) => bail!("this kernel lacks {what}"),
        None => Backend::choose(None)
            .map(drop)
            .context("what pods send out of the cluster cannot be masqueraded"),
    }
}

/// The first thing that is not there.
fn missing(filesystems: &str, mounts: &str) -> Option<&'static str> {
    let knows = |kind: &str| {
        filesystems
            .lines()
            .any(|line| line.split('\t').nth(1) == Some(kind))
    };
    if !knows("bpf") {
        return Some("the BPF file system (CONFIG_BPF_SYSCALL)");
    }
    // May be a module that is loaded at the first mount.
    if !knows("overlay") && !std::path::Path::new("/lib/modules").exists() {
        return Some("overlayfs (CONFIG_OVERLAY_FS)");
    }
    if !mounts
        .lines()
        .any(|line| line.split(' ').nth(2) == Some("cgroup2"))
    {
        return Some("a mounted cgroup2 hierarchy");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILESYSTEMS: &str = "nodev\tbpf\nnodev\toverlay\n\text4\n";
    const MOUNTS: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";

    #[test]
    fn a_missing_feature_is_named() {
        assert_eq!(missing(FILESYSTEMS, MOUNTS), None);
        let message = missing("nodev\toverlay\n", MOUNTS).unwrap();
        assert!(message.contains("CONFIG_BPF_SYSCALL"), "{message}");
        let message = missing(FILESYSTEMS, "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n").unwrap();
        assert!(message.contains("cgroup2"), "{message}");
    }
}
