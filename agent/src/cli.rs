//! What may be typed.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use crate::cidrs::Cidrs;

/// Runs Kubernetes workloads with nothing beside it.
#[derive(Debug, Parser)]
#[command(name = "skiff", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Starts a one-machine cluster: control plane, node agent, service proxy and DNS in one process.
    Up(Box<UpArgs>),
    /// Removes everything that `up` made, pods and data included.
    Down(NodeArgs),
    /// Runs the Service proxy alone, on a node of any Kubernetes cluster: what kube-proxy is there.
    Proxy(ProxyArgs),
    /// Runs a CNI configuration list by hand, with any runtime's plugins; needs no daemon.
    Cni(Box<CniArgs>),
    /// Shows the Services in this node's datapath; needs no daemon.
    Service(ServiceArgs),
    /// Shows the NetworkPolicies in this node's datapath; needs no daemon.
    Policy(PolicyArgs),
    /// Prints the datapath's decisions as they are made: connections, datagrams, and packets that are translated or dropped.
    Trace(TraceArgs),
}

/// Where to look.
#[derive(Debug, Clone, Args)]
pub(crate) struct LookArgs {
    /// The node's folder for what does not outlive a reboot.
    #[arg(
        long,
        env = "SKIFF_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/skiff",
        global = true
    )]
    pub(crate) run_dir: PathBuf,
    /// Where the node's kernel programs and maps are pinned; `<run-dir>/bpf` by default.
    #[arg(long, env = "SKIFF_BPFFS_DIR", value_name = "DIR", global = true)]
    pub(crate) bpffs_dir: Option<PathBuf>,
    /// The node's folder with the administrator's kubeconfig.
    #[arg(
        long,
        env = "SKIFF_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/skiff",
        global = true
    )]
    pub(crate) data_dir: PathBuf,
    /// For the names of Services and pods; `<data-dir>/admin.kubeconfig` by default.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE", global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table, global = true)]
    pub(crate) output: OutputFormat,
    #[command(subcommand)]
    pub(crate) verb: ServiceVerb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Columns.
    Table,
    /// One array.
    Json,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ServiceVerb {
    /// Every address and port that is translated, how many backends it has and how many connections it had.
    List,
    /// The backends of all Services or of one.
    Backends {
        /// A frontend as `list` prints it, or NAMESPACE/NAME, or NAMESPACE/NAME:PORT.
        of: Option<String>,
    },
    /// What is remembered of connections to Services: sockets of the node that were sent to a backend (closed ones too, until
    /// the table is full), and clients outside.
    Conntrack,
    /// How full the tables are, and the memory that they take.
    Tables,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PolicyArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table, global = true)]
    pub(crate) output: OutputFormat,
    #[command(subcommand)]
    pub(crate) verb: PolicyVerb,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Every NetworkPolicy, in which directions it isolates, and the pods that it selects.
    List,
    /// What policies can tell apart: each identity, how many rules are about it, and who has it.
    Identities,
    /// The policies of a pod, and whom it may talk to at which ports.
    Show {
        /// NAMESPACE/NAME, or an address.
        pod: String,
    },
    /// Whether a new connection would be let through, and by which rules. What a node sends to its own pods always is.
    Check {
        /// Who asks: NAMESPACE/NAME of a pod, or an address.
        from: String,
        /// Who is asked, likewise; not a Service, but one of its backends.
        to: String,
        /// The port, such as 80, 53/udp or 9000/sctp; or icmp.
        port: PolicyPort,
    },
}

/// A port of an IP protocol; 0 if that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PolicyPort {
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

impl FromStr for PolicyPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("icmp") {
            let (protocol, port) = (1, 0);
            return Ok(Self { protocol, port });
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            _ => return Err("the protocol is tcp, udp or sctp".to_owned()),
        };
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self { protocol, port }),
            _ => Err("a port is a number from 1 to 65535".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// Only to, from or through this address.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<IpAddr>,
    /// Only to, from or through this port.
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Only this protocol.
    #[arg(long, value_enum)]
    pub(crate) protocol: Option<ProtocolArg>,
    /// Ends after so many lines.
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    Tcp,
    Udp,
}

