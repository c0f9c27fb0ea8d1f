//! What a fresh Debian machine lacks. Each step looks first, so that a second run takes milliseconds.

pub(crate) mod apt;
mod cni_reference;
mod ebpf;
mod kubectl;

use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

/// For building: protobuf for libcontainer, libseccomp for the shim. For running: iptables. For the example and
/// the tests: a registry, image tools, runtimes to compare with.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "containernetworking-plugins",
    "crun",
    "curl",
    "docker-registry",
    "etcd-server",
    "ethtool",
    "g++",
    "gcc",
    "iproute2",
    "iptables",
    "libc6-dev",
    "libseccomp-dev",
    "nftables",
    "pkg-config",
    "podman",
    "protobuf-compiler",
    "python3-minimal",
    "runc",
    "skopeo",
    "util-linux",
    "xz-utils",
];

/// Installs everything that is missing.
pub(crate) fn run() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "run as root: skiff makes namespaces, mounts and cgroups, and setup installs packages"
        );
    }
    apt::install_missing(PACKAGES)?;
    nextest()?;
    ebpf::ensure()?;
    kubectl::ensure()?;
    cni_reference::ensure()
}

fn nextest() -> Result<()> {
    if command::succeeds(Command::new("cargo").args(["nextest", "--version"])) {
        return Ok(());
    }
    eprintln!("setup: building cargo-nextest (some minutes, once)");
    // Its own target: the workspace's flags are not meant for it.
    command::run(
        Command::new("cargo")
            .args(["install", "cargo-nextest", "--locked", "--quiet"])
            .current_dir("/"),
    )
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
