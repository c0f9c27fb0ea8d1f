//! That the tables have room for what their sizes are chosen for, and what they take.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use skiff_ebpf_loader::{
    Backend, Datapath, DatapathConfig, DesiredTables, Frontend, FrontendSpec, Inspector, Limits,
    Protocol, SetId,
};
use skiff_tests_datapath::TestNode;

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// More than fit into the smallest tables.
const SERVICES: u32 = 2_500;
const ENDPOINTS: u16 = 5;

fn addrs(net: u8, number: u32) -> [IpAddr; 2] {
    let [a, b, c, d] = number.to_be_bytes();
    let six = Ipv6Addr::from([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]);
    [Ipv4Addr::new(net + b, c, d, 1).into(), six.into()]
}

/// Dual-stack, two ports, a ClusterIP and a load balancer's address of each family.
fn add_service(tables: &mut DesiredTables, number: u32) {
    for (family, port) in [(0, 80), (0, 443), (1, 80), (1, 443)] {
        let name = format!("{number} {family} {port}");
        let (inside, outside) = (SetId::of(&[&name]), SetId::of_outside(&[&name]));
        let pod = addrs(10, number)[family];
        let backends: Vec<Backend> = (0..ENDPOINTS)
            .map(|n| Backend::new(pod, 8000 + n))
            .collect();
        tables.sets.insert(inside, backends.clone());
        tables.sets.insert(outside, backends);
        for net in [96, 192] {
            let frontend = Frontend::Address {
                addr: addrs(net, number)[family],
                port,
                protocol: Protocol::Tcp,
            };
            let spec = FrontendSpec {
                outside: (net == 192).then_some(outside),
                ..FrontendSpec::to(inside)
            };
            tables.frontends.insert(frontend, spec);
        }
    }
}

#[test]
fn the_largest_services_have_room_in_tables_of_their_number() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut tables = DesiredTables::default();
    for number in 0..SERVICES {
        add_service(&mut tables, number);
    }
    let config = DatapathConfig {
        limits: Limits::for_services(SERVICES),
        ..node.config()
    };
    let mut datapath = Datapath::open(&config)?;
    let bytes = |inspector: &Inspector| -> Result<u64> {
        Ok(inspector.pressure()?.iter().map(|table| table.bytes).sum())
    };
    datapath.apply(&datapath.diff(&DesiredTables::default()))?;
    let inspector = Inspector::open(&node.bpffs)?;
    let empty = bytes(&inspector)?;
    datapath.apply(&datapath.diff(&tables))?;
    let full = bytes(&inspector)?;
    println!("{empty} bytes at start, {full} with {SERVICES} Services");
    for table in inspector.pressure()? {
        println!("{table:?}, {:?} each", table.bytes_each());
    }
    // Only frontends are counted when they come: the rest is there from the start.
    assert!(empty > 0 && full > empty, "{empty}, {full}");
    assert!((full - empty) / u64::from(SERVICES) < 2_000);
    let mut all = inspector.pressure()?.into_iter();
    let slots = all.find(|table| table.map == "LB_SLOTS");
    let slots = slots.context("no such table")?;
    assert_eq!(slots.used, u64::from(SERVICES) * 4 * (5 + 131));
    assert_eq!((slots.grows, slots.bytes_each()), (false, Some(8)));
    Ok(())
}
