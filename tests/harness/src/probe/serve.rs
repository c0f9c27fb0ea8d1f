//! The probe's side: `PROBE CGROUP|- NETNS` joins both and then opens sockets as stdin says.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use skiff_netns::NetNs;

use super::{
    protocol::{Answer, Command, How},
    socket::{self, Client, note},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a probe until its stdin ends. `arguments` are those that [`super::Probe`] gives.
///
/// # Errors
/// If it does not get into its cgroup or namespace, or its test speaks another language.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let cgroup = arguments.next().context("no cgroup")?;
    let netns = arguments.next().context("no network namespace")?;
    if cgroup != "-" {
        std::fs::write(
            format!("{cgroup}/cgroup.procs"),
            std::process::id().to_string(),
        )?;
    }
    // On this thread: a process is where its first thread is.
    NetNs::open(netns)?.run_here(serve)?
}

#[derive(Default)]
struct State {
    load: Option<(Arc<AtomicBool>, JoinHandle<Answer>)>,
    open: HashMap<u32, Client>,
}

fn serve() -> Result<()> {
    let mut state = State::default();
    answer(&Ok(Answer::default()))?;
    for line in io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?)?;
        let result = state.perform(command).map_err(|error| format!("{error:#}"));
        answer(&result)?;
    }
    Ok(())
}

fn answer(result: &Result<Answer, String>) -> Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    Ok(())
}

impl State {
    fn perform(&mut self, command: Command) -> Result<Answer> {
        let mut answer = Answer::default();
        match command {
            Command::TcpServe { addr, name } => serve_tcp(addr, name)?,
            Command::UdpServe { addr, name } => serve_udp(addr, name)?,
            Command::TcpEcho { addr } => serve_echo(addr)?,
            Command::Transfer { addr, bytes } => {
                note(socket::transfer(addr, bytes, PATIENCE), &mut answer);
            }
            Command::Tcp { addr, times } => {
                ask(How::Tcp, addr, None, times, PATIENCE, &mut answer);
            }
            Command::UdpConnected { addr, times } => {
                ask(How::Udp, addr, None, times, PATIENCE, &mut answer);
            }
            Command::UdpUnconnected { addrs, times } => {
                ask_all(&addrs, times, &mut answer)?;
            }
            Command::Ask {
                how,
                addr,
                from,
                times,
                patience_ms,
            } => {
                let patience = Duration::from_millis(patience_ms);
                ask(how, addr, from, times, patience, &mut answer);
            }
            Command::Http { addr, patience_ms } => {
                let result = socket::http_status(addr, Duration::from_millis(patience_ms));
                note(result, &mut answer);
            }
            Command::Open {
                id,
                how,
                addr,
                patience_ms,
            } => {
                let patience = Duration::from_millis(patience_ms);
                self.open.remove(&id);
                match Client::open(how, addr, None, patience, &mut answer) {
                    Ok(client) => drop(self.open.insert(id, client)),
                    Err(error) => note(Err(error), &mut answer),
                }
            }
            Command::Say { id, patience_ms } => {
                let client = self.open.get_mut(&id).context("no such socket")?;
                client.say(Duration::from_millis(patience_ms), &mut answer);
            }
            Command::Close { id } => drop(self.open.remove(&id)),
            Command::StartLoad { addr } => {
                let stop = Arc::new(AtomicBool::new(false));
                let flag = Arc::clone(&stop);
                self.load = Some((stop, std::thread::spawn(move || run_load(addr, &flag))));
            }
            Command::StopLoad => {
                let (stop, thread) = self.load.take().context("no load")?;
                stop.store(true, Ordering::Relaxed);
                match thread.join() {
                    Ok(all) => answer = all,
                    Err(_panic) => bail!("the load has panicked"),
                }
            }
        }
        Ok(answer)
    }
}

/// What servers say of a client: IPv4 as IPv4, whatever the socket.
fn reply(name: &str, client: SocketAddr) -> String {
    let ip: IpAddr = client.ip().to_canonical();
    format!("{name}|{ip}")
}

fn serve_tcp(addr: SocketAddr, name: String) -> Result<()> {
    let listener = TcpListener::bind(addr).with_context(|| format!("listening on {addr}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || serve_lines(&stream, &name));
        }
    });
    Ok(())
}

fn serve_echo(addr: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(addr).with_context(|| format!("listening on {addr}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(())
}

/// Until the client goes away, by whatever means.
fn serve_lines(stream: &TcpStream, name: &str) -> io::Result<()> {
    let text = reply(name, stream.peer_addr()?) + "\n";
    for line in BufReader::new(stream).lines() {
        line?;
        let mut stream = stream;
        stream.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn serve_udp(addr: SocketAddr, name: String) -> Result<()> {
    let socket = UdpSocket::bind(addr).with_context(|| format!("binding to {addr}"))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        // An error is the ICMP message to an earlier answer: the client has gone.
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let asked = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                let text = format!("{}|{asked}", reply(&name, from));
                drop(socket.send_to(text.as_bytes(), from));
            }
        }
    });
    Ok(())
}

/// Asks once on each of so many new sockets.
fn ask(
    how: How,
    addr: SocketAddr,
    from: Option<IpAddr>,
    times: u32,
    patience: Duration,
    answer: &mut Answer,
) {
    for _ in 0..times {
        match Client::open(how, addr, from, patience, answer) {
            Ok(mut client) => client.say(patience, answer),
            Err(error) => note(Err(error), answer),
        }
    }
}

/// Asks all addresses from one socket.
fn ask_all(addrs: &[SocketAddr], times: u32, answer: &mut Answer) -> Result<()> {
    let first = *addrs.first().context("no address")?;
    let mut client = Client::open(How::UdpUnconnected, first, None, PATIENCE, answer)?;
    for addr in addrs.iter().cycle().take(addrs.len() * times as usize) {
        if let Client::Udp { peer, .. } = &mut client {
            *peer = Some(*addr);
        }
        client.say(PATIENCE, answer);
    }
    Ok(())
}

fn run_load(addr: SocketAddr, stop: &AtomicBool) -> Answer {
    let mut answer = Answer::default();
    while !stop.load(Ordering::Relaxed) {
        ask(How::Tcp, addr, None, 1, PATIENCE, &mut answer);
    }
    answer
}
