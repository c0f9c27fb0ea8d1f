//! Who is served by frontends that are not for everybody, and who is refused.

use skiff_ebpf_common::{FlowKey, SERVICE_LOCAL_ONLY, SERVICE_SOURCES};

use super::*;
use crate::nat::{Choice, choose};

const LIST: u16 = 3;
const MEMBER: Addr = Addr::v4(u32::from_ne_bytes([198, 51, 100, 2]));
const STRANGER: Addr = Addr::v4(u32::from_ne_bytes([198, 51, 100, 3]));

/// A frontend for clients on a list, with so many backends for clients inside and outside.
fn tables(inside: u32, outside: u32, flags: u16) -> FakeTables {
    let mut tables = FakeTables::with_backends(inside);
    tables.sets[2].store(word(inside, outside), Ordering::Release);
    for id in inside..inside + outside {
        tables.write_backend(id, id, 2, 1);
        tables.slots[id as usize].store(word(1, id), Ordering::Release);
    }
    for service in tables.services.values_mut() {
        service.outside = 2;
        service.flags = flags;
        service.sources = LIST;
    }
    tables.sources = [(LIST, MEMBER), (LIST + 1, STRANGER)].into();
    tables
}

fn from_outside(tables: &FakeTables, src: Addr) -> Choice {
    let key = FlowKey {
        src,
        dst: VIP,
        sport: 1,
        dport: 80_u16.to_be(),
        proto: PROTO_TCP,
        pad: [0; 3],
    };
    choose(tables, &key, 0)
}

#[test]
fn a_list_has_its_own_clients_only() {
    let open = tables(0, 1, 0);
    let closed = tables(0, 1, SERVICE_SOURCES);
    for (tables, client, served) in [
        (&open, MEMBER, true),
        (&open, STRANGER, true),
        (&closed, MEMBER, true),
        (&closed, STRANGER, false),
    ] {
        match from_outside(tables, client) {
            Choice::Backend(..) => assert!(served),
            choice => assert!(!served && choice == Choice::Stranger, "{choice:?}"),
        }
    }
}

#[test]
fn without_a_backend_everybody_is_refused_whatever_the_list() {
    let empty = tables(0, 0, SERVICE_SOURCES);
    for client in [MEMBER, STRANGER] {
        assert_eq!(from_outside(&empty, client), Choice::Refuse(2));
    }
}

#[test]
fn local_only_drops_only_what_another_node_would_serve() {
    let elsewhere = tables(1, 0, SERVICE_LOCAL_ONLY);
    assert_eq!(from_outside(&elsewhere, MEMBER), Choice::NoLocal);
    let nowhere = tables(0, 0, SERVICE_LOCAL_ONLY);
    assert_eq!(from_outside(&nowhere, MEMBER), Choice::Refuse(2));
}

#[test]
fn a_socket_counts_as_its_network_namespace() {
    let mut tables = tables(1, 0, SERVICE_SOURCES);
    let none = Addr::ANY_V6;
    for (netns, v4, v6) in [
        (1, MEMBER, none),
        (2, STRANGER, none),
        (3, Addr::ANY_V4, none),
    ] {
        tables.clients.insert(netns, Client { v4, v6 });
    }
    for (netns, served) in [(1, true), (2, false), (3, false), (4, false)] {
        let request = Request {
            netns,
            ..request(VIP, 80)
        };
        let verdict = decide(&tables, &request);
        assert_eq!(verdict != Verdict::Refuse, served, "{netns}: {verdict:?}");
    }
    // Of IPv6 frontends the other address counts.
    tables.add_service(NODE_V6, SCOPE_ADDRESS, 1, 0);
    for service in tables.services.values_mut() {
        service.flags = SERVICE_SOURCES;
        service.sources = LIST;
    }
    let asks = |tables: &FakeTables| {
        let request = Request {
            netns: 1,
            ..request(NODE_V6, 80)
        };
        decide(tables, &request)
    };
    assert_eq!(asks(&tables), Verdict::Refuse);
    tables.sources.push((LIST, NODE_V6));
    let (v4, v6) = (STRANGER, NODE_V6);
    tables.clients.insert(1, Client { v4, v6 });
    assert!(matches!(asks(&tables), Verdict::To { .. }));
}
