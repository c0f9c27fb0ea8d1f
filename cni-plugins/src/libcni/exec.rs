//! Runs one plugin executable: stdin in, stdout out, bounded in time and size. Blocking.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use serde_json::Value;

use crate::types::{CniError, PluginType};

/// A plugin that says more than this says nonsense.
const MAX_OUTPUT: u64 = 8 << 20;
/// What stderr may contribute to an error.
const MAX_STDERR: usize = 2000;

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
    let mut command = Command::new(&call.plugin);
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("CNI_")) {
            command.env_remove(key);
        }
    }
    let mut child = command
        .envs(call.env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let done = talk(&mut child, call);
    if done.is_err() {
        // Gone already is what we want; and a killed child must still be reaped.
        child.kill().ok();
    }
    let status = child.wait().map_err(failed)?;
    let (stdout, stderr) = done?;
    interpret(&call.plugin, status, &stdout, &stderr)
}

/// Feeds and reads the child until it has closed its output or its time is up.
fn talk(child: &mut Child, call: &PluginCall) -> Result<(Vec<u8>, Vec<u8>), ExecError> {
    let failed = |source| ExecError::Io {
        plugin: call.plugin.clone(),
        source,
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (alive, watched) = io::pipe().map_err(failed)?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || match stdin {
            // A plugin need not read its stdin.
            Some(mut pipe) => match pipe.write_all(&call.stdin) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
                _ => Ok(()),
            },
            None => Ok(()),
        });
        let errors = scope.spawn(move || read_all(stderr));
        let watchdog = scope.spawn(move || {
            let timed_out = !readable_within(&alive, call.timeout);
            if timed_out {
                // It is our child and not yet reaped: the number is still its own.
                nix::sys::signal::kill(pid, Signal::SIGKILL).ok();
            }
            timed_out
        });
        let output = read_all(stdout);
        let errors = join(errors);
        let written = join(writer);
        drop(watched);
        if join(watchdog) {
            return Err(ExecError::Timeout {
                plugin: call.plugin.clone(),
                seconds: call.timeout.as_secs(),
            });
        }
        written.map_err(failed)?;
        Ok((output.map_err(failed)?, errors.map_err(failed)?))
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Whether the other end is closed within the time.
fn readable_within(pipe: &io::PipeReader, time: Duration) -> bool {
    use std::os::fd::AsFd as _;
    let deadline = std::time::Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            _ => return true,
        }
    }
}

fn read_all(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT).read_to_end(&mut text)?;
    }
    Ok(text)
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
    fn a_plugin_that_hangs_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut call = script(dir.path(), "exec tail -f /dev/null");
        call.timeout = Duration::from_millis(100);
        assert!(matches!(run_plugin(&call), Err(ExecError::Timeout { .. })));
    }
}
