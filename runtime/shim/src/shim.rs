//! The poll loop: connections from daemons, forks at work, children that end, output that arrives.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    sys::{
        prctl,
        signalfd::SignalFd,
        socket::{AddressFamily, SockFlag, SockType, accept4, socketpair},
        stat::{Mode, umask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use skiff_runtime::protocol::{
    self, AttachRequest, Event, ExecRequest, Message, Operation, Reply, Request, StartRequest,
};

use crate::{
    container::{Container, ProcessExit},
    create::{self, Outcome},
    error::{ShimError, chain, system},
    exec::{self, Streams},
    process,
    ready::Source,
    say, stdio,
};

/// The listening socket that the daemon has put in place.
const LISTENER_FD: i32 = 3;
/// Containers' output is read in pieces of this size.
const READ_SIZE: usize = 8 * 1024;

/// The shim.
pub(crate) struct Shim {
    pub(crate) listener: OwnedFd,
    pub(crate) signals: SignalFd,
    pub(crate) connections: BTreeMap<u64, OwnedFd>,
    next_connection: u64,
    pub(crate) containers: BTreeMap<String, Container>,
    /// Commands at work: process id to the connection that asked.
    execs: HashMap<i32, u64>,
    pub(crate) forks: Vec<Fork>,
    /// Children that ended before their fork has told us of them.
    strangers: HashMap<i32, ProcessExit>,
    shutdown: Option<(u64, u64)>,
}

/// A fork at work for a request.
pub(crate) struct Fork {
    pub(crate) socket: OwnedFd,
    connection: u64,
    request: u64,
    /// The container that it starts; `None` if it runs a command.
    starts: Option<String>,
}

impl Shim {
    /// Takes over what the daemon has prepared.
    pub(crate) fn start() -> Result<Self, ShimError> {
        let listener = process::inherited(LISTENER_FD).map_err(system("taking over the socket"))?;
        stdio::set_nonblocking(&listener).map_err(system("taking over the socket"))?;
        prctl::set_child_subreaper(true).map_err(system("becoming a subreaper"))?;
        // Executed by descriptor, which the kernel takes for a name.
        prctl::set_name(c"skiff-shim").map_err(system("setting the name"))?;
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        // Needs CAP_SYS_RESOURCE, which some machines do not give.
        fs::write("/proc/self/oom_score_adj", "-998").ok();
        Ok(Self {
            listener,
            signals: process::catch_signals().map_err(system("catching signals"))?,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            forks: Vec::new(),
            strangers: HashMap::new(),
            shutdown: None,
        })
    }

    /// Runs until a daemon asks for the end.
    pub(crate) fn run(mut self) -> Result<(), ShimError> {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            for source in self.ready()? {
                self.handle(source, &mut buffer)?;
            }
            for container in self.containers.values_mut().filter(|c| c.is_blocked()) {
                container.retry();
            }
            if let Some((connection, request)) = self.shutdown
                && self.forks.is_empty()
                && self
                    .containers
                    .values()
                    .all(|container| container.pid().is_none())
            {
                self.reply(connection, request, Reply::Done, &[]);
                return Ok(());
            }
        }
    }

    fn handle(&mut self, source: Source, buffer: &mut [u8]) -> Result<(), ShimError> {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Connection(id) => self.serve(id),
            Source::Fork(fd) => self.fork_reported(fd)?,
            Source::Output(id, number) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.read(number, buffer);
                }
            }
            Source::Followers(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.feed_followers();
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        if let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) {
            self.next_connection += 1;
            self.connections
                .insert(self.next_connection, process::own(fd));
        }
    }

    fn serve(&mut self, connection: u64) {
        let Some(socket) = self.connections.get(&connection) else {
            return;
        };
        // Given back at once: requests are rare.
        let mut buffer = vec![0; protocol::MAX_MESSAGE];
        let received = protocol::receive::<Request>(socket.as_fd(), &mut buffer);
        drop(buffer);
        match received {
            Ok(Some((request, fds))) => self.answer(connection, request, fds),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                say(format_args!("a request that cannot be read: {error}"));
                self.connections.remove(&connection);
            }
            Ok(None) => drop(self.connections.remove(&connection)),
        }
    }

    fn answer(&mut self, connection: u64, request: Request, fds: Vec<OwnedFd>) {
        let id = request.id;
        let result = match request.operation {
            Operation::Hello { .. } => Ok(Some(Reply::Hello {
                version: protocol::VERSION,
                pid: Pid::this().as_raw(),
            })),
            Operation::Start(start) => self.start_container(connection, id, start).map(|()| None),
            Operation::Signal {
                container_id,
                signal,
            } => self
                .signal(&container_id, signal)
                .map(|()| Some(Reply::Done)),
            Operation::Exec(exec) => self.exec(connection, id, exec, fds).map(|()| None),
            Operation::Attach(attach) => self.attach(connection, id, &attach, fds).map(|()| None),
            Operation::Resize {
                container_id,
                columns,
                rows,
            } => self
                .container(&container_id)
                .and_then(|container| container.resize(columns, rows))
                .map(|()| Some(Reply::Done)),
            Operation::Delete { container_id } => self.delete(&container_id).map(Some),
            Operation::State => {
                let containers = self.containers.keys().cloned().collect();
                Ok(Some(Reply::State { containers }))
            }
            Operation::Shutdown => {
                self.shutdown = Some((connection, id));
                for pid in self.containers.values().filter_map(Container::pid) {
                    // It may have ended by itself.
                    process::kill(pid, libc::SIGKILL).ok();
                }
                Ok(None)
            }
        };
        match result {
            Ok(Some(reply)) => self.reply(connection, id, reply, &[]),
            Ok(None) => {}
            Err(error) => {
                let message = chain(&error).to_string();
                self.reply(connection, id, Reply::Failed { message }, &[]);
            }
        }
    }

    fn start_container(
        &mut self,
        connection: u64,
        request: u64,
        start: StartRequest,
    ) -> Result<(), ShimError> {
        if self.shutdown.is_some() {
            return Err(ShimError::Refused("the pod is being removed".to_owned()));
        }
        if self.containers.contains_key(&start.container_id) {
            return Err(ShimError::Refused("the container exists".to_owned()));
        }
        let (ours, theirs) = if start.tty {
            (None, None)
        } else {
            stdio::pipes(start.stdin)
                .map(|(ours, theirs)| (Some(ours), Some(theirs)))
                .map_err(system("making pipes"))?
        };
        let container = Container::new(&start, ours)?;
        let id = start.container_id.clone();
        self.fork(connection, request, Some(id.clone()), |socket| {
            create::report(socket, create::create(&start, theirs))
        })?;
        self.containers.insert(id, container);
        Ok(())
    }

    fn exec(
        &mut self,
        connection: u64,
        request: u64,
        exec: ExecRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ShimError> {
        let container = self.container(&exec.container_id)?;
        let Some(init) = container.pid() else {
            return Err(ShimError::Refused(
                "the container is not running".to_owned(),
            ));
        };
        let dir = container.dir().to_owned();
        let streams = if exec.tty {
            Streams::Terminal
        } else {
            let files = fds.try_into().map_err(|_other_number: Vec<OwnedFd>| {
                ShimError::Refused("a command needs three descriptors".to_owned())
            })?;
            Streams::Files(files)
        };
        self.fork(connection, request, None, |socket| {
            create::report(socket, exec::exec(&exec, &dir, init, streams))
        })
    }

    fn attach(
        &mut self,
        connection: u64,
        request: u64,
        attach: &AttachRequest,
        pipes: Vec<OwnedFd>,
    ) -> Result<(), ShimError> {
        let container = self
            .containers
            .get_mut(&attach.container_id)
            .ok_or_else(|| unknown(&attach.container_id))?;
        let stdin = container.attach(attach, pipes)?;
        let stdin: Vec<_> = stdin.iter().map(AsFd::as_fd).collect();
        self.reply(connection, request, Reply::Attached, &stdin);
        Ok(())
    }

    /// Has a fork do `work` and report on the socket it is given.
    fn fork(
        &mut self,
        connection: u64,
        request: u64,
        starts: Option<String>,
        work: impl FnOnce(&OwnedFd) -> i32,
    ) -> Result<(), ShimError> {
        let kind = SockType::SeqPacket;
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(system("making a socket"))?;
        process::fork(|| work(&theirs)).map_err(system("forking"))?;
        self.forks.push(Fork {
            socket: ours,
            connection,
            request,
            starts,
        });
        Ok(())
    }

    fn fork_reported(&mut self, fd: i32) -> Result<(), ShimError> {
        let Some(at) = self
            .forks
            .iter()
            .position(|fork| fork.socket.as_raw_fd() == fd)
        else {
            return Ok(());
        };
        let fork = self.forks.swap_remove(at);
        let mut buffer = vec![0; 32 * 1024];
        let (outcome, mut fds) = match protocol::receive(fork.socket.as_fd(), &mut buffer) {
            Ok(Some(received)) => received,
            result => {
                let error = result.err().unwrap_or_else(|| io::Error::other("it died"));
                let message = format!("the creating process gave no result: {error}");
                (Outcome::Failed { message }, Vec::new())
            }
        };
        drop(buffer);
        match (fork.starts, outcome) {
            (Some(id), Outcome::Started { pid }) => {
                self.container_started(fork.connection, fork.request, &id, pid, fds.pop());
            }
            (Some(id), Outcome::Failed { message }) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.not_started(&message);
                }
                self.reply(
                    fork.connection,
                    fork.request,
                    Reply::Failed { message },
                    &[],
                );
            }
            (None, Outcome::Started { pid }) => {
                let terminal: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                self.reply(
                    fork.connection,
                    fork.request,
                    Reply::ExecStarted { pid },
                    &terminal,
                );
                self.execs.insert(pid, fork.connection);
            }
            (None, Outcome::Failed { message }) => {
                self.reply(
                    fork.connection,
                    fork.request,
                    Reply::Failed { message },
                    &[],
                );
            }
        }
        // Whoever ended before we knew it.
        let known: Vec<_> = self
            .strangers
            .iter()
            .map(|(pid, exit)| (*pid, *exit))
            .collect();
        for (pid, exit) in known {
            if self.ended(pid, exit) {
                self.strangers.remove(&pid);
            }
        }
        if self.forks.is_empty() {
            self.strangers = HashMap::new();
            process::trim_memory();
        }
        Ok(())
    }

    fn container_started(
        &mut self,
        connection: u64,
        request: u64,
        id: &str,
        pid: i32,
        terminal: Option<OwnedFd>,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let reply = match container.started(pid, terminal) {
            Ok(started_at) => Reply::Started { pid, started_at },
            Err(error) => {
                process::kill(pid, libc::SIGKILL).ok();
                Reply::Failed {
                    message: chain(&error).to_string(),
                }
            }
        };
        self.reply(connection, request, reply, &[]);
        if self.shutdown.is_some() {
            process::kill(pid, libc::SIGKILL).ok();
        }
    }

    /// Takes the status of every child that has ended.
    fn reap(&mut self) {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ProcessExit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, ProcessExit::Signal(signal as i32))
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if !self.ended(pid.as_raw(), exit) && !self.forks.is_empty() {
                self.strangers.insert(pid.as_raw(), exit);
            }
        }
    }

    /// Tells who waits for this process; false if it is nobody we know.
    fn ended(&mut self, pid: i32, exit: ProcessExit) -> bool {
        if let Some(connection) = self.execs.remove(&pid) {
            let event = Event::ExecExited {
                pid,
                exit_code: exit.code(),
            };
            self.send(connection, &Message::Event(event), &[]);
            return true;
        }
        let found = self
            .containers
            .values_mut()
            .find(|container| container.pid() == Some(pid));
        let Some(container) = found else { return false };
        if let Some(status) = container.exited(exit) {
            let container_id = container.id().to_owned();
            let message = Message::Event(Event::ContainerExited {
                container_id,
                status,
            });
            let connections: Vec<u64> = self.connections.keys().copied().collect();
            for connection in connections {
                self.send(connection, &message, &[]);
            }
        }
        true
    }

    fn container(&self, id: &str) -> Result<&Container, ShimError> {
        self.containers.get(id).ok_or_else(|| unknown(id))
    }

    fn signal(&self, id: &str, signal: i32) -> Result<(), ShimError> {
        let pid = self.container(id)?.pid();
        let pid =
            pid.ok_or_else(|| ShimError::Refused("the container is not running".to_owned()))?;
        // Not reaped yet, so the number is still the container's.
        process::kill(pid, signal).map_err(system("signalling"))
    }

    /// Deleting what is gone succeeds.
    fn delete(&mut self, id: &str) -> Result<Reply, ShimError> {
        if self
            .containers
            .get(id)
            .is_some_and(|container| !container.has_ended())
        {
            return Err(ShimError::Refused("the container has not ended".to_owned()));
        }
        self.containers.remove(id);
        Ok(Reply::Done)
    }

    fn reply(&mut self, connection: u64, id: u64, reply: Reply, fds: &[BorrowedFd<'_>]) {
        self.send(connection, &Message::Reply { id, reply }, fds);
    }

    fn send(&mut self, connection: u64, message: &Message, fds: &[BorrowedFd<'_>]) {
        let Some(socket) = self.connections.get(&connection) else {
            return;
        };
        if let Err(error) = protocol::send(socket.as_fd(), message, fds) {
            // A daemon that is gone or does not read: the next one finds everything on file.
            say(format_args!("dropping a connection: {error}"));
            self.connections.remove(&connection);
        }
    }
}

fn unknown(id: &str) -> ShimError {
    ShimError::Refused(format!("container {id} not found"))
}