/// Where a node is. The defaults are the machine's own; a test or a trial gives others.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// Name of the node; the host name by default.
    #[arg(long, env = "SKIFF_NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// Network namespace of the node, such as /run/netns/trial; the machine's own by default.
    #[arg(long, env = "SKIFF_NODE_NETNS", value_name = "PATH")]
    pub(crate) node_netns: Option<PathBuf>,
    /// Cgroup of the node, relative to each cgroup mount.
    #[arg(
        long,
        env = "SKIFF_CGROUP_ROOT",
        value_name = "PATH",
        default_value = "/"
    )]
    pub(crate) cgroup_root: String,
    /// What does not outlive a reboot: sockets, states of containers.
    #[arg(
        long,
        env = "SKIFF_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/skiff"
    )]
    pub(crate) run_dir: PathBuf,
    /// Where kernel programs and maps are pinned; `<run-dir>/bpf` by default, where a file system of that kind
    /// is mounted if there is none.
    #[arg(long, env = "SKIFF_BPFFS_DIR", value_name = "DIR")]
    pub(crate) bpffs_dir: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, env = "SKIFF_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// What a node is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Database, images, volumes, logs.
    #[arg(
        long,
        env = "SKIFF_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/skiff"
    )]
    pub(crate) data_dir: PathBuf,
    /// Addresses of all pods of the cluster: of IPv4, or of IPv4 and IPv6 for pods with an address of each.
    #[arg(
        long,
        env = "SKIFF_CLUSTER_CIDR",
        value_name = "CIDR[,CIDR6]",
        default_value = "10.244.0.0/16"
    )]
    pub(crate) cluster_cidr: Cidrs,
    /// Addresses of Services: of IPv4, or of IPv4 and IPv6 for dual-stack Services.
    #[arg(
        long,
        env = "SKIFF_SERVICE_CIDR",
        value_name = "CIDR[,CIDR6]",
        default_value = "10.96.0.0/16"
    )]
    pub(crate) service_cidr: Cidrs,
}

