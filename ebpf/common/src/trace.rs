//! What a tracer is told: see `skiff trace`.

use crate::Addr;

/// What is to be told. Off unless a tracer keeps it on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// On until then: the kernel's coarse monotonic clock, nanoseconds. A tracer renews it; one that dies leaves nothing on.
    pub until: u64,
    /// An end's address, or the one that was asked for. [`Addr::ANY_V6`]: every.
    pub addr: Addr,
    /// An end's port, or the one that was asked for, network byte order. 0: every.
    pub port: u16,
    /// `PROTO_*`. 0: every.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 5],
}

impl TraceFilter {
    /// Whether the filter asks for this event.
    #[inline(always)]
    #[must_use]
    pub fn wants(&self, event: &TraceEvent) -> bool {
        (self.proto == 0 || self.proto == event.proto)
            && (self.port == 0
                || self.port == event.asked_port
                || self.port == event.client_port
                || self.port == event.backend_port)
            && (self.addr == Addr::ANY_V6
                || self.addr == event.asked
                || self.addr == event.client
                || self.addr == event.backend)
    }
}

/// One decision.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// When: the kernel's coarse monotonic clock, nanoseconds.
    pub time: u64,
    /// The socket's cookie. 0: a packet.
    pub cookie: u64,
    /// The cookie of the socket's network namespace. 0: a packet.
    pub netns: u64,
    /// Who asks, if that is known: a socket that connects may have no address yet.
    pub client: Addr,
    /// Where it goes.
    pub asked: Addr,
    /// Where it is sent instead.
    pub backend: Addr,
    /// Network byte order, as all ports here.
    pub client_port: u16,
    /// Of [`TraceEvent::asked`].
    pub asked_port: u16,
    /// Of [`TraceEvent::backend`].
    pub backend_port: u16,
    /// `PROTO_*`.
    pub proto: u8,
    /// A [`TraceHook`].
    pub hook: u8,
    /// A [`TraceVerdict`].
    pub verdict: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// The number of the link that a packet came in by, or of the pod's that has the policies. 0: a socket.
    pub ifindex: u32,
    /// Of a denied packet: the identity that the policies are about.
    pub subject: u32,
    /// And that of the other end.
    pub peer: u32,
}

impl TraceEvent {
    /// About a packet, of which nothing else is known yet.
    #[inline(always)]
    #[must_use]
    pub const fn packet(hook: TraceHook, verdict: TraceVerdict, ends: (Addr, Addr)) -> Self {
        Self {
            time: 0,
            cookie: 0,
            netns: 0,
            client: ends.0,
            asked: ends.1,
            backend: Addr::ANY_V6,
            client_port: 0,
            asked_port: 0,
            backend_port: 0,
            proto: 0,
            hook: hook as u8,
            verdict: verdict as u8,
            pad: [0; 3],
            ifindex: 0,
            subject: 0,
            peer: 0,
        }
    }
}

macro_rules! codes {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$about])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant = $code,)* }

        impl $name {
            /// From what stands in an event.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Which program decided.
    TraceHook {
        /// `connect4` and `connect6`.
        Connect = 1,
        /// `sendmsg4` and `sendmsg6`.
        Sendmsg = 2,
        /// `recvmsg4` and `recvmsg6`.
        Recvmsg = 3,
        /// `bind4` and `bind6`.
        Bind = 4,
        /// `pod_egress`: what a pod sends.
        PodEgress = 5,
        /// `uplink_in`: what comes in from outside.
        Uplink = 6,
        /// `pod_ingress`: what a pod gets from the bridge or its node.
        PodIngress = 7,
    }
}

codes! {
    /// What was decided.
    TraceVerdict {
        /// No Service has this address and port.
        Pass = 1,
        /// Sent to a backend.
        Backend = 2,
        /// Sent to the backend that the client had before (session affinity, or the same flow of datagrams).
        SameBackend = 3,
        /// The Service has no backend.
        Refused = 4,
        /// The tables changed under every attempt to read them.
        Inconsistent = 5,
        /// A backend's answer, turned back into the Service's.
        Reply = 6,
        /// The port is a Service's NodePort.
        NodePortTaken = 7,
        /// The source is not the pod's: dropped.
        Spoofed = 8,
        /// No policy of the pod lets it out: dropped.
        DeniedEgress = 9,
        /// No policy of the pod lets it in: dropped.
        DeniedIngress = 10,
        /// The pod's policies are not known yet: dropped.
        PolicyUnknown = 11,
        /// `externalTrafficPolicy: Local` and no backend on this node: dropped.
        NoLocal = 12,
        /// No free port of the node for a backend on another one, or no way there: dropped.
        NoWay = 13,
        /// The table of connections has no room: dropped.
        TableFull = 14,
        /// On its way for too long: dropped.
        Expired = 15,
        /// The client is in none of the Service's source ranges: dropped.
        Stranger = 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PROTO_TCP, PROTO_UDP};

    const VIP: Addr = Addr::v4(u32::from_ne_bytes([10, 96, 0, 80]));
    const BACKEND: Addr = Addr::v4(u32::from_ne_bytes([10, 244, 0, 7]));

    fn event() -> TraceEvent {
        TraceEvent {
            time: 0,
            cookie: 1,
            netns: 1,
            client: Addr::ANY_V4,
            asked: VIP,
            backend: BACKEND,
            client_port: 0,
            asked_port: 80_u16.to_be(),
            backend_port: 8080_u16.to_be(),
            proto: PROTO_TCP,
            hook: TraceHook::Connect as u8,
            verdict: TraceVerdict::Backend as u8,
            pad: [0; 3],
            ifindex: 0,
            subject: 0,
            peer: 0,
        }
    }

    #[test]
    fn a_filter_asks_for_either_end_and_what_was_asked_for() {
        let all = TraceFilter::default();
        assert!(all.wants(&event()));
        for addr in [VIP, BACKEND] {
            assert!(TraceFilter { addr, ..all }.wants(&event()));
        }
        let addr = Addr::v4(1);
        assert!(!TraceFilter { addr, ..all }.wants(&event()));
        for (port, wanted) in [(80_u16, true), (8080, true), (81, false)] {
            let port = port.to_be();
            assert_eq!(TraceFilter { port, ..all }.wants(&event()), wanted);
        }
        let proto = PROTO_UDP;
        assert!(!TraceFilter { proto, ..all }.wants(&event()));
    }

    #[test]
    fn codes_are_read_back() {
        assert_eq!(
            TraceVerdict::from_code(event().verdict),
            Some(TraceVerdict::Backend)
        );
        assert_eq!(TraceHook::from_code(0), None);
    }
}
