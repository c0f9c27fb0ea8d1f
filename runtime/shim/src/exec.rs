//! Running a command in a container, in a fork of the shim.
//!
//! The engine's own way drops the container's seccomp profile and resource limits. This one puts everything
//! in force that the container's init has: cgroups, all namespaces, user, groups, resource limits, seccomp,
//! AppArmor, capabilities, `no_new_privs`, environment and working directory.

use std::{fs, io::Read, os::fd::OwnedFd, path::Path};

use libcontainer::{apparmor, capabilities, seccomp, syscall::syscall::create_syscall};
use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, chdir, getcwd, setgroups, setresgid, setresuid, setsid},
};
use oci_spec::runtime::{LinuxSeccomp, PosixRlimit, PosixRlimitType, Process, Spec};
use skiff_runtime::{layout::SPEC_FILE, protocol::ExecRequest};

use crate::{
    create::{clean_fork, reason_pipe},
    error::{ShimError, chain, system},
    executable, process, terminal,
};

/// All namespaces that a container may have of its own or share with its pod.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Where the command's streams come from.
pub(crate) enum Streams {
    /// stdin, stdout, stderr.
    Files([OwnedFd; 3]),
    /// A terminal of the container, to be made.
    Terminal,
}

/// Does it: returns the command's process id and the master of its terminal.
pub(crate) fn exec(
    request: &ExecRequest,
    container_dir: &Path,
    init: i32,
    streams: Streams,
) -> Result<(i32, Option<OwnedFd>), ShimError> {
    clean_fork()?;
    let path = container_dir.join(SPEC_FILE);
    let spec: Spec = skiff_runtime::files::read(&path)?
        .ok_or_else(|| ShimError::Refused("the container has no spec".to_owned()))?;
    let command = Command::new(request, spec, streams)?;
    join_cgroups(request)?;
    if let Some(score) = command.process.oom_score_adj() {
        // Clamped already to what we may do.
        fs::write("/proc/self/oom_score_adj", score.to_string()).ok();
    }
    // The shim has not reaped init, so this number is init's.
    let pidfd = process::pidfd(init).map_err(system("finding the container's init"))?;
    // Nobody in the container is to look into this process before it is the command.
    prctl::set_dumpable(false).map_err(system("hiding from the container"))?;
    process::enter_namespaces(&pidfd, NAMESPACES).map_err(system("entering the container"))?;

    let terminal = match command.streams {
        Streams::Terminal => Some(terminal::open().map_err(system("making a terminal"))?),
        Streams::Files(_) => None,
    };
    let (mut reasons, report) = reason_pipe()?;
    let (master, peer) = terminal.unzip();
    let pid = process::fork_sibling(|| {
        let reason = match command.confine(peer.as_ref()) {
            Ok(()) => ShimError::Command(executable::execute(&request.command, &command.env)),
            Err(error) => error,
        };
        std::io::Write::write_all(&mut &report, chain(&reason).to_string().as_bytes()).ok();
        127
    })
    .map_err(system("forking"))?;
    drop((report, peer, command));
    // Ends when the command has been executed, or with the reason why it cannot be.
    let mut reason = String::new();
    reasons
        .read_to_string(&mut reason)
        .map_err(system("waiting for the command"))?;
    if reason.is_empty() {
        Ok((pid.as_raw(), master))
    } else {
        Err(ShimError::Refused(reason))
    }
}

/// Moves this process into the container's cgroups: its limits hold for the command too.
fn join_cgroups(request: &ExecRequest) -> Result<(), ShimError> {
    for dir in &request.cgroups {
        let path = dir.join("cgroup.procs");
        fs::write(&path, "0").map_err(|source| ShimError::Path {
            operation: "joining",
            path,
            source,
        })?;
    }
    Ok(())
}

struct Command {
    process: Process,
    seccomp: Option<LinuxSeccomp>,
    env: Vec<String>,
    streams: Streams,
}

