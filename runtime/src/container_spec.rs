//! What the runtime fills in and corrects in a container's OCI spec before the engine sees it.

use std::{
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::{
    Capability, Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};

use crate::{RuntimeError, capabilities};

/// More of a `/etc/passwd` is not read.
const MAX_PASSWD: u64 = 1 << 20;

/// Namespaces of the sandbox that a container joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinedNamespaces {
    /// Network; `None` for the one that the shim is in.
    pub net: Option<PathBuf>,
    /// IPC.
    pub ipc: PathBuf,
    /// UTS.
    pub uts: PathBuf,
}

/// What this machine lets us do to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Privileges {
    /// Capabilities that may be handed on: our bounding set. A bit for each of the kernel's numbers.
    pub capabilities: u64,
    /// `CAP_SYS_RESOURCE`: lower `oom_score_adj`, raise hard limits. Some virtual machines lack it.
    pub sys_resource: bool,
    /// Our own `oom_score_adj`: the lowest to be had without it.
    pub oom_score_adj: i32,
}

impl Privileges {
    /// Those of this process.
    pub(crate) fn own() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = |name: &str| {
            let hex = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(hex.trim(), 16).ok()
        };
        let effective = set("CapEff:");
        let oom_score_adj = fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        const CAP_SYS_RESOURCE: u32 = 24;
        let sys_resource = effective.is_some_and(|set| set & (1 << CAP_SYS_RESOURCE) != 0);
        Self {
            capabilities: set("CapBnd:").unwrap_or(u64::MAX),
            sys_resource,
            oom_score_adj,
        }
    }
}

/// Completes `spec` for a container.
///
/// # Errors
/// [`RuntimeError::Unsupported`] for what would silently not be done.
pub(crate) fn complete(
    spec: &mut Spec,
    rootfs: &Path,
    namespaces: &JoinedNamespaces,
    cgroups_path: PathBuf,
    tty: bool,
    privileges: Privileges,
) -> Result<(), RuntimeError> {
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(rootfs.to_owned());
    spec.set_root(Some(root));
    // The sandbox's UTS namespace has its host name already.
    spec.set_hostname(None);

    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(cgroups_path));
    let list = sandbox_namespaces(&linux, namespaces)?;
    linux.set_namespaces(Some(list));
    if linux
        .seccomp()
        .as_ref()
        .is_some_and(|profile| profile.listener_path().is_some())
    {
        return unsupported("a seccomp profile that asks a listener");
    }
    let mut read_only = linux.readonly_paths().clone().unwrap_or_default();
    read_only.extend(cgroup_paths(spec));
    if !read_only.is_empty() {
        linux.set_readonly_paths(Some(read_only));
    }
    spec.set_linux(Some(linux));

    let Some(process) = spec.process_mut() else {
        return unsupported("a spec without a process");
    };
    process.set_terminal(Some(tty));
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| {
        entry
            .strip_prefix("HOME=")
            .is_some_and(|home| !home.is_empty())
    }) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", home(rootfs, process.user().uid())));
        process.set_env(Some(env));
    }
    // libcontainer takes `false` for `true` where it chooses when to load the seccomp filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    if !privileges.sys_resource {
        clamp(process, privileges.oom_score_adj);
    }
    capabilities::retain(process, |capability| {
        capabilities::is_in(privileges.capabilities, capability)
    });
    make_dir(rootfs, process.cwd());
    Ok(())
}

/// Where the container sees cgroup v1 hierarchies that it must only read. The engine mounts each writable, whatever
/// the options say, and who may write to them sets its own limits.
fn cgroup_paths(spec: &Spec) -> Vec<String> {
    let has = |options: &Option<Vec<String>>, wanted: &str| {
        options.iter().flatten().any(|option| option == wanted)
    };
    let mounts = spec.mounts().iter().flatten();
    let place = mounts
        .filter(|mount| mount.typ().as_deref() == Some("cgroup") && has(mount.options(), "ro"))
        .map(|mount| mount.destination().clone())
        .next();
    let Some(place) = place else {
        return Vec::new();
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = Path::new(fields.next()?);
        (fields.next()? == "cgroup").then(|| place.join(path.file_name().unwrap_or_default()))
    });
    let all = std::iter::once(place.clone()).chain(hierarchies);
    all.map(|path| path.display().to_string()).collect()
}

