//! A container registry on loopback: Debian's docker-registry.

use std::{
    fs,
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where the registry of a cluster keeps its files.
pub(crate) struct Registry {
    dir: PathBuf,
}

impl Registry {
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("registry.pid")
    }

    /// Starts it on 127.0.0.1:`port` and waits until it takes connections.
    pub(crate) fn start(&self, port: u16) -> Result<()> {
        fs::create_dir_all(self.dir.join("storage"))?;
        let config = self.dir.join("config.yml");
        fs::write(&config, config_text(&self.dir.join("storage"), port))?;
        let log = fs::File::create(self.dir.join("registry.log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // It stays when the terminal goes.
        command.process_group(0);
        let mut child = command.spawn().context("starting docker-registry")?;
        fs::write(self.pid_file(), child.id().to_string())?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.dir.join("registry.log")).unwrap_or_default();
                bail!("docker-registry did not come up on port {port}:\n{log}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Stops it if it runs.
    pub(crate) fn stop(&self) -> Result<()> {
        let Ok(pid) = fs::read_to_string(self.pid_file()) else {
            return Ok(());
        };
        let pid: i32 = pid.trim().parse().context("reading registry.pid")?;
        // Asked first, then made to: it has nothing to lose.
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if is_registry(pid) {
                kill(Pid::from_raw(pid), signal)?;
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while is_registry(pid) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
        }
        if is_registry(pid) {
            bail!("docker-registry (process {pid}) does not end");
        }
        fs::remove_file(self.pid_file())?;
        Ok(())
    }
}

/// Guards against a process id that went to somebody else; a zombie has an empty command line.
fn is_registry(pid: i32) -> bool {
    let command = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
    command.is_ok_and(|command| command.starts_with(b"docker-registry"))
}

fn config_text(storage: &Path, port: u16) -> String {
    format!(
        "version: 0.1\n\
         log: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage:\n  filesystem: {{rootdirectory: {}}}\n\
         http: {{addr: '127.0.0.1:{port}'}}\n",
        storage.display()
    )
}
