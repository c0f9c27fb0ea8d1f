//! A call of a plugin byte by byte: any environment, any stdin, and what came back, judged by the specification.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{NO_BUS, TestNetns};

/// Seconds. Longer than a plugin waits for a lock.
const PATIENCE: &str = "60";

/// A call that is not made yet: ADD of `eth0` for the container `c1`.
#[derive(Debug, Clone)]
pub struct RawCall {
    plugin: PathBuf,
    env: BTreeMap<OsString, OsString>,
    stdin: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub struct RawAnswer {
    /// The exit code; none if a signal ended it.
    pub exit: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: String,
}

impl RawCall {
    /// A call of the plugin `name` in the folder `plugins`.
    #[must_use]
    pub fn new(plugins: &Path, name: &str) -> Self {
        let call = Self {
            plugin: plugins.join(name),
            env: BTreeMap::new(),
            stdin: Vec::new(),
        };
        call.env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugins)
            .env(NO_BUS.0, NO_BUS.1)
    }

    /// With a variable; without it if the value is empty.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        if value.as_ref().is_empty() {
            self.env.remove(OsStr::new(key));
        } else {
            self.env.insert(key.into(), value.as_ref().to_owned());
        }
        self
    }

    /// With another command.
    #[must_use]
    pub fn command(self, command: &str) -> Self {
        self.env("CNI_COMMAND", command)
    }

    /// With something on stdin.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Starts it in `node`; it waits for its stdin.
    #[must_use]
    pub fn spawn(&self, node: &TestNetns) -> Child {
        self.start(node, Command::new(&self.plugin))
    }

    fn start(&self, node: &TestNetns, mut command: Command) -> Child {
        // What is found along PATH, and nothing else of this process' environment.
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", path)
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        node.run(|| command.spawn())
            .unwrap_or_else(|error| panic!("{}: {error}", self.plugin.display()))
    }

    /// Gives it what belongs on its stdin.
    pub fn feed(&self, child: &mut Child) {
        if let Some(mut stdin) = child.stdin.take() {
            // It need not read all of it.
            stdin.write_all(&self.stdin).ok();
        }
    }

    /// Runs it in `node`. One that hangs is ended, which is no answer that the specification knows.
    #[must_use]
    pub fn run(&self, node: &TestNetns) -> RawAnswer {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE).arg(&self.plugin);
        let mut child = self.start(node, command);
        self.feed(&mut child);
        let output = child.wait_with_output().unwrap();
        RawAnswer {
            exit: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl RawAnswer {
    /// The code of the error, or nothing after a success. Panics unless the answer is as the specification wants it:
    /// one JSON object or nothing at all on stdout, an exit code that fits, no trace of a crash.
    #[track_caller]
    pub fn code(&self, what: &str) -> Option<u64> {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert!(
            !self.stderr.contains("panicked") && !self.stderr.contains("RUST_BACKTRACE"),
            "{what}: {}",
            self.stderr
        );
        let json: Option<Value> = (!self.stdout.is_empty()).then(|| {
            serde_json::from_slice(&self.stdout)
                .unwrap_or_else(|error| panic!("{what}: {error}: {stdout}"))
        });
        if let Some(json) = &json {
            assert!(json["cniVersion"].is_string(), "{what}: {stdout}");
        }
        match self.exit {
            Some(0) => {
                let code = json.as_ref().and_then(|json| json.get("code"));
                assert!(
                    code.is_none(),
                    "{what}: an error with exit code 0: {stdout}"
                );
                None
            }
            Some(1) => {
                let json = json.unwrap_or_else(|| panic!("{what}: no error on stdout"));
                let text = json["msg"].as_str().unwrap_or_default();
                assert!(!text.is_empty(), "{what}: {stdout}");
                let code = json["code"].as_u64();
                assert!(code.is_some_and(is_specified), "{what}: {stdout}");
                code
            }
            Some(124) => panic!("{what}: it hangs"),
            other => panic!("{what}: exit code {other:?}: {stdout}{}", self.stderr),
        }
    }
}

/// The specification's codes, and those from 100 on, which belong to the plugins.
fn is_specified(code: u64) -> bool {
    matches!(code, 1..=7 | 11 | 50 | 51 | 100..)
}
