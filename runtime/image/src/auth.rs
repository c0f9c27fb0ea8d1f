//! Credentials for pulling: Docker's `config.json`, as image pull secrets carry it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Credentials of all the pull secrets that a pod brings, in the order given.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct PullAuth {
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Entry {
    server: String,
    credentials: Credentials,
}

/// A user and password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// Why a Docker configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It is not JSON of the right shape.
    #[error("docker config is not valid")]
    Json(#[source] serde_json::Error),
    /// An entry's `auth` is not base64 of `user:password`.
    #[error("auth of {server:?} is not base64 of user:password")]
    Encoding {
        /// The key of the entry.
        server: String,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
struct DockerAuth {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials")
            .field(&self.username)
            .field(&"<redacted>")
            .finish()
    }
}

impl fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self
            .entries
            .iter()
            .map(|entry| (&entry.server, "<redacted>"));
        f.debug_map().entries(servers).finish()
    }
}

impl PullAuth {
    /// No credentials.
    #[must_use]
    pub fn anonymous() -> PullAuth {
        PullAuth::default()
    }

    /// Adds the entries of a `.dockerconfigjson` (`{"auths": {...}}`). An entry without a user (a credential
    /// helper's or an identity token's) is passed over, as upstream does.
    ///
    /// # Errors
    /// [`AuthError`] if it is malformed.
    pub fn add_docker_config_json(&mut self, json: &[u8]) -> Result<(), AuthError> {
        let config: DockerConfig = serde_json::from_slice(json).map_err(AuthError::Json)?;
        self.add(config.auths)
    }

    /// Adds the entries of a legacy `.dockercfg` (no `auths` around the entries).
    ///
    /// # Errors
    /// [`AuthError`] if it is malformed.
    pub fn add_dockercfg(&mut self, json: &[u8]) -> Result<(), AuthError> {
        self.add(serde_json::from_slice(json).map_err(AuthError::Json)?)
    }

    fn add(&mut self, auths: BTreeMap<String, DockerAuth>) -> Result<(), AuthError> {
        for (server, auth) in auths {
            let credentials = match (auth.username, auth.password, auth.auth) {
                (_, _, Some(encoded)) if !encoded.is_empty() => {
                    decode(&encoded).ok_or_else(|| AuthError::Encoding {
                        server: server.clone(),
                    })?
                }
                (Some(username), password, _) if !username.is_empty() => Credentials {
                    username,
                    password: password.unwrap_or_default(),
                },
                _ => continue,
            };
            self.entries.push(Entry {
                server,
                credentials,
            });
        }
        Ok(())
    }

    /// The credentials for a repository, the most specific entry first.
    pub(crate) fn for_repository(&self, registry: &str, repository: &str) -> Vec<&Credentials> {
        let mut found: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| server_matches(&entry.server, registry, repository))
            .collect();
        // A stable sort keeps the order of the secrets among equals.
        found.sort_by_key(|entry| std::cmp::Reverse(normal_server(&entry.server).1.len()));
        found.into_iter().map(|entry| &entry.credentials).collect()
    }
}

/// Decodes base64 of `user:password`.
pub(crate) fn decode(encoded: &str) -> Option<Credentials> {
    let bytes = STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Some tools pad the password with NUL.
    let password = password.trim_end_matches('\0');
    Some(Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

/// Splits `https://index.docker.io/v1/` into host and path, with Docker Hub's names made one.
fn normal_server(server: &str) -> (&str, &str) {
    let server = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    let path = path.trim_end_matches('/');
    (
        host,
        if matches!(path, "v1" | "v2") {
            ""
        } else {
            path
        },
    )
}

fn server_matches(server: &str, registry: &str, repository: &str) -> bool {
    let (host, path) = normal_server(server);
    let path_matches = path.is_empty()
        || repository
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    path_matches && host_matches(host, registry)
}

/// Matches label by label; `*` stands for one whole label (`*.azurecr.io`), as upstream's globs mostly do.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, pattern_port) = pattern.split_once(':').unwrap_or((pattern, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let patterns: Vec<&str> = pattern.split('.').collect();
    let labels: Vec<&str> = host.split('.').collect();
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns
            .iter()
            .zip(&labels)
            .all(|(pattern, label)| glob(pattern, label))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((prefix, rest)) => text.strip_prefix(prefix).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.get(at..).is_some_and(|end| glob(rest, end)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(json: &str) -> PullAuth {
        let mut auth = PullAuth::anonymous();
        auth.add_docker_config_json(json.as_bytes()).unwrap();
        auth
    }

    #[test]
    fn entries_match_by_host_and_path_the_most_specific_first() {
        let auth = auth(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
                "example.com": {"username": "wide", "password": "p"},
                "example.com/team": {"username": "team", "password": "p"},
                "*.azurecr.io": {"username": "acr", "password": "p"},
                "helper.example": {}}}"#,
        );
        for (registry, repository, want) in [
            ("docker.io", "library/redis", vec!["hub"]),
            ("example.com", "team/app", vec!["team", "wide"]),
            ("example.com", "teammate/app", vec!["wide"]),
            ("example.com:5000", "team/app", vec![]),
            ("mine.azurecr.io", "x", vec!["acr"]),
            ("azurecr.io", "x", vec![]),
            ("a.b.azurecr.io", "x", vec![]),
            ("helper.example", "x", vec![]),
        ] {
            let users: Vec<&str> = auth
                .for_repository(registry, repository)
                .iter()
                .map(|c| c.username.as_str())
                .collect();
            assert_eq!(users, want, "{registry}/{repository}");
        }
    }

    #[test]
    fn malformed_auth_names_its_entry_and_secrets_are_not_printed() {
        let mut auth = PullAuth::anonymous();
        let error = auth
            .add_docker_config_json(br#"{"auths": {"a.example": {"auth": "%%"}}}"#)
            .unwrap_err();
        assert!(error.to_string().contains("a.example"), "{error}");
        auth.add_dockercfg(br#"{"b.example": {"username": "u", "password": "hunter2"}}"#)
            .unwrap();
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert_eq!(auth.for_repository("b.example", "x").len(), 1);
    }
}