/// Makes the working directory if the image has none, as other runtimes do. If that cannot be, the engine says so
/// when it enters it.
fn make_dir(rootfs: &Path, path: &Path) {
    let open = |dir: &fs::File, path: &Path| {
        openat2(
            dir,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            // Links in an image are its own: none leads out of it.
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let Ok(root) = fs::File::open(rootfs) else {
        return;
    };
    let mut parent = None;
    let mut seen = PathBuf::new();
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        seen.push(name);
        if open(&root, &seen).is_err() {
            let made = match &parent {
                Some(parent) => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
                None => mkdirat(&root, name, Mode::from_raw_mode(0o755)),
            };
            if made.is_err() {
                return;
            }
        }
        parent = open(&root, &seen).ok();
        if parent.is_none() {
            return;
        }
    }
}

/// The home directory of `uid` by the image's own `/etc/passwd`; `/` if it says nothing.
///
/// The engine would ask the C library, which may load modules from the image to answer.
fn home(rootfs: &Path, uid: u32) -> String {
    passwd(rootfs)
        .and_then(|passwd| home_in(&passwd, uid))
        .unwrap_or_else(|| "/".to_owned())
}

fn passwd(rootfs: &Path) -> Option<String> {
    let root = fs::File::open(rootfs).ok()?;
    // Links in an image are its own: none leads out of it.
    let file = openat2(
        &root,
        "etc/passwd",
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let mut text = String::new();
    fs::File::from(file.ok()?)
        .take(MAX_PASSWD)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let homes = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        (fields.nth(2)?.parse::<u32>() == Ok(uid)).then(|| fields.nth(2).map(str::to_owned))?
    });
    homes.into_iter().find(|home| home.starts_with('/'))
}

/// Takes `CAP_MKNOD` from a container that may not use all devices.
///
/// Under cgroup v2 devices are controlled by a program of their own, which the engine is built without: a
/// container that can make device files could open the node's disks.
pub(crate) fn forbid_mknod(spec: &mut Spec) {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    let all = |rule: &LinuxDeviceCgroup| {
        rule.allow()
            && rule.major().is_none()
            && matches!(rule.typ(), None | Some(LinuxDeviceType::A))
    };
    if rules.is_some_and(|rules| rules.iter().any(all)) {
        return;
    }
    let Some(process) = spec.process_mut() else {
        return;
    };
    capabilities::retain(process, |capability| *capability != Capability::Mknod);
}

fn sandbox_namespaces(
    linux: &Linux,
    joined: &JoinedNamespaces,
) -> Result<Vec<LinuxNamespace>, RuntimeError> {
    let has = |kind| {
        linux
            .namespaces()
            .iter()
            .flatten()
            .any(|namespace: &LinuxNamespace| namespace.typ() == kind)
    };
    if has(LinuxNamespaceType::User) {
        return unsupported("user namespaces");
    }
    let mut wanted = vec![
        (LinuxNamespaceType::Ipc, Some(joined.ipc.clone())),
        (LinuxNamespaceType::Uts, Some(joined.uts.clone())),
        (LinuxNamespaceType::Pid, None),
        (LinuxNamespaceType::Mount, None),
        (LinuxNamespaceType::Cgroup, None),
    ];
    if let Some(net) = &joined.net {
        wanted.push((LinuxNamespaceType::Network, Some(net.clone())));
    }
    wanted
        .into_iter()
        .map(|(kind, path)| {
            let builder = LinuxNamespaceBuilder::default().typ(kind);
            match path {
                Some(path) => builder.path(path),
                None => builder,
            }
            .build()
            .map_err(|error| RuntimeError::Unsupported {
                message: error.to_string(),
            })
        })
        .collect()
}

/// Brings down to what is allowed what the kernel would refuse.
fn clamp(process: &mut Process, lowest_oom_score_adj: i32) {
    if let Some(wanted) = process.oom_score_adj()
        && wanted < lowest_oom_score_adj
    {
        tracing::warn!(
            wanted,
            set = lowest_oom_score_adj,
            "CAP_SYS_RESOURCE is missing: oom_score_adj is raised"
        );
        process.set_oom_score_adj(Some(lowest_oom_score_adj));
    }
    let Some(mut rlimits) = process.rlimits().clone() else {
        return;
    };
    for rlimit in &mut rlimits {
        let Some((_, hard)) = own_limit(rlimit.typ()) else {
            continue;
        };
        if rlimit.hard() > hard {
            tracing::warn!(
                kind = ?rlimit.typ(), wanted = rlimit.hard(), set = hard,
                "CAP_SYS_RESOURCE is missing: a resource limit is lowered"
            );
            if let Ok(lowered) = PosixRlimitBuilder::default()
                .typ(rlimit.typ())
                .hard(hard)
                .soft(rlimit.soft().min(hard))
                .build()
            {
                *rlimit = lowered;
            }
        }
    }
    process.set_rlimits(Some(rlimits));
}

fn own_limit(kind: PosixRlimitType) -> Option<(u64, u64)> {
    let resource = match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    };
    getrlimit(resource).ok()
}

