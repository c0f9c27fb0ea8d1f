//! What a test tells a probe, and what it answers: one JSON object a line.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// A command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Answers each TCP connection with `name`, from now on.
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
    /// Connects over TCP as fast as it can, until [`Command::StopLoad`].
    StartLoad {
        /// Where.
        addr: SocketAddr,
    },
    /// Ends it and answers with all that happened.
    StopLoad,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Answers received, by the name of the backend.
    pub names: BTreeMap<String, u32>,
    /// Failures, by errno.
    pub errors: BTreeMap<i32, u32>,
    /// What `getpeername` said, or who the answers came from.
    pub peers: BTreeMap<String, u32>,
    /// What `getsockname` said, without the port.
    pub locals: BTreeMap<String, u32>,
}

impl Answer {
    /// How many answers came.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.names.values().sum()
    }
}
