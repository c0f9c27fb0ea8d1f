//! A child process in a cgroup and a network namespace that opens sockets on command.
//!
//! The process is the test's own binary or one beside it whose `main` calls [`main`].

pub mod protocol;
mod serve;
mod socket;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context as _, Result, bail};
use protocol::{Answer, Command};

pub use serve::main;

/// A process that opens sockets on command. Ended when dropped.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Probe {
    /// Starts `program` (the test's probe binary) in `netns`, and in `cgroup` if one is given.
    ///
    /// # Errors
    /// If it cannot be started or does not get there.
    pub fn start(program: &Path, cgroup: Option<&Path>, netns: &Path) -> Result<Self> {
        Self::start_by(&mut std::process::Command::new(program), cgroup, netns)
    }

    /// As [`Probe::start`], for a program that becomes a probe when it gets the command's arguments first.
    ///
    /// # Errors
    /// If it cannot be started or does not get there.
    pub fn start_by(
        command: &mut std::process::Command,
        cgroup: Option<&Path>,
        netns: &Path,
    ) -> Result<Self> {
        let mut child = command
            .arg(cgroup.unwrap_or(Path::new("-")))
            .arg(netns)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a probe")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut probe = Self {
            child,
            input,
            output,
        };
        probe.receive().context("the probe did not start")?;
        Ok(probe)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// If the probe has ended or could not do it.
    pub fn tell(&mut self, command: &Command) -> Result<Answer> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        self.input.as_mut().context("no stdin")?.write_all(&line)?;
        self.receive().with_context(|| format!("{command:?}"))
    }

    fn receive(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the probe has ended: {:?}", self.child.try_wait());
        }
        let answer: Result<Answer, String> = serde_json::from_str(&line)?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.input = None;
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
