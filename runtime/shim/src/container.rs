//! One container of the shim's: its process, its output, its end.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use jiff::Timestamp;
use nix::poll::PollFlags;
use skiff_runtime::{
    ExitStatus, Stdin, cgroup,
    files::{self, RunState},
    layout::{EXIT_FILE, STATE_FILE},
    protocol::{AttachRequest, StartRequest},
};

use crate::{
    attach::Followers,
    error::{ShimError, system},
    log::{CriLog, LineBuffer},
    say,
    stdio::{OurStdio, set_nonblocking},
};

/// Exit code of a container that did not start, as containerd has it.
const NOT_STARTED: i32 = 128;

/// A container that was asked for and has not been deleted.
pub(crate) struct Container {
    id: String,
    dir: PathBuf,
    oom_file: Option<PathBuf>,
    log: CriLog,
    streams: Vec<Stream>,
    followers: Followers,
    /// Kept open for `attach`: closing it would end the container's input.
    stdin: Option<OwnedFd>,
    stdin_mode: Stdin,
    /// A duplicate of the terminal's master, to change its size.
    terminal: Option<OwnedFd>,
    state: State,
}

enum State {
    Starting,
    Running(RunState),
    Ended,
}

struct Stream {
    fd: OwnedFd,
    lines: LineBuffer,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessExit {
    /// By itself, with a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl ProcessExit {
    /// As a shell has it.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    fn signal(self) -> Option<i32> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(signal),
        }
    }
}

