//! Processes and signals: the calls that have no safe form.
#![allow(
    unsafe_code,
    reason = "fork, clone3 and signal dispositions have no safe form"
)]

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{ForkResult, Pid},
};

/// Last real-time signal.
const LAST_SIGNAL: i32 = 64;

/// Blocks every signal and returns what reads them: none of them ends the shim.
pub(crate) fn catch_signals() -> io::Result<SignalFd> {
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(
        &wanted,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// Undoes, in a fork, what the shim does with signals: a command must start with none blocked or ignored.
/// The Rust runtime ignores SIGPIPE, which would be inherited too.
pub(crate) fn reset_signals() -> io::Result<()> {
    // The kernel's structure, all zero: the default disposition.
    let default = [0_u64; 4];
    for number in 1..=LAST_SIGNAL {
        // SAFETY: the structure lives through the call; no handler is set. Past the C library, which hides
        // two signals that may have been ignored by who started the daemon. SIGKILL and SIGSTOP are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                0_usize,
                8_usize,
            )
        };
    }
    Ok(sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::empty()),
        None,
    )?)
}

/// Forks. In the child runs `work`, which ends it.
pub(crate) fn fork(work: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the shim has one thread, so the child is a whole copy of it.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit(work()),
    }
}

/// Forks a child of our own parent, so that the shim is the one to learn its exit status.
pub(crate) fn fork_sibling(work: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = libc::CLONE_PARENT.unsigned_abs().into();
    // SAFETY: without CLONE_VM this is fork, in a process with one thread.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of_val(&arguments),
        )
    };
    match pid {
        0 => exit(work()),
        pid if pid > 0 => Ok(Pid::from_raw(i32::try_from(pid).unwrap_or(-1))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once: a fork must not run what its parent has registered for its own end.
fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing is run.
    unsafe { libc::_exit(code) }
}

/// Opens a pidfd. `pid` is a child that is not reaped yet.
pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal, real-time ones included. `pid` is a child that is not reaped yet.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: two numbers.
    let result = unsafe { libc::kill(pid, signal) };
    Ok(Errno::result(result).map(drop)?)
}

/// Enters namespaces of the process behind a pidfd, all in one step.
pub(crate) fn enter_namespaces(pidfd: &OwnedFd, kinds: i32) -> io::Result<()> {
    // SAFETY: two numbers; this process has one thread and runs nothing else afterwards.
    let result = unsafe { libc::setns(pidfd.as_raw_fd(), kinds) };
    Ok(Errno::result(result).map(drop)?)
}

/// Has the kernel close every descriptor but the first three when a command is executed.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: numbers. Nothing is closed now.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes a terminal the controlling one of this session.
pub(crate) fn set_controlling_terminal(terminal: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open; the argument is a number.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    Ok(Errno::result(result).map(drop)?)
}

/// Opens the other end of a pseudo-terminal without going by its name.
pub(crate) fn open_peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is open; the argument is a number.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unlocks the other end of a pseudo-terminal.
pub(crate) fn unlock_peer(master: &OwnedFd) -> io::Result<()> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the argument is what this request reads.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) };
    Ok(Errno::result(result).map(drop)?)
}

/// Sets the size of a terminal.
pub(crate) fn set_size(terminal: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open, and the structure is what this request reads.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Ok(Errno::result(result).map(drop)?)
}

/// The listening socket that the daemon has put in place.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a number; an error says that there is no such descriptor.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    Errno::result(result)?;
    // SAFETY: it is open, and called once at the start nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives memory that is not in use back to the system: what the allocator holds, and the pages of the program
/// itself that starting up and starting containers have touched and the poll loop does not.
pub(crate) fn trim_memory() {
    // SAFETY: no argument that matters; there is one thread.
    unsafe { libc::malloc_trim(0) };
    for (start, end) in program_text().into_iter().flatten() {
        // SAFETY: a private mapping of code that nothing has written to: the kernel brings its pages back from
        // the file when they are executed again. Failure changes nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Where this program's code is mapped. Constants are left alone: they may lie in pages with relocations.
fn program_text() -> io::Result<Vec<(usize, usize)>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let own = program_text as fn() -> io::Result<Vec<(usize, usize)>> as usize;
    let range = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        (rest.starts_with("r-xp") && (start..end).contains(&own)).then_some((start, end))
    };
    Ok(maps.lines().filter_map(range).collect())
}

/// Takes over a descriptor that a call has just returned as a number.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: called with what the kernel has just made and nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