fn unsupported<T>(message: &str) -> Result<T, RuntimeError> {
    Err(RuntimeError::Unsupported {
        message: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{
        Capabilities, LinuxCapabilities, LinuxDeviceCgroupBuilder, LinuxResourcesBuilder,
    };

    use super::*;

    fn joined(net: Option<&str>) -> JoinedNamespaces {
        JoinedNamespaces {
            net: net.map(PathBuf::from),
            ipc: PathBuf::from("/ns/ipc"),
            uts: PathBuf::from("/ns/uts"),
        }
    }

    const POOR: Privileges = Privileges {
        capabilities: !(1 << 24),
        sys_resource: false,
        oom_score_adj: 0,
    };

    fn completed(spec: &mut Spec, net: Option<&str>, privileges: Privileges) {
        complete(
            spec,
            Path::new("/r"),
            &joined(net),
            "/c".into(),
            false,
            privileges,
        )
        .unwrap();
    }

    #[test]
    fn namespaces_are_the_sandboxs_and_the_containers_own() {
        let mut spec = Spec::default();
        completed(&mut spec, Some("/ns/net"), POOR);
        let linux = spec.linux().clone().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        let path = |kind| {
            namespaces
                .iter()
                .find(|n| n.typ() == kind)
                .map(|n| n.path().clone())
        };
        assert_eq!(
            path(LinuxNamespaceType::Network),
            Some(Some("/ns/net".into()))
        );
        assert_eq!(path(LinuxNamespaceType::Pid), Some(None));
        completed(&mut spec, None, POOR);
        let linux = spec.linux().clone().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        assert!(
            namespaces
                .iter()
                .all(|n| n.typ() != LinuxNamespaceType::Network)
        );
    }

    #[test]
    fn what_needs_a_missing_capability_is_clamped() {
        let mut spec = Spec::default();
        spec.process_mut()
            .as_mut()
            .unwrap()
            .set_oom_score_adj(Some(-997));
        completed(&mut spec, None, POOR);
        assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(0));
        spec.process_mut()
            .as_mut()
            .unwrap()
            .set_oom_score_adj(Some(-997));
        completed(
            &mut spec,
            None,
            Privileges {
                capabilities: u64::MAX,
                sys_resource: true,
                oom_score_adj: 0,
            },
        );
        assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(-997));
    }

    #[test]
    fn capabilities_that_are_not_ours_to_give_are_left_out() {
        let mut spec = Spec::default();
        let mut sets = LinuxCapabilities::default();
        let wanted = Capabilities::from([Capability::SysResource, Capability::Bpf]);
        sets.set_effective(Some(wanted));
        let process = spec.process_mut().as_mut().unwrap();
        process.set_capabilities(Some(sets));
        completed(&mut spec, None, POOR);
        let sets = spec.process().as_ref().unwrap().capabilities().clone();
        let effective = sets.unwrap().effective().clone();
        assert_eq!(effective, Some([Capability::Bpf].into()));
    }

    #[test]
    fn a_missing_working_directory_is_made_inside_the_image() {
        let rootfs = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        make_dir(rootfs.path(), Path::new("/a/b/c"));
        assert!(rootfs.path().join("a/b/c").is_dir());
        std::os::unix::fs::symlink(outside.path(), rootfs.path().join("link")).unwrap();
        make_dir(rootfs.path(), Path::new("/link/x"));
        assert!(!outside.path().join("x").exists());
    }

    #[test]
    fn device_files_are_made_only_by_who_may_use_all_devices() {
        let mut spec = Spec::default();
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(Some([Capability::Mknod, Capability::Kill].into()));
        spec.process_mut()
            .as_mut()
            .unwrap()
            .set_capabilities(Some(sets));
        let bounding = |spec: &Spec| {
            let sets = spec
                .process()
                .clone()
                .unwrap()
                .capabilities()
                .clone()
                .unwrap();
            sets.bounding().clone().unwrap()
        };
        let mut linux = Linux::default();
        linux.set_resources(Some(
            LinuxResourcesBuilder::default()
                .devices([LinuxDeviceCgroupBuilder::default()
                    .allow(true)
                    .build()
                    .unwrap()])
                .build()
                .unwrap(),
        ));
        spec.set_linux(Some(linux));
        forbid_mknod(&mut spec);
        assert!(bounding(&spec).contains(&Capability::Mknod));
        spec.set_linux(Some(Linux::default()));
        forbid_mknod(&mut spec);
        assert_eq!(bounding(&spec), [Capability::Kill].into());
    }

    #[test]
    fn home_is_what_the_images_passwd_says_and_links_stay_inside() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nredis:x:999:999::/data:/bin/false\n";
        assert_eq!(home_in(passwd, 999).as_deref(), Some("/data"));
        assert_eq!(home_in(passwd, 1), None);
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), passwd).unwrap();
        std::os::unix::fs::symlink(outside.path(), rootfs.path().join("etc/passwd")).unwrap();
        assert_eq!(home(rootfs.path(), 0), "/");
        fs::remove_file(rootfs.path().join("etc/passwd")).unwrap();
        fs::write(rootfs.path().join("etc/passwd"), passwd).unwrap();
        assert_eq!(home(rootfs.path(), 0), "/root");
    }

    #[test]
    fn user_namespaces_are_refused_and_not_ignored() {
        let mut spec = Spec::default();
        let user = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::User)
            .build()
            .unwrap();
        let mut linux = Linux::default();
        linux.set_namespaces(Some(vec![user]));
        spec.set_linux(Some(linux));
        let result = complete(
            &mut spec,
            Path::new("/r"),
            &joined(None),
            "/c".into(),
            false,
            POOR,
        );
        assert!(matches!(result, Err(RuntimeError::Unsupported { .. })));
    }
}
