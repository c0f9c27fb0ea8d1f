//! Where the C library enters the program.
//!
//! Rust's own way in prepares for overflows of the stack, for which it reads the process' memory map: as much work as the
//! rest of the start, for a process that ends within milliseconds. What protects others is done here too.
#![allow(
    unsafe_code,
    reason = "an entry by its C name, and the disposition of a signal"
)]

use std::{ffi::c_int, fs::File, io, mem, os::fd::AsFd as _};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigHandler, Signal, signal},
};

// SAFETY: the C library calls it once, as its `main`; nothing else has this name.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    if occupy_standard_streams().is_err() {
        return 1;
    }
    // SAFETY: it is ignored, so that no handler runs. A reader that has gone is an error of `write`.
    if unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.is_err() {
        return 1;
    }
    skiff_cni_plugins::run().into()
}

/// Whoever started us may have closed some of the three: another file would get the number, and the answer.
fn occupy_standard_streams() -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .map(|stream| PollFd::new(stream, PollFlags::empty()));
    poll(&mut streams, PollTimeout::ZERO)?;
    let is_closed = |stream: &PollFd<'_>| stream.revents() == Some(PollFlags::POLLNVAL);
    for _closed in streams.iter().filter(|stream| is_closed(stream)) {
        // It gets the lowest free number, and keeps it.
        mem::forget(File::options().read(true).write(true).open("/dev/null")?);
    }
    Ok(())
}
