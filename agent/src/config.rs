//! What was typed, checked and with every default filled in.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network};
use nix::ifaddrs::getifaddrs;
use skiff_ebpf_loader::Limits;
use skiff_netns::NodeNetns;

use crate::{
    cidrs::Cidrs,
    cli::{NodeArgs, PlaceArgs, ProxyArgs, ProxyMode, UpArgs},
    dataplane::Ranges,
    publish::Publication,
};

/// Where the node is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) netns: NodeNetns,
    pub(crate) cgroup_root: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) bpffs_dir: PathBuf,
}

/// The node's parameters.
#[derive(Debug, Clone)]
pub(crate) struct NodeSettings {
    pub(crate) place: Place,
    pub(crate) data_dir: PathBuf,
    pub(crate) cluster_cidr: Cidrs,
    pub(crate) service_cidr: Cidrs,
    /// Where the binaries of the shim and the CNI plugins are: beside this one.
    pub(crate) binaries: PathBuf,
}

/// Everything that `up` needs.
#[derive(Debug, Clone)]
pub(crate) struct UpSettings {
    pub(crate) node: NodeSettings,
    pub(crate) node_ip: Ipv4Addr,
    pub(crate) node_ip6: Option<Ipv6Addr>,
    pub(crate) load_balancer_ranges: Vec<IpNetwork>,
    pub(crate) proxy_mode: Option<ProxyMode>,
    pub(crate) xdp: bool,
    pub(crate) limits: Limits,
    pub(crate) api_bind: SocketAddr,
    pub(crate) tls_san: Vec<String>,
    pub(crate) cluster_domain: String,
    pub(crate) dns_upstreams: Vec<SocketAddr>,
    pub(crate) registries_config: PathBuf,
    pub(crate) max_pods: u32,
    pub(crate) metrics: SocketAddr,
    pub(crate) publish: Vec<Publication>,
    pub(crate) stop_pods: bool,
}

/// Everything that `proxy` needs.
#[derive(Debug, Clone)]
pub(crate) struct ProxySettings {
    pub(crate) place: Place,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) mode: Option<ProxyMode>,
    pub(crate) xdp: bool,
    pub(crate) limits: Limits,
    pub(crate) ranges: Ranges,
    pub(crate) healthz: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

/// Port of the cluster's DNS server on the node; the Service has 53, where nodes often run a resolver of their own.
pub(crate) const DNS_PORT: u16 = 10_053;

impl NodeSettings {
    /// The first address of the Service range: Service `default/kubernetes`.
    pub(crate) fn kubernetes_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr.v4, 1)
    }

    /// The address of cluster DNS.
    pub(crate) fn dns_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr.v4, 10)
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }
}

fn nth(network: Ipv4Network, n: u32) -> Ipv4Addr {
    network.nth(n).unwrap_or_else(|| network.ip())
}

impl TryFrom<PlaceArgs> for Place {
    type Error = anyhow::Error;

    fn try_from(args: PlaceArgs) -> Result<Self> {
        let name = match args.node_name {
            Some(name) => name,
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        if !is_subdomain(&name) {
            bail!("--node-name {name:?} is not a lower-case DNS name");
        }
        if !args.cgroup_root.starts_with('/')
            || args.cgroup_root.split('/').any(|part| part == "..")
        {
            bail!(
                "--cgroup-root {:?} must start with / and have no ..",
                args.cgroup_root
            );
        }
        let netns = match &args.node_netns {
            None => NodeNetns::machine(),
            Some(path) => NodeNetns::open(path).context("--node-netns")?,
        };
        let run_dir = absolute(&args.run_dir)?;
        Ok(Self {
            name,
            netns,
            cgroup_root: args.cgroup_root,
            bpffs_dir: match args.bpffs_dir {
                Some(dir) => absolute(&dir)?,
                None => run_dir.join("bpf"),
            },
            run_dir,
        })
    }
}

impl TryFrom<NodeArgs> for NodeSettings {
    type Error = anyhow::Error;

    fn try_from(args: NodeArgs) -> Result<Self> {
        let place = Place::try_from(args.place)?;
        args.cluster_cidr.check("cluster-cidr", 24, 64)?;
        args.service_cidr.check("service-cidr", 28, 124)?;
        if args.cluster_cidr.overlap(&args.service_cidr) {
            bail!(
                "--cluster-cidr {} and --service-cidr {} overlap",
                args.cluster_cidr,
                args.service_cidr
            );
        }
        let executable = std::env::current_exe().context("finding this executable")?;
        Ok(Self {
            place,
            data_dir: absolute(&args.data_dir)?,
            cluster_cidr: args.cluster_cidr,
            service_cidr: args.service_cidr,
            binaries: executable
                .parent()
                .context("this executable has no folder")?
                .to_owned(),
        })
    }
}

impl TryFrom<ProxyArgs> for ProxySettings {
    type Error = anyhow::Error;

    fn try_from(args: ProxyArgs) -> Result<Self> {
        let place = Place::try_from(args.place)?;
        let node_addresses = if args.node_ip.is_empty() {
            link_addresses(&place.netns)?
        } else {
            args.node_ip
        };
        Ok(Self {
            kubeconfig: args.kubeconfig.context("--kubeconfig is missing")?,
            mode: args.proxy_mode,
            xdp: args.xdp,
            limits: limits(args.max_services),
            ranges: Ranges {
                node_addresses,
                pods: args.cluster_cidr,
                services: args.service_cidr,
            },
            healthz: args.healthz_bind_address,
            metrics: args.metrics_bind_address,
            place,
        })
    }
}

fn limits(max_services: Option<u32>) -> Limits {
    max_services.map_or_else(Limits::for_machine, Limits::for_services)
}

impl UpSettings {
    /// The node's addresses, that of IPv4 first.
    pub(crate) fn node_ips(&self) -> Vec<IpAddr> {
        let six = self.node_ip6.map(IpAddr::from);
        std::iter::once(self.node_ip.into()).chain(six).collect()
    }
}

impl TryFrom<UpArgs> for UpSettings {
    type Error = anyhow::Error;

