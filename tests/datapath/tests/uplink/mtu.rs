//! Path MTU discovery between pods and clients behind a router.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use anyhow::Result;
use skiff_netns::{NetNs, delete_pinned};
use skiff_tests_datapath::{Probe, ip, protocol::Command as Say};

use crate::site::{BALANCER, CLIENT, ECHO, ECHO_PORT, NODE, PROGRAM, Site, only};

/// The router's and the client's addresses on the link between them.
const FAR: [[&str; 2]; 2] = [["10.66.0.1", "10.66.0.2"], ["fd00:66::1", "fd00:66::2"]];
/// The networks of that link.
const FAR_RANGE: [&str; 2] = ["10.66.0.0/24", "fd00:66::/64"];

/// A client beyond the site's client, which is a router here.
struct FarClient(PathBuf);

impl Drop for FarClient {
    fn drop(&mut self) {
        drop(delete_pinned(&self.0));
    }
}

impl FarClient {
    fn new(site: &Site) -> Result<Self> {
        let far = Self(site.client.with_file_name("far"));
        NetNs::create_pinned(&far.0)?;
        let there = far.0.to_string_lossy().into_owned();
        let veth = [
            "link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", &there,
        ];
        ip(&site.client, &veth)?;
        NetNs::open(&site.client)?.run(|| {
            for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{file}"), "1")?;
            }
            Ok::<_, std::io::Error>(())
        })??;
        for (netns, link, side) in [(&site.client, "far0", 0), (&far.0, "eth0", 1)] {
            ip(netns, &["link", "set", link, "up"])?;
            let [v4, v6] = FAR.map(|addrs| addrs[side]);
            ip(netns, &["address", "add", &format!("{v4}/24"), "dev", link])?;
            let v6 = format!("{v6}/64");
            ip(netns, &["address", "add", &v6, "dev", link, "nodad"])?;
        }
        for number in [0, 1] {
            let [router, own] = FAR[number];
            ip(&far.0, &["route", "add", "default", "via", router])?;
            let via = CLIENT[number].to_string();
            ip(
                &site.node.netns,
                &["route", "add", FAR_RANGE[number], "via", &via],
            )?;
            // Towards the client the router takes less than both ends believe.
            let narrow = ["route", "add", own, "dev", "far0", "mtu", "lock", "1300"];
            ip(&site.client, &narrow)?;
        }
        Ok(far)
    }
}

#[test]
fn pods_find_out_how_large_packets_to_a_client_outside_may_be() -> Result<()> {
    let mut site = Site::new()?;
    site.forward()?;
    site.apply(&site.tables(1))?;
    let _servers = site.serve()?;
    let far = FarClient::new(&site)?;
    let mut client = Probe::start(PROGRAM.as_ref(), None, &far.0)?;
    for number in [0, 1] {
        for addr in [
            SocketAddr::new(NODE[number], ECHO_PORT),
            (BALANCER[number], ECHO).into(),
        ] {
            let bytes = 1 << 20;
            let answer = client.tell(&Say::Transfer { addr, bytes })?;
            assert_eq!(
                (answer.names, answer.errors),
                (only("same", 1), BTreeMap::new()),
                "{addr}"
            );
        }
    }
    Ok(())
}
