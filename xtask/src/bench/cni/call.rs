//! Calling a plugin, and what that costs.

use std::{
    io::{PipeReader, Read as _, Write as _},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{UsageWho, getrusage},
        time::TimeVal,
        wait::wait,
    },
};

use super::super::millis;

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// From before it was started until it had ended.
    pub(super) wall: f64,
    /// The same until whatever it had started had ended too.
    pub(super) done: f64,
    /// Of the process and of those that it started, in user space and in the kernel.
    pub(super) cpu: f64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            done: self.done + other.done,
            cpu: self.cpu + other.cpu,
        }
    }
}

/// One container's link.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) container: String,
    pub(super) netns: std::path::PathBuf,
    pub(super) ifname: &'static str,
}

/// A plugin's process, ready to be started. Its input lies in the pipe already, as its answer will: neither is longer
/// than what a pipe holds, so that nobody has to read while the clock runs.
pub(super) struct Prepared {
    command: Command,
    answer: PipeReader,
}

/// One that has been started.
pub(super) struct Started {
    child: Child,
    answer: PipeReader,
}

/// Every side is called in the same way: a clean environment, as short as that of a runtime can be.
pub(super) fn prepare(
    plugins: &Path,
    plugin: &str,
    verb: &str,
    attachment: &Attachment,
    config: &str,
) -> Result<Prepared> {
    let mut command = Command::new(plugins.join(plugin));
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &attachment.container)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", attachment.ifname)
        .env("CNI_PATH", plugins);
    prepare_command(command, config)
}

pub(super) fn prepare_command(mut command: Command, input: &str) -> Result<Prepared> {
    // Those of plugins are kept, everything else but PATH goes.
    let kept: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command.env_clear().envs(kept);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    let (stdin, mut writer) = std::io::pipe()?;
    writer.write_all(input.as_bytes())?;
    let (answer, stdout) = std::io::pipe()?;
    command.stdin(stdin).stdout(stdout);
    Ok(Prepared { command, answer })
}

impl Prepared {
    /// Starts it in the namespace of the calling thread.
    pub(super) fn start(mut self) -> Result<Started> {
        let child = self
            .command
            .spawn()
            .with_context(|| format!("running {}", self.command.get_program().display()))?;
        // With the command go our copies of the pipes' other ends.
        drop(self.command);
        Ok(Started {
            child,
            answer: self.answer,
        })
    }

    /// Starts it, waits for it, and reads its answer. Nothing else may run meanwhile that this process waits for.
    pub(super) fn run(self) -> Result<(Cost, Vec<u8>)> {
        let cpu = children_cpu()?;
        let clock = Instant::now();
        let mut started = self.start()?;
        let status = started.child.wait()?;
        let wall = clock.elapsed();
        reap_rest()?;
        let cost = Cost {
            wall: millis(wall),
            done: millis(clock.elapsed()),
            cpu: millis(children_cpu()?.saturating_sub(cpu)),
        };
        let answer = started.read()?;
        if !status.success() {
            bail!("{status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok((cost, answer))
    }
}

impl Started {
    /// Waits for it. Says whether it succeeded.
    pub(super) fn wait(&mut self) -> Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// What it printed.
    pub(super) fn read(mut self) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        self.answer.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// Makes this process the parent of whatever a plugin leaves running: that counts too, and does not run into the next
/// measurement.
pub(super) fn adopt_rest() -> Result<()> {
    prctl::set_child_subreaper(true).context("becoming a subreaper")
}

/// Waits for all that plugins left running. Nothing else may run meanwhile that this process waits for.
pub(super) fn reap_rest() -> Result<()> {
    loop {
        match wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(duration(usage.user_time())? + duration(usage.system_time())?)
}

fn duration(time: TimeVal) -> Result<Duration> {
    Ok(Duration::from_secs(time.tv_sec().try_into()?)
        + Duration::from_micros(time.tv_usec().try_into()?))
}