/// How Services are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyMode {
    /// Kernel programs at the sockets.
    Ebpf,
    /// Rules of iptables and ip6tables.
    Iptables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// The node's own addresses, one of IPv4 and perhaps one of IPv6; by default those that its default routes start from.
    #[arg(
        long,
        env = "SKIFF_NODE_IP",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub(crate) node_ip: Vec<IpAddr>,
    /// LoadBalancer Services get their addresses from these ranges, each its own; without, they have the node's. That
    /// packets for them come to the node is up to your network.
    #[arg(
        long,
        env = "SKIFF_LOAD_BALANCER_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) load_balancer_cidr: Vec<IpNetwork>,
    /// How Services are served; by default with eBPF, or with iptables and a warning where the kernel lacks what that
    /// needs.
    #[arg(long, env = "SKIFF_PROXY_MODE", value_enum)]
    pub(crate) proxy_mode: Option<ProxyMode>,
    /// Have the drivers of the links to the outside send on what comes in for endpoints on other nodes and leaves by the same
    /// link (native XDP), before the kernel's network stack sees it. For physical links; where a driver cannot, and for all
    /// else, it is done a step later.
    #[arg(long, env = "SKIFF_XDP")]
    pub(crate) xdp: bool,
    /// Size the datapath's tables for so many Services with two ports, both families, five endpoints and clients outside; smaller
    /// ones are more. By default as the machine's memory allows, for 50,000 at most. Another size than before: connections of
    /// clients outside are broken once.
    #[arg(long, env = "SKIFF_MAX_SERVICES", value_name = "NUMBER")]
    pub(crate) max_services: Option<u32>,
    /// Where the Kubernetes API listens in the machine's own network. With a network namespace for the node it
    /// listens there as well, on the same port of all addresses.
    #[arg(
        long,
        env = "SKIFF_API_BIND",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:6443"
    )]
    pub(crate) api_bind: SocketAddr,
    /// More names and addresses for the API's certificate.
    #[arg(
        long,
        env = "SKIFF_TLS_SAN",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub(crate) tls_san: Vec<String>,
    /// The cluster's DNS domain.
    #[arg(
        long,
        env = "SKIFF_CLUSTER_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub(crate) cluster_domain: String,
    /// Resolver for names outside the cluster; those of /etc/resolv.conf by default.
    #[arg(
        long,
        env = "SKIFF_DNS_UPSTREAM",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub(crate) dns_upstream: Vec<IpAddr>,
    /// Mirrors and credentials of image registries; `<data-dir>/registries.yaml` by default.
    #[arg(long, env = "SKIFF_REGISTRIES_CONFIG", value_name = "FILE")]
    pub(crate) registries_config: Option<PathBuf>,
    /// Pods that the node takes at most.
    #[arg(long, env = "SKIFF_MAX_PODS", default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// Publishes a port of a Service on an address of the machine's own network, for a node that has a network
    /// namespace.
    #[arg(
        long,
        env = "SKIFF_PUBLISH",
        value_name = "ADDRESS:PORT=NAMESPACE/SERVICE:PORT",
        value_delimiter = ','
    )]
    pub(crate) publish: Vec<String>,
    /// Where `/metrics` of the Service proxy answers in the node's network namespace.
    #[arg(
        long,
        env = "SKIFF_METRICS_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:10249"
    )]
    pub(crate) metrics_bind_address: SocketAddr,
    /// On SIGTERM, stop the pods too.
    #[arg(long, env = "SKIFF_STOP_PODS")]
    pub(crate) stop_pods: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// How to reach the Kubernetes API: any server's, from this process' own network namespace.
    #[arg(
        long,
        env = "SKIFF_KUBECONFIG",
        value_name = "FILE",
        required_unless_present = "cleanup"
    )]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The node's own addresses, where NodePorts answer; by default those that its links have at the start.
    #[arg(
        long,
        env = "SKIFF_NODE_IP",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub(crate) node_ip: Vec<IpAddr>,
    /// How Services are served; by default with eBPF, or with iptables and a warning where the kernel lacks what that
    /// needs.
    #[arg(long, env = "SKIFF_PROXY_MODE", value_enum)]
    pub(crate) proxy_mode: Option<ProxyMode>,
    /// Have the drivers of the links to the outside send on what comes in for endpoints on other nodes and leaves by the same
    /// link (native XDP), before the kernel's network stack sees it. For physical links; where a driver cannot, and for all
    /// else, it is done a step later.
    #[arg(long, env = "SKIFF_XDP")]
    pub(crate) xdp: bool,
    /// Size the datapath's tables for so many Services with two ports, both families, five endpoints and clients outside; smaller
    /// ones are more. By default as the machine's memory allows, for 50,000 at most. Another size than before: connections of
    /// clients outside are broken once.
    #[arg(long, env = "SKIFF_MAX_SERVICES", value_name = "NUMBER")]
    pub(crate) max_services: Option<u32>,
    /// Addresses of all pods of the cluster; with iptables, what comes from elsewhere is masqueraded on its way to a
    /// ClusterIP.
    #[arg(
        long,
        env = "SKIFF_CLUSTER_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) cluster_cidr: Vec<IpNetwork>,
    /// Addresses of Services; with iptables, what goes to one that no Service has is refused.
    #[arg(
        long,
        env = "SKIFF_SERVICE_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) service_cidr: Vec<IpNetwork>,
    /// Where `/healthz` and `/livez` answer in the node's network namespace.
    #[arg(
        long,
        env = "SKIFF_HEALTHZ_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:10256"
    )]
    pub(crate) healthz_bind_address: SocketAddr,
    /// Where `/metrics` of the Service proxy answers in the node's network namespace.
    #[arg(
        long,
        env = "SKIFF_METRICS_BIND_ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:10249"
    )]
    pub(crate) metrics_bind_address: SocketAddr,
    /// Removes what the proxy made, and ends. It must not be running.
    #[arg(long)]
    pub(crate) cleanup: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CniArgs {
    #[command(subcommand)]
    pub(crate) verb: CniVerb,
    /// Network to run; the only one of the folder by default.
    #[arg(short, long, value_name = "NAME", global = true)]
    pub(crate) network: Option<String>,
    /// Folder of configuration lists.
    #[arg(
        long,
        env = "NETCONFPATH",
        value_name = "DIR",
        default_value = "/etc/cni/net.d",
        global = true
    )]
    pub(crate) conf_dir: PathBuf,
    /// Folders of plugins, the first that has one counts.
    #[arg(
        long,
        env = "CNI_PATH",
        value_name = "DIR",
        value_delimiter = ':',
        default_value = "/opt/cni/bin:/usr/lib/cni",
        global = true
    )]
    pub(crate) plugin_path: Vec<PathBuf>,
    /// Folder of what ADD left, in libcni's format.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/cni",
        global = true
    )]
    pub(crate) cache_dir: PathBuf,
    /// Network namespace that plugins run in; this process' own by default.
    #[arg(long, env = "SKIFF_NODE_NETNS", value_name = "PATH", global = true)]
    pub(crate) node_netns: Option<PathBuf>,
    /// Link inside the container.
    #[arg(
        short,
        long,
        env = "CNI_IFNAME",
        value_name = "NAME",
        default_value = "eth0",
        global = true
    )]
    pub(crate) ifname: String,
    /// Name of the container; follows from the namespace's path by default, as cnitool does it.
    #[arg(long, env = "CNI_CONTAINERID", value_name = "ID", global = true)]
    pub(crate) container_id: Option<String>,
    /// Arguments for all plugins.
    #[arg(
        long,
        env = "CNI_ARGS",
        value_name = "KEY=VALUE;...",
        default_value = "",
        hide_default_value = true,
        global = true
    )]
    pub(crate) args: String,
    /// Arguments for the plugins that declare the capability, as a JSON object.
    #[arg(
        long,
        env = "CAP_ARGS",
        value_name = "JSON",
        default_value = "{}",
        hide_default_value = true,
        global = true
    )]
    pub(crate) capabilities: String,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CniVerb {
    /// Attaches network namespaces and prints the results.
    Add {
        /// Paths, or names under /run/netns; several are served at once.
        #[arg(required = true)]
        netns: Vec<PathBuf>,
    },
    /// Detaches them, with the list and arguments that ADD had; absent is success.
    Del {
        /// Paths, or names under /run/netns; several are served at once.
        #[arg(required = true)]
        netns: Vec<PathBuf>,
    },
    /// Compares them with what ADD made.
    Check {
        /// Paths, or names under /run/netns; several are served at once.
        #[arg(required = true)]
        netns: Vec<PathBuf>,
    },
    /// Removes what no attachment in use owns.
    Gc {
        /// Namespaces that are in use; those that still exist by default.
        netns: Vec<PathBuf>,
    },
    /// Says whether ADD can be served.
    Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_policies_name_their_protocol() {
        let read = |text: &str| text.parse::<PolicyPort>().map(|p| (p.protocol, p.port));
        assert_eq!(read("80"), Ok((6, 80)));
        assert_eq!(read("53/UDP"), Ok((17, 53)));
        assert_eq!(read("9/sctp"), Ok((132, 9)));
        assert_eq!(read("icmp"), Ok((1, 0)));
        for bad in ["", "0", "65536", "80/", "80/icmp", "web"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_proxy_needs_a_kubeconfig_but_for_its_cleanup() {
        assert!(Cli::try_parse_from(["skiff", "proxy"]).is_err());
        assert!(Cli::try_parse_from(["skiff", "proxy", "--cleanup"]).is_ok());
        let typed = [
            "skiff",
            "proxy",
            "--kubeconfig",
            "f",
            "--node-ip",
            "10.0.0.1,fd00::1",
        ];
        let Verb::Proxy(args) = Cli::try_parse_from(typed).unwrap().verb else {
            panic!("another verb");
        };
        assert_eq!(args.node_ip.len(), 2);
    }
}
