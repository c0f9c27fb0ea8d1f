//! Starting a shim: born in its cgroup, in a session of its own, with nothing of the daemon but its socket.
#![allow(
    unsafe_code,
    reason = "clone3 and what a child may do before execve have no safe form"
)]

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use nix::{fcntl::OFlag, unistd::pipe2};

/// `CLONE_INTO_CGROUP`; libc's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A shim to start.
pub(crate) struct ShimProcess<'a> {
    /// Its executable, as opened by [`sealed_executable`].
    pub executable: BorrowedFd<'a>,
    /// Its directory, which it has as working directory.
    pub dir: BorrowedFd<'a>,
    /// cgroup2 directory that it is born in. A later move would cost an RCU grace period.
    pub cgroup: BorrowedFd<'a>,
    /// Its listening socket, which it has as descriptor 3.
    pub listener: BorrowedFd<'a>,
    /// Its standard output and error.
    pub log: BorrowedFd<'a>,
    /// What `ps` shows of it beside its name.
    pub label: &'a str,
}

/// Opens an executable so that nobody can write to it through `/proc/<pid>/exe` of what it runs: as a
/// read-only mount that is attached nowhere. A container that is tricked into executing its runtime could
/// otherwise replace it on the host (CVE-2019-5736).
pub(crate) fn sealed_executable(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `name` is a C string that lives through the call; the other arguments are numbers.
    let tree = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            name.as_ptr(),
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
        )
    };
    let tree = RawFd::try_from(tree).unwrap_or(-1);
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(tree) };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the empty path and the attributes live through the call, and the size is theirs.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(tree)
    }
}

/// Starts it and returns its process id and pidfd. The caller is its parent and reaps it.
pub(crate) fn spawn(process: &ShimProcess<'_>) -> io::Result<(i32, OwnedFd)> {
    let arguments = [c"skiff-shim".to_owned(), CString::new(process.label)?];
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(ptr::null());
    let null = File::open("/dev/null")?;
    let (mut report, report_writer) =
        pipe2(OFlag::O_CLOEXEC).map(|(reader, writer)| (File::from(reader), writer))?;
    let child = Child {
        executable: process.executable.as_raw_fd(),
        dir: process.dir.as_raw_fd(),
        stdio: [
            null.as_raw_fd(),
            process.log.as_raw_fd(),
            process.log.as_raw_fd(),
        ],
        listener: process.listener.as_raw_fd(),
        report: report_writer.as_raw_fd(),
        argv: &argv,
    };

    let mut pidfd: RawFd = -1;
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = (libc::CLONE_PIDFD as u64) | CLONE_INTO_CGROUP;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(process.cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM the child has a copy of everything, so this is fork. It takes only the branch
    // below, which calls nothing but system calls: no lock of another thread, no allocation.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of_val(&arguments),
        )
    };
    if pid == 0 {
        // SAFETY: we are the child, and every descriptor and pointer in it is a copy of a living one.
        unsafe { child.execute() }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(report_writer);
    let mut errno = [0; 4];
    match report.read_exact(&mut errno) {
        // The writing end went away by execve.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok((i32::try_from(pid).unwrap_or(-1), pidfd))
        }
        Err(error) => Err(error),
        Ok(()) => {
            reap(&pidfd);
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    }
}

/// Takes the exit status of a shim that has ended, if it is our child. An adopted one is init's.
pub(crate) fn reap(pidfd: &OwnedFd) {
    // Nothing depends on the status; an adopted shim gives ECHILD.
    nix::sys::wait::waitid(
        nix::sys::wait::Id::PIDFd(std::os::fd::AsFd::as_fd(pidfd)),
        nix::sys::wait::WaitPidFlag::WEXITED,
    )
    .ok();
}

/// Opens a pidfd of a process that is not our child.
pub(crate) fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends SIGKILL through a pidfd.
pub(crate) fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    // SAFETY: numbers, and no signal information.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// All that the child needs, made before it is born.
struct Child<'a> {
    executable: RawFd,
    dir: RawFd,
    stdio: [RawFd; 3],
    listener: RawFd,
    report: RawFd,
    argv: &'a [*const libc::c_char],
}

/// The shim's listening socket.
const LISTENER_FD: RawFd = 3;
/// Descriptors from here on are the child's scratch space: no target number can be among the sources.
const SCRATCH_FD: RawFd = 16;

impl Child<'_> {
    /// Becomes the shim or dies.
    ///
    /// # Safety
    /// To be called once, in a fresh child of a multi-threaded process; calls only system calls.
    unsafe fn execute(&self) -> ! {
        // SAFETY: a number; out of the way of the targets. Without it nobody can be told.
        let report = unsafe { libc::fcntl(self.report, libc::F_DUPFD_CLOEXEC, SCRATCH_FD) };
        // SAFETY: as the caller's.
        unsafe { self.try_execute() };
        let errno = io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
            .to_ne_bytes();
        // SAFETY: the buffer is ours and as long as said; a failure to report changes nothing.
        unsafe { libc::write(report, errno.as_ptr().cast(), errno.len()) };
        // SAFETY: ends the child without running anything of the daemon's.
        unsafe { libc::_exit(127) }
    }

    /// Returns if a call fails, with `errno` set.
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one chain of plain system calls"
    )]
    unsafe fn try_execute(&self) {
        // SAFETY: every call takes numbers and pointers to what was prepared before the clone.
        unsafe {
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            if libc::setsid() < 0 || libc::fchdir(self.dir) < 0 {
                return;
            }
            let executable = libc::fcntl(self.executable, libc::F_DUPFD_CLOEXEC, SCRATCH_FD);
            if executable < 0 {
                return;
            }
            // Duplicates first, so that putting one in place cannot close another that is still to come.
            let mut sources = [0; 4];
            for (source, fd) in sources
                .iter_mut()
                .zip(self.stdio.iter().chain([&self.listener]))
            {
                *source = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, SCRATCH_FD);
                if *source < 0 {
                    return;
                }
            }
            for (target, source) in (0..=LISTENER_FD).zip(sources) {
                if libc::dup2(source, target) < 0 {
                    return;
                }
            }
            libc::syscall(
                libc::SYS_close_range,
                LISTENER_FD + 1,
                libc::c_int::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
            let environment: [*const libc::c_char; 1] = [ptr::null()];
            libc::syscall(
                libc::SYS_execveat,
                executable,
                <CStr>::as_ptr(c""),
                self.argv.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
    }
}
