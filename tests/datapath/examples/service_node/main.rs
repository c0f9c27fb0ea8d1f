//! The datapath of one node, for `cargo xtask bench service`: opens it, joins the pods, programs as many Services as it is
//! told to on stdin, and removes everything when that ends, the cgroup too. Runs in the node's network namespace.
//!
//!     service_node CGROUP VIP SERVER PORT… -- LINK/ADDRESS/MAC…
//!     service_node iptables VIP SERVER PORT… --    the same by rules, which need no cgroup
//!
//!     services COUNT    so many Services with five endpoints each, the one at VIP among them; answered with "ok"
//!     direct            how many packets went around the bridge
#![allow(clippy::print_stdout, reason = "speaks with the bench")]

mod rules;

use std::{
    fs,
    io::BufRead as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use skiff_ebpf_loader::{
    Backend, Datapath, DatapathConfig, DesiredTables, Frontend, FrontendSpec, Limits, NodeSettings,
    PodPort, Protocol, SetId, netns_cookie, teardown,
};

/// Endpoints of all other Services.
const ENDPOINTS: u8 = 5;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (service, pods) =
        words.split_at(words.iter().position(|word| word == "--").context(USAGE)?);
    let [cgroup, vip, server, ports @ ..] = service else {
        bail!(USAGE);
    };
    let ports = ports.iter().map(|port| Ok(port.parse()?));
    let service = Service {
        vip: vip.parse()?,
        server: server.parse()?,
        ports: ports.collect::<Result<_>>()?,
    };
    if cgroup == "iptables" {
        return rules::serve(&service);
    }
    let pins = tempfile::tempdir()?;
    let config = DatapathConfig {
        cgroup_path: cgroup.into(),
        bpffs_dir: pins.path().join("bpf"),
        limits: Limits::default(),
    };
    fs::create_dir(cgroup).with_context(|| cgroup.clone())?;
    let served = serve(&config, &service, pods.get(1..).unwrap_or_default());
    teardown(&config.bpffs_dir)?;
    remove_cgroup(&config.cgroup_path)?;
    served
}

/// Its processes end with the bench, but leave it only a moment later.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = fs::remove_dir(cgroup) {
        if Instant::now() > deadline {
            return Err(error).with_context(|| cgroup.display().to_string());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

const USAGE: &str = "usage: see the source's first lines";

/// What the bench connects to.
struct Service {
    vip: IpAddr,
    server: IpAddr,
    ports: Vec<u16>,
}

fn serve(config: &DatapathConfig, service: &Service, pods: &[String]) -> Result<()> {
    let mut datapath = Datapath::open(config)?;
    datapath.set_node(&NodeSettings {
        node_ports: 30_000..=32_767,
        addresses: Vec::new(),
        netns_cookie: netns_cookie()?,
    })?;
    let paths = datapath.pods()?;
    for pod in pods {
        paths.attach(&pod_port(pod)?)?;
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match *line.split(' ').collect::<Vec<_>>() {
            ["services", count] => {
                let diff = datapath.diff(&tables(service, count.parse()?)?);
                datapath.apply(&diff)?;
                println!("ok");
            }
            ["direct"] => println!("{}", datapath.counters()?.pod_direct),
            _ => bail!("{line:?} is no order"),
        }
    }
    Ok(())
}

fn pod_port(text: &str) -> Result<PodPort> {
    let [link, addr, mac] = *text.split('/').collect::<Vec<_>>() else {
        bail!(USAGE);
    };
    let mac: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    Ok(PodPort {
        ifindex: link.parse()?,
        mac: mac.as_slice().try_into()?,
        addrs: vec![addr.parse()?],
        direct: true,
        closed: false,
    })
}

/// The Service of the bench, and others beside it.
fn tables(service: &Service, count: u32) -> Result<DesiredTables> {
    let mut tables = DesiredTables::default();
    let mut add = |set: SetId, addr, port, backends| {
        let frontend = Frontend::Address {
            addr,
            port,
            protocol: Protocol::Tcp,
        };
        let spec = FrontendSpec::to(set);
        tables.sets.insert(set, backends);
        tables.frontends.insert(frontend, spec);
    };
    for port in &service.ports {
        let set = SetId::of(&["bench", "server", &port.to_string()]);
        let backend = Backend::new(service.server, *port);
        add(set, service.vip, *port, vec![backend]);
    }
    for number in 1..count {
        let [_, high, middle, low] = number.to_be_bytes();
        let backends = (1..=ENDPOINTS).map(|endpoint| {
            let addr = Ipv4Addr::new(10, 128 + 8 * endpoint + high, middle, low);
            Backend::new(addr.into(), 8080)
        });
        let set = SetId::of(&["bench", "other", &number.to_string()]);
        let addr = Ipv4Addr::new(10, 100 + high, middle, low);
        add(set, addr.into(), 80, backends.collect());
    }
    Ok(tables)
}
