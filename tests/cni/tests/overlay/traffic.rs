//! Traffic between namespaces, checked to the byte.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use skiff_tests_cni::TestNetns;

const PATIENCE: Duration = Duration::from_secs(10);
const BULK: usize = 1 << 20;

/// What a server saw of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Where the connection came from.
    pub(crate) peer: IpAddr,
    /// What one segment holds.
    pub(crate) mss: u32,
}

/// Sends a megabyte over TCP from one namespace to another and back.
#[track_caller]
pub(crate) fn tcp(from: &TestNetns, to: &TestNetns, ip: &str) -> Seen {
    let ip: IpAddr = ip.parse().unwrap();
    let listener = to.run(|| TcpListener::bind((ip, 0))).unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut bulk = vec![0; BULK];
            stream.read_exact(&mut bulk).unwrap();
            stream.write_all(&bulk).unwrap();
            peer
        });
        let mut stream = from
            .run(|| TcpStream::connect_timeout(&address, PATIENCE))
            .unwrap_or_else(|error| panic!("{ip}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent: Vec<u8> = (0..BULK).map(|i| u8::try_from(i % 251).unwrap()).collect();
        stream.write_all(&sent).unwrap();
        let mut echo = vec![0; BULK];
        stream.read_exact(&mut echo).unwrap();
        assert!(echo == sent, "{ip}: not what was sent");
        let mss = getsockopt(&stream, sockopt::TcpMaxSeg).unwrap();
        Seen {
            peer: server.join().unwrap().ip(),
            mss,
        }
    })
}

/// Sends one datagram that makes a packet of `size` bytes, and says whether the kernel let it out in one piece and it
/// arrived. With the discovery of path MTUs on, as it is by default, packets carry DF and are never cut on their way.
#[track_caller]
pub(crate) fn datagram_passes(from: &TestNetns, to: &TestNetns, ip: &str, size: u32) -> bool {
    let ip: IpAddr = ip.parse().unwrap();
    let any: SocketAddr = match ip {
        IpAddr::V4(_) => ([0; 4], 0).into(),
        IpAddr::V6(_) => ([0; 16], 0).into(),
    };
    let header = if ip.is_ipv4() { 20 } else { 40 };
    let payload = vec![7; usize::try_from(size - header - 8).unwrap()];
    let server = to.run(|| UdpSocket::bind((ip, 0))).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = from.run(|| UdpSocket::bind(any)).unwrap();
    let before = fragments(from);
    client
        .send_to(&payload, server.local_addr().unwrap())
        .unwrap();
    let mut buffer = vec![0; payload.len() + 1];
    let (length, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(length, payload.len());
    fragments(from) == before
}

/// So many fragments the namespace has made, of both families.
pub(crate) fn fragments(netns: &TestNetns) -> u64 {
    let v4 = netns.sh("cat /proc/net/snmp");
    let mut ip = v4.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (ip.next().unwrap(), ip.next().unwrap());
    let index = names
        .split_whitespace()
        .position(|name| name == "FragCreates")
        .unwrap();
    let v4: u64 = values
        .split_whitespace()
        .nth(index)
        .unwrap()
        .parse()
        .unwrap();
    let v6 = netns.sh("cat /proc/net/snmp6");
    let v6: u64 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Ip6FragCreates"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    v4 + v6
}

/// Whether a connection fails at once, by an ICMP error that is the host's own.
pub(crate) fn is_unreachable(from: &TestNetns, ip: &str) -> bool {
    let address = SocketAddr::new(ip.parse().unwrap(), 9);
    let refused = from.run(|| TcpStream::connect_timeout(&address, PATIENCE));
    matches!(
        refused.unwrap_err().kind(),
        // "No route" over IPv6.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    )
}

/// Pings once.
pub(crate) fn pings(from: &TestNetns, ip: &str) -> bool {
    let family = if ip.contains(':') { "-6" } else { "-4" };
    let answered = || {
        std::process::Command::new("busybox")
            .args(["ping", family, "-c1", "-W1", ip])
            .output()
            .unwrap()
            .status
            .success()
    };
    // One packet may be lost while the kernel, busy with other namespaces, has not told a link of its carrier.
    from.run(|| (0..3).any(|_attempt| answered()))
}
