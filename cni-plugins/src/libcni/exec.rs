//! Runs one plugin executable: stdin in, stdout out, bounded in time and size. Blocking, on the caller's thread.

use std::{
    io::{self, Read, Write as _},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::types::{CniError, PluginType};

/// A plugin that says more than this says nonsense.
const MAX_OUTPUT: usize = 8 << 20;
/// What stderr may contribute to an error.
const MAX_STDERR: usize = 2000;
/// How often an executable that somebody is writing is tried again, and how long is waited before.
const BUSY_ATTEMPTS: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Chunks that are read before the clock is looked at again: more than a pipe holds.
const CHUNKS: usize = 128;

/// A plugin that could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No folder of the path has it.
    #[error("plugin {plugin_type} is not in {path}")]
    NotFound {
        /// The plugin.
        plugin_type: PluginType,
        /// Where it was looked for.
        path: String,
    },
    /// It cannot be started, written to or read from.
    #[error("running {plugin}", plugin = plugin.display())]
    Io {
        /// The executable.
        plugin: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("{plugin} did not end within {seconds} s", plugin = plugin.display())]
    Timeout {
        /// The executable.
        plugin: PathBuf,
        /// Its time.
        seconds: u64,
    },
    /// It failed, and said why.
    #[error("{plugin_type} failed")]
    Failed {
        /// The plugin.
        plugin_type: String,
        /// What it said.
        #[source]
        source: CniError,
    },
    /// It failed or answered with something that is not CNI.
    #[error("{plugin_type} gave no CNI answer ({status}): {output}")]
    Nonsense {
        /// The plugin.
        plugin_type: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        output: String,
    },
}

impl ExecError {
    /// As a plugin passes a delegate's error on.
    #[must_use]
    pub fn into_cni(self) -> CniError {
        match self {
            Self::Failed {
                plugin_type,
                source,
            } => CniError {
                msg: format!("{plugin_type}: {}", source.msg),
                ..source
            },
            other => CniError::from_error(
                crate::types::code::DELEGATE,
                "a delegated plugin could not be run",
                &other,
            ),
        }
    }
}

