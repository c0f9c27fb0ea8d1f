//! Routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
            RouteScope, RouteType,
        },
    },
};

use super::{Netlink, NetlinkError, Verb};

/// Worse than any route that leads somewhere: it decides only when nothing else does.
const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// A route through a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Where to.
    pub dst: IpNetwork,
    /// The next hop; on the link itself if there is none.
    pub gateway: Option<IpAddr>,
    /// The link.
    pub link: u32,
    /// Metric.
    pub priority: Option<u32>,
    /// Table; main if not given.
    pub table: Option<u32>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// MSS to announce.
    pub advmss: Option<u32>,
    /// Scope; by the gateway if not given.
    pub scope: Option<u8>,
    /// The gateway is on the link, although no address of the link says so.
    pub onlink: bool,
    /// The address that packets of this host carry.
    pub source: Option<IpAddr>,
}

impl RouteSpec {
    /// A route with defaults.
    #[must_use]
    pub fn new(dst: IpNetwork, gateway: Option<IpAddr>, link: u32) -> Self {
        Self {
            dst,
            gateway,
            link,
            priority: None,
            table: None,
            mtu: None,
            advmss: None,
            scope: None,
            onlink: false,
            source: None,
        }
    }
}

impl Netlink {
    /// Adds a route. One that exists already is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn add_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        const ACTION: &str = "adding a route";
        let request = RouteNetlinkMessage::NewRoute(message(ACTION, route)?);
        match self.request(ACTION, request, Verb::Create).await {
            Err(error) if !error.is_existing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Adds a route where there is none to the same destination, with the same metric.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::is_existing`] if there is one, whoever's it is.
    pub async fn create_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        const ACTION: &str = "adding a route";
        let request = RouteNetlinkMessage::NewRoute(message(ACTION, route)?);
        self.request(ACTION, request, Verb::Create).await.map(drop)
    }

    /// Puts a route in the place of the one to the same destination, in one step: no packet meets a gap.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn replace_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        const ACTION: &str = "replacing a route";
        let request = RouteNetlinkMessage::NewRoute(message(ACTION, route)?);
        self.request(ACTION, request, Verb::Replace).await.map(drop)
    }

    /// Deletes a route. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_route(&self, route: &RouteSpec) -> Result<(), NetlinkError> {
        const ACTION: &str = "deleting a route";
        let request = RouteNetlinkMessage::DelRoute(message(ACTION, route)?);
        match self.request(ACTION, request, Verb::Change).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks which way a packet to `destination` would go; `None` if none leads there.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn find_route(&self, destination: IpAddr) -> Result<Option<RouteSpec>, NetlinkError> {
        const ACTION: &str = "looking for a route";
        let request = RouteNetlinkMessage::GetRoute(lookup_message(destination));
        let messages = match self.request(ACTION, request, Verb::Get).await {
            Err(error) if error.is_unreachable() => return Ok(None),
            other => other?,
        };
        Ok(messages.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => parse(&route),
            _ => None,
        }))
    }

    /// Lists the unicast routes through a link in the main table.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_routes(&self, link: u32) -> Result<Vec<RouteSpec>, NetlinkError> {
        let mut routes = self.list_routes_of_all_tables(link).await?;
        routes.retain(|route| route.table.is_none());
        Ok(routes)
    }

    /// Lists the unicast routes through a link, those of the main table without its number.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn list_routes_of_all_tables(
        &self,
        link: u32,
    ) -> Result<Vec<RouteSpec>, NetlinkError> {
        let mut filter = RouteMessage::default();
        // A strict connection gets only these; another one gets all.
        filter.attributes.push(RouteAttribute::Oif(link));
        let request = RouteNetlinkMessage::GetRoute(filter);
        let messages = self.request("listing routes", request, Verb::Dump).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => parse(&route),
                _ => None,
            })
            .filter(|route| route.link == link)
            .collect())
    }

    /// Makes packets to `cidr` that no better route takes fail with an ICMP error, rather than follow the default
    /// route out of the node.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn ensure_unreachable_route(&self, cidr: IpNetwork) -> Result<(), NetlinkError> {
        const ACTION: &str = "adding an unreachable route";
        let request = RouteNetlinkMessage::NewRoute(unreachable_message(ACTION, cidr)?);
        match self.request(ACTION, request, Verb::Create).await {
            Err(error) if !error.is_existing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Undoes [`Netlink::ensure_unreachable_route`]. Absent is success.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn delete_unreachable_route(&self, cidr: IpNetwork) -> Result<(), NetlinkError> {
        const ACTION: &str = "deleting an unreachable route";
        let request = RouteNetlinkMessage::DelRoute(unreachable_message(ACTION, cidr)?);
        match self.request(ACTION, request, Verb::Change).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the unreachable route for `cidr` is there.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn has_unreachable_route(&self, cidr: IpNetwork) -> Result<bool, NetlinkError> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let messages = self.request("listing routes", request, Verb::Dump).await?;
        Ok(messages.into_iter().any(|message| {
            matches!(message, RouteNetlinkMessage::NewRoute(route)
                if route.header.kind == RouteType::Unreachable && destination(&route) == Some(network(cidr)))
        }))
    }
}

fn network(cidr: IpNetwork) -> IpNetwork {
    IpNetwork::new(cidr.network(), cidr.prefix()).unwrap_or(cidr)
}

fn base(action: &'static str, dst: IpNetwork) -> Result<RouteMessageBuilder<IpAddr>, NetlinkError> {
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(dst.network(), dst.prefix())
        .map_err(|error| NetlinkError::Invalid {
            action,
            reason: error.to_string(),
        })
}

/// Nothing but the destination: a strict connection refuses what a look-up has no use for.
fn lookup_message(destination: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, bits, address) = match destination {
        IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message
        .attributes
        .push(RouteAttribute::Destination(address));
    message
}

fn unreachable_message(
    action: &'static str,
    cidr: IpNetwork,
) -> Result<RouteMessage, NetlinkError> {
    Ok(base(action, cidr)?
        .kind(RouteType::Unreachable)
        .priority(UNREACHABLE_METRIC)
        .build())
}

fn message(action: &'static str, route: &RouteSpec) -> Result<RouteMessage, NetlinkError> {
    let mut builder = base(action, route.dst)?.output_interface(route.link);
    match route.gateway {
        Some(gateway) => {
            builder = builder
                .gateway(gateway)
                .map_err(|error| NetlinkError::Invalid {
                    action,
                    reason: error.to_string(),
                })?;
        }
        None if route.dst.is_ipv4() => builder = builder.scope(RouteScope::Link),
        None => {}
    }
    if let Some(priority) = route.priority {
        builder = builder.priority(priority);
    }
    if let Some(table) = route.table {
        builder = builder.table_id(table);
    }
    if let Some(scope) = route.scope {
        builder = builder.scope(scope.into());
    }
    if route.onlink {
        builder = builder.onlink();
    }
    if let Some(source) = route.source {
        builder = builder
            .pref_source(source)
            .map_err(|error| NetlinkError::Invalid {
                action,
                reason: error.to_string(),
            })?;
    }
    // As `ip route` and the reference plugins mark theirs.
    let mut message = builder.protocol(RouteProtocol::Boot).build();
    let metrics: Vec<RouteMetric> = route
        .mtu
        .map(RouteMetric::Mtu)
        .into_iter()
        .chain(route.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Ok(message)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn destination(message: &RouteMessage) -> Option<IpNetwork> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })
        .unwrap_or(unspecified);
    IpNetwork::new(address, message.header.destination_prefix_length).ok()
}

fn parse(message: &RouteMessage) -> Option<RouteSpec> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = RouteSpec::new(destination(message)?, None, 0);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Oif(link) => route.link = *link,
            RouteAttribute::Priority(priority) => route.priority = Some(*priority),
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                        RouteMetric::Advmss(mss) => route.advmss = Some(*mss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    route.scope = Some(message.header.scope.into());
    route.table = Some(table).filter(|table| *table != u32::from(RouteHeader::RT_TABLE_MAIN));
    Some(route)
}
