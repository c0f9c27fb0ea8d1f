//! The file of mirrors and credentials, in the shape of k3s's `registries.yaml`.
//!
//! ```yaml
//! mirrors:
//!   mcr.microsoft.com:              # a registry, or "*" for every other one
//!     endpoint:                     # tried in order, then the registry itself
//!       - http://127.0.0.1:5000
//!     rewrite:                      # optional: regular expression -> replacement of the repository
//!       "^oss/(.*)": "mirror/$1"
//!     disableDefaultEndpoint: true  # optional: never ask the registry itself
//! configs:
//!   registry.example.com:5000:      # a host, be it a registry's or a mirror's
//!     auth: {username: me, password: secret}   # or auth: base64 of user:password
//!     tls: {ca_file: /etc/ssl/mine.pem, insecure_skip_verify: false}
//! ```
//!
//! Of several patterns of `rewrite` that match, the first in alphabetical order is used. Plain HTTP is spoken only to
//! an endpoint that says `http://` and to registries on `localhost`, `127.0.0.0/8` and `[::1]:PORT`. The file is read
//! again at each pull. `examples/registries.yaml` explains each key to users.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use crate::auth::{Credentials, decode};

/// Mirrors, credentials and TLS settings of registries.
#[derive(Debug, Default)]
pub struct RegistriesConfig {
    mirrors: BTreeMap<String, Mirror>,
    hosts: BTreeMap<String, HostConfig>,
}

#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) endpoints: Vec<MirrorUrl>,
    pub(crate) rewrite: Vec<(Regex, String)>,
    pub(crate) use_default: bool,
}

/// `http://127.0.0.1:5000`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MirrorUrl {
    pub(crate) plain_http: bool,
    pub(crate) host: String,
}

