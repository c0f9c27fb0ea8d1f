//! Finding and executing a container's command, and saying why not in the words that users know from runc.

use std::{
    ffi::CString,
    fs::File,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use oci_spec::runtime::Spec;

/// Search path of a command whose environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes `arguments` with `environment`. Returns only if that fails, and says why.
pub(crate) fn execute(arguments: &[String], environment: &[String]) -> String {
    let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
        return "no command".to_owned();
    };
    let search = environment
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="));
    let path = match find(name, search.unwrap_or(DEFAULT_PATH)) {
        Ok(path) => path,
        Err(reason) => return format!("exec: {name:?}: {reason}"),
    };
    let text = |strings: &[String]| -> Result<Vec<CString>, String> {
        let all = strings.iter().map(|string| CString::new(string.as_bytes()));
        all.collect::<Result<_, _>>()
            .map_err(|error| error.to_string())
    };
    let prepared = CString::new(path.to_string_lossy().as_bytes())
        .map_err(|error| error.to_string())
        .and_then(|file| Ok((file, text(arguments)?, text(environment)?)));
    let (file, arguments, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => return format!("exec {}: {reason}", path.display()),
    };
    match nix::unistd::execve(&file, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => format!("exec {}: {}", path.display(), words(errno)),
    }
}

/// As a shell finds it, but with the reason if not.
fn find(name: &str, search: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::ENOENT) => Err(format!("stat {name}: no such file or directory")),
            Err(errno) => Err(words(errno).to_owned()),
        };
    }
    let mut reason = "executable file not found in $PATH".to_owned();
    for dir in search.split(':') {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::EACCES) => words(Errno::EACCES).clone_into(&mut reason),
            Err(_) => {}
        }
    }
    Err(reason)
}

fn check(path: &Path) -> Result<(), Errno> {
    let from = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let metadata = path.metadata().map_err(from)?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

fn words(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "no such file or directory",
        Errno::EACCES | Errno::EPERM => "permission denied",
        Errno::ENOEXEC => "exec format error",
        Errno::EISDIR => "is a directory",
        Errno::E2BIG => "argument list too long",
        errno => errno.desc(),
    }
}

/// Executes a container's first command, for libcontainer.
#[derive(Clone)]
pub(crate) struct InitExecutor {
    /// Takes the reason if it fails; goes away, closed by the kernel, if it succeeds.
    pub report: Rc<File>,
}

impl Executor for InitExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let arguments = process.args().clone().unwrap_or_default();
        // Not what the engine has set: that has lost the order and repeats nothing.
        let environment = process.env().clone().unwrap_or_default();
        let reason = execute(&arguments, &environment);
        (&*self.report).write_all(reason.as_bytes()).ok();
        Err(ExecutorError::Other(reason))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // Executing says it better.
        Ok(())
    }

    fn setup_envs(
        &self,
        _: std::collections::HashMap<String, String>,
    ) -> Result<(), libcontainer::workload::ExecutorSetEnvsError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_those_that_users_know() {
        assert_eq!(
            execute(&["no-such-command".into()], &["PATH=/bin".into()]),
            "exec: \"no-such-command\": executable file not found in $PATH"
        );
        assert_eq!(
            execute(&["/no/such".into()], &[]),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(
            execute(&["/etc/passwd".into()], &[]),
            "exec: \"/etc/passwd\": permission denied"
        );
        assert_eq!(
            execute(&["/etc".into()], &[]),
            "exec: \"/etc\": is a directory"
        );
        assert_eq!(execute(&[], &[]), "no command");
    }

    #[test]
    fn a_command_is_found_in_the_first_directory_that_has_it() {
        assert_eq!(
            find("sh", "/no/such:/bin:/usr/bin"),
            Ok(PathBuf::from("/bin/sh"))
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tool"), "").unwrap();
        let search = dir.path().to_str().unwrap();
        assert_eq!(find("tool", search), Err("permission denied".to_owned()));
    }
}
