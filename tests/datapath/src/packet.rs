//! Packets as they lie on a link, made from nothing.

use std::net::{IpAddr, SocketAddr};

/// IP's number of TCP.
pub const TCP: u8 = 6;
/// IP's number of UDP.
pub const UDP: u8 = 17;
/// TCP's flag.
pub const SYN: u8 = 0x02;
/// TCP's flag.
pub const RST: u8 = 0x04;
/// TCP's flag.
pub const ACK: u8 = 0x10;

/// A packet to be.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Ethernet's destination and source.
    pub ethernet: [[u8; 6]; 2],
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// [`TCP`] or [`UDP`].
    pub proto: u8,
    /// TCP's flags.
    pub flags: u8,
    /// Hops left.
    pub ttl: u8,
    /// Words of IPv4 options.
    pub options: usize,
    /// Of the IPv4 header: more fragments, and where this one begins.
    pub fragment: u16,
    /// UDP without a checksum.
    pub unsummed: bool,
    /// What it carries.
    pub payload: &'static [u8],
}

/// One that opens a connection, or a datagram. Its addresses of Ethernet are the loopback link's.
#[must_use]
pub fn packet(proto: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    Packet {
        ethernet: [[0; 6]; 2],
        from: from.into(),
        to: to.into(),
        proto,
        flags: SYN,
        ttl: 61,
        options: 0,
        fragment: 0,
        unsummed: false,
        payload: b"sixteen bytes ..",
    }
}

/// An address as a packet has it.
#[must_use]
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The Internet checksum, computed from nothing.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// A length as a packet has it.
#[must_use]
pub fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

impl Packet {
    /// The frame.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = self.ethernet.concat();
        if self.from.is_ipv4() {
            let header = 20 + self.options * 4;
            frame.extend(0x0800_u16.to_be_bytes());
            let mut ip = vec![0x40 | u8::try_from(header / 4).unwrap_or_default(), 0];
            ip.extend(length(header + transport.len()));
            ip.extend(0x1234_u16.to_be_bytes());
            ip.extend(self.fragment.to_be_bytes());
            ip.extend([self.ttl, self.proto, 0, 0]);
            ip.extend(octets(self.from.ip()));
            ip.extend(octets(self.to.ip()));
            ip.extend(vec![1; self.options * 4]);
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(ip);
        } else {
            frame.extend(0x86dd_u16.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length(transport.len()));
            frame.extend([self.proto, self.ttl]);
            frame.extend(octets(self.from.ip()));
            frame.extend(octets(self.to.ip()));
        }
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        if self.fragment & 0x1fff != 0 {
            return self.payload.to_vec();
        }
        let mut bytes = self.from.port().to_be_bytes().to_vec();
        bytes.extend(self.to.port().to_be_bytes());
        let at = if self.proto == TCP {
            bytes.extend([
                0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0x20, 0, 0, 0, 0, 0,
            ]);
            16
        } else {
            bytes.extend(length(8 + self.payload.len()));
            bytes.extend([0, 0]);
            6
        };
        bytes.extend(self.payload);
        if !self.unsummed {
            let mut pseudo = octets(self.from.ip());
            pseudo.extend(octets(self.to.ip()));
            pseudo.extend([0, self.proto]);
            pseudo.extend(length(bytes.len()));
            pseudo.extend(&bytes);
            bytes[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        }
        bytes
    }
}