impl Command {
    fn new(request: &ExecRequest, spec: Spec, streams: Streams) -> Result<Self, ShimError> {
        let process = spec.process().clone();
        let process =
            process.ok_or_else(|| ShimError::Refused("the container has no process".to_owned()))?;
        let mut env = process.env().clone().unwrap_or_default();
        if request.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        let seccomp = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().clone());
        if seccomp.as_ref().is_some_and(seccomp::is_notify) {
            return Err(ShimError::Refused(
                "the container's seccomp profile asks a listener".to_owned(),
            ));
        }
        Ok(Self {
            process,
            seccomp,
            env,
            streams,
        })
    }

    /// Becomes as confined as the container's init, in the engine's order.
    fn confine(&self, terminal: Option<&OwnedFd>) -> Result<(), ShimError> {
        setsid().map_err(system("making a session"))?;
        match (&self.streams, terminal) {
            (Streams::Files(files), _) => terminal::connect_files(files),
            (Streams::Terminal, Some(terminal)) => terminal::connect(terminal),
            (Streams::Terminal, None) => Ok(()),
        }
        .map_err(system("connecting the streams"))?;
        process::close_on_exec().map_err(system("closing descriptors"))?;

        let no_new_privileges = self.process.no_new_privileges() == Some(true);
        if no_new_privileges {
            prctl::set_no_new_privs().map_err(system("setting no_new_privs"))?;
        }
        if let Some(profile) = self.process.apparmor_profile() {
            apparmor::apply_profile(profile).map_err(confinement("applying AppArmor profile"))?;
        }
        if let Some(bits) = self.process.user().umask() {
            umask(Mode::from_bits_truncate(bits));
        }
        for limit in self.process.rlimits().iter().flatten() {
            set_limit(limit)?;
        }
        // Once as root, once as the user: either may lack access.
        let entered = chdir(self.process.cwd());
        self.become_user(no_new_privileges)?;
        if entered.is_err() {
            chdir(self.process.cwd()).map_err(system("entering the working directory"))?;
        }
        // Fails if the directory is not below the container's root (CVE-2024-21626).
        getcwd().map_err(system("finding the working directory"))?;
        if no_new_privileges {
            self.load_seccomp()
        } else {
            Ok(())
        }
    }

    /// Without `no_new_privs` loading a filter takes a capability, so it comes before they are dropped.
    fn become_user(&self, no_new_privileges: bool) -> Result<(), ShimError> {
        let user = self.process.user();
        let groups: Vec<Gid> = user
            .additional_gids()
            .iter()
            .flatten()
            .map(|gid| Gid::from_raw(*gid))
            .collect();
        setgroups(&groups).map_err(system("setting supplementary groups"))?;
        prctl::set_keepcaps(true).map_err(system("keeping capabilities"))?;
        let gid = Gid::from_raw(user.gid());
        setresgid(gid, gid, gid).map_err(system("setting the group"))?;
        let uid = Uid::from_raw(user.uid());
        setresuid(uid, uid, uid).map_err(system("setting the user"))?;
        prctl::set_keepcaps(false).map_err(system("keeping capabilities"))?;
        let syscall = create_syscall();
        let failed = |error: &dyn std::error::Error| ShimError::Confinement {
            operation: "setting capabilities",
            message: chain(error).to_string(),
        };
        capabilities::reset_effective(&*syscall).map_err(|error| failed(&error))?;
        if !no_new_privileges {
            self.load_seccomp()?;
        }
        if let Some(wanted) = self.process.capabilities() {
            capabilities::drop_privileges(wanted, &*syscall).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn load_seccomp(&self) -> Result<(), ShimError> {
        let Some(profile) = &self.seccomp else {
            return Ok(());
        };
        seccomp::initialize_seccomp(profile)
            .map(drop)
            .map_err(confinement("loading the seccomp profile"))
    }
}

fn confinement<E: std::error::Error>(operation: &'static str) -> impl FnOnce(E) -> ShimError {
    move |error| ShimError::Confinement {
        operation,
        message: chain(&error).to_string(),
    }
}

fn set_limit(limit: &PosixRlimit) -> Result<(), ShimError> {
    let resource = match limit.typ() {
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
    setrlimit(resource, limit.soft(), limit.hard()).map_err(system("setting a resource limit"))
}
