//! A load generator that costs next to nothing beside the kernel: blocking system calls, one connection at a time.
//! It is this binary again, run inside pods.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Subcommand;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt::Linger},
    unistd::Pid,
};

/// What a pod of a bench runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Load {
    /// Accepts connections one after the other and sends one byte to each.
    Serve {
        /// TCP port on all addresses.
        port: u16,
    },
    /// Connects again and again; prints how many seconds it took.
    Connect {
        /// Where to.
        target: SocketAddrV4,
        /// How often.
        count: u32,
    },
}

pub(crate) fn run(load: &Load) -> Result<()> {
    match load {
        Load::Serve { port } => serve(*port),
        Load::Connect { target, count } => connect(*target, *count),
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    // A machine with one core has only that one; then there is nothing to pin.
    sched_setaffinity(Pid::from_raw(0), &set).ok();
    Ok(())
}

fn serve(port: u16) -> Result<()> {
    pin(1)?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        // The client resets the connection as soon as it has the byte; both errors mean just that.
        stream.write_all(b"x").ok();
        stream.read_exact(&mut [0]).ok();
    }
}

fn connect(target: SocketAddrV4, count: u32) -> Result<()> {
    pin(0)?;
    let start = Instant::now();
    for _ in 0..count {
        let mut stream = TcpStream::connect(target).with_context(|| format!("to {target}"))?;
        stream.read_exact(&mut [0])?;
        // A reset leaves nothing in TIME_WAIT, so ports never run out.
        setsockopt(
            &stream.as_fd(),
            Linger,
            &libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )?;
    }
    println!("{}", start.elapsed().as_secs_f64());
    Ok(())
}
