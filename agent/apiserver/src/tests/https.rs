//! The server over TLS: certificates, upgrades, shutdown.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connect::{FakeKubelet, placed};
use super::*;

/// A certificate authority and a server's configuration signed by it.
struct Pki {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            roots: Arc::new(roots),
        }
    }

    fn issue(
        &self,
        name: &str,
        group: &str,
    ) -> (
        Vec<rustls::pki_types::CertificateDer<'static>>,
        PrivateKeyDer<'static>,
    ) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![certificate.der().clone()], key)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&provider),
        );
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let (chain, key) = self.issue("apiserver", "skiff");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        Arc::new(
            config
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .unwrap(),
        )
    }

    async fn connect(&self, port: u16, user: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.with_root_certificates(Arc::clone(&self.roots));
        let config = match user {
            Some((name, group)) => {
                let (chain, key) = self.issue(name, group);
                config.with_client_auth_cert(chain, key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector
            .connect(ServerName::try_from("localhost").unwrap(), stream)
            .await
            .unwrap()
    }
}

/// Reads up to and including the blank line.
async fn head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn serve(
    server: &Server,
    pki: &Pki,
    stop: &CancellationToken,
) -> (u16, JoinHandle<Result<(), ApiServerError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (server, config, stop) = (server.server.clone(), pki.server(), stop.clone());
    (
        port,
        tokio::spawn(async move { server.serve(listener, config, stop).await }),
    )
}

#[tokio::test]
async fn certificates_decide() {
    let (server, pki, stop) = (Server::start().await, Pki::new(), CancellationToken::new());
    let (port, _serving) = serve(&server, &pki, &stop).await;
    let admin = Some(("admin", "system:masters"));
    for (user, path, code) in [
        (admin, "/api/v1/pods", 200),
        (Some(("jane", "dev")), "/api/v1/pods", 403),
        // A component's name alone is worth nothing from outside.
        (Some(("system:kube-scheduler", "x")), "/api/v1/pods", 403),
        (None, "/api/v1/pods", 401),
        (None, "/readyz", 200),
    ] {
        let mut stream = pki.connect(port, user).await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut stream).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {code}")),
            "{user:?} {path}: {head}"
        );
    }
}

#[tokio::test]
async fn an_upgrade_reaches_the_kubelet_and_comes_back() {
    let (options, mut requests) = FakeKubelet::answering(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n",
    );
    let (server, pki, stop) = (
        Server::with(options).await,
        Pki::new(),
        CancellationToken::new(),
    );
    placed(&server, "p", "n1", &json!({"running": {}})).await;
    let (port, _serving) = serve(&server, &pki, &stop).await;
    let mut stream = pki.connect(port, Some(("admin", "system:masters"))).await;
    let path = format!("{PODS}/p/exec?command=echo&command=a%20b&stdin=true&stdout=true");
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(
        head.starts_with("HTTP/1.1 101") && head.contains("v5.channel.k8s.io"),
        "{head}"
    );
    let (_, sent) = requests.recv().await.unwrap();
    assert!(
        sent.starts_with(
            "GET /exec/default/p/c?input=1&output=1&command=echo&command=a%20b HTTP/1.1"
        ),
        "{sent}"
    );
    assert!(sent.contains("upgrade: websocket"), "{sent}");
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
}

#[tokio::test]
async fn shutdown_ends_watches_and_the_server() {
    let (server, pki, stop) = (Server::start().await, Pki::new(), CancellationToken::new());
    let (port, serving) = serve(&server, &pki, &stop).await;
    let mut stream = pki.connect(port, Some(("admin", "system:masters"))).await;
    let request = format!("GET {CONFIG_MAPS}?watch=true HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200"));
    stop.cancel();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    serving.await.unwrap().unwrap();
}