/// What is known of one host.
#[derive(Debug, Default)]
pub(crate) struct HostConfig {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) ca_pem: Option<Vec<u8>>,
    pub(crate) insecure_skip_verify: bool,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// It, or a file it names, cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It is not YAML of the documented shape.
    #[error("{path} is not a registries file: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, on one line. The parser's own error says it twice and draws the place.
        message: String,
    },
    /// A value makes no sense.
    #[error("{path}: {field}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which value.
        field: String,
        /// What is wrong with it.
        message: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    mirrors: BTreeMap<String, RawMirror>,
    #[serde(default)]
    configs: BTreeMap<String, RawHost>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawMirror {
    #[serde(default)]
    endpoint: Vec<String>,
    #[serde(default)]
    rewrite: BTreeMap<String, String>,
    #[serde(default, rename = "disableDefaultEndpoint")]
    disable_default_endpoint: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawHost {
    #[serde(default)]
    auth: Option<RawAuth>,
    #[serde(default)]
    tls: Option<RawTls>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawAuth {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    identity_token: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawTls {
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    cert_file: Option<PathBuf>,
    #[serde(default)]
    key_file: Option<PathBuf>,
    #[serde(default)]
    insecure_skip_verify: bool,
}

impl RegistriesConfig {
    /// Reads the file; an absent one is empty.
    ///
    /// # Errors
    /// [`RegistriesError`] naming the file and the field.
    pub fn load(path: &Path) -> Result<RegistriesConfig, RegistriesError> {
        match std::fs::read_to_string(path) {
            Ok(text) => RegistriesConfig::parse(path, &text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(RegistriesConfig::default()),
            Err(source) => Err(RegistriesError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Parses the text of the file; `path` is for messages.
    ///
    /// # Errors
    /// [`RegistriesError`] naming the file and the field.
    pub fn parse(path: &Path, text: &str) -> Result<RegistriesConfig, RegistriesError> {
        let raw: Option<RawConfig> =
            serde_saphyr::from_str(text).map_err(|source| RegistriesError::Parse {
                path: path.to_owned(),
                message: source.without_snippet().to_string(),
            })?;
        let raw = raw.unwrap_or_default();
        let mut config = RegistriesConfig::default();
        for (registry, mirror) in raw.mirrors {
            let mirror = mirror
                .check()
                .map_err(|(field, message)| RegistriesError::Value {
                    path: path.to_owned(),
                    field: format!("mirrors.{registry:?}.{field}"),
                    message,
                })?;
            config.mirrors.insert(registry, mirror);
        }
        for (host, raw) in raw.configs {
            config.hosts.insert(host.clone(), raw.check(path, &host)?);
        }
        Ok(config)
    }

    pub(crate) fn mirror(&self, registry: &str) -> Option<&Mirror> {
        self.mirrors.get(registry).or_else(|| self.mirrors.get("*"))
    }

    pub(crate) fn host(&self, host: &str) -> Option<&HostConfig> {
        self.hosts.get(host)
    }
}

impl RawMirror {
    fn check(self) -> Result<Mirror, (String, String)> {
        let endpoints = self
            .endpoint
            .iter()
            .enumerate()
            .map(|(i, url)| {
                MirrorUrl::parse(url).map_err(|message| (format!("endpoint[{i}]"), message))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let rewrite = self
            .rewrite
            .into_iter()
            .map(|(pattern, replacement)| match Regex::new(&pattern) {
                Ok(regex) => Ok((regex, replacement)),
                Err(e) => Err((format!("rewrite.{pattern:?}"), e.to_string())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Mirror {
            endpoints,
            rewrite,
            use_default: !self.disable_default_endpoint,
        })
    }
}

impl RawHost {
    fn check(self, path: &Path, host: &str) -> Result<HostConfig, RegistriesError> {
        let value = |field: &str, message: &str| RegistriesError::Value {
            path: path.to_owned(),
            field: format!("configs.{host:?}.{field}"),
            message: message.to_owned(),
        };
        let mut config = HostConfig::default();
        if let Some(auth) = self.auth {
            if auth.identity_token.is_some_and(|token| !token.is_empty()) {
                return Err(value(
                    "auth.identity_token",
                    "not supported: give username and password",
                ));
            }
            config.credentials = match (auth.auth, auth.username) {
                (Some(encoded), None) => Some(
                    decode(&encoded)
                        .ok_or_else(|| value("auth.auth", "not base64 of user:password"))?,
                ),
                (None, Some(username)) => Some(Credentials {
                    username,
                    password: auth.password.unwrap_or_default(),
                }),
                (Some(_), Some(_)) => {
                    return Err(value("auth", "auth and username exclude each other"));
                }
                (None, None) => return Err(value("auth", "neither username nor auth is given")),
            };
        }
        if let Some(tls) = self.tls {
            if tls.cert_file.is_some() || tls.key_file.is_some() {
                return Err(value(
                    "tls.cert_file",
                    "client certificates are not supported",
                ));
            }
            config.insecure_skip_verify = tls.insecure_skip_verify;
            config.ca_pem = tls
                .ca_file
                .map(|file| {
                    std::fs::read(&file)
                        .map_err(|source| RegistriesError::Read { path: file, source })
                })
                .transpose()?;
        }
        Ok(config)
    }
}

impl MirrorUrl {
    fn parse(url: &str) -> Result<MirrorUrl, String> {
        let (plain_http, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(format!("{url:?} does not begin with http:// or https://")),
        };
        let host = rest
            .strip_suffix("/v2")
            .unwrap_or(rest)
            .trim_end_matches('/');
        let host = host.strip_suffix("/v2").unwrap_or(host);
        if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
            return Err(format!(
                "{url:?} is not scheme://host[:port]; a path is not supported"
            ));
        }
        Ok(MirrorUrl {
            plain_http,
            host: host.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegistriesConfig, RegistriesError> {
        RegistriesConfig::parse(Path::new("registries.yaml"), text)
    }

    fn chain(error: &RegistriesError) -> String {
        let source = std::error::Error::source(error)
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("{error}: {source}")
    }

    #[test]
    fn the_documented_shape_is_read() {
        let config = parse(
            "mirrors:\n  mcr.microsoft.com:\n    endpoint: [\"http://127.0.0.1:5000\"]\n    rewrite: {\"^oss/(.*)\": \"m/$1\"}\n  \"*\": {endpoint: [https://all.example/v2/], disableDefaultEndpoint: true}\nconfigs:\n  h:5000: {auth: {username: me, password: pw}, tls: {insecure_skip_verify: true}}\n  g: {auth: {auth: bWU6cHc=}}\n",
        )
        .unwrap();
        let mirror = config.mirror("mcr.microsoft.com").unwrap();
        assert!(mirror.use_default);
        assert_eq!(
            mirror.endpoints,
            [MirrorUrl {
                plain_http: true,
                host: "127.0.0.1:5000".to_owned()
            }]
        );
        let other = config.mirror("quay.io").unwrap();
        assert!(!other.use_default);
        assert_eq!(
            other.endpoints,
            [MirrorUrl {
                plain_http: false,
                host: "all.example".to_owned()
            }]
        );
        assert!(config.host("h:5000").unwrap().insecure_skip_verify);
        for host in ["h:5000", "g"] {
            assert!(
                config
                    .host(host)
                    .unwrap()
                    .credentials
                    .as_ref()
                    .is_some_and(|c| c.password == "pw")
            );
        }
        assert!(parse("").unwrap().mirror("x").is_none());
    }

    #[test]
    fn the_example_says_what_it_explains() {
        let text = include_str!("../../../../examples/registries.yaml");
        let config = parse(text).unwrap();
        let mirror = config.mirror("mcr.microsoft.com").unwrap();
        let hosts: Vec<_> = mirror.endpoints.iter().map(|e| e.host.as_str()).collect();
        assert_eq!(hosts, ["127.0.0.1:5000", "mirror.example.com:5000"]);
        assert_eq!(mirror.rewrite.len(), 1);
        assert!(!mirror.use_default);
        assert!(config.mirror("registry.example.com").unwrap().use_default);
        for host in ["mirror.example.com:5000", "registry.example.com"] {
            let credentials = config.host(host).unwrap().credentials.as_ref().unwrap();
            assert_eq!(
                (&*credentials.username, &*credentials.password),
                ("puller", "secret"),
                "{host}"
            );
        }
        // The one key that is commented out, because its file must exist, is known too.
        let with_ca = text.replace("# ca_file: ", "ca_file: /nonexistent");
        assert!(chain(&parse(&with_ca).unwrap_err()).contains("/nonexistent/etc/ssl"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("mirrors:\n  a: {endpoints: [http://x]}\n", "endpoints"),
            ("miror: {}\n", "miror"),
            (
                "mirrors:\n  a: {endpoint: [x:5000]}\n",
                "mirrors.\"a\".endpoint[0]",
            ),
            (
                "mirrors:\n  a: {endpoint: [http://x/path]}\n",
                "a path is not supported",
            ),
            ("mirrors:\n  a: {rewrite: {\"(\": x}}\n", "rewrite"),
            (
                "configs:\n  a: {auth: {auth: \"%\"}}\n",
                "configs.\"a\".auth.auth",
            ),
            (
                "configs:\n  a: {auth: {identity_token: x}}\n",
                "not supported",
            ),
            (
                "configs:\n  a: {tls: {cert_file: x}}\n",
                "client certificates",
            ),
            (
                "configs:\n  a: {tls: {ca_file: /nonexistent/ca.pem}}\n",
                "/nonexistent/ca.pem",
            ),
            ("mirrors: [\n", "registries.yaml"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(chain(&error).contains(want), "{text}: {}", chain(&error));
        }
    }
}
