//! What an ADD and a DEL of the bridge plugin cannot avoid asking of the kernel, and nothing else: the floor beside which
//! `cargo xtask bench cni` puts the plugins. A process of the same kind (static, started anew for each call), with
//! sockets and messages of its own, so that no code of the plugins has a part in it.
//!
//! Each request is sent when the one before is answered, as the plugins do.
//!
//!     bare_netlink add NETNS HOST_LINK BRIDGE ADDRESS LENGTH GATEWAY    one container; its link is eth0
//!     bare_netlink del HOST_LINK                                        and away with it
//!     bare_netlink ports NETNS BRIDGE COUNT                             many ports at once, for a node that is full

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    str::FromStr,
};

use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sched::CloneFlags,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};

/// The container's end.
const POD_LINK: &str = "eth0";
/// The length of a message's header; its own length stands in the first four bytes.
const HEADER: usize = 16;
const UP: u32 = libc::IFF_UP.cast_unsigned();

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["add", netns, link, bridge, address, length, gateway] => {
            let address = (parse::<Ipv4Addr>(address)?, parse(length)?);
            add(netns, link, bridge, address, parse(gateway)?)
        }
        ["del", link] => ask(&open()?, &link_message(libc::RTM_DELLINK, 0, 0).name(link)),
        ["ports", netns, bridge, count] => ports(netns, bridge, parse(count)?),
        _ => Err(io::Error::other("usage: see the source's first lines")),
    }
}

fn parse<T: FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_malformed| io::Error::other(format!("{text}: not what belongs here")))
}

fn add(
    netns: &str,
    link: &str,
    bridge: &str,
    (address, length): (Ipv4Addr, u8),
    gateway: Ipv4Addr,
) -> io::Result<()> {
    let netns = File::open(netns)?;
    let peer = link_header(0, 0)
        .name(POD_LINK)
        .attribute(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
    ask(&open()?, &veth(link, if_nametoindex(bridge)?, &peer))?;

    enter(&netns)?;
    let pod = open()?;
    let index = if_nametoindex(POD_LINK)?;
    ask(&pod, &link_message(libc::RTM_NEWLINK, index, UP))?;
    ask(
        &pod,
        &Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .bytes(&[family(), length, 0, 0])
            .bytes(&index.to_ne_bytes())
            .attribute(libc::IFA_LOCAL, &address.octets())
            .attribute(libc::IFA_ADDRESS, &address.octets()),
    )?;
    ask(
        &pod,
        &Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .bytes(&[family(), 0, 0, 0])
            .bytes(&[
                libc::RT_TABLE_MAIN,
                libc::RTPROT_BOOT,
                libc::RT_SCOPE_UNIVERSE,
                libc::RTN_UNICAST,
            ])
            .bytes(&[0; 4])
            .attribute(libc::RTA_GATEWAY, &gateway.octets())
            .attribute(libc::RTA_OIF, &index.to_ne_bytes()),
    )
}

fn ports(netns: &str, bridge: &str, count: u32) -> io::Result<()> {
    let netns = File::open(netns)?;
    let (node, bridge) = (open()?, if_nametoindex(bridge)?);
    for number in 0..count {
        let peer = link_header(0, 0)
            .name(&format!("peer{number}"))
            .attribute(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
        ask(&node, &veth(&format!("port{number}"), bridge, &peer))?;
    }
    enter(&netns)?;
    let pods = open()?;
    (0..count).try_for_each(|number| {
        let up = link_message(libc::RTM_NEWLINK, 0, UP);
        ask(&pods, &up.name(&format!("peer{number}")))
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a process with one thread, which stays inside"
)]
fn enter(netns: &File) -> io::Result<()> {
    Ok(nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)?)
}

fn veth(name: &str, bridge: u32, peer: &Message) -> Message {
    const INFO_PEER: u16 = 1;
    let pair = Message::part().attribute(INFO_PEER, &peer.0);
    let info = Message::part()
        .attribute(libc::IFLA_INFO_KIND, b"veth")
        .attribute(libc::IFLA_INFO_DATA, &pair.0);
    Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        .bytes(&link_header(0, UP).0)
        .name(name)
        .attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes())
        .attribute(libc::IFLA_LINKINFO, &info.0)
}

fn link_message(kind: u16, index: u32, flags: u32) -> Message {
    Message::new(kind, 0).bytes(&link_header(index, flags).0)
}

/// What is said of a link before its attributes.
fn link_header(index: u32, flags: u32) -> Message {
    Message::part()
        .bytes(&[0; 4])
        .bytes(&index.to_ne_bytes())
        .bytes(&flags.to_ne_bytes())
        .bytes(&flags.to_ne_bytes())
}

fn family() -> u8 {
    // 2 on every architecture.
    u8::try_from(libc::AF_INET).unwrap_or_default()
}

/// A request, or a part of one, as bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags;
        let flags = u16::try_from(flags).unwrap_or_default();
        Self::part()
            .bytes(&[0; 4])
            .bytes(&kind.to_ne_bytes())
            .bytes(&flags.to_ne_bytes())
            .bytes(&[0; 8])
    }

    fn part() -> Self {
        Self(Vec::with_capacity(256))
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Every attribute begins at a multiple of four; its length is its own.
    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        let mut message = self
            .bytes(&length.to_ne_bytes())
            .bytes(&kind.to_ne_bytes())
            .bytes(value);
        message.0.resize(message.0.len().next_multiple_of(4), 0);
        message
    }

    fn name(self, name: &str) -> Self {
        self.attribute(libc::IFLA_IFNAME, format!("{name}\0").as_bytes())
    }
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?)
}

/// Sends one request and waits for the kernel's yes.
fn ask(socket: &OwnedFd, message: &Message) -> io::Result<()> {
    let mut bytes = message.0.clone();
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    bytes.splice(..4, length.to_ne_bytes()).for_each(drop);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let received = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer
        .get(HEADER..received)
        .and_then(|body| body.first_chunk())
        .ok_or_else(|| io::Error::other("the kernel's answer is cut short"))?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        negative => Err(Errno::from_raw(-negative).into()),
    }
}
