//! The tracer.

use std::{collections::BTreeSet, process::Child};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use skiff_tests_cni::raw::RawCall;

/// The system calls that can change something, or begin a process that does.
const CHANGES: [i64; 24] = [
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_symlink,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_ioctl,
    libc::SYS_execve,
    libc::SYS_exit_group,
];

/// Whether the tracee stands before a system call that counts.
fn is_change(pid: Pid) -> bool {
    let Ok(registers) = ptrace::getregs(pid) else {
        return false;
    };
    // What the kernel puts there on the way in; on the way out it is the result.
    let entering = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
    let call = registers.orig_rax.cast_signed();
    let creates = call == libc::SYS_openat && registers.rdx & libc::O_CREAT as u64 != 0;
    entering && (creates || CHANGES.contains(&call))
}

/// Lets a plugin that waits for its stdin run, and kills it before its change number `fatal`. Returns whether it came
/// that far.
pub(crate) fn run_until(call: &RawCall, child: &mut Child, fatal: usize) -> bool {
    let main = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).unwrap();
    ptrace::interrupt(main).unwrap();
    call.feed(child);
    let mut tracees = BTreeSet::from([main]);
    let mut changes = 0;
    let mut killed = false;
    // Other threads trace others.
    let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    // Until there is none: one that was born just now has not been reported yet when its parent ends.
    loop {
        let status = match waitpid(None, Some(own)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return killed,
            Err(errno) => panic!("waitpid: {errno}"),
        };
        let Some(pid) = status.pid() else { continue };
        let signal = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                tracees.remove(&pid);
                continue;
            }
            WaitStatus::PtraceSyscall(_) => {
                if !killed && is_change(pid) {
                    killed = changes == fatal;
                    changes += 1;
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        tracees.insert(pid);
        if killed {
            for tracee in &tracees {
                // Threads end with their process.
                kill(*tracee, Signal::SIGKILL).ok();
            }
        }
        // One that was killed meanwhile is reported by the next waitpid.
        ptrace::syscall(pid, signal).ok();
    }
}
