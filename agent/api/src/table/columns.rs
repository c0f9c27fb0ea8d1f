//! Column definitions per kind.

use serde_json::{Value, json};

use crate::resource::Kind;

/// Name, type, format, priority (0 is always shown, 1 with `-o wide`), description.
type Column = (&'static str, &'static str, &'static str, u8, &'static str);

const NAME: Column = (
    "Name",
    "string",
    "name",
    0,
    "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically.",
);
const AGE: Column = (
    "Age",
    "string",
    "",
    0,
    "CreationTimestamp is a timestamp representing the server time when this object was created. It is represented in RFC3339 form and is in UTC.",
);
const CONTAINERS: Column = (
    "Containers",
    "string",
    "",
    1,
    "Names of each container in the template.",
);
const IMAGES: Column = (
    "Images",
    "string",
    "",
    1,
    "Images referenced by each container in the template.",
);
const SELECTOR: Column = ("Selector", "string", "", 1, "Label selector for pods.");

const fn text(name: &'static str, description: &'static str) -> Column {
    (name, "string", "", 0, description)
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    (name, "string", "", 1, description)
}

const fn number(name: &'static str, description: &'static str) -> Column {
    (name, "integer", "", 0, description)
}

const POD: &[Column] = &[
    NAME,
    text(
        "Ready",
        "The aggregate readiness state of this pod for accepting traffic.",
    ),
    text(
        "Status",
        "The aggregate status of the containers in this pod.",
    ),
    text(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    AGE,
    wide("IP", "IP address allocated to the pod."),
    wide("Node", "Name of the node that the pod runs on."),
    wide(
        "Nominated Node",
        "Name of the node on which the pod is expected to run once room has been made.",
    ),
    wide(
        "Readiness Gates",
        "Conditions, beyond its containers, that the pod needs to be ready.",
    ),
];
const SCALE: &[Column] = &[
    NAME,
    number("Desired", "Number of desired pods."),
    number("Available", "Number of pods that there are."),
    AGE,
];
const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Number of the pod with ready state"),
    number(
        "Up-to-date",
        "Total number of pods that have the wanted template.",
    ),
    number(
        "Available",
        "Total number of pods that have been ready for minReadySeconds.",
    ),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired", "Number of replicas wanted."),
    number("Current", "Number of replicas that exist."),
    number("Ready", "Number of replicas that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const SERVICE: &[Column] = &[
    NAME,
    text(
        "Type",
        "How the Service is exposed: ExternalName, ClusterIP, NodePort or LoadBalancer.",
    ),
    text(
        "Cluster-IP",
        "IP address of the Service within the cluster.",
    ),
    text(
        "External-IP",
        "IP addresses or names at which the Service is reached from outside.",
    ),
    text("Port(s)", "Ports of the Service, with node ports."),
    AGE,
    wide("Selector", "Labels of the pods that traffic goes to."),
];
const ENDPOINTS: &[Column] = &[
    NAME,
    text("Endpoints", "Addresses and ports of the endpoints."),
    AGE,
];
const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    text("AddressType", "Type of the addresses: IPv4, IPv6 or FQDN."),
    text("Ports", "Ports of each endpoint."),
    text("Endpoints", "Addresses of the endpoints."),
    AGE,
];
const NETWORK_POLICY: &[Column] = &[
    NAME,
    text(
        "Pod-Selector",
        "Labels of the pods that the policy is about.",
    ),
    AGE,
];
const NODE: &[Column] = &[
    NAME,
    text("Status", "The status of the node"),
    text("Roles", "The roles of the node"),
    AGE,
    text("Version", "Version reported by the node agent."),
    wide("Internal-IP", "Address of the node within the cluster."),
    wide("External-IP", "Address of the node from outside."),
    wide("OS-Image", "Operating system reported by the node."),
    wide("Kernel-Version", "Kernel reported by the node."),
    wide(
        "Container-Runtime",
        "Container runtime reported by the node.",
    ),
];
const NAMESPACE: &[Column] = &[NAME, text("Status", "The status of the namespace"), AGE];
const CONFIG_MAP: &[Column] = &[NAME, text("Data", "Number of entries."), AGE];
const SECRET: &[Column] = &[
    NAME,
    text(
        "Type",
        "Used to facilitate programmatic handling of secret data.",
    ),
    text("Data", "Number of entries."),
    AGE,
];
const SERVICE_ACCOUNT: &[Column] = &[
    NAME,
    text(
        "Secrets",
        "Number of secrets that pods of this account may use.",
    ),
    AGE,
];
const EVENT: &[Column] = &[
    text("Last Seen", "When this was last seen."),
    text("Type", "Normal or Warning."),
    text("Reason", "Machine-understandable reason."),
    text("Object", "What it is about."),
    wide("Subobject", "Field of the object that it is about."),
    wide("Source", "Component that reports it."),
    text("Message", "Human-readable description."),
    wide("First Seen", "When this was first seen."),
    wide("Count", "How many times it happened."),
    ("Name", "string", "name", 1, "Name of the event."),
];
const LEASE: &[Column] = &[
    NAME,
    text("Holder", "Identity of the holder of the lease."),
    AGE,
];

pub(super) fn of(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => POD,
        Kind::Service => SERVICE,
        Kind::Endpoints => ENDPOINTS,
        Kind::Node => NODE,
        Kind::Namespace => NAMESPACE,
        Kind::ConfigMap => CONFIG_MAP,
        Kind::Secret => SECRET,
        Kind::ServiceAccount => SERVICE_ACCOUNT,
        Kind::CoreEvent | Kind::Event => EVENT,
        Kind::Deployment => DEPLOYMENT,
        Kind::ReplicaSet => REPLICA_SET,
        Kind::EndpointSlice => ENDPOINT_SLICE,
        Kind::Lease => LEASE,
        Kind::NetworkPolicy => NETWORK_POLICY,
    }
}

pub(super) fn definitions(kind: Kind) -> Value {
    as_json(of(kind))
}

/// Of `autoscaling/v1` Scale, which is no resource of its own.
pub(super) fn scale() -> Value {
    as_json(SCALE)
}

fn as_json(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|(name, kind, format, priority, description)| {
            json!({
                "name": name,
                "type": kind,
                "format": format,
                "description": description,
                "priority": priority,
            })
        })
        .collect()
}