impl Container {
    /// One that is being started. `stdio` is `None` if it will have a terminal.
    pub(crate) fn new(request: &StartRequest, stdio: Option<OurStdio>) -> Result<Self, ShimError> {
        let log = CriLog::open(&request.log_path).map_err(|source| ShimError::Path {
            operation: "opening log",
            path: request.log_path.clone(),
            source,
        })?;
        let mut streams = Vec::new();
        let mut stdin = None;
        if let Some(stdio) = stdio {
            stdin = stdio.stdin;
            streams.push(Stream {
                fd: stdio.stdout,
                lines: LineBuffer::new("stdout"),
            });
            streams.push(Stream {
                fd: stdio.stderr,
                lines: LineBuffer::new("stderr"),
            });
        }
        Ok(Self {
            id: request.container_id.clone(),
            dir: request.dir.clone(),
            oom_file: request.oom_file.clone(),
            log,
            streams,
            followers: Followers::default(),
            stdin,
            stdin_mode: request.stdin,
            terminal: None,
            state: State::Starting,
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Process id of its init while that lives.
    pub(crate) fn pid(&self) -> Option<i32> {
        match &self.state {
            State::Running(run) => Some(run.pid),
            _ => None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Its command has been executed.
    pub(crate) fn started(
        &mut self,
        pid: i32,
        terminal: Option<OwnedFd>,
    ) -> Result<Timestamp, ShimError> {
        let start_ticks = files::start_ticks(pid).unwrap_or(0);
        let run = RunState {
            pid,
            start_ticks,
            started_at: Timestamp::now(),
        };
        let started_at = run.started_at;
        let written = files::write(&self.dir.join(STATE_FILE), &run);
        self.state = State::Running(run);
        if let Some(master) = terminal {
            set_nonblocking(&master).map_err(system("preparing a terminal"))?;
            self.terminal = Some(master.try_clone().map_err(system("preparing a terminal"))?);
            self.streams.push(Stream {
                fd: master,
                lines: LineBuffer::new("stdout"),
            });
        }
        written?;
        Ok(started_at)
    }

    /// It could not be started.
    pub(crate) fn not_started(&mut self, message: &str) {
        self.end(&ExitStatus {
            started_at: None,
            finished_at: Timestamp::now(),
            exit_code: NOT_STARTED,
            signal: None,
            oom_killed: false,
            message: Some(message.to_owned()),
        });
    }

    /// Its init has ended, and with it everything in its pid namespace.
    pub(crate) fn exited(&mut self, exit: ProcessExit) -> Option<ExitStatus> {
        let State::Running(run) = &self.state else {
            return None;
        };
        let oom_kills = self.oom_file.as_ref().and_then(|path| {
            let text = fs::read_to_string(path).ok()?;
            cgroup::counter(&text, "oom_kill")
        });
        // The counter knows children's ends too: it is the container's if a SIGKILL was its end.
        let killed = exit.code() == 128 + libc::SIGKILL;
        let status = ExitStatus {
            started_at: Some(run.started_at),
            finished_at: Timestamp::now(),
            exit_code: exit.code(),
            signal: exit.signal(),
            oom_killed: killed && oom_kills.is_some_and(|kills| kills > 0),
            message: None,
        };
        self.end(&status);
        Some(status)
    }

    fn end(&mut self, status: &ExitStatus) {
        self.drain();
        if let Err(error) = files::write(&self.dir.join(EXIT_FILE), status) {
            say(format_args!("{}: {}", self.id, crate::error::chain(&error)));
        }
        self.state = State::Ended;
        self.terminal = None;
    }

    /// What to poll: (stream's number, descriptor).
    pub(crate) fn readable_streams(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let blocked = self.log.is_blocked();
        let streams = self.streams.iter().enumerate();
        let streams = streams
            .filter(move |(_, stream)| !blocked && !self.followers.is_behind(stream.lines.name()));
        streams.map(|(number, stream)| (number, stream.fd.as_fd()))
    }

    /// Output waits for the log to be writable again.
    pub(crate) fn is_blocked(&self) -> bool {
        self.log.is_blocked()
    }

    /// Tries again to write what waits.
    pub(crate) fn retry(&mut self) {
        self.log.flush();
        if self.has_ended() {
            self.drain();
        }
    }

    /// Takes what there is of one stream.
    pub(crate) fn read(&mut self, number: usize, buffer: &mut [u8]) {
        let Some(stream) = self.streams.get_mut(number) else {
            return;
        };
        match nix::unistd::read(&stream.fd, buffer).map_err(io::Error::from) {
            Ok(length) if length > 0 => {
                let bytes = buffer.get(..length).unwrap_or_default();
                self.log.add(&mut stream.lines, bytes);
                self.followers.write(stream.lines.name(), bytes);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The end; of a terminal it is an error.
            _ => self.end_stream(number),
        }
    }

    fn end_stream(&mut self, number: usize) {
        let mut ended = self.streams.remove(number);
        self.log.end(&mut ended.lines);
        self.followers.end(ended.lines.name());
    }

    /// Takes everything that is left in the pipes: nobody writes any more.
    fn drain(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while !self.log.is_blocked()
            && let Some(stream) = self.streams.first_mut()
        {
            match nix::unistd::read(&stream.fd, &mut buffer) {
                Ok(length) if length > 0 => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.log.add(&mut stream.lines, bytes);
                    self.followers.write(stream.lines.name(), bytes);
                }
                Err(nix::errno::Errno::EINTR) => {}
                _ => self.end_stream(0),
            }
        }
    }

    /// Pipes of clients, and what to watch them for.
    pub(crate) fn watched_followers(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.followers.watched()
    }

    /// Some client may take more, or has left.
    pub(crate) fn feed_followers(&mut self) {
        self.followers.flush();
    }

    /// Connects a client: `pipes` for the streams that it asks for. Gives a way to stdin if it asks for one and there is
    /// one; with [`Stdin::Once`] the only one.
    pub(crate) fn attach(
        &mut self,
        request: &AttachRequest,
        pipes: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, ShimError> {
        if self.pid().is_none() {
            return Err(ShimError::Refused(
                "the container is not running".to_owned(),
            ));
        }
        let streams = [(request.stdout, "stdout"), (request.stderr, "stderr")];
        let wanted: Vec<_> = streams.into_iter().filter(|(asked, _)| *asked).collect();
        if wanted.len() != pipes.len() {
            return Err(ShimError::Refused(
                "attaching needs a pipe for each stream".to_owned(),
            ));
        }
        for pipe in &pipes {
            set_nonblocking(pipe).map_err(system("preparing a client's pipe"))?;
        }
        let stdin = match (&self.terminal, self.stdin_mode) {
            _ if !request.stdin => None,
            (_, Stdin::Empty) => None,
            (Some(terminal), _) => Some(terminal.try_clone()),
            (None, Stdin::Once) => self.stdin.take().map(Ok),
            (None, Stdin::Open) => self.stdin.as_ref().map(OwnedFd::try_clone),
        };
        let stdin = stdin
            .transpose()
            .map_err(system("handing over the container's stdin"))?;
        for ((_, stream), pipe) in wanted.into_iter().zip(pipes) {
            // A terminal has no stderr, and a stream that has ended says nothing more.
            if self.streams.iter().any(|open| open.lines.name() == stream) {
                self.followers.add(stream, pipe);
            }
        }
        Ok(stdin)
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), ShimError> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or_else(|| ShimError::Refused("the container has no terminal".to_owned()))?;
        crate::process::set_size(terminal, columns, rows).map_err(system("resizing a terminal"))
    }
}
