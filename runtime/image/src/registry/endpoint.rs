//! One endpoint that may serve an image, and what it answered when it did not.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use crate::auth::{Credentials, PullAuth};
use crate::digest::Digest;
use crate::error::PullErrorClass;
use crate::reference::ImageReference;
use crate::registry::config::{MirrorUrl, RegistriesConfig};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A host that may serve the image, under the repository name it has there.
pub(crate) struct Endpoint {
    label: String,
    host: String,
    plain_http: bool,
    repository: String,
    ca_pem: Option<Vec<u8>>,
    insecure_skip_verify: bool,
    /// Credentials to try in order, at least one (anonymous); a client of its own for each, because the client
    /// keeps the first credentials it sees for a host.
    candidates: Vec<(RegistryAuth, OnceLock<Client>)>,
    /// The candidate that last worked.
    current: AtomicUsize,
}

/// Why one endpoint did not give what was asked of it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    pub(crate) class: PullErrorClass,
    pub(crate) message: String,
}

/// What each endpoint answered, in the order they were asked.
#[derive(Debug, Clone)]
pub struct EndpointFailures(pub(crate) Vec<(String, FetchError)>);

impl fmt::Display for EndpointFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (endpoint, error)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {error}")?;
        }
        if self.0.is_empty() {
            f.write_str("no endpoint is configured")?;
        }
        Ok(())
    }
}

impl std::error::Error for EndpointFailures {}

impl EndpointFailures {
    /// The most hopeful of the answers: one endpoint that may come back is worth waiting for.
    #[must_use]
    pub fn class(&self) -> PullErrorClass {
        self.0
            .iter()
            .map(|(_, error)| error.class)
            .max()
            .unwrap_or(PullErrorClass::Invalid)
    }
}

/// The endpoints for an image in the order in which they are asked: mirrors, then the registry itself.
pub(crate) fn plan_endpoints(
    reference: &ImageReference,
    registries: &RegistriesConfig,
    auth: &PullAuth,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    let mirror = registries.mirror(reference.registry());
    if let Some(mirror) = mirror {
        let rewritten = mirror
            .rewrite
            .iter()
            .find(|(pattern, _)| pattern.is_match(reference.repository()))
            .map(|(pattern, to)| pattern.replace(reference.repository(), to).into_owned())
            .unwrap_or_else(|| reference.repository().to_owned());
        for url in &mirror.endpoints {
            endpoints.push(Endpoint::new(
                url,
                rewritten.clone(),
                &url.host,
                registries,
                auth,
            ));
        }
    }
    if mirror.is_none_or(|mirror| mirror.use_default) {
        let host = match reference.registry() {
            "docker.io" => "registry-1.docker.io",
            registry => registry,
        };
        let url = MirrorUrl {
            plain_http: is_local(host),
            host: host.to_owned(),
        };
        let repository = reference.repository().to_owned();
        endpoints.push(Endpoint::new(
            &url,
            repository,
            reference.registry(),
            registries,
            auth,
        ));
    }
    endpoints
}

/// Docker's rule: a registry on this machine may speak plain HTTP.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback())
}

