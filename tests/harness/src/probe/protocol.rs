//! What a test tells a probe, and what it answers: one JSON object a line.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// A command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Answers each TCP connection, and each line on it, with `name`, from now on.
    TcpServe {
        /// Where.
        addr: SocketAddr,
        /// What.
        name: String,
    },
    /// Answers each datagram with `name`, from now on.
    UdpServe {
        /// Where.
        addr: SocketAddr,
        /// What.
        name: String,
    },
    /// Sends back whatever comes in over TCP, from now on.
    TcpEcho {
        /// Where.
        addr: SocketAddr,
    },
    /// Sends so many bytes over TCP to one who sends them back, and compares: the name is `same` or `different`.
    Transfer {
        /// Where.
        addr: SocketAddr,
        /// How many.
        bytes: usize,
    },
    /// Connects so many times, one after the other.
    Tcp {
        /// Where.
        addr: SocketAddr,
        /// How often.
        times: u32,
    },
    /// Connects a UDP socket so many times and asks once on each.
    UdpConnected {
        /// Where.
        addr: SocketAddr,
        /// How often.
        times: u32,
    },
    /// Asks each of the addresses from one unconnected UDP socket, all of them so many times.
    UdpUnconnected {
        /// Where.
        addrs: Vec<SocketAddr>,
        /// How often.
        times: u32,
    },
    /// Asks once on each of so many new sockets.
    Ask {
        /// How.
        how: How,
        /// Where.
        addr: SocketAddr,
        /// From which address; the kernel's choice if none is given.
        from: Option<IpAddr>,
        /// How often.
        times: u32,
        /// How long each answer may take.
        patience_ms: u64,
    },
    /// Asks an HTTP server for `/`; the status is the name of who answers.
    Http {
        /// Where.
        addr: SocketAddr,
        /// How long it may take.
        patience_ms: u64,
    },
    /// Opens a socket that stays open, in the place of an earlier one of this number.
    Open {
        /// Its number.
        id: u32,
        /// How.
        how: How,
        /// Where.
        addr: SocketAddr,
        /// How long connecting may take.
        patience_ms: u64,
    },
    /// Asks once on an open socket.
    Say {
        /// Its number.
        id: u32,
        /// How long the answer may take.
        patience_ms: u64,
    },
    /// Closes an open socket.
    Close {
        /// Its number.
        id: u32,
    },
    /// Connects over TCP as fast as it can, until [`Command::StopLoad`].
    StartLoad {
        /// Where.
        addr: SocketAddr,
    },
    /// Ends it and answers with all that happened.
    StopLoad,
}

/// How a socket talks to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// A TCP connection.
    Tcp,
    /// A UDP socket after `connect`.
    Udp,
    /// A UDP socket that names its peer with each datagram.
    UdpUnconnected,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Answers received, by the name of the backend.
    pub names: BTreeMap<String, u32>,
    /// Failures, by errno; ETIMEDOUT if nothing came.
    pub errors: BTreeMap<i32, u32>,
    /// What `getpeername` said, or who the answers came from.
    pub peers: BTreeMap<String, u32>,
    /// What `getsockname` said, without the port.
    pub locals: BTreeMap<String, u32>,
    /// Whom the backends saw, without the port.
    pub sources: BTreeMap<String, u32>,
}

impl Answer {
    /// How many answers came.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.names.values().sum()
    }

    /// Adds what happened in another one.
    pub fn add(&mut self, other: Self) {
        add(&mut self.names, other.names);
        add(&mut self.errors, other.errors);
        add(&mut self.peers, other.peers);
        add(&mut self.locals, other.locals);
        add(&mut self.sources, other.sources);
    }
}

fn add<K: Ord>(to: &mut BTreeMap<K, u32>, from: BTreeMap<K, u32>) {
    for (key, count) in from {
        *to.entry(key).or_default() += count;
    }
}
