//! Network, IPC and UTS namespaces: making, pinning, entering and unpinning them.
//!
//! The only crate of the daemon that calls `setns` and `unshare`; the shim enters its containers by itself. Both
//! happen on a thread made for the purpose, which ends with the work ([`NetNs::run_here`] alone borrows the caller's):
//! no other work ever runs in the wrong namespace. A node is a network namespace too (a parameter, never an assumption): [`NodeNetns`] is either the
//! machine's own or a pinned one, and whatever makes a socket, a link or a rule for the node goes through it.
//!
//! A pinned namespace is a bind mount of its `/proc` file, as `ip netns` makes them: it lives until
//! [`delete_pinned`], with or without processes in it.

mod error;
mod pin;
mod sandbox;

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{fcntl::OFlag, sched::CloneFlags};

pub use crate::{
    error::NetnsError,
    pin::delete_pinned,
    sandbox::{SandboxNamespaces, create_sandbox, delete_sandbox},
};

/// An open network namespace. It stays alive as long as this value, pinned or not.
#[derive(Debug)]
pub struct NetNs {
    path: PathBuf,
    file: File,
}

impl NetNs {
    /// Opens the namespace that `path` refers to.
    ///
    /// # Errors
    /// [`NetnsError::Io`] if it cannot be opened, [`NetnsError::NotANamespace`] if it is something else than a
    /// network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        // A pipe would keep its reader waiting.
        let mut options = File::options();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options
            .open(path)
            .map_err(|source| NetnsError::io("opening", path, source))?;
        pin::check_is_netns(path, &file)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Makes a network namespace with its loopback up and pins it at `path`, whose folder is made if need be.
    ///
    /// # Errors
    /// [`NetnsError`] if it cannot be made or something is at `path` already; nothing is left then.
    pub fn create_pinned(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        pin::create(CloneFlags::CLONE_NEWNET, &[("net", path)], pin::loopback_up)?;
        Self::open(path)
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` on a fresh thread inside the namespace and waits for it. Sockets that `f` makes belong to the
    /// namespace for good, and children that it spawns start in it.
    ///
    /// # Errors
    /// [`NetnsError`] if the thread cannot be started or the namespace not entered. A panic of `f` goes on here.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_thread(|| {
            enter(self.file.as_fd(), &self.path)?;
            Ok(f())
        })
    }

    /// [`NetNs::run`] on the calling thread, which goes back where it was before this returns, also when `f` panics. For
    /// a step as short as making a socket, where a thread would cost more than the step itself; other threads stay
    /// where they are, and `f` starts none.
    ///
    /// # Errors
    /// [`NetnsError`] if the thread's own namespace cannot be opened or this one not entered; the thread is where it was
    /// then. The process aborts if there is no way back: nothing else may run in the wrong namespace.
    pub fn run_here<T>(&self, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let own = Path::new(THREAD_NETNS);
        let home = File::open(own).map_err(|source| NetnsError::io("opening", own, source))?;
        enter(self.file.as_fd(), &self.path)?;
        let _back = WayBack(home);
        Ok(f())
    }
}

/// Takes the thread back when it is dropped.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        if enter(self.0.as_fd(), Path::new(THREAD_NETNS)).is_err() {
            std::process::abort();
        }
    }
}

const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The network namespace of a node: the machine's own or a pinned one.
#[derive(Debug, Clone)]
pub struct NodeNetns(Option<Arc<NetNs>>);

impl NodeNetns {
    /// The namespace that the daemon itself is in.
    #[must_use]
    pub fn machine() -> Self {
        Self(None)
    }

    /// A pinned namespace.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        Ok(Self(Some(Arc::new(NetNs::open(path)?))))
    }

    /// Where it is pinned; `None` for the machine's own.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.as_deref().map(NetNs::path)
    }

    /// Runs `f` inside: on a fresh thread for a pinned namespace, on this one for the machine's own.
    ///
    /// # Errors
    /// As [`NetNs::run`].
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        match &self.0 {
            None => Ok(f()),
            Some(netns) => netns.run(f),
        }
    }

    /// [`NodeNetns::run`] for async callers: `f` may block, and must not need the async runtime. Make standard
    /// sockets in it, set them non-blocking and hand them to tokio outside.
    ///
    /// # Errors
    /// As [`NetNs::run`].
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let netns = self.clone();
        match tokio::task::spawn_blocking(move || netns.run(f)).await {
            Ok(result) => result,
            Err(join) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => Err(NetnsError::ShuttingDown),
            },
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this crate owns setns")]
fn enter(netns: BorrowedFd<'_>, path: &Path) -> Result<(), NetnsError> {
    nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetnsError::io("entering", path, errno.into()))
}

/// Runs `f` on a thread of its own and waits for it: what `f` does to the thread's namespaces ends with it.
fn on_thread<T: Send>(f: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(|source| NetnsError::Thread { source })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
