//! Manifests, indexes and image configurations: parsing and the choice of the platform.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::PullFailure;

/// The media types that we ask a registry for.
pub(crate) const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

/// The machine that an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    Index(Vec<Descriptor>),
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    pub(crate) fn parse(body: &[u8]) -> Result<Manifest, PullFailure> {
        let invalid = |message: String| PullFailure::Image(message);
        let raw: RawManifest =
            serde_json::from_slice(body).map_err(|e| invalid(format!("manifest: {e}")))?;
        match raw.schema_version {
            Some(2) => {}
            Some(1) => return Err(invalid("schema 1 manifests are not supported".to_owned())),
            _ => return Err(invalid("manifest has no known schemaVersion".to_owned())),
        }
        let index_type = raw
            .media_type
            .as_deref()
            .is_some_and(|t| t.contains("index") || t.contains("list"));
        match (raw.manifests, raw.config, raw.layers) {
            // Both at once: what one tool takes for an index another takes for an image (CVE-2021-41190).
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                Err(invalid("manifest is both an index and an image".to_owned()))
            }
            (Some(manifests), None, None) => Ok(Manifest::Index(manifests)),
            (None, Some(config), Some(layers)) if !index_type => {
                Ok(Manifest::Image { config, layers })
            }
            _ => Err(invalid(
                "manifest has neither manifests nor config and layers".to_owned(),
            )),
        }
    }
}

impl Platform {
    /// This machine's.
    pub(crate) fn current() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// The entry of an index for this platform: the exact variant, else one without a variant.
    pub(crate) fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let fits = |candidate: &&Descriptor| {
            candidate
                .platform
                .as_ref()
                .is_some_and(|p| p.os == self.os && p.architecture == self.architecture)
        };
        let variant = |d: &Descriptor| d.platform.as_ref().and_then(|p| p.variant.clone());
        let unmarked = |d: &&Descriptor| variant(d).is_none_or(|v| v.is_empty());
        manifests
            .iter()
            .filter(fits)
            .find(|d| self.variant.is_some() && variant(d) == self.variant)
            .or_else(|| manifests.iter().filter(fits).find(unmarked))
            // An index of one entry that says nothing of platforms is meant for all.
            .or_else(|| match manifests {
                [only] if only.platform.is_none() => Some(only),
                _ => None,
            })
    }

    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.os, self.architecture)
    }
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the whole command if there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: String,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// `80/tcp` and the like.
    pub exposed_ports: Vec<String>,
    /// Name or number of the signal that ends it; SIGTERM if absent.
    pub stop_signal: Option<String>,
    /// Paths that the image declares as volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// An image's configuration, as far as we use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    pub(crate) platform: Platform,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) run: RunConfig,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    rootfs: Option<RawRootfs>,
    config: Option<RawRunConfig>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<Digest>>,
}

/// Docker writes `null` for what is not set.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawRunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Configuration {
    pub(crate) fn parse(body: &[u8]) -> Result<Configuration, PullFailure> {
        let raw: RawConfiguration = serde_json::from_slice(body)
            .map_err(|e| PullFailure::Image(format!("configuration: {e}")))?;
        let diff_ids = raw
            .rootfs
            .and_then(|rootfs| rootfs.diff_ids)
            .ok_or_else(|| PullFailure::Image("configuration has no rootfs.diff_ids".to_owned()))?;
        let run = raw.config.unwrap_or_default();
        Ok(Configuration {
            platform: Platform {
                os: raw.os,
                architecture: raw.architecture,
                variant: raw.variant,
            },
            diff_ids,
            run: RunConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
                working_dir: run.working_dir.unwrap_or_default(),
                exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
                stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
                volumes: run.volumes.unwrap_or_default().into_keys().collect(),
                labels: run.labels.unwrap_or_default(),
            },
        })
    }

    /// Whether it may run here. A configuration that names no platform may.
    pub(crate) fn fits(&self, platform: &Platform) -> bool {
        let same = |given: &str, want: &str| given.is_empty() || given == want;
        same(&self.platform.os, &platform.os)
            && same(&self.platform.architecture, &platform.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, platform: Option<(&str, &str, Option<&str>)>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(name.as_bytes()),
            size: 1,
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            }),
        }
    }

    #[test]
    fn the_platform_is_chosen_from_an_index() {
        let arm = Platform {
            os: "linux".to_owned(),
            architecture: "arm64".to_owned(),
            variant: Some("v8".to_owned()),
        };
        let attestation = entry("attestation", Some(("unknown", "unknown", None)));
        let plain = entry("plain", Some(("linux", "arm64", None)));
        let v8 = entry("v8", Some(("linux", "arm64", Some("v8"))));
        let windows = entry("windows", Some(("windows", "arm64", None)));
        let bare = entry("bare", None);
        for (manifests, want) in [
            (
                vec![
                    attestation.clone(),
                    windows.clone(),
                    plain.clone(),
                    v8.clone(),
                ],
                Some(&v8),
            ),
            (vec![attestation.clone(), plain.clone()], Some(&plain)),
            (vec![windows.clone(), attestation.clone()], None),
            (vec![bare.clone()], Some(&bare)),
            (vec![bare.clone(), windows.clone()], None),
            (vec![], None),
        ] {
            assert_eq!(arm.choose(&manifests), want);
        }
    }

    #[test]
    fn ambiguous_and_foreign_manifests_are_refused() {
        for (body, want) in [
            ("[]", "manifest: "),
            (r#"{"schemaVersion": 1}"#, "schema 1"),
            (r#"{"schemaVersion": 2}"#, "neither"),
            (
                r#"{"schemaVersion": 2, "manifests": [], "layers": []}"#,
                "both",
            ),
            (
                r#"{"schemaVersion": 2, "manifests": [{"digest": "sha256:1", "size": 1}]}"#,
                "invalid digest",
            ),
        ] {
            let error = Manifest::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{body}: {error}");
        }
    }

    #[test]
    fn nulls_in_a_configuration_are_empty() {
        let body = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Cmd": null, "Env": null, "User": "", "ExposedPorts": {"80/tcp": {}}, "Volumes": null,
            "Labels": null, "Entrypoint": ["/x"], "StopSignal": "", "Healthcheck": {}}}"#;
        let config = Configuration::parse(body.as_bytes()).unwrap();
        assert_eq!(config.run.entrypoint, ["/x"]);
        assert_eq!(config.run.exposed_ports, ["80/tcp"]);
        assert_eq!(config.run.stop_signal, None);
        assert!(Configuration::parse(b"{}").is_err());
    }
}
