//! A load generator that costs next to nothing beside the kernel: blocking system calls, one connection at a time.
//! It is this binary again, run in the namespaces of a bench.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Subcommand, ValueEnum};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt::Linger},
    unistd::Pid,
};

/// What is written to a stream at once.
const CHUNK: usize = 128 * 1024;

/// What runs in a pod of a bench.
#[derive(Debug, Subcommand)]
pub(crate) enum Load {
    /// Serves one connection after the other.
    Serve {
        /// TCP port on all addresses.
        port: u16,
        /// What a connection gets.
        way: Way,
    },
    /// Does what the lines on stdin say, and answers each with the seconds it took and how much was done.
    Client,
}

/// How a server treats a connection.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Way {
    /// One byte, then the client resets it.
    Greet,
    /// Each byte comes back.
    Echo,
    /// Everything is read.
    Sink,
}

pub(crate) fn run(load: &Load) -> Result<()> {
    match load {
        Load::Serve { port, way } => {
            let (port, way) = (*port, *way);
            let server = thread::spawn(move || serve(port, way));
            // Whoever started it has ended when its input does: so ends this process then.
            while !server.is_finished() && io::stdin().read(&mut [0])? > 0 {}
            Ok(())
        }
        Load::Client => client(),
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    // A machine with one core has only that one; then there is nothing to pin.
    sched_setaffinity(Pid::from_raw(0), &set).ok();
    Ok(())
}

fn serve(port: u16, way: Way) -> Result<()> {
    pin(1)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("ready");
    loop {
        let (mut stream, _) = listener.accept()?;
        // A client may reset its connection whenever it has what it wants: errors mean just that.
        match way {
            Way::Greet => {
                stream.write_all(b"x").ok();
                stream.read_exact(&mut [0]).ok();
            }
            Way::Echo => echo(&mut stream)?,
            Way::Sink => {
                let mut buffer = vec![0; CHUNK];
                while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
            }
        }
    }
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    Ok(())
}

fn client() -> Result<()> {
    pin(0)?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let [verb, target, amount] = *line.split(' ').collect::<Vec<_>>() else {
            bail!("{line:?} is no order");
        };
        let (target, amount) = (target.parse()?, amount.parse()?);
        let start = Instant::now();
        let done = match verb {
            "connect" => connect(target, amount),
            "ask" => ask(target, amount),
            "send" => send(target, Duration::from_millis(amount)),
            _ => bail!("{verb:?} is no order"),
        };
        let done = done.with_context(|| line.clone())?;
        println!("{} {done}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn connect(target: SocketAddrV4, count: u64) -> Result<u64> {
    for _ in 0..count {
        let mut stream = TcpStream::connect(target)?;
        stream.read_exact(&mut [0])?;
        // A reset leaves nothing in TIME_WAIT, so ports never run out.
        let reset = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream.as_fd(), Linger, &reset)?;
    }
    Ok(count)
}

fn ask(target: SocketAddrV4, count: u64) -> Result<u64> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    let mut byte = *b"x";
    for _ in 0..count {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(count)
}

/// Sends for so long; returns how many bytes the server has taken.
fn send(target: SocketAddrV4, time: Duration) -> Result<u64> {
    let mut stream = TcpStream::connect(target)?;
    let buffer = vec![0; CHUNK];
    let (start, mut chunks) = (Instant::now(), 0);
    while start.elapsed() < time {
        stream.write_all(&buffer)?;
        chunks += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    // The server closes when it has read everything.
    if stream.read(&mut [0])? > 0 {
        bail!("a sink does not answer");
    }
    Ok(chunks * u64::try_from(CHUNK)?)
}
