//! ICMP errors: what is read of them.

use std::vec;

use skiff_ebpf_common::FlowKey;

use super::*;
use crate::{
    icmp::{IcmpError, is_icmp, parse},
    packet::Packet,
};

struct Bytes(Vec<u8>);

impl Packet for Bytes {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (place, word) in words.iter_mut().enumerate() {
            let at = offset + place * 4;
            *word = u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?);
        }
        Some(words)
    }

    fn half(&self, offset: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(
            self.0.get(offset..offset + 2)?.try_into().ok()?,
        ))
    }

    fn length(&self) -> usize {
        self.0.len()
    }
}

/// A port that nobody has at 10.0.0.9:53 (UDP), as 10.0.0.9 tells 192.0.2.7:4000; with so many words of options inside.
fn v4(options: u8) -> Vec<u8> {
    let inner = 20 + options * 4;
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 28 + inner + 8, 0, 0, 0, 0, 64, 1, 0, 0]);
    frame.extend([10, 0, 0, 9, 192, 0, 2, 7]);
    frame.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    frame.extend([0x45 + options, 0, 0, 60, 0, 0, 0x40, 0, 63, 17, 0, 0]);
    frame.extend([192, 0, 2, 7, 10, 0, 0, 9]);
    frame.extend(vec![1; usize::from(options) * 4]);
    frame.extend([15, 160, 0, 53, 0, 40, 0, 0]);
    frame
}

/// A packet of 2001:db8::7 port 4000 to fd00::9 port 80 (TCP) that was too big for a router.
fn v6() -> Vec<u8> {
    let (client, pod) = (NODE_V6.octets(), [7; 16]);
    let mut frame = vec![0; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 56, 58, 64]);
    frame.extend([9; 16]);
    frame.extend(client);
    frame.extend([2, 0, 0, 0, 0, 0, 5, 0]);
    frame.extend([0x60, 0, 0, 0, 5, 0, 6, 63]);
    frame.extend(client);
    frame.extend(pod);
    frame.extend([15, 160, 0, 80, 0, 0, 0, 0]);
    frame
}

#[test]
fn an_error_names_the_direction_that_it_goes() {
    for options in [0, 3, 10] {
        let found = parse(&Bytes(v4(options)));
        let key = FlowKey {
            src: Addr::v4(u32::from_ne_bytes([10, 0, 0, 9])),
            dst: Addr::v4(u32::from_ne_bytes([192, 0, 2, 7])),
            sport: 53_u16.to_be(),
            dport: 4000_u16.to_be(),
            proto: 17,
            pad: [0; 3],
        };
        let ports = 42 + 20 + usize::from(options) * 4;
        let is_v4 = true;
        assert_eq!(found, Some(IcmpError { key, is_v4, ports }));
    }
    let found = parse(&Bytes(v6())).unwrap();
    assert_eq!((found.is_v4, found.ports), (false, 102));
    assert_eq!(found.key.src, Addr::from_octets([7; 16]));
    assert_eq!(found.key.dst, NODE_V6);
    assert_eq!(
        (found.key.sport, found.key.dport),
        (80_u16.to_be(), 4000_u16.to_be())
    );
}

#[test]
fn what_is_no_whole_error_about_a_known_protocol_is_left_alone() {
    // Where, and what is there instead.
    let cases: [(Vec<u8>, usize, u8); 15] = [
        (v4(0), 14, 0x46), // options outside
        (v4(0), 20, 0x20), // a fragment
        (v4(0), 21, 1),    // a later fragment
        (v4(0), 23, 6),    // no ICMP
        (v4(0), 33, 8),    // goes to somebody else than the packet's sender
        (v4(0), 34, 8),    // an echo request
        (v4(0), 42, 0x65), // not IPv4 inside
        (v4(0), 42, 0x46), // says that there is more inside than there is
        (v4(0), 49, 1),    // about a later fragment
        (v4(0), 51, 1),    // about ICMP
        (v6(), 20, 6),     // no ICMPv6
        (v6(), 53, 3),     // goes to somebody else
        (v6(), 54, 128),   // an echo request
        (v6(), 62, 0x40),  // not IPv6 inside
        (v6(), 68, 44),    // about a fragment
    ];
    for (mut frame, at, value) in cases {
        frame[at] = value;
        assert_eq!(parse(&Bytes(frame)), None, "{at}: {value}");
    }
    for frame in [v4(0), v6()] {
        for length in 0..frame.len() {
            assert_eq!(parse(&Bytes(frame[..length].to_vec())), None, "{length}");
        }
        assert!(is_icmp(&Bytes(frame.clone())));
        assert!(!is_icmp(&Bytes(vec![0; 64])) && !is_icmp(&Bytes(Vec::new())));
    }
}

proptest! {
    /// Whatever a frame holds, what is read lies in it.
    #[test]
    fn prop_no_error_is_read_beyond_its_frame(
        is_v4: bool, changes in prop::collection::vec((12_usize..110, any::<u8>()), 0..4), length in 0_usize..120
    ) {
        let mut frame = if is_v4 { v4(2) } else { v6() };
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(length);
        if let Some(error) = parse(&Bytes(frame.clone())) {
            prop_assert!(error.ports + 8 <= frame.len());
        }
    }
}
