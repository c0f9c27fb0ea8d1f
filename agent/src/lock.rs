//! One daemon per node: the lock in its run directory, which also says who holds it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, Write},
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Held as long as the daemon lives; the kernel frees it however the daemon ends.
#[derive(Debug)]
pub(crate) struct NodeLock {
    _file: Flock<File>,
}

/// Locks the node whose run directory this is.
///
/// # Errors
/// Says which process has it if one does.
pub(crate) fn acquire(run_dir: &Path) -> Result<NodeLock> {
    fs::create_dir_all(run_dir).with_context(|| format!("creating {}", run_dir.display()))?;
    let path = run_dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())?;
            nix::unistd::fsync(file.as_fd())?;
            Ok(NodeLock { _file: file })
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => match holder(run_dir) {
            Some(pid) => bail!(
                "skiff is already running for {} (process {pid})",
                run_dir.display()
            ),
            None => bail!("skiff is already running for {}", run_dir.display()),
        },
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}

fn holder(run_dir: &Path) -> Option<i32> {
    fs::read_to_string(run_dir.join("lock"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Asks a running daemon to end, waits for that, and takes its place. `None` if there never was one here.
pub(crate) fn take_over(run_dir: &Path, patience: Duration) -> Result<Option<NodeLock>> {
    if !run_dir.join("lock").exists() {
        return Ok(None);
    }
    let deadline = Instant::now() + patience;
    let mut asked = false;
    loop {
        match acquire(run_dir) {
            Ok(lock) => return Ok(Some(lock)),
            Err(err) if Instant::now() > deadline => return Err(err),
            Err(_) => {
                if let Some(pid) = holder(run_dir)
                    && !asked
                {
                    // It holds the lock right now, so the number is its own.
                    kill(Pid::from_raw(pid), Signal::SIGTERM)
                        .context("asking the daemon to end")?;
                    asked = true;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = acquire(dir.path()).unwrap();
        let err = acquire(dir.path()).unwrap_err().to_string();
        assert!(
            err.contains(&format!("(process {})", std::process::id())),
            "{err}"
        );
        drop(first);
        acquire(dir.path()).unwrap();
    }

    #[test]
    fn there_is_nothing_to_take_over_where_no_daemon_was() {
        let dir = tempfile::tempdir().unwrap();
        assert!(take_over(dir.path(), Duration::ZERO).unwrap().is_none());
    }
}