/// One call of an executable.
#[derive(Debug, Clone)]
pub struct PluginCall {
    /// The executable.
    pub plugin: PathBuf,
    /// The whole `CNI_*` environment; other variables are inherited.
    pub env: Vec<(&'static str, String)>,
    /// What goes to its stdin.
    pub stdin: Vec<u8>,
    /// It is killed after this time.
    pub timeout: Duration,
}

/// Finds a plugin in a list of folders.
///
/// # Errors
/// [`ExecError::NotFound`].
pub(super) fn find(plugin_type: &PluginType, path: &[PathBuf]) -> Result<PathBuf, ExecError> {
    path.iter()
        .map(|dir| dir.join(plugin_type.as_str()))
        .find(|file| file.is_file())
        .ok_or_else(|| ExecError::NotFound {
            plugin_type: plugin_type.clone(),
            path: join_path(path),
        })
}

/// Folders as `CNI_PATH` has them.
pub(super) fn join_path(path: &[PathBuf]) -> String {
    let dirs: Vec<_> = path.iter().map(|dir| dir.to_string_lossy()).collect();
    dirs.join(":")
}

/// Runs a plugin in the network namespace of the calling thread and waits for it. `None` if it printed nothing.
///
/// # Errors
/// [`ExecError`].
pub fn run_plugin(call: &PluginCall) -> Result<Option<Value>, ExecError> {
    let failed = |source| ExecError::Io {
        plugin: call.plugin.clone(),
        source,
    };
    let mut child = spawn(call).map_err(failed)?;
    let mut talk = Talk::new(&mut child, &call.stdin);
    let ended = talk.run(&child, call.timeout);
    if !matches!(ended, Ok(true)) {
        // Gone already is what we want; and a killed child must still be reaped.
        child.kill().ok();
    }
    let status = child.wait().map_err(failed)?;
    if !ended.map_err(failed)? {
        return Err(ExecError::Timeout {
            plugin: call.plugin.clone(),
            seconds: call.timeout.as_secs(),
        });
    }
    interpret(&call.plugin, status, &talk.output, &talk.errors)
}

fn spawn(call: &PluginCall) -> io::Result<Child> {
    let mut command = Command::new(&call.plugin);
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("CNI_")) {
            command.env_remove(key);
        }
    }
    command
        .envs(call.env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut attempt = 0;
    loop {
        match command.spawn() {
            // It is being copied into place by someone who installs or upgrades it.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS =>
            {
                attempt += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            result => return result,
        }
    }
}

/// The conversation with a running plugin, on the caller's thread.
struct Talk<'a> {
    input: &'a [u8],
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn new(child: &mut Child, input: &'a [u8]) -> Self {
        Self {
            input,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            output: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Feeds and reads the child until it has ended; false if it did not within the time. A process that it left
    /// behind may hold its pipes: nobody waits for that one.
    fn run(&mut self, child: &Child, time: Duration) -> io::Result<bool> {
        let pid = rustix::process::Pid::from_child(child);
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        for pipe in self.pipes().into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let deadline = Instant::now() + time;
        loop {
            let ended = match self.wait(process.as_fd(), deadline)? {
                Ready::Ended => true,
                Ready::Pipe => false,
                Ready::TimeIsUp => return Ok(false),
            };
            self.feed()?;
            read_some(&mut self.stdout, &mut self.output, MAX_OUTPUT)?;
            read_some(&mut self.stderr, &mut self.errors, MAX_STDERR)?;
            if ended {
                return Ok(true);
            }
        }
    }

    fn pipes(&self) -> [Option<BorrowedFd<'_>>; 3] {
        [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ]
    }

    fn wait(&self, process: BorrowedFd<'_>, deadline: Instant) -> io::Result<Ready> {
        let events = [PollFlags::POLLOUT, PollFlags::POLLIN, PollFlags::POLLIN];
        let mut fds = vec![PollFd::new(process, PollFlags::POLLIN)];
        for (pipe, events) in self.pipes().into_iter().zip(events) {
            fds.extend(pipe.map(|pipe| PollFd::new(pipe, events)));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last wait is not a row of empty ones.
            let left = PollTimeout::try_from(left + Duration::from_millis(1));
            match poll(&mut fds, left.unwrap_or(PollTimeout::MAX)) {
                Ok(0) if deadline <= Instant::now() => return Ok(Ready::TimeIsUp),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) if fds[0].any() == Some(true) => return Ok(Ready::Ended),
                Ok(_) => return Ok(Ready::Pipe),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn feed(&mut self) -> io::Result<()> {
        while let Some(pipe) = &mut self.stdin {
            match pipe.write(self.input) {
                Ok(written) if written < self.input.len() => self.input = &self.input[written..],
                // All is written, or the plugin does not read its stdin, as it need not.
                Ok(_) => self.stdin = None,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.stdin = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Why a wait came back.
enum Ready {
    Ended,
    Pipe,
    TimeIsUp,
}

/// Reads what is there and keeps it up to `limit`; the rest is read, too, so that the plugin can go on.
fn read_some(pipe: &mut Option<impl Read>, kept: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let mut chunk = [0; 16 << 10];
    for _ in 0..CHUNKS {
        let Some(open) = pipe else { return Ok(()) };
        match open.read(&mut chunk) {
            Ok(0) => *pipe = None,
            Ok(read) => {
                let room = limit.saturating_sub(kept.len());
                kept.extend_from_slice(&chunk[..read.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn interpret(
    plugin: &Path,
    status: ExitStatus,
    stdout: &[u8],
    stderr: &[u8],
) -> Result<Option<Value>, ExecError> {
    let plugin_type = plugin
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let text = stdout.trim_ascii();
    let json = serde_json::from_slice::<Value>(text).ok();
    if status.success() {
        if text.is_empty() || json.is_some() {
            return Ok(json);
        }
    } else if let Some(source) = json.as_ref().and_then(CniError::from_json) {
        return Err(ExecError::Failed {
            plugin_type,
            source,
        });
    }
    let mut output = String::from_utf8_lossy(text).into_owned();
    output.push(' ');
    output.push_str(&String::from_utf8_lossy(stderr));
    let output: String = output.trim().chars().take(MAX_STDERR).collect();
    Err(ExecError::Nonsense {
        plugin_type,
        status,
        output,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn script(dir: &Path, text: &str) -> PluginCall {
        let plugin = dir.join("plugin");
        fs::write(&plugin, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let env = vec![("CNI_COMMAND", "ADD".to_owned())];
        PluginCall {
            plugin,
            env,
            stdin: b"{}".to_vec(),
            timeout: Duration::from_secs(20),
        }
    }

    #[test]
    fn stdin_and_environment_arrive_and_stdout_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let call = script(
            dir.path(),
            r#"read conf; echo "{\"conf\":$conf,\"cmd\":\"$CNI_COMMAND\"}""#,
        );
        let answer = run_plugin(&call).unwrap().unwrap();
        assert_eq!(answer["cmd"], "ADD");
        assert!(answer["conf"].is_object());
    }

    #[test]
    fn a_plugins_error_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let call = script(dir.path(), r#"echo '{"code":11,"msg":"later"}'; exit 1"#);
        let ExecError::Failed { source, .. } = run_plugin(&call).unwrap_err() else {
            panic!()
        };
        assert_eq!((source.code, &*source.msg), (11, "later"));
    }

    #[test]
    fn nonsense_is_told_with_stderr() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["echo oops >&2; exit 3", "echo not json", "kill -9 $$"] {
            let error = run_plugin(&script(dir.path(), text)).unwrap_err();
            assert!(
                matches!(error, ExecError::Nonsense { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_plugin_that_hangs_or_never_ends_its_answer_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "exec tail -f /dev/null",
            "exec yes",
            "exec sleep 1000 >&- 2>&-",
        ] {
            let mut call = script(dir.path(), text);
            call.timeout = Duration::from_millis(100);
            let error = run_plugin(&call).unwrap_err();
            assert!(
                matches!(error, ExecError::Timeout { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_process_that_a_plugin_leaves_behind_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let call = script(dir.path(), r#"tail -f /dev/null & echo "{\"pid\":$!}""#);
        let answer = run_plugin(&call).unwrap().unwrap();
        let pid = i32::try_from(answer["pid"].as_i64().unwrap()).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn large_input_and_output_pass() {
        let dir = tempfile::tempdir().unwrap();
        let mut call = script(dir.path(), "cat; head -c 1000000 /dev/zero >&2");
        call.stdin = serde_json::to_vec(&"x".repeat(3 << 20)).unwrap();
        let answer = run_plugin(&call).unwrap().unwrap();
        assert_eq!(answer.as_str().unwrap().len(), 3 << 20);
        // One that does not read it is none the worse.
        let mut call = script(dir.path(), "exec true");
        call.stdin = vec![b' '; 3 << 20];
        assert_eq!(run_plugin(&call).unwrap(), None);
    }

    #[test]
    fn an_executable_that_is_being_written_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let call = script(dir.path(), "exec true");
        let writer = fs::OpenOptions::new()
            .append(true)
            .open(&call.plugin)
            .unwrap();
        std::thread::scope(|scope| {
            let run = scope.spawn(|| run_plugin(&call));
            std::thread::sleep(BUSY_PAUSE * 3);
            drop(writer);
            assert_eq!(run.join().unwrap().unwrap(), None);
        });
    }
}