    fn try_from(args: UpArgs) -> Result<Self> {
        let node = NodeSettings::try_from(args.node)?;
        let (node_ip, node_ip6) = node_ips(&args.node_ip, &node)?;
        check_pool(&args.load_balancer_cidr, &node)?;
        let registries_config = args
            .registries_config
            .unwrap_or_else(|| node.data_dir.join("registries.yaml"));
        let dns_upstreams = if args.dns_upstream.is_empty() {
            let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            skiff_dns::parse_nameservers(&text)
        } else {
            args.dns_upstream
                .iter()
                .map(|ip| SocketAddr::new(*ip, 53))
                .collect()
        };
        if node.place.netns.path().is_none() && !args.publish.is_empty() {
            bail!(
                "--publish needs --node-netns: on the machine's own network use a NodePort or LoadBalancer"
            );
        }
        Ok(Self {
            node_ip,
            node_ip6,
            load_balancer_ranges: args.load_balancer_cidr,
            proxy_mode: args.proxy_mode,
            xdp: args.xdp,
            limits: limits(args.max_services),
            api_bind: args.api_bind,
            tls_san: args.tls_san,
            cluster_domain: args.cluster_domain,
            dns_upstreams,
            registries_config,
            max_pods: args.max_pods,
            metrics: args.metrics_bind_address,
            publish: args
                .publish
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_>>()?,
            stop_pods: args.stop_pods,
            node,
        })
    }
}

/// The addresses given, or those of the default routes: of IPv6 only if pods or Services have such addresses, too.
fn node_ips(given: &[IpAddr], node: &NodeSettings) -> Result<(Ipv4Addr, Option<Ipv6Addr>)> {
    let (mut four, mut six) = (None, None);
    for ip in given {
        let twice = match ip {
            IpAddr::V4(ip) => four.replace(*ip).is_some(),
            IpAddr::V6(ip) => six.replace(*ip).is_some(),
        };
        if twice {
            bail!("--node-ip {ip}: one address of each family is enough");
        }
    }
    let dual = node.cluster_cidr.v6.is_some() || node.service_cidr.v6.is_some();
    let four = match four {
        Some(ip) => ip,
        None => default_address(&node.place.netns)?,
    };
    if six.is_none() && dual {
        six = default_address6(&node.place.netns)?;
        if six.is_none() {
            tracing::warn!("the node has no IPv6 address: NodePorts are of IPv4 only");
        }
    }
    Ok((four, six))
}

/// A pool has addresses that nothing else in the cluster has.
fn check_pool(pool: &[IpNetwork], node: &NodeSettings) -> Result<()> {
    let inside = [&node.cluster_cidr, &node.service_cidr];
    for range in pool {
        let overlaps = inside.iter().any(|ranges| match range {
            IpNetwork::V4(range) => ranges.v4.overlaps(*range),
            IpNetwork::V6(range) => ranges.v6.is_some_and(|own| own.overlaps(*range)),
        });
        if overlaps {
            bail!("--load-balancer-cidr {range} overlaps with the addresses of pods or Services");
        }
    }
    Ok(())
}

/// As [`default_address`]; none without a default route.
fn default_address6(netns: &NodeNetns) -> Result<Option<Ipv6Addr>> {
    let found = netns.run(|| {
        let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
        // For documentation (RFC 3849).
        let far = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        socket.connect((far, 9)).ok()?;
        match socket.local_addr().ok()?.ip() {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        }
    })?;
    Ok(found)
}

/// The source address that the node's default route gives. Connecting a UDP socket sends nothing.
fn default_address(netns: &NodeNetns) -> Result<Ipv4Addr> {
    let found = netns.run(|| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // An address for documentation (RFC 5737): any that only the default route leads to would do.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    })?;
    match found {
        Ok(address) => match address.ip() {
            IpAddr::V4(ip) => Ok(ip),
            IpAddr::V6(ip) => {
                bail!("the node's address is {ip}, not IPv4: name one with --node-ip")
            }
        },
        Err(_no_route) => bail!("the node has no default route: name its address with --node-ip"),
    }
}

/// All addresses of the node's links but loopback and link-local ones, as upstream's proxy takes them by default.
fn link_addresses(netns: &NodeNetns) -> Result<Vec<IpAddr>> {
    let list = || -> nix::Result<Vec<IpAddr>> {
        let links = getifaddrs()?.filter_map(|link| link.address);
        let of_ip = links.filter_map(|address| match address.as_sockaddr_in() {
            Some(v4) => Some(v4.ip().into()),
            None => address.as_sockaddr_in6().map(|v6| v6.ip().into()),
        });
        Ok(of_ip.collect())
    };
    let mut addresses = netns
        .run(list)?
        .context("listing the addresses of the node's links")?;
    addresses.retain(|address| !address.is_loopback() && !is_link_local(*address));
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

/// RFC 1123 subdomain, as Kubernetes wants node names.
fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        edge(label.as_bytes().first()) && edge(label.as_bytes().last()) && label.bytes().all(inner)
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_subdomains() {
        for good in ["a", "node-1", "node-1.example.org", "0"] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", "a/b"] {
            assert!(!is_subdomain(bad), "{bad}");
        }
    }
}
