//! What the cluster's own names mean. Pure: a question and a [`Directory`] give an answer.

mod records;

#[cfg(test)]
pub(crate) mod tests;

use std::{net::IpAddr, sync::Arc};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{PTR, SOA, SRV, TXT},
};
use k8s_openapi::api::core::v1::Service;

use crate::directory::{Directory, SERVICE_NAME};

/// How long resolvers may keep an answer, seconds. Upstream's value.
const TTL: u32 = 5;

/// Version of the specification, as `dns-version.<domain>` tells it.
const SPEC_VERSION: &str = "1.1.0";

/// The zone of the cluster's domain, with the reverse zones of the addresses it knows.
pub(crate) struct Zone {
    origin: Name,
    directory: Box<dyn Directory>,
}

/// What the zone says to a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// These records.
    Records(Vec<Record>),
    /// The name exists, without records of that type.
    NoData(Record),
    /// There is no such name.
    NoName(Record),
    /// Not a name of this zone.
    NotOurs,
}

/// What a name of the zone stands for.
enum Found {
    /// These records, whatever was asked; the type filters them.
    Records(Vec<RData>),
    /// A name that only has names below it.
    Empty,
    Nothing,
}

/// A fully qualified, lower-case name; `None` if it is not one.
pub(crate) fn parse_domain(domain: &str) -> Option<Name> {
    let mut name = Name::from_ascii(domain).ok()?.to_lowercase();
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

impl Zone {
    pub(crate) fn new(origin: Name, directory: Box<dyn Directory>) -> Self {
        Self { origin, directory }
    }

    /// Answers a question of class IN.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let lower = name.to_lowercase();
        if let Some(address) = reverse_address(&lower) {
            return match self.reverse(address) {
                Some(target) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                    Answer::Records(vec![record(name, RData::PTR(PTR(target)))])
                }
                Some(_) => Answer::NoData(self.soa()),
                None => Answer::NotOurs,
            };
        }
        let Some(labels) = self.labels_below_origin(&lower) else {
            return Answer::NotOurs;
        };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match self.find(&labels) {
            Found::Nothing => Answer::NoName(self.soa()),
            Found::Empty => self.positive(name, kind, Vec::new()),
            Found::Records(data) => self.positive(name, kind, data),
        }
    }

    fn positive(&self, name: &Name, kind: RecordType, data: Vec<RData>) -> Answer {
        let fits = |data: &RData| {
            kind == RecordType::ANY || data.record_type() == kind || matches!(data, RData::CNAME(_))
        };
        let mut records: Vec<_> = data
            .into_iter()
            .filter(fits)
            .map(|data| record(name, data))
            .collect();
        if records.is_empty() {
            return Answer::NoData(self.soa());
        }
        if let [
            Record {
                data: RData::CNAME(alias),
                ..
            },
        ] = records.as_slice()
        {
            // An ExternalName may name another Service: resolvers expect the chain in one answer.
            let alias = alias.0.clone();
            if kind != RecordType::CNAME
                && alias != *name
                && let Answer::Records(more) = self.answer_once(&alias, kind)
            {
                records.extend(more);
            }
        }
        Answer::Records(records)
    }

    /// Like [`Zone::answer`] without following another alias, so that two Services naming each other end.
    fn answer_once(&self, name: &Name, kind: RecordType) -> Answer {
        let Some(labels) = self.labels_below_origin(&name.to_lowercase()) else {
            return Answer::NotOurs;
        };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match self.find(&labels) {
            Found::Records(data) => Answer::Records(
                data.into_iter()
                    .filter(|data| data.record_type() == kind)
                    .map(|data| record(name, data))
                    .collect(),
            ),
            Found::Empty | Found::Nothing => Answer::NotOurs,
        }
    }

    /// The labels of `name` below the origin, nearest to the origin first; `None` if it is outside.
    fn labels_below_origin(&self, name: &Name) -> Option<Vec<String>> {
        if !self.origin.zone_of(name) {
            return None;
        }
        let depth = usize::from(name.num_labels()) - usize::from(self.origin.num_labels());
        let mut labels: Vec<_> = name
            .iter()
            .take(depth)
            .map(|label| String::from_utf8_lossy(label).into_owned())
            .collect();
        labels.reverse();
        Some(labels)
    }

    fn find(&self, labels: &[&str]) -> Found {
        match *labels {
            [] => Found::Records(vec![self.soa().data]),
            ["dns-version"] => {
                Found::Records(vec![RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()]))])
            }
            ["svc" | "pod"] => Found::Empty,
            ["svc" | "pod", namespace] => {
                if self.directory.has_namespace(namespace) {
                    Found::Empty
                } else {
                    Found::Nothing
                }
            }
            ["pod", _, dashed] => match undash(dashed) {
                Some(address) => Found::Records(vec![address_data(address)]),
                None => Found::Nothing,
            },
            ["svc", namespace, service, ref below @ ..] => {
                match self.directory.service(namespace, service) {
                    Some(object) => self.find_in_service(&object, namespace, service, below),
                    None => Found::Nothing,
                }
            }
            _ => Found::Nothing,
        }
    }

    fn find_in_service(
        &self,
        object: &Arc<Service>,
        namespace: &str,
        service: &str,
        below: &[&str],
    ) -> Found {
        let slices = self.directory.slices(namespace, service);
        let view = records::ServiceView::new(object, &slices);
        match *below {
            [] => Found::Records(view.own()),
            ["_tcp" | "_udp" | "_sctp"] => Found::Empty,
            [proto @ ("_tcp" | "_udp" | "_sctp"), port] => {
                let Some(base) = self.service_name(namespace, service) else {
                    return Found::Nothing;
                };
                let targets =
                    view.ports(port.trim_start_matches('_'), proto.trim_start_matches('_'));
                let data: Vec<_> = targets
                    .into_iter()
                    .filter_map(|(host, port)| {
                        let target = match host {
                            Some(host) => base.prepend_label(host).ok()?,
                            None => base.clone(),
                        };
                        Some(RData::SRV(SRV::new(0, 100, port, target)))
                    })
                    .collect();
                if data.is_empty() {
                    Found::Nothing
                } else {
                    Found::Records(data)
                }
            }
            [host] => {
                let data = view.host(host);
                if data.is_empty() {
                    Found::Nothing
                } else {
                    Found::Records(data)
                }
            }
            _ => Found::Nothing,
        }
    }

    fn service_name(&self, namespace: &str, service: &str) -> Option<Name> {
        let relative = Name::from_labels([service, namespace, "svc"].map(str::as_bytes)).ok()?;
        relative.append_domain(&self.origin).ok()
    }

    /// The name of an address: of the Service with that cluster IP, or of the endpoint.
    fn reverse(&self, address: IpAddr) -> Option<Name> {
        if let Some(service) = self.directory.service_by_ip(address) {
            let meta = &service.metadata;
            return self.service_name(meta.namespace.as_deref()?, meta.name.as_deref()?);
        }
        self.directory
            .slices_by_ip(address)
            .iter()
            .find_map(|slice| {
                let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
                let base = self.service_name(slice.metadata.namespace.as_deref()?, service)?;
                let text = address.to_string();
                let endpoint = slice
                    .endpoints
                    .iter()
                    .flatten()
                    .find(|endpoint| endpoint.addresses.contains(&text))?;
                let host = endpoint
                    .hostname
                    .clone()
                    .unwrap_or_else(|| records::dashed(&text));
                base.prepend_label(host.as_str()).ok()
            })
    }

    fn soa(&self) -> Record {
        let server = Name::from_labels([b"ns".as_slice(), b"dns"])
            .and_then(|n| n.append_domain(&self.origin));
        let mailbox = Name::from_labels([b"hostmaster".as_slice()])
            .and_then(|n| n.append_domain(&self.origin));
        let server = server.unwrap_or_else(|_too_long| self.origin.clone());
        let mailbox = mailbox.unwrap_or_else(|_too_long| self.origin.clone());
        let minimum = TTL;
        record(
            &self.origin,
            RData::SOA(SOA::new(server, mailbox, 1, 7200, 1800, 86400, minimum)),
        )
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}

/// `10-244-0-7` as an address.
fn undash(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse()
        .or_else(|_not_v4| label.replace('-', ":").parse())
        .ok()
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for, if it is a whole one.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}
