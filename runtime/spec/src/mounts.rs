//! What is mounted in a container beside its root filesystem.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::SpecError;

/// Whether mounts made on one side appear on the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    #[default]
    None,
    /// The node's appear in the container.
    HostToContainer,
    /// Both ways; privileged containers only.
    Bidirectional,
}

/// A bind mount: a volume, `/etc/hosts`, the termination log. One whose destination is that of a default mount takes
/// its place (`/dev/shm` shared by a pod).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountInput {
    /// Path on the node.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Further options, `noexec` and the like.
    pub options: Vec<String>,
    /// Mounted read-only.
    pub read_only: bool,
    /// Propagation.
    pub propagation: Propagation,
}

/// The default mounts, then `inputs` with parents before their children.
pub(crate) fn mounts(inputs: &[MountInput], privileged: bool) -> Result<Vec<Mount>, SpecError> {
    let mut sorted: Vec<(PathBuf, &MountInput)> = Vec::new();
    for input in inputs {
        sorted.push((checked(&input.destination)?, input));
    }
    sorted.sort_by_key(|(destination, _)| destination.components().count());
    let taken = |mount: &Mount| {
        sorted
            .iter()
            .any(|(destination, _)| destination == mount.destination())
    };
    let mut all: Vec<Mount> = defaults(privileged)
        .into_iter()
        .filter(|mount| !taken(mount))
        .collect();
    all.extend(
        sorted
            .iter()
            .map(|(destination, input)| bind(destination, input)),
    );
    Ok(all)
}

/// `rootfsPropagation`: what the widest propagation needs.
pub(crate) fn rootfs_propagation(inputs: &[MountInput]) -> Option<&'static str> {
    let any = |wanted| inputs.iter().any(|input| input.propagation == wanted);
    if any(Propagation::Bidirectional) {
        Some("rshared")
    } else if any(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn checked(destination: &Path) -> Result<PathBuf, SpecError> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !destination.is_absolute() || !destination.components().all(plain) {
        let path = destination.display().to_string();
        return Err(SpecError::field(
            "volumeMounts.mountPath",
            format!("{path:?} is not an absolute path without \"..\""),
        ));
    }
    // Without trailing and doubled slashes.
    Ok(destination.components().collect())
}

fn bind(destination: &Path, input: &MountInput) -> Mount {
    let mut options = vec!["rbind".to_owned()];
    options.push(
        match input.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        }
        .to_owned(),
    );
    options.push(if input.read_only { "ro" } else { "rw" }.to_owned());
    options.extend(input.options.iter().cloned());
    mount(destination, "bind", &input.source, options)
}

fn mount(destination: &Path, typ: &str, source: &Path, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options));
    mount
}

fn defaults(privileged: bool) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    [
        ("/proc", "proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            vec!["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            vec![
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            vec!["nosuid", "noexec", "nodev"],
        ),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            vec!["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        (
            "/sys",
            "sysfs",
            "sysfs",
            vec!["nosuid", "noexec", "nodev", access],
        ),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            vec!["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ]
    .into_iter()
    .map(|(destination, typ, source, options)| {
        let options = options.into_iter().map(str::to_owned).collect();
        mount(Path::new(destination), typ, Path::new(source), options)
    })
    .collect()
}
