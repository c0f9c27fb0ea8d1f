//! A request whose end nobody waits for.
//!
//! The kernel takes a link out of its lists within a millisecond, and then waits for grace periods, 15 to 20 ms, before
//! the call that asked for it returns. Nothing can be seen of the link meanwhile, nothing can stop the kernel, and what
//! is asked next comes after it. So another process makes the call: it does nothing else, holds nothing but the socket,
//! and ends with the call.
#![allow(unsafe_code, reason = "fork has no safe form")]

use std::{
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    thread,
    time::Duration,
};

use nix::{
    libc,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{ForkResult, fork, getppid},
};

/// How long is waited between two looks, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LAST_PAUSE: Duration = Duration::from_millis(1);

/// Sends `request` from another process, and returns when it has had its effect, which `is_done` tells. If this says
/// that it has none, nobody works on the request any more: there was no process to be had, or the kernel refused.
pub(super) fn send(socket: BorrowedFd<'_>, request: &[u8], is_done: impl Fn() -> bool) -> bool {
    if !is_anybody_left_to_reap(getppid().as_raw()) {
        return false;
    }
    // SAFETY: between here and its end the child makes system calls only, whatever locks other threads hold.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Child) => deliver(socket.as_raw_fd(), request),
        Ok(ForkResult::Parent { child }) => child,
        Err(_too_many) => return false,
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let status = waitpid(child, Some(WaitPidFlag::WNOHANG));
        if is_done() {
            return true;
        }
        if status != Ok(WaitStatus::StillAlive) {
            return false;
        }
        thread::sleep(pause);
        pause = LAST_PAUSE.min(pause * 2);
    }
}

/// Whoever outlives its parent is reaped by the first process. If that is the parent itself, a container's only program
/// for one, it may not know of children that it did not start.
fn is_anybody_left_to_reap(parent: i32) -> bool {
    parent > 1
}

/// The other process. It keeps neither the caller's locks nor the pipe at whose other end somebody waits.
fn deliver(socket: RawFd, request: &[u8]) -> ! {
    let number = socket.unsigned_abs();
    if (number == 0 || close(0, number - 1)) && close(number + 1, u32::MAX) {
        // SAFETY: the request outlives the call; the kernel is whom a netlink socket sends to.
        unsafe { libc::send(socket, request.as_ptr().cast(), request.len(), 0) };
    }
    // SAFETY: ends the process; nothing is run that the parent has registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Closes the descriptors `first..=last`. Linux before 5.9 cannot.
fn close(first: u32, last: u32) -> bool {
    // SAFETY: three numbers; no owner of a descriptor lives on in this process.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_left_no_children() {
        assert!(is_anybody_left_to_reap(2));
        assert!(!is_anybody_left_to_reap(1));
        assert!(!is_anybody_left_to_reap(0), "outside of our namespace");
    }
}
