//! `datapath-probe CGROUP|- NETNS`: joins both and then opens sockets as stdin says.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use skiff_netns::NetNs;
use skiff_tests_datapath::protocol::{Answer, Command};

const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let cgroup = arguments.next().context("no cgroup")?;
    let netns = arguments.next().context("no network namespace")?;
    if cgroup != "-" {
        std::fs::write(
            format!("{cgroup}/cgroup.procs"),
            std::process::id().to_string(),
        )?;
    }
    NetNs::open(netns)?.run(serve)?
}

fn serve() -> Result<()> {
    let mut load: Option<(Arc<AtomicBool>, JoinHandle<Answer>)> = None;
    answer(&Ok(Answer::default()))?;
    for line in io::stdin().lock().lines() {
        let result = match serde_json::from_str(&line?)? {
            Command::StartLoad { addr } => {
                let stop = Arc::new(AtomicBool::new(false));
                let flag = Arc::clone(&stop);
                load = Some((stop, std::thread::spawn(move || run_load(addr, &flag))));
                Ok(Answer::default())
            }
            Command::StopLoad => {
                let (stop, thread) = load.take().context("no load")?;
                stop.store(true, Ordering::Relaxed);
                thread
                    .join()
                    .map_err(|_panic| "the load has panicked".to_owned())
            }
            command => perform(command).map_err(|error| format!("{error:#}")),
        };
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

fn perform(command: Command) -> Result<Answer> {
    let mut answer = Answer::default();
    match command {
        Command::TcpServe { addr, name } => {
            let listener = TcpListener::bind(addr)?;
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    drop(stream.write_all(name.as_bytes()));
                }
            });
        }
        Command::UdpServe { addr, name } => {
            let socket = UdpSocket::bind(addr)?;
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(name.as_bytes(), from));
                }
            });
        }
        Command::Tcp { addr, times } => {
            for _ in 0..times {
                let result = tcp_once(addr, &mut answer);
                note(result, &mut answer);
            }
        }
        Command::UdpConnected { addr, times } => {
            for _ in 0..times {
                let result = udp_once(addr, &mut answer);
                note(result, &mut answer);
            }
        }
        Command::UdpUnconnected { addrs, times } => {
            let socket = udp_socket(addrs.first().context("no address")?)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            for addr in addrs.iter().cycle().take(addrs.len() * times as usize) {
                let result = ask(&socket, *addr, &mut answer);
                note(result, &mut answer);
            }
        }
        Command::StartLoad { .. } | Command::StopLoad => unreachable!("handled by serve"),
    }
    Ok(answer)
}

fn note(result: io::Result<String>, answer: &mut Answer) {
    match result {
        Ok(name) => *answer.names.entry(name).or_default() += 1,
        Err(error) => {
            *answer
                .errors
                .entry(error.raw_os_error().unwrap_or(0))
                .or_default() += 1;
        }
    }
}

fn tcp_once(addr: SocketAddr, answer: &mut Answer) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    *answer
        .peers
        .entry(stream.peer_addr()?.to_string())
        .or_default() += 1;
    *answer
        .locals
        .entry(stream.local_addr()?.ip().to_string())
        .or_default() += 1;
    Ok(name)
}

/// Of the family of its peers.
fn udp_socket(peer: &SocketAddr) -> io::Result<UdpSocket> {
    match peer {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

fn udp_once(addr: SocketAddr, answer: &mut Answer) -> io::Result<String> {
    let socket = udp_socket(&addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(addr)?;
    *answer
        .locals
        .entry(socket.local_addr()?.ip().to_string())
        .or_default() += 1;
    *answer
        .peers
        .entry(socket.peer_addr()?.to_string())
        .or_default() += 1;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    *answer.peers.entry(from.to_string()).or_default() += 1;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn ask(socket: &UdpSocket, addr: SocketAddr, answer: &mut Answer) -> io::Result<String> {
    socket.send_to(b"?", addr)?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    *answer.peers.entry(from.to_string()).or_default() += 1;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn run_load(addr: SocketAddr, stop: &AtomicBool) -> Answer {
    let mut answer = Answer::default();
    while !stop.load(Ordering::Relaxed) {
        let result = tcp_once(addr, &mut answer);
        note(result, &mut answer);
    }
    answer
}
