//! The kernel programs: loading, attaching, exchanging.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSockAddr, Program, ProgramError},
    util::KernelVersion,
};
use skiff_ebpf_common::maps;

use crate::{DatapathError, Limits, bpffs, sys};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/skiff-programs"));

/// The hooks and their numbers in `enum bpf_attach_type`.
pub(crate) const HOOKS: [(&str, u32); 10] = [
    ("bind4", 8),
    ("bind6", 9),
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// The programs at links: those for pods, and those at the links to the outside.
const LINK_PROGRAMS: [&str; 5] = {
    let [egress, ingress] = bpffs::POD_PROGRAMS;
    let [xdp, uplink_in, uplink_out] = bpffs::UPLINK_PROGRAMS;
    [egress, ingress, xdp, uplink_in, uplink_out]
};

/// The programs, accepted by the kernel and bound to the maps in one folder.
pub(crate) struct Programs {
    object: Ebpf,
}

impl Programs {
    /// Loads them. Maps that are pinned in `maps_dir` are used, the others made and pinned there.
    pub(crate) fn load(maps_dir: &Path, limits: &Limits) -> Result<Self, DatapathError> {
        let mut loader = EbpfLoader::new();
        for name in maps::ALL {
            loader.map_pin_path(name, maps_dir.join(name));
        }
        for (name, entries) in limits.by_map() {
            loader.map_max_entries(name, entries);
        }
        let mut object = loader.load(OBJECT).map_err(explain_load)?;
        for (name, _) in HOOKS {
            program(&mut object, name)?
                .load()
                .map_err(|source| explain(name, source))?;
        }
        for name in LINK_PROGRAMS {
            load_link_program(&mut object, name)?;
        }
        Ok(Self { object })
    }

    /// Pins the programs for links in `folder`, in place of earlier ones.
    pub(crate) fn pin_link_programs(&mut self, folder: &Path) -> Result<(), DatapathError> {
        for name in LINK_PROGRAMS {
            let path = folder.join(name);
            let program = self.object.program(name);
            let fd = program
                .ok_or(DatapathError::NoProgram { program: name })?
                .fd()
                .map_err(|source| DatapathError::Program {
                    program: name,
                    source,
                })?
                .as_fd();
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DatapathError::io("unpinning", path, error));
                }
                _ => {}
            }
            sys::obj_pin(fd, &path)
                .map_err(|e| DatapathError::io("pinning a program at", path, e))?;
        }
        Ok(())
    }

    /// Puts them at the cgroup: exchanges those whose links are pinned already, attaches the others and pins them.
    pub(crate) fn install(&mut self, links: &Path, cgroup: &Path) -> Result<(), DatapathError> {
        fs::create_dir_all(links).map_err(|e| DatapathError::io("making", links, e))?;
        let folder = File::open(cgroup).map_err(|e| DatapathError::io("opening", cgroup, e))?;
        let id = folder
            .metadata()
            .map_err(|e| DatapathError::io("looking at", cgroup, e))?
            .ino();
        for (name, attach_type) in HOOKS {
            let program = program(&mut self.object, name)?;
            let fd = program
                .fd()
                .map_err(|source| DatapathError::Program {
                    program: name,
                    source,
                })?
                .as_fd();
            let path = links.join(name);
            install_one(fd, attach_type, &path, folder.as_fd(), id).map_err(|(what, source)| {
                DatapathError::Link {
                    what,
                    program: name,
                    cgroup: cgroup.to_owned(),
                    source,
                }
            })?;
        }
        Ok(())
    }
}

fn install_one(
    program: BorrowedFd<'_>,
    attach_type: u32,
    path: &PathBuf,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
) -> Result<(), (&'static str, io::Error)> {
    if let Ok(link) = sys::obj_get(path) {
        if sys::link_cgroup(link.as_fd()).is_ok_and(|id| id == cgroup_id) {
            return sys::link_update(link.as_fd(), program).map_err(|e| ("exchanging", e));
        }
        // Of another cgroup, or of one that is gone.
        fs::remove_file(path).map_err(|e| ("unpinning", e))?;
    }
    let link = sys::link_create(program, cgroup, attach_type).map_err(|e| ("attaching", e))?;
    sys::obj_pin(link.as_fd(), path).map_err(|e| ("pinning", e))
}

fn program<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, DatapathError> {
    let missing = DatapathError::NoProgram { program: name };
    let Some(program) = object.program_mut(name) else {
        return Err(missing);
    };
    program.try_into().map_err(|source| DatapathError::Program {
        program: name,
        source,
    })
}

fn load_link_program(object: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let missing = DatapathError::NoProgram { program: name };
    let loaded = match object.program_mut(name).ok_or(missing)? {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => return Err(DatapathError::NoProgram { program: name }),
    };
    loaded.map_err(|source| explain(name, source))
}

fn explain_load(error: aya::EbpfError) -> DatapathError {
    use std::error::Error as _;
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            match io.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => return DatapathError::Permission,
                Some(libc::ENOSYS) => {
                    return DatapathError::MissingFeature {
                        feature: "eBPF (CONFIG_BPF_SYSCALL)",
                        since: "5.18",
                    };
                }
                _ => {}
            }
        }
        cause = inner.source();
    }
    DatapathError::Load(error)
}

fn explain(program: &'static str, source: ProgramError) -> DatapathError {
    if KernelVersion::current().is_ok_and(|have| have < KernelVersion::new(5, 18, 0)) {
        return DatapathError::MissingFeature {
            feature: "bpf_set_retval in the socket hooks of cgroups",
            since: "5.18",
        };
    }
    match &source {
        ProgramError::LoadError { io_error, .. } => match io_error.raw_os_error() {
            Some(libc::EPERM) => DatapathError::Permission,
            Some(libc::EINVAL) => DatapathError::MissingFeature {
                feature: "eBPF programs at cgroups (CONFIG_CGROUP_BPF)",
                since: "5.18",
            },
            _ => DatapathError::Program { program, source },
        },
        _ => DatapathError::Program { program, source },
    }
}

/// The ids of the programs at a cgroup itself, of all hooks together: for tests.
///
/// # Errors
/// [`DatapathError`] if the cgroup cannot be opened or asked.
pub fn attached_programs(cgroup: &Path) -> Result<Vec<u32>, DatapathError> {
    let folder = File::open(cgroup).map_err(|e| DatapathError::io("opening", cgroup, e))?;
    let mut all = Vec::new();
    for (name, attach_type) in HOOKS {
        let found =
            sys::attached(folder.as_fd(), attach_type).map_err(|source| DatapathError::Link {
                what: "asking for",
                program: name,
                cgroup: cgroup.into(),
                source,
            })?;
        all.extend(found);
    }
    Ok(all)
}
