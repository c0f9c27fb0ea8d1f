//! Which representation the client wants: the `Accept` header.

use http::{HeaderMap, header};
use skiff_api::status::ApiStatus;

use crate::failure::Failure;

/// What can be produced.
const PRODUCED: &str = "application/json";

/// A representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Representation {
    /// The objects as they are.
    Plain,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata, or a list of them.
    Metadata,
    /// `apidiscovery.k8s.io` lists of that version.
    Discovery(&'static str),
}

/// Picks the first acceptable representation of objects.
pub(crate) fn objects(headers: &HeaderMap) -> Result<Representation, Failure> {
    pick(headers, |group, version, kind| {
        match (group, version, kind) {
            (_, _, "") => Some(Representation::Plain),
            ("meta.k8s.io", "v1", "Table") => Some(Representation::Table),
            ("meta.k8s.io", "v1", "PartialObjectMetadata" | "PartialObjectMetadataList") => {
                Some(Representation::Metadata)
            }
            _ => None,
        }
    })
}

/// Picks the first acceptable representation of `/api` and `/apis`.
pub(crate) fn discovery(headers: &HeaderMap) -> Result<Representation, Failure> {
    pick(headers, |group, version, kind| {
        match (group, version, kind) {
            (_, _, "") => Some(Representation::Plain),
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => {
                Some(Representation::Discovery("v2"))
            }
            ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => {
                Some(Representation::Discovery("v2beta1"))
            }
            _ => None,
        }
    })
}

fn pick(
    headers: &HeaderMap,
    known: impl Fn(&str, &str, &str) -> Option<Representation>,
) -> Result<Representation, Failure> {
    let mut any = false;
    for header in headers.get_all(header::ACCEPT) {
        for clause in header.to_str().unwrap_or_default().split(',') {
            if clause.trim().is_empty() {
                continue;
            }
            any = true;
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            if !matches!(media_type, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let (mut group, mut version, mut kind) = ("", "", "");
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("g", value)) => group = value,
                    Some(("v", value)) => version = value,
                    Some(("as", value)) => kind = value,
                    _ => {}
                }
            }
            if let Some(representation) = known(group, version, kind) {
                return Ok(representation);
            }
        }
    }
    if any {
        Err(ApiStatus::not_acceptable(PRODUCED).into())
    } else {
        Ok(Representation::Plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, text.parse().unwrap());
        headers
    }

    #[test]
    fn the_first_acceptable_one_wins() {
        for (header, expected) in [
            ("", Some(Representation::Plain)),
            ("*/*", Some(Representation::Plain)),
            ("application/vnd.kubernetes.protobuf", None),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some(Representation::Plain),
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Some(Representation::Table),
            ),
            (
                "application/json;as=Table;g=meta.k8s.io;v=v1",
                Some(Representation::Table),
            ),
            ("application/json;as=Chair;g=meta.k8s.io;v=v1", None),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Representation::Metadata),
            ),
            (
                "application/json; charset=utf-8",
                Some(Representation::Plain),
            ),
            ("text/html", None),
        ] {
            assert_eq!(objects(&accept(header)).ok(), expected, "{header}");
        }
    }

    #[test]
    fn aggregated_discovery_is_asked_for_by_name() {
        let header = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(
            discovery(&accept(header)).unwrap(),
            Representation::Discovery("v2")
        );
        assert_eq!(objects(&accept(header)).unwrap(), Representation::Plain);
    }
}
