//! Running the programs that change and print the tables.

use std::{
    env,
    ffi::OsString,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::FirewallError;

/// Where the programs are on a machine whose `PATH` does not say so, as under some runtimes.
const FALLBACK: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The executable of that name.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    find_in(program, env::var_os("PATH"))
}

fn find_in(program: &str, path: Option<OsString>) -> Option<PathBuf> {
    let path = path.unwrap_or_default();
    env::split_paths(&path)
        .chain(FALLBACK.map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a program in the calling thread's namespace and returns what it printed.
pub(super) fn run(
    program: &'static str,
    args: &[&str],
    stdin: &str,
) -> Result<Vec<u8>, FirewallError> {
    let failed = |source| FirewallError::Run { program, source };
    let mut child = Command::new(find(program).unwrap_or_else(|| program.into()))
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that stops reading says why when it ends.
        pipe.write_all(stdin.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(FirewallError::Refused {
        program,
        reason: reason(&output.stderr),
    })
}

/// The lines that say something, on one line.
fn reason(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Try `") && !line.starts_with('#'))
        .take(3)
        .collect();
    if lines.is_empty() {
        return "no reason given".to_owned();
    }
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_on_the_path_and_beside_it() {
        assert!(find_in("sh", Some("/bin".into())).is_some());
        assert!(find_in("skiff-there-is-no-such-program", Some("/bin".into())).is_none());
        assert!(find_in("sh", Some("relative".into())).is_none());
    }

    #[test]
    fn a_refusal_carries_what_the_program_said() {
        let error = run("sh", &["-c", "cat >&2; exit 3"], "no\n\nTry `x'\nchain\n").unwrap_err();
        assert!(error.is_refusal());
        assert_eq!(error.to_string(), "sh: no chain");
    }
}
