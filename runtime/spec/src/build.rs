//! Putting it all together.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use oci_spec::runtime::{
    Capabilities, Linux, LinuxDevice, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Process,
    Root, Spec,
};

use crate::SpecError;
use crate::expand::expand;
use crate::mounts::{MountInput, mounts, rootfs_propagation};
use crate::qos::oom_score_adj;
use crate::resources::resources;
use crate::seccomp::{Architecture, default_profile, for_libcontainer};
use crate::security::{Effective, capability_sets, masked_paths, merge_env, read_only_paths};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How the image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty for `/`.
    pub working_dir: String,
}

/// The user as looked up in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups of the image that list the user.
    pub additional_gids: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Namespaces of the sandbox to join; `None` is the node's own (`hostNetwork`, `hostIPC`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxPaths {
    /// Network.
    pub net: Option<PathBuf>,
    /// System V IPC and POSIX message queues.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
}

/// All that a spec is made from.
#[derive(Debug, Clone)]
pub struct SpecInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container of it, init or regular.
    pub container: &'a Container,
    /// The image's part.
    pub image: ImageDefaults,
    /// Who it runs as.
    pub user: User,
    /// The container's environment, resolved and expanded; a later value of a name wins.
    pub env: Vec<(String, String)>,
    /// Host name, for `HOSTNAME`.
    pub hostname: String,
    /// Volumes and files of the node.
    pub mounts: Vec<MountInput>,
    /// The mounted root filesystem.
    pub rootfs: &'a Path,
    /// Relative to the mount of each cgroup hierarchy.
    pub cgroup_path: &'a Path,
    /// Namespaces to join.
    pub namespaces: SandboxPaths,
    /// The node's memory.
    pub node_memory_bytes: u64,
    /// Most processes and threads.
    pub pids_limit: Option<i64>,
    /// Further device nodes: those of the node for a privileged container.
    pub devices: Vec<LinuxDevice>,
    /// The machine, for the seccomp profile.
    pub architecture: Architecture,
}

/// Makes the OCI runtime spec of a container, for the libcontainer engine: operands of masked seccomp comparisons
/// are in the order that it reads (see [`default_profile`] for the standard's).
///
/// # Errors
/// [`SpecError`] naming the field that cannot be satisfied.
pub fn build_spec(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    let effective = Effective::of(input.pod, input.container);
    let capabilities = effective.capabilities()?;
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned())
        .set_readonly(Some(effective.read_only_root()));
    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts(&input.mounts, effective.privileged())?))
        .set_process(Some(process(input, &effective, &capabilities)?))
        // The sandbox has it.
        .set_hostname(None)
        .set_domainname(None)
        .set_hooks(None)
        .set_annotations(None)
        .set_linux(Some(linux(input, &effective, &capabilities)?));
    Ok(spec)
}

fn process(
    input: &SpecInput<'_>,
    effective: &Effective<'_>,
    capabilities: &Capabilities,
) -> Result<Process, SpecError> {
    let mut user = oci_spec::runtime::User::default();
    user.set_uid(input.user.uid).set_gid(input.user.gid);
    let gids = effective.additional_gids(&input.user)?;
    user.set_additional_gids((!gids.is_empty()).then_some(gids));
    let cwd = match input
        .container
        .working_dir
        .as_deref()
        .filter(|dir| !dir.is_empty())
    {
        Some(dir) => dir,
        None if input.image.working_dir.is_empty() => "/",
        None => &input.image.working_dir,
    };
    if !cwd.starts_with('/') {
        return Err(SpecError::field(
            "workingDir",
            format!("{cwd:?} is not an absolute path"),
        ));
    }
    let mut process = Process::default();
    process
        .set_terminal(Some(input.container.tty.unwrap_or_default()))
        .set_user(user)
        .set_args(Some(args(input)?))
        .set_env(Some(env(input)))
        .set_cwd(PathBuf::from(cwd))
        .set_capabilities(Some(capability_sets(capabilities)))
        .set_rlimits(None)
        .set_no_new_privileges(effective.no_new_privileges())
        .set_oom_score_adj(Some(oom_score_adj(
            input.pod,
            input.container,
            input.node_memory_bytes,
        )));
    Ok(process)
}

