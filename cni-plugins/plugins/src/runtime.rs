//! How asynchronous work is run, and the errors that come out of it.

use std::future::Future;

use skiff_cni::{
    netlink::NetlinkError,
    types::{CniError, code},
};

/// Runs work that asks the kernel: its requests are asynchronous in form only and never wait. Whoever must wait here puts
/// the thread to sleep.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    futures::executor::block_on(work)
}

/// Runs work that waits for timers and other threads, as that on overlays does.
pub(crate) fn block_on_waiting<T>(
    work: impl Future<Output = Result<T, CniError>>,
) -> Result<T, CniError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| CniError::from_error(code::IO, "cannot start", &error))?
        .block_on(work)
}

/// A refusal of the kernel as the runtime reads it.
pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(NetlinkError) -> CniError {
    let what = what.into();
    move |error| CniError::from_error(code::KERNEL, what, &error)
}
