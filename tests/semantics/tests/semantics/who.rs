//! Who serves, who asks, and what endpoints of a Service look like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

/// The node's name.
pub(crate) const NODE_NAME: &str = "node-1";
/// Another node's, of which the cluster has no more than the name and the pods.
pub(crate) const OTHER_NODE: &str = "node-2";
/// The node's zone.
pub(crate) const ZONE: &str = "zone-a";
/// Where servers listen in each pod.
pub(crate) const TARGETS: [u16; 3] = [8080, 8081, 9090];
/// What most Services of the cases lead to.
pub(crate) const TARGET: u16 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// As objects spell it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// An address of the family: 10.`net`.`high`.`low`, or the same numbers in fd00:`net`::`high`:`low`.
    pub(crate) fn address(self, net: u8, high: u8, low: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, net, high, low).into(),
            Self::V6 => {
                let [net, high, low] = [net, high, low].map(u16::from);
                Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, high, low).into()
            }
        }
    }
}

/// Networks, as the second part of their addresses.
pub(crate) mod net {
    /// Pods of the node; its bridge has `.0.1`.
    pub(crate) const PODS: u8 = 88;
    /// Pods of the other node.
    pub(crate) const OTHER_PODS: u8 = 89;
    /// Between the node and the other one.
    pub(crate) const LINK: u8 = 90;
    /// Between the node and the world.
    pub(crate) const UPLINK: u8 = 91;
    /// ClusterIPs.
    pub(crate) const SERVICES: u8 = 96;
    /// `externalIPs`.
    pub(crate) const EXTERNAL: u8 = 120;
    /// Addresses of load balancers, which lead to the node.
    pub(crate) const BALANCERS: u8 = 121;
    /// Of a load balancer in the world, which answers itself.
    pub(crate) const PROXIES: u8 = 122;
}

/// Who can be behind a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A pod of the node.
    B0,
    B1,
    B2,
    B3,
    /// A pod of another node.
    R0,
    R1,
    /// A pod that uses the node's own network.
    Node,
}

impl Who {
    pub(crate) const PODS: [Self; 4] = [Self::B0, Self::B1, Self::B2, Self::B3];
    pub(crate) const REMOTE: [Self; 2] = [Self::R0, Self::R1];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::B0 => "b0",
            Self::B1 => "b1",
            Self::B2 => "b2",
            Self::B3 => "b3",
            Self::R0 => "r0",
            Self::R1 => "r1",
            Self::Node => "node",
        }
    }

    /// What its server on a port answers.
    pub(crate) fn on(self, port: u16) -> String {
        format!("{}:{port}", self.name())
    }

    pub(crate) fn address(self, family: Family) -> IpAddr {
        match self {
            Self::B0 => family.address(net::PODS, 0, 10),
            Self::B1 => family.address(net::PODS, 0, 11),
            Self::B2 => family.address(net::PODS, 0, 12),
            Self::B3 => family.address(net::PODS, 0, 13),
            Self::R0 => family.address(net::OTHER_PODS, 0, 10),
            Self::R1 => family.address(net::OTHER_PODS, 0, 11),
            Self::Node => node_address(family),
        }
    }
}

/// Of the node, on its uplink.
pub(crate) fn node_address(family: Family) -> IpAddr {
    family.address(net::UPLINK, 0, 1)
}

/// Of the node, on its bridge.
pub(crate) fn bridge_address(family: Family) -> IpAddr {
    family.address(net::PODS, 0, 1)
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    /// A pod that serves nothing.
    Pod,
    /// Another one.
    OtherPod,
    /// [`Who::B0`] itself.
    Backend,
    /// A process of the node.
    Host,
    /// Somebody beyond the uplink.
    Outside,
    /// Somebody else there.
    OtherOutside,
}

impl Client {
    /// Addresses that it asks from.
    pub(crate) fn addresses(self, family: Family) -> Vec<IpAddr> {
        match self {
            Self::Pod => vec![family.address(net::PODS, 0, 20)],
            Self::OtherPod => vec![family.address(net::PODS, 0, 21)],
            Self::Backend => vec![Who::B0.address(family)],
            Self::Host => vec![
                node_address(family),
                bridge_address(family),
                family.address(net::LINK, 0, 1),
            ],
            Self::Outside => vec![family.address(net::UPLINK, 0, 10)],
            Self::OtherOutside => vec![family.address(net::UPLINK, 0, 11)],
        }
    }

    pub(crate) fn is_outside(self) -> bool {
        matches!(self, Self::Outside | Self::OtherOutside)
    }
}

/// An endpoint, with the conditions that the controller writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ep {
    pub(crate) who: Who,
    /// ready, serving, terminating; as they are in the object.
    conditions: [Option<bool>; 3],
    node: Option<&'static str>,
    zones: &'static [&'static str],
    nodes: &'static [&'static str],
}

/// A ready endpoint.
pub(crate) const fn at(who: Who) -> Ep {
    let node = match who {
        Who::R0 | Who::R1 => OTHER_NODE,
        _ => NODE_NAME,
    };
    Ep {
        who,
        conditions: [Some(true), Some(true), Some(false)],
        node: Some(node),
        zones: &[],
        nodes: &[],
    }
}

impl Ep {
    const fn with(self, ready: Option<bool>, serving: Option<bool>, ending: Option<bool>) -> Self {
        Self {
            conditions: [ready, serving, ending],
            ..self
        }
    }

    /// Its readiness probe fails.
    pub(crate) const fn unready(self) -> Self {
        self.with(Some(false), Some(false), Some(false))
    }

    /// Deleted, and still able to serve.
    pub(crate) const fn draining(self) -> Self {
        self.with(Some(false), Some(true), Some(true))
    }

    /// Deleted, and its readiness probe fails.
    pub(crate) const fn dying(self) -> Self {
        self.with(Some(false), Some(false), Some(true))
    }

    /// Without conditions.
    pub(crate) const fn unknown(self) -> Self {
        self.with(None, None, None)
    }

    /// With `ready: true` alone, as older controllers write it.
    pub(crate) const fn just_ready(self) -> Self {
        self.with(Some(true), None, None)
    }

    /// With `ready: false` alone.
    pub(crate) const fn just_unready(self) -> Self {
        self.with(Some(false), None, None)
    }

    /// Of no known node.
    pub(crate) const fn nowhere(self) -> Self {
        Self { node: None, ..self }
    }

    /// With hints to zones.
    pub(crate) const fn zones(self, zones: &'static [&'static str]) -> Self {
        Self { zones, ..self }
    }

    /// With hints to nodes.
    pub(crate) const fn nodes(self, nodes: &'static [&'static str]) -> Self {
        Self { nodes, ..self }
    }

    pub(crate) fn object(&self, family: Family) -> Value {
        let mut object = json!({"addresses": [self.who.address(family).to_string()]});
        let mut conditions = json!({});
        for (name, value) in ["ready", "serving", "terminating"]
            .iter()
            .zip(self.conditions)
        {
            if let Some(value) = value {
                conditions[*name] = json!(value);
            }
        }
        object["conditions"] = conditions;
        if let Some(node) = self.node {
            object["nodeName"] = json!(node);
        }
        let named =
            |all: &[&str]| -> Vec<Value> { all.iter().map(|name| json!({"name": name})).collect() };
        if !self.zones.is_empty() {
            object["hints"]["forZones"] = json!(named(self.zones));
        }
        if !self.nodes.is_empty() {
            object["hints"]["forNodes"] = json!(named(self.nodes));
        }
        object
    }
}