/// `command` takes the place of the image's entrypoint and its arguments, `args` that of its arguments.
fn args(input: &SpecInput<'_>) -> Result<Vec<String>, SpecError> {
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| expand(text, |name| lookup(&input.env, name)))
            .collect()
    };
    let (command, args) = (
        expanded(&input.container.command),
        expanded(&input.container.args),
    );
    let all = match (command.is_empty(), args.is_empty()) {
        (true, true) => [input.image.entrypoint.clone(), input.image.cmd.clone()].concat(),
        (true, false) => [input.image.entrypoint.clone(), args].concat(),
        (false, _) => [command, args].concat(),
    };
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => Err(SpecError::NoCommand),
    }
}

fn lookup(env: &[(String, String)], name: &str) -> Option<String> {
    env.iter()
        .rev()
        .find(|(n, _)| n == name)
        .map(|(_, value)| value.clone())
}

fn env(input: &SpecInput<'_>) -> Vec<String> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut defaults = vec![
        pair("PATH", DEFAULT_PATH),
        pair("HOSTNAME", &input.hostname),
    ];
    if input.container.tty.unwrap_or_default() {
        defaults.push(pair("TERM", "xterm"));
    }
    let home = if input.user.home.is_empty() {
        "/"
    } else {
        &input.user.home
    };
    defaults.push(pair("HOME", home));
    let image = input.image.env.iter().map(|entry| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        pair(name, value)
    });
    merge_env(&[defaults, image.collect(), input.env.clone()])
}

fn linux(
    input: &SpecInput<'_>,
    effective: &Effective<'_>,
    capabilities: &Capabilities,
) -> Result<Linux, SpecError> {
    let privileged = effective.privileged();
    let hidden = |paths: Vec<String>| (!effective.unmasked()).then_some(paths);
    let mut linux = Linux::default();
    linux
        .set_sysctl(effective.sysctls(input.pod)?)
        .set_resources(Some(resources(
            input.container,
            input.pids_limit,
            privileged,
        )?))
        .set_cgroups_path(Some(input.cgroup_path.to_owned()))
        .set_namespaces(Some(namespaces(input)))
        .set_devices((!input.devices.is_empty()).then(|| input.devices.clone()))
        .set_seccomp(seccomp(input, effective, capabilities)?)
        .set_rootfs_propagation(rootfs_propagation(&input.mounts).map(str::to_owned))
        .set_masked_paths(hidden(masked_paths()))
        .set_readonly_paths(hidden(read_only_paths()));
    Ok(linux)
}

fn namespaces(input: &SpecInput<'_>) -> Vec<LinuxNamespace> {
    let namespace = |typ: LinuxNamespaceType, path: Option<&PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path.cloned());
        namespace
    };
    let paths = &input.namespaces;
    let joined = [
        (LinuxNamespaceType::Network, &paths.net),
        (LinuxNamespaceType::Ipc, &paths.ipc),
        (LinuxNamespaceType::Uts, &paths.uts),
    ];
    let host_pid = input
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_pid)
        .unwrap_or_default();
    let mut all = Vec::new();
    if !host_pid {
        all.push(namespace(LinuxNamespaceType::Pid, None));
    }
    all.push(namespace(LinuxNamespaceType::Mount, None));
    all.push(namespace(LinuxNamespaceType::Cgroup, None));
    // Without a path a new namespace would be made: the node's own is had by leaving it out.
    all.extend(
        joined
            .into_iter()
            .filter_map(|(typ, path)| path.as_ref().map(|path| namespace(typ, Some(path)))),
    );
    all
}

fn seccomp(
    input: &SpecInput<'_>,
    effective: &Effective<'_>,
    capabilities: &Capabilities,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    if effective.privileged() {
        return Ok(None);
    }
    let own = effective.own.and_then(|own| own.seccomp_profile.as_ref());
    let profile: Option<&SeccompProfile> =
        own.or_else(|| effective.pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    match profile.map(|profile| profile.type_.as_str()) {
        None | Some("RuntimeDefault") => Ok(Some(for_libcontainer(default_profile(
            capabilities,
            input.architecture,
        )))),
        Some("Unconfined") => Ok(None),
        Some(other) => {
            let message = format!("{other:?} is not supported, RuntimeDefault and Unconfined are");
            Err(SpecError::field(
                "securityContext.seccompProfile.type",
                message,
            ))
        }
    }
}
