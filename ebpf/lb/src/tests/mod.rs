//! The decisions on the host, against tables in ordinary memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    vec::Vec,
};

use proptest::prelude::*;
use skiff_ebpf_common::PROTO_TCP;

use super::*;

mod errors;
mod sources;

const VIP: Addr = Addr::v4(u32::from_ne_bytes([10, 96, 0, 80]));
const NODE: Addr = Addr::v4(u32::from_ne_bytes([192, 0, 2, 1]));
const NODE_V6: Addr = Addr::from_octets([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const LOOPBACK: Addr = Addr::v4(u32::from_ne_bytes([127, 0, 0, 1]));
const NODE_NETNS: u64 = 1;
const POD_NETNS: u64 = 77;

/// The tables, with the same guarantees as the kernel's: words are atomic, nothing else is.
#[derive(Default)]
struct FakeTables {
    services: HashMap<ServiceKey, Service>,
    sets: Vec<AtomicU64>,
    slots: Vec<AtomicU64>,
    backends: Vec<[AtomicU64; 2]>,
    affinity: Mutex<HashMap<(bool, AffinityKey), Affinity>>,
    /// The addresses on lists.
    sources: Vec<(u16, Addr)>,
    clients: HashMap<u64, Client>,
    seed: AtomicU32,
    now: AtomicU64,
}

fn low(word: u64) -> u32 {
    SetWord::unpack(word).count
}

fn high(word: u64) -> u32 {
    SetWord::unpack(word).base
}

fn word(high: u32, low: u32) -> u64 {
    SetWord {
        base: high,
        count: low,
    }
    .pack()
}

impl FakeTables {
    /// Set 1 has backends with the addresses 0, 1, 2…, all other sets are empty.
    fn with_backends(count: u32) -> Self {
        let mut tables = Self::sized(4, 64, 64);
        for id in 0..count {
            tables.write_backend(id, id, 1, 1);
            tables.slots[id as usize].store(word(1, id), Ordering::Release);
        }
        tables.sets[1].store(word(0, count), Ordering::Release);
        tables.add_service(VIP, SCOPE_ADDRESS, 1, 0);
        tables
    }

    fn sized(sets: usize, slots: usize, backends: usize) -> Self {
        Self {
            sets: (0..sets).map(|_| AtomicU64::new(0)).collect(),
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            backends: (0..backends)
                .map(|_| [AtomicU64::new(0), AtomicU64::new(0)])
                .collect(),
            seed: AtomicU32::new(1),
            ..Self::default()
        }
    }

    fn write_backend(&self, id: u32, addr: u32, set: u32, generation: u32) {
        let [address, meta] = &self.backends[id as usize];
        meta.store(word(generation, set), Ordering::Release);
        address.store(u64::from(addr), Ordering::Release);
    }

    fn add_service(&mut self, addr: Addr, scope: u8, set: u32, affinity: u32) {
        let port = if scope == SCOPE_NODE_PORT {
            30_080_u16
        } else {
            80
        };
        let key = ServiceKey {
            addr,
            port: port.to_be(),
            proto: PROTO_TCP,
            scope,
        };
        let service = Service {
            key,
            inside: set,
            outside: 0,
            affinity_seconds: affinity,
            flags: 0,
            sources: 0,
        };
        self.services.insert(key, service);
    }
}

impl Tables for FakeTables {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn set_word(&self, set: u32) -> Option<u64> {
        Some(self.sets.get(set as usize)?.load(Ordering::Acquire))
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let word = self.slots.get(index as usize)?.load(Ordering::Acquire);
        Some(Slot {
            backend: low(word),
            generation: high(word),
        })
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        let [address, meta] = self.backends.get(id as usize)?;
        let addr = low(address.load(Ordering::Acquire));
        let meta = meta.load(Ordering::Acquire);
        Some(Backend {
            addr: Addr::v4(addr),
            port: 0,
            flags: 0,
            set: low(meta),
            generation: high(meta),
            pad: 0,
        })
    }

    fn config(&self) -> Option<Config> {
        Some(Config {
            node_port_first: 30_000,
            node_port_last: 32_767,
            node_netns: NODE_NETNS,
            ..Config::default()
        })
    }

    fn is_node_address(&self, addr: &Addr) -> bool {
        *addr == NODE || *addr == NODE_V6
    }

    fn affinity(&self, of: Sticky, key: &AffinityKey) -> Option<Affinity> {
        self.affinity
            .lock()
            .unwrap()
            .get(&(of == Sticky::Client, *key))
            .copied()
    }

    fn set_affinity(&self, of: Sticky, key: &AffinityKey, value: &Affinity) {
        self.affinity
            .lock()
            .unwrap()
            .insert((of == Sticky::Client, *key), *value);
    }

    fn is_source(&self, list: u16, addr: &Addr) -> bool {
        self.sources.contains(&(list, *addr))
    }

    fn client(&self, netns: u64) -> Option<Client> {
        self.clients.get(&netns).copied()
    }

    fn random(&self) -> u32 {
        // xorshift: any number but zero, each once in a period.
        let mut x = self.seed.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.seed.store(x, Ordering::Relaxed);
        x
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

fn request(addr: Addr, port: u16) -> Request {
    Request {
        addr,
        port: port.to_be(),
        proto: PROTO_TCP,
        netns: POD_NETNS,
        socket: 0,
    }
}

fn chosen(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::To { backend, .. } => backend.addr.as_v4(),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn prop_every_backend_is_chosen_about_equally_often(count in 1_u32..50, seed in 1_u32..) {
        let tables = FakeTables::with_backends(count);
        tables.seed.store(seed, Ordering::Relaxed);
        let rounds = count * 200;
        let mut seen = BTreeMap::<u32, u32>::new();
        for _ in 0..rounds {
            *seen.entry(chosen(decide(&tables, &request(VIP, 80)))).or_default() += 1;
        }
        prop_assert_eq!(seen.len(), count as usize);
        // 200 expected for each; 100 off is seven standard deviations.
        prop_assert!(seen.values().all(|times| (100..=300).contains(times)), "{:?}", seen);
    }

    #[test]
    fn prop_affinity_is_honoured_within_its_timeout(
        seconds in 2_u32..100_000,
        // Thousandths of the timeout between connections.
        steps in prop::collection::vec(0_u64..2_000, 1..30),
    ) {
        let mut tables = FakeTables::with_backends(40);
        tables.add_service(VIP, SCOPE_ADDRESS, 1, seconds);
        let mut last = chosen(decide(&tables, &request(VIP, 80)));
        for step in steps {
            tables.now.fetch_add(step * u64::from(seconds) * 1_000_000, Ordering::Relaxed);
            let verdict = decide(&tables, &request(VIP, 80));
            let next = chosen(verdict);
            // Half a second may be missing: a younger memory is not renewed.
            if step * u64::from(seconds) <= (u64::from(seconds) * 1000).saturating_sub(500) {
                prop_assert_eq!(next, last);
            }
            if step > 1000 {
                let fresh = matches!(verdict, Verdict::To { by_affinity: false, .. });
                prop_assert!(fresh);
            }
            last = next;
        }
    }
}

#[test]
fn affinity_is_per_client_and_per_set() {
    let mut tables = FakeTables::with_backends(40);
    tables.add_service(VIP, SCOPE_ADDRESS, 1, 60);
    let of = |netns| {
        chosen(decide(
            &tables,
            &Request {
                netns,
                ..request(VIP, 80)
            },
        ))
    };
    let first: Vec<u32> = (0..20).map(of).collect();
    let second: Vec<u32> = (0..20).map(of).collect();
    assert_eq!(first, second);
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 5, "{first:?}");
}

#[test]
fn affinity_does_not_hold_to_a_backend_that_is_used_again_for_another() {
    let mut tables = FakeTables::with_backends(1);
    tables.add_service(VIP, SCOPE_ADDRESS, 1, 60);
    assert_eq!(chosen(decide(&tables, &request(VIP, 80))), 0);
    tables.write_backend(0, 99, 1, 2);
    tables.slots[0].store(word(2, 0), Ordering::Release);
    let verdict = decide(&tables, &request(VIP, 80));
    assert!(matches!(
        verdict,
        Verdict::To {
            by_affinity: false,
            ..
        }
    ));
    assert_eq!(chosen(verdict), 99);
}

#[test]
fn datagrams_of_one_socket_are_one_flow_until_it_is_silent() {
    let mut tables = FakeTables::with_backends(40);
    let key = ServiceKey {
        addr: VIP,
        port: 80_u16.to_be(),
        proto: PROTO_UDP,
        scope: 0,
    };
    let service = Service {
        key,
        inside: 1,
        outside: 0,
        affinity_seconds: 0,
        flags: 0,
        sources: 0,
    };
    tables.services.insert(key, service);
    let of = |socket| {
        let request = Request {
            proto: PROTO_UDP,
            socket,
            ..request(VIP, 80)
        };
        chosen(decide(&tables, &request))
    };
    let first = of(5);
    assert!((0..50).all(|_| of(5) == first));
    assert!((6..50).map(of).any(|other| other != first));
    tables.now.store(
        u64::from(FLOW_SECONDS + 1) * 1_000_000_000,
        Ordering::Relaxed,
    );
    assert!((0..5).any(|round| {
        tables
            .now
            .fetch_add(round * 200_000_000_000, Ordering::Relaxed);
        of(5) != first
    }));
}

#[test]
fn what_is_no_frontend_passes() {
    let mut tables = FakeTables::with_backends(1);
    tables.add_service(Addr::ANY_V4, SCOPE_NODE_PORT, 1, 0);
    let cases = [
        ("another port", request(VIP, 81)),
        ("another address", request(Addr::v4(VIP.as_v4() + 1), 80)),
        (
            "another protocol",
            Request {
                proto: PROTO_UDP,
                ..request(VIP, 80)
            },
        ),
        ("a node port elsewhere", request(VIP, 30_080)),
        ("a node port that is free", request(NODE, 30_081)),
        ("a port of the node outside the range", request(NODE, 80)),
        ("a pod's own loopback", request(LOOPBACK, 30_080)),
        (
            "the key of node ports itself",
            request(Addr::ANY_V4, 30_080),
        ),
        ("a node port of the other family", request(NODE_V6, 30_080)),
    ];
    for (name, request) in cases {
        assert_eq!(decide(&tables, &request), Verdict::Pass, "{name}");
    }
}

#[test]
fn a_node_port_is_found_at_the_nodes_addresses() {
    let mut tables = FakeTables::with_backends(1);
    tables.add_service(Addr::ANY_V4, SCOPE_NODE_PORT, 1, 0);
    assert_eq!(chosen(decide(&tables, &request(NODE, 30_080))), 0);
    let on_node = Request {
        netns: NODE_NETNS,
        ..request(LOOPBACK, 30_080)
    };
    assert_eq!(chosen(decide(&tables, &on_node)), 0);
}

#[test]
fn families_do_not_share_node_ports() {
    let mut tables = FakeTables::with_backends(1);
    tables.add_service(Addr::ANY_V6, SCOPE_NODE_PORT, 1, 0);
    assert_eq!(chosen(decide(&tables, &request(NODE_V6, 30_080))), 0);
    assert_eq!(decide(&tables, &request(NODE, 30_080)), Verdict::Pass);
}

#[test]
fn a_frontend_without_backends_refuses() {
    let mut tables = FakeTables::with_backends(3);
    tables.add_service(VIP, SCOPE_ADDRESS, 0, 0);
    assert_eq!(
        decide(&tables, &request(VIP, 80)),
        Verdict::Refuse,
        "no set"
    );
    tables.add_service(VIP, SCOPE_ADDRESS, 3, 0);
    assert_eq!(
        decide(&tables, &request(VIP, 80)),
        Verdict::Refuse,
        "empty set"
    );
    tables.add_service(VIP, SCOPE_ADDRESS, 3, 60);
    assert_eq!(
        decide(&tables, &request(VIP, 80)),
        Verdict::Refuse,
        "empty set with affinity"
    );
}

/// One store of the writer, as the loader makes them.
#[derive(Clone, Copy, Debug)]
enum Store {
    /// Waits until no reader is under way.
    GracePeriod,
    BackendMeta(u32),
    BackendAddress(u32),
    Slot(u32),
    Publish,
    Retire(u32),
}

/// Tables with a writer that goes on for some stores at every access of the reader. Round by round it replaces set 1 by
/// one to seven members whose address is the round's number, and uses slots and ids again.
struct Interleaved {
    tables: FakeTables,
    writer: Mutex<RoundWriter>,
    schedule: Mutex<VecDeque<u8>>,
}

struct RoundWriter {
    round: u32,
    in_force: u32,
    /// The last round whose predecessor is retired.
    complete: u32,
    stores: VecDeque<Store>,
    old: Vec<u32>,
    now: Vec<u32>,
}

impl Interleaved {
    fn advance(&self, reader_active: bool) {
        let stores = self.schedule.lock().unwrap().pop_front().unwrap_or(0);
        for _ in 0..stores {
            self.store_once(reader_active);
        }
    }

    fn store_once(&self, reader_active: bool) {
        let mut writer = self.writer.lock().unwrap();
        if writer.stores.is_empty() {
            writer.plan_round();
        }
        let round = writer.round;
        match writer.stores.front().copied() {
            Some(Store::GracePeriod) if reader_active => return,
            Some(Store::GracePeriod) | None => {}
            Some(Store::BackendMeta(id)) => {
                self.tables.backends[id as usize][1].store(word(round, 1), Ordering::Release);
            }
            Some(Store::BackendAddress(id)) => {
                self.tables.backends[id as usize][0].store(round.into(), Ordering::Release);
            }
            Some(Store::Slot(id)) => {
                self.tables.slots[id as usize].store(word(round, id), Ordering::Release);
            }
            Some(Store::Publish) => {
                let count = u32::try_from(writer.now.len()).unwrap();
                self.tables.sets[1].store(word(writer.now[0], count), Ordering::Release);
                writer.in_force = round;
            }
            Some(Store::Retire(id)) => {
                let meta = &self.tables.backends[id as usize][1];
                meta.store(
                    word(high(meta.load(Ordering::Acquire)), 0),
                    Ordering::Release,
                );
            }
        }
        writer.stores.pop_front();
        if writer.stores.is_empty() {
            writer.complete = round;
        }
    }

    fn in_force(&self) -> u32 {
        self.writer.lock().unwrap().in_force
    }
}

impl RoundWriter {
    fn plan_round(&mut self) {
        self.round += 1;
        // Eight runs in turn, a grace period every four rounds: at least one between the end of a run and its next use.
        if self.round.is_multiple_of(4) {
            self.stores.push_back(Store::GracePeriod);
        }
        let first = self.round % 8 * 8;
        self.old = std::mem::replace(&mut self.now, (first..=first + self.round % 7).collect());
        for id in self.now.clone() {
            self.stores.extend([
                Store::BackendMeta(id),
                Store::BackendAddress(id),
                Store::Slot(id),
            ]);
        }
        self.stores.push_back(Store::Publish);
        self.stores
            .extend(self.old.iter().map(|id| Store::Retire(*id)));
    }
}

impl Tables for Interleaved {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.advance(true);
        self.tables.service(key)
    }

    fn set_word(&self, set: u32) -> Option<u64> {
        self.advance(true);
        self.tables.set_word(set)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.advance(true);
        self.tables.slot(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.advance(true);
        self.tables.backend(id)
    }

    fn config(&self) -> Option<Config> {
        self.tables.config()
    }

    fn is_node_address(&self, addr: &Addr) -> bool {
        self.tables.is_node_address(addr)
    }

    fn affinity(&self, of: Sticky, key: &AffinityKey) -> Option<Affinity> {
        self.advance(true);
        self.tables.affinity(of, key)
    }

    fn set_affinity(&self, of: Sticky, key: &AffinityKey, value: &Affinity) {
        self.advance(true);
        self.tables.set_affinity(of, key, value);
    }

    fn is_source(&self, list: u16, addr: &Addr) -> bool {
        self.tables.is_source(list, addr)
    }

    fn client(&self, netns: u64) -> Option<Client> {
        self.tables.client(netns)
    }

    fn random(&self) -> u32 {
        self.tables.random()
    }

    fn now(&self) -> u64 {
        self.tables.now()
    }
}

proptest! {
    /// Whatever the writer does between two accesses of a reader: it gets a whole backend of a set that was in force
    /// while it looked, with affinity and without.
    #[test]
    fn prop_no_reader_sees_a_torn_set(
        schedule in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => 1_u8..40], 1..400),
        seed in 1_u32..,
        affinity in prop_oneof![Just(0_u32), Just(60)],
    ) {
        let mut tables = FakeTables::sized(4, 64, 64);
        tables.add_service(VIP, SCOPE_ADDRESS, 1, affinity);
        tables.seed.store(seed, Ordering::Relaxed);
        let (stores, old, now) = (VecDeque::new(), Vec::new(), Vec::new());
        let writer = Mutex::new(RoundWriter { round: 0, in_force: 0, complete: 0, stores, old, now });
        let tables = Interleaved { tables, writer, schedule: Mutex::new(schedule.into()) };
        while tables.in_force() == 0 {
            tables.store_once(false);
        }
        while !tables.schedule.lock().unwrap().is_empty() {
            tables.advance(false);
            // Who remembers a backend may still get it until the change is complete.
            let before = match affinity {
                0 => tables.in_force(),
                _ => tables.writer.lock().unwrap().complete,
            };
            let verdict = decide(&tables, &request(VIP, 80));
            let after = tables.in_force();
            match verdict {
                Verdict::To { backend, .. } => {
                    let round = backend.addr.as_v4();
                    prop_assert!((before..=after).contains(&round), "{:?}", backend);
                    prop_assert_eq!(backend.generation, round);
                }
                // Only if the set changed under each attempt.
                Verdict::Inconsistent => prop_assert!(after - before >= ATTEMPTS - 1),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
