//! Where backends can be: in pods that something is between, on the node itself, on another node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use anyhow::Result;
use skiff_ebpf_loader::{Backend, FlowTable};
use skiff_netns::{NetNs, delete_pinned};
use skiff_tests_datapath::{POD_PORT, Probe, ip, protocol::Command as Say};

use crate::site::{CLIENT, NODE, PROGRAM, Site, answered, frontends, only};

const FAR_LINK: u32 = 60;
/// Ours and the other node's addresses on the link that joins them.
const FAR: [[&str; 2]; 2] = [["10.99.0.1", "10.99.0.2"], ["fd00:99::1", "fd00:99::2"]];

/// Another node's network namespace.
struct OtherNode(PathBuf);

impl Drop for OtherNode {
    fn drop(&mut self) {
        drop(delete_pinned(&self.0));
    }
}

/// Asks by TCP and UDP, by all frontends; what the backend saw as its client must be one of `seen` of the family.
fn ask_all(site: &Site, seen: [IpAddr; 2]) -> Result<BTreeSet<String>> {
    let mut client = site.client()?;
    let mut names = BTreeSet::new();
    for addr in frontends() {
        for ask in [
            Say::Tcp { addr, times: 8 },
            Say::UdpConnected { addr, times: 8 },
        ] {
            let answer = client.tell(&ask)?;
            assert_eq!(
                (answer.total(), &answer.errors),
                (8, &BTreeMap::new()),
                "{ask:?}"
            );
            names.extend(answered(&answer, seen[usize::from(addr.is_ipv6())]));
        }
    }
    Ok(names)
}

#[test]
fn a_pod_that_is_left_to_the_bridge_is_reached_through_the_nodes_stack() -> Result<()> {
    let mut site = Site::new()?;
    site.forward()?;
    let paths = site.datapath.pods()?;
    let netns = NetNs::open(&site.node.netns)?;
    for pod in &mut site.pods {
        pod.port.direct = false;
        netns.run(|| paths.attach(&pod.port))??;
    }
    site.apply(&site.tables(2))?;
    let _servers = site.serve()?;
    let both: BTreeSet<String> = site.pods.iter().map(|pod| pod.addr.to_string()).collect();
    assert_eq!(ask_all(&site, CLIENT)?, both);
    Ok(())
}

#[test]
fn a_process_of_the_node_is_a_backend_too() -> Result<()> {
    let mut site = Site::new()?;
    let mut tables = site.tables(1);
    for members in tables.sets.values_mut() {
        for member in members {
            member.addr = NODE[usize::from(member.addr.is_ipv6())];
        }
    }
    site.apply(&tables)?;
    let mut host = site.node.host()?;
    for addr in NODE.map(|ip| (ip, POD_PORT).into()) {
        let name = "host".to_owned();
        host.tell(&Say::TcpServe {
            addr,
            name: name.clone(),
        })?;
        host.tell(&Say::UdpServe { addr, name })?;
    }
    assert_eq!(ask_all(&site, CLIENT)?, ["host".to_owned()].into());
    Ok(())
}

#[test]
fn a_backend_on_another_node_sees_this_node_as_its_client() -> Result<()> {
    let mut site = Site::new()?;
    site.forward()?;
    let other = site.node.netns.with_file_name("other");
    NetNs::create_pinned(&other)?;
    let OtherNode(other) = &OtherNode(other);
    let (index, there) = (FAR_LINK.to_string(), other.to_string_lossy().into_owned());
    let veth = [
        "link", "add", "far0", "index", &index, "type", "veth", "peer", "name", "eth0", "netns",
        &there,
    ];
    ip(&site.node.netns, &veth)?;
    for (netns, link, side) in [(&site.node.netns, "far0", 0), (other, "eth0", 1)] {
        ip(netns, &["link", "set", link, "up"])?;
        ip(
            netns,
            &[
                "address",
                "add",
                &format!("{}/24", FAR[0][side]),
                "dev",
                link,
            ],
        )?;
        ip(
            netns,
            &[
                "address",
                "add",
                &format!("{}/64", FAR[1][side]),
                "dev",
                link,
                "nodad",
            ],
        )?;
    }
    ip(other, &["route", "add", "default", "via", FAR[0][0]])?;
    ip(other, &["route", "add", "default", "via", FAR[1][0]])?;
    site.attach(FAR_LINK)?;
    let mut tables = site.tables(1);
    for members in tables.sets.values_mut() {
        for member in members {
            let addr = FAR[usize::from(member.addr.is_ipv6())][1].parse()?;
            *member = Backend::new(addr, member.port);
        }
    }
    site.apply(&tables)?;
    let mut server = Probe::start(PROGRAM.as_ref(), None, other)?;
    for addr in [FAR[0][1].parse()?, FAR[1][1].parse()?].map(|ip: IpAddr| (ip, POD_PORT).into()) {
        let name = "far".to_owned();
        server.tell(&Say::TcpServe {
            addr,
            name: name.clone(),
        })?;
        server.tell(&Say::UdpServe { addr, name })?;
    }
    assert_eq!(ask_all(&site, NODE)?, ["far".to_owned()].into());
    let flows = FlowTable::open(&site.node.bpffs)?.list()?;
    assert!(flows.iter().all(|flow| {
        flow.source
            .is_some_and(|source| NODE.contains(&source.ip()))
    }));
    Ok(())
}

#[test]
fn a_client_with_affinity_keeps_its_backend() -> Result<()> {
    let mut site = Site::new()?;
    let mut tables = site.tables(2);
    for spec in tables.frontends.values_mut() {
        spec.affinity_seconds = 600;
    }
    site.apply(&tables)?;
    let _servers = site.serve()?;
    let mut client = site.client()?;
    for addr in frontends() {
        let answer = client.tell(&Say::Tcp { addr, times: 20 })?;
        assert_eq!(
            answer.sources,
            only(CLIENT[usize::from(addr.is_ipv6())], 20)
        );
        assert_eq!(answer.names.len(), 1, "{answer:?}");
    }
    Ok(())
}
