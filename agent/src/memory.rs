//! Gives memory back. Pulling an image or listing everything needs megabytes for a moment, which glibc would keep for
//! the daemon's life, spread over one arena a thread.

#![allow(unsafe_code, reason = "the allocator's own functions")]

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How often free memory goes back to the system.
const INTERVAL: Duration = Duration::from_secs(20);

/// Arenas for all threads together: there is little contention to avoid on a node.
const ARENAS: libc::c_int = 2;

/// Bounds the number of arenas. To be called before there are threads.
pub(crate) fn bound_arenas() {
    // SAFETY: changes a parameter of the allocator; no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Trims until `token` is cancelled.
pub(crate) async fn trim_loop(token: CancellationToken) {
    let mut interval = tokio::time::interval(INTERVAL);
    while token.run_until_cancelled(interval.tick()).await.is_some() {
        // SAFETY: thread-safe; returns free pages to the system and moves nothing.
        unsafe { libc::malloc_trim(0) };
    }
}