impl Endpoint {
    /// `registry` is the name under which credentials for the host are kept: a mirror gets only its own.
    fn new(
        url: &MirrorUrl,
        repository: String,
        registry: &str,
        registries: &RegistriesConfig,
        auth: &PullAuth,
    ) -> Endpoint {
        let config = registries
            .host(registry)
            .or_else(|| registries.host(&url.host));
        let basic = |c: &Credentials| RegistryAuth::Basic(c.username.clone(), c.password.clone());
        let mut candidates: Vec<RegistryAuth> = auth
            .for_repository(registry, &repository)
            .into_iter()
            .map(basic)
            .collect();
        candidates.extend(
            config
                .and_then(|config| config.credentials.as_ref())
                .map(basic),
        );
        if candidates.is_empty() {
            candidates.push(RegistryAuth::Anonymous);
        }
        Endpoint {
            label: format!(
                "{}://{}",
                if url.plain_http { "http" } else { "https" },
                url.host
            ),
            host: url.host.clone(),
            plain_http: url.plain_http,
            repository,
            ca_pem: config.and_then(|config| config.ca_pem.clone()),
            insecure_skip_verify: config.is_some_and(|config| config.insecure_skip_verify),
            candidates: candidates
                .into_iter()
                .map(|auth| (auth, OnceLock::new()))
                .collect(),
            current: AtomicUsize::new(0),
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn by_digest(&self, digest: &Digest) -> Reference {
        Reference::with_digest(
            self.host.clone(),
            self.repository.clone(),
            digest.as_str().to_owned(),
        )
    }

    pub(crate) fn by_tag(&self, tag: &str) -> Reference {
        Reference::with_tag(self.host.clone(), self.repository.clone(), tag.to_owned())
    }

    /// The client and credentials to use now.
    pub(crate) fn session(&self) -> Result<(&Client, &RegistryAuth), FetchError> {
        let index = self.current.load(Ordering::Relaxed);
        let Some((auth, cell)) = self.candidates.get(index) else {
            return Err(FetchError::new(
                PullErrorClass::Unauthorized,
                "no credentials are left",
            ));
        };
        if let Some(client) = cell.get() {
            return Ok((client, auth));
        }
        let client = self.build()?;
        Ok((cell.get_or_init(|| client), auth))
    }

    /// Goes on to the next credentials; false if there are none, and the first are current again.
    pub(crate) fn next_credentials(&self) -> bool {
        let next = self.current.load(Ordering::Relaxed) + 1;
        let more = next < self.candidates.len();
        self.current
            .store(if more { next } else { 0 }, Ordering::Relaxed);
        more
    }

    /// Why the registry refuses us, if the token service says more than "401".
    pub(crate) async fn explain_refusal(&self, reference: &Reference) -> Option<String> {
        let (client, auth) = self.session().ok()?;
        match client.auth(reference, auth, RegistryOperation::Pull).await {
            Err(OciDistributionError::AuthenticationFailure(text)) => Some(short(&text)),
            _ => None,
        }
    }

    fn build(&self) -> Result<Client, FetchError> {
        let config = ClientConfig {
            protocol: if self.plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            // Without TLS there is nothing to verify; this spares loading the system's roots, which may be absent.
            accept_invalid_certificates: self.insecure_skip_verify || self.plain_http,
            extra_root_certificates: self
                .ca_pem
                .iter()
                .map(|pem| Certificate {
                    encoding: CertificateEncoding::Pem,
                    data: pem.clone(),
                })
                .collect(),
            platform_resolver: None,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("skiff/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|e| {
            FetchError::new(
                PullErrorClass::Invalid,
                format!("tls set-up: {}", chain(&e)),
            )
        })
    }
}

impl FetchError {
    pub(crate) fn new(class: PullErrorClass, message: impl Into<String>) -> FetchError {
        FetchError {
            class,
            message: message.into(),
        }
    }

    /// Sorts the client's errors and puts the registry's own words first.
    pub(crate) fn from_client(error: &OciDistributionError) -> FetchError {
        use PullErrorClass::{Invalid, NotFound, Transient, Unauthorized};
        match error {
            OciDistributionError::RegistryError { envelope, .. } => {
                let class = envelope.errors.first().map_or(Invalid, |e| match e.code {
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown
                    | OciErrorCode::NotFound => NotFound,
                    OciErrorCode::Unauthorized | OciErrorCode::Denied => Unauthorized,
                    OciErrorCode::Toomanyrequests => Transient,
                    _ => Invalid,
                });
                let words: Vec<String> = envelope
                    .errors
                    .iter()
                    .map(|e| match e.message.as_str() {
                        "" => serde_json::to_string(&e.code)
                            .unwrap_or_default()
                            .replace('"', ""),
                        message => short(message),
                    })
                    .collect();
                FetchError::new(class, words.join(", "))
            }
            OciDistributionError::ServerError { code, message, .. } => {
                let class = match code {
                    404 => NotFound,
                    401 | 403 => Unauthorized,
                    408 | 425 | 429 | 500..=599 => Transient,
                    _ => Invalid,
                };
                FetchError::new(
                    class,
                    format!("unexpected status {code}: {}", short(message)),
                )
            }
            OciDistributionError::UnauthorizedError { .. } => {
                FetchError::new(Unauthorized, "unauthorized: authentication required")
            }
            OciDistributionError::AuthenticationFailure(text) => {
                FetchError::new(Unauthorized, format!("unauthorized: {}", short(text)))
            }
            OciDistributionError::ImageManifestNotFoundError(text) => {
                FetchError::new(NotFound, text.clone())
            }
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => {
                FetchError::new(Transient, chain(error))
            }
            other => FetchError::new(Invalid, chain(other)),
        }
    }
}

/// An error with its sources, without repeats.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = source.source();
    }
    text
}

/// A server's text on one line of bounded length: it goes into events.
fn short(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(256)
        .collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn labels(reference: &str, yaml: &str) -> Vec<String> {
        let config = RegistriesConfig::parse(Path::new("r.yaml"), yaml).unwrap();
        plan_endpoints(&reference.parse().unwrap(), &config, &PullAuth::anonymous())
            .iter()
            .map(|e| format!("{} {}", e.label, e.repository))
            .collect()
    }

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let yaml = "mirrors:\n  mcr.microsoft.com: {endpoint: [\"http://127.0.0.1:5000\", \"https://m\"], rewrite: {\"^oss/\": \"x/\"}}\n  only.example: {endpoint: [\"https://m\"], disableDefaultEndpoint: true}\n  docker.io: {}\n";
        for (reference, want) in [
            (
                "mcr.microsoft.com/oss/redis:6",
                vec![
                    "http://127.0.0.1:5000 x/redis",
                    "https://m x/redis",
                    "https://mcr.microsoft.com oss/redis",
                ],
            ),
            ("only.example/a", vec!["https://m a"]),
            ("redis", vec!["https://registry-1.docker.io library/redis"]),
            ("localhost:5000/a", vec!["http://localhost:5000 a"]),
            ("127.0.0.1:5000/a", vec!["http://127.0.0.1:5000 a"]),
            ("127.example.com/a", vec!["https://127.example.com a"]),
            ("10.0.0.1:5000/a", vec!["https://10.0.0.1:5000 a"]),
        ] {
            assert_eq!(labels(reference, yaml), want, "{reference}");
        }
    }

    #[test]
    fn a_mirror_never_gets_the_credentials_of_the_registry() {
        let config = RegistriesConfig::parse(
            Path::new("r.yaml"),
            "mirrors:\n  private.example: {endpoint: [\"http://m:1\"]}\nconfigs:\n  m:1: {auth: {username: mirror}}\n",
        )
        .unwrap();
        let mut auth = PullAuth::anonymous();
        auth.add_dockercfg(br#"{"private.example": {"username": "secret", "password": "x"}}"#)
            .unwrap();
        let endpoints = plan_endpoints(&"private.example/a".parse().unwrap(), &config, &auth);
        let users: Vec<Vec<String>> = endpoints
            .iter()
            .map(|e| {
                e.candidates
                    .iter()
                    .map(|(auth, _)| format!("{auth:?}"))
                    .collect()
            })
            .collect();
        assert!(
            users[0].len() == 1 && users[0][0].contains("mirror"),
            "{users:?}"
        );
        assert!(
            users[1].len() == 1 && users[1][0].contains("secret"),
            "{users:?}"
        );
    }
}
