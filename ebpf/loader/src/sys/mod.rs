//! The few `bpf(2)` commands that aya does not offer (batches, link update) or not on maps opened by path.
//!
//! Every function is safe: it passes pointers to memory that it borrows for the length of the call.

mod map;
mod sock_diag;

#[cfg(feature = "bench")]
pub(crate) use map::update;
pub(crate) use map::{ArrayTable, HashTable, MappedArray, PerCpuCounters};
pub(crate) use sock_diag::SockDiag;
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// One command. `T` is the part of `union bpf_attr` that it uses.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    let attr: *mut T = attr;
    // SAFETY: the attribute is a live repr(C) struct of the size given; the kernel takes what lies beyond as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Numbers of file descriptors are never negative.
pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the command returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: path.as_ptr().addr() as u64,
        fd: 0,
        flags: 0,
    };
    owned(bpf(BPF_OBJ_GET, &mut attr)?)
}

/// Pins `fd` at `path`.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: path.as_ptr().addr() as u64,
        fd: raw(fd),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup, beside those of others.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let (prog_fd, target_fd) = (raw(program), raw(cgroup));
    let mut attr = LinkCreateAttr {
        prog_fd,
        target_fd,
        attach_type,
        flags: 0,
    };
    owned(bpf(BPF_LINK_CREATE, &mut attr)?)
}

#[repr(C)]
struct TcxLinkAttr {
    prog_fd: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Which packets of a link a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Those that come in.
    In,
    /// Those that go out.
    Out,
}

/// Attaches a program to a link of the calling thread's network namespace, behind those of others.
pub(crate) fn link_create_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    way: Way,
) -> io::Result<OwnedFd> {
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    let mut attr = TcxLinkAttr {
        prog_fd: raw(program),
        ifindex,
        attach_type: match way {
            Way::In => BPF_TCX_INGRESS,
            Way::Out => BPF_TCX_EGRESS,
        },
        flags: 0,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    owned(bpf(BPF_LINK_CREATE, &mut attr)?)
}

/// Attaches a program to a link of the calling thread's network namespace, in its driver (native XDP). One program only: EBUSY
/// if there is another.
pub(crate) fn link_create_xdp(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target_fd: ifindex,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    owned(bpf(BPF_LINK_CREATE, &mut attr)?)
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Exchanges the program of a link: each call sees the old or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link_fd, new_prog_fd) = (raw(link), raw(program));
    let mut attr = LinkUpdateAttr {
        link_fd,
        new_prog_fd,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the program away at once, whoever still holds the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// The ids of the programs attached to a cgroup itself (not to those above it).
pub(crate) fn attached(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr().addr() as u64,
        prog_cnt: 64,
        pad: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok(ids.iter().copied().take(attr.prog_cnt as usize).collect())
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let pointer: *mut MapInfo = &raw mut info;
    let len = u32::try_from(size_of::<MapInfo>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr {
        fd: raw(map),
        len,
        info: pointer.expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// The link's cgroup id, from the start of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

/// The id of the cgroup that a link is attached to; 0 once the cgroup is gone.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = CgroupLinkInfo::default();
    let pointer: *mut CgroupLinkInfo = &raw mut info;
    let len = u32::try_from(size_of::<CgroupLinkInfo>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr {
        fd: raw(link),
        len,
        info: pointer.expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.cgroup_id)
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Runs a program on a packet; its verdict, the packet as it left it, and the mean time of a run in nanoseconds. The packet comes
/// in by the link `xdp_link` (of those that have an XDP program) if that is given, else by the loopback link.
pub(crate) fn prog_test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    repeat: u32,
    xdp_link: Option<u32>,
) -> io::Result<(u32, Vec<u8>, u32)> {
    // It may grow by a header or two.
    let mut out = vec![0_u8; packet.len() + 256];
    let size = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        size_in: size(packet.len())?,
        size_out: size(out.len())?,
        data_in: packet.as_ptr().expose_provenance() as u64,
        data_out: out.as_mut_ptr().expose_provenance() as u64,
        repeat,
        ..TestRunAttr::default()
    };
    let context = xdp_link.map(|ingress_ifindex| XdpMd {
        data_end: attr.size_in,
        ingress_ifindex,
        ..XdpMd::default()
    });
    if let Some(context) = &context {
        let context: *const XdpMd = context;
        attr.context_in = context.expose_provenance() as u64;
        attr.context_size_in = size(size_of::<XdpMd>())?;
    }
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    out.truncate(attr.size_out as usize);
    Ok((attr.verdict, out, attr.duration))
}

/// The start of `struct bpf_link_info` of a program at a link, with TCX and with XDP.
#[repr(C)]
#[derive(Default)]
struct NetLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    pad2: u32,
}

/// The number of the link that a program is at; 0 once that is gone.
pub(crate) fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = NetLinkInfo::default();
    let pointer: *mut NetLinkInfo = &raw mut info;
    let len = u32::try_from(size_of::<NetLinkInfo>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr {
        fd: raw(link),
        len,
        info: pointer.expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.ifindex)
}

/// Waits until every program that runs now has ended.
///
/// `MEMBARRIER_CMD_GLOBAL` is an RCU grace period, and programs run in RCU read sections.
pub(crate) fn wait_for_readers() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The cookie of the network namespace that `socket` lives in.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len: libc::socklen_t = 8;
    let (fd, value, size) = (socket.as_fd().as_raw_fd(), &raw mut cookie, &raw mut len);
    // SAFETY: both pointers are to live variables of the sizes that the option has.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, value.cast(), size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

/// The kernel's monotonic clock.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live variable. The clock exists on every kernel, so this does not fail.
    let _always_zero = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}
