//! What a node is made of.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use skiff_netns::NodeNetns;

/// The parameters of a node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's network namespace: where probes come from and node addresses are.
    pub node_netns: NodeNetns,
    /// Addresses to register, at most one of each family; found in the node's namespace if there is none.
    pub node_ips: Vec<IpAddr>,
    /// Durable data: `pods/`, `logs/`, `cni/`.
    pub data_dir: PathBuf,
    /// State that ends with the machine's boot.
    pub run_dir: PathBuf,
    /// The cluster's ranges of pod addresses: one, or one of each family.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// The ranges of Service addresses; empty if there are none to keep at home.
    pub service_cidrs: Vec<IpNetwork>,
    /// This node's ranges, used if the Node object has none; the first /24 or /64 of each of the cluster's if empty.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Address of the cluster's DNS Service.
    pub cluster_dns: IpAddr,
    /// Domain of the cluster, such as `cluster.local`.
    pub cluster_domain: String,
    /// Most pods that this node takes.
    pub max_pods: u32,
    /// Directory of CNI configuration lists.
    pub cni_conf_dir: PathBuf,
    /// Directories of CNI plugins, searched in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Labels of the Node object beside the standard ones.
    pub node_labels: Vec<(String, String)>,
    /// The node's own resolver configuration, for pods with `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    /// Port that the kubelet service listens on, as the Node object tells; 0 if it does not listen.
    pub kubelet_port: u16,
}

impl NodeConfig {
    /// Durable directory of a pod.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// Where the logs of all pods are.
    pub(crate) fn logs_root(&self) -> PathBuf {
        self.data_dir.join("logs").join("pods")
    }

    /// Log directory of a pod.
    pub(crate) fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs_root().join(format!("{namespace}_{name}_{uid}"))
    }
}
