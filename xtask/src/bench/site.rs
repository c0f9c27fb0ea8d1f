//! The namespaces and files of one bench. All of them go when it ends, however it ends: what a killed one left behind,
//! the next one removes.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::CloneFlags,
    sys::signal::{SigSet, Signal},
};

use crate::command;

const NAME: &str = "skiff-bench-";
const NETNS_DIR: &str = "/run/netns";
/// On a disk, as the leases of a node are.
const FILES_DIR: &str = "/var/tmp";

/// Owns all that begins with its prefix.
pub(super) struct Site {
    prefix: String,
    dir: PathBuf,
}

impl Site {
    /// Sweeps what dead benches left, and sees to it that ending this one sweeps too.
    pub(super) fn new() -> Result<Self> {
        for prefix in leftovers()? {
            sweep(&prefix)?;
        }
        let prefix = format!("{NAME}{}-", std::process::id());
        sweep_on_signal(&prefix)?;
        let dir = Path::new(FILES_DIR).join(format!("{prefix}files"));
        let site = Self { prefix, dir };
        fs::create_dir_all(&site.dir).with_context(|| site.dir.display().to_string())?;
        Ok(site)
    }

    /// A folder for everything that is no namespace.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A fresh network namespace.
    pub(super) fn netns(&self, role: &str) -> Result<PathBuf> {
        ip_batch(&[format!("netns add {}{role}", self.prefix)])?;
        Ok(self.netns_path(role))
    }

    /// Many of them, before anything is measured.
    pub(super) fn netns_many(&self, role: &str, count: usize) -> Result<Vec<PathBuf>> {
        let roles: Vec<_> = (0..count).map(|number| format!("{role}{number}")).collect();
        let lines: Vec<_> = roles
            .iter()
            .map(|role| format!("netns add {}{role}", self.prefix))
            .collect();
        ip_batch(&lines)?;
        Ok(roles.iter().map(|role| self.netns_path(role)).collect())
    }

    fn netns_path(&self, role: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(format!("{}{role}", self.prefix))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.prefix) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

/// Runs `f` on a thread of its own in a network namespace; children that it starts are in it too.
pub(super) fn inside<T: Send>(netns: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = fs::File::open(netns).with_context(|| netns.display().to_string())?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[expect(clippy::disallowed_methods, reason = "the thread ends with its work")]
            nix::sched::setns(&file, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
            f()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` in a network namespace.
pub(super) fn ip(netns: &Path, arguments: &str) -> Result<String> {
    let name = netns.file_name().unwrap_or_default();
    command::output(
        Command::new("ip")
            .arg("-netns")
            .arg(name)
            .args(arguments.split(' ')),
    )
}

/// One process for many changes.
fn ip_batch(lines: &[String]) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("running ip")?;
    if let Some(mut stdin) = ip.stdin.take() {
        stdin.write_all((lines.join("\n") + "\n").as_bytes())?;
    }
    ensure!(ip.wait()?.success(), "ip -batch failed: {lines:?}");
    Ok(())
}

/// Ctrl-C and its like are taken by a thread, so that nothing is left half done: it removes everything and ends the
/// process.
fn sweep_on_signal(prefix: &str) -> Result<()> {
    let signals: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]
        .into_iter()
        .collect();
    // Threads that are made from now on inherit this.
    signals.thread_block()?;
    let prefix = prefix.to_owned();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || end_on_signal(signals, &prefix))?;
    Ok(())
}

#[expect(clippy::exit, reason = "what a signal does to a process")]
fn end_on_signal(signals: SigSet, prefix: &str) {
    let Ok(signal) = signals.wait() else {
        return;
    };
    if let Err(error) = sweep(prefix) {
        eprintln!("cleaning up: {error:#}");
    }
    std::process::exit(128 + signal as i32)
}

/// The prefixes of benches that do not run any more.
fn leftovers() -> Result<Vec<String>> {
    let mut prefixes = Vec::new();
    for dir in [NETNS_DIR, FILES_DIR] {
        for name in names(Path::new(dir))? {
            let pid = name
                .strip_prefix(NAME)
                .and_then(|rest| rest.split_once('-'))
                .map(|(pid, _role)| pid);
            let alive = |pid: &str| Path::new("/proc").join(pid).exists();
            if let Some(pid) = pid.filter(|pid| pid.parse::<u32>().is_ok() && !alive(pid)) {
                prefixes.push(format!("{NAME}{pid}-"));
            }
        }
    }
    prefixes.sort();
    prefixes.dedup();
    Ok(prefixes)
}

fn sweep(prefix: &str) -> Result<()> {
    let lines: Vec<_> = names(Path::new(NETNS_DIR))?
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .map(|name| format!("netns delete {name}"))
        .collect();
    let deleted = if lines.is_empty() {
        Ok(())
    } else {
        ip_batch(&lines)
    };
    let dir = Path::new(FILES_DIR).join(format!("{prefix}files"));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    deleted
}

fn names(dir: &Path) -> Result<Vec<String>> {
    // No namespace was ever made on this machine.
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(Vec::new());
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}
