//! The cluster's certificate authority, the API's certificate and the administrator's kubeconfig.
//!
//! The authority's key is made once and stays in `<data-dir>/pki`. The other certificates are made anew at each
//! start, so they never expire under a daemon that is restarted within a year.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::config::UpSettings;

/// Validity of all but the authority.
const DAYS: i64 = 365;
/// Validity of the authority.
const CA_DAYS: i64 = 3650;

/// The authority, ready to sign.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

/// A certificate with its key.
struct Identity {
    certificate_pem: String,
    key_pem: String,
}

impl Authority {
    /// Reads the authority from `dir` or makes a new one there.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir)?;
        let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem)
                .with_context(|| format!("reading the authority's key {}", key_path.display()))?,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                write_private(&key_path, &key.serialize_pem())?;
                key
            }
            Err(err) => return Err(err).with_context(|| key_path.display().to_string()),
        };
        let params = authority_params();
        let certificate_pem = match fs::read_to_string(&certificate_path) {
            Ok(pem) => pem,
            Err(_missing) => {
                let pem = params.self_signed(&key)?.pem();
                write_private(&certificate_path, &pem)?;
                pem
            }
        };
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate_pem,
        })
    }

    /// The authority's certificate.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let (from, until) = validity(DAYS);
        params.not_before = from;
        params.not_after = until;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// What the API server presents, and whose client certificates it takes.
    pub(crate) fn server_config(&self, settings: &UpSettings) -> Result<Arc<ServerConfig>> {
        let mut params = CertificateParams::new(server_names(settings))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        let identity = self.issue(params, ExtendedKeyUsagePurpose::ServerAuth)?;
        let chain = vec![CertificateDer::from_pem_slice(
            identity.certificate_pem.as_bytes(),
        )?];
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(
            self.certificate_pem.as_bytes(),
        )?)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .allow_unauthenticated()
            .build()?;
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Writes a kubeconfig with all rights, readable by its owner only.
    pub(crate) fn write_admin_kubeconfig(&self, path: &Path, api: SocketAddr) -> Result<()> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes-admin");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        let identity = self.issue(params, ExtendedKeyUsagePurpose::ClientAuth)?;
        let address = match api {
            any if any.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], any.port())),
            address => address,
        };
        let text = kubeconfig(
            &format!("https://{address}"),
            &self.certificate_pem,
            &identity,
        );
        let temporary = path.with_extension("new");
        write_private(&temporary, &text)?;
        fs::rename(&temporary, path).with_context(|| format!("writing {}", path.display()))
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "skiff-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.serial_number = Some(SerialNumber::from(1_u64));
    let (from, until) = validity(CA_DAYS);
    params.not_before = from;
    params.not_after = until;
    params
}

/// From an hour ago, for clocks that differ.
fn validity(days: i64) -> (time::OffsetDateTime, time::OffsetDateTime) {
    let now = time::OffsetDateTime::now_utc();
    (
        now - time::Duration::hours(1),
        now + time::Duration::days(days),
    )
}

/// Names and addresses under which the API is reached.
fn server_names(settings: &UpSettings) -> Vec<String> {
    let domain = &settings.cluster_domain;
    let mut names = vec![
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{domain}"),
        settings.node.place.name.clone(),
        "127.0.0.1".to_owned(),
        settings.node.kubernetes_ip().to_string(),
    ];
    names.extend(settings.node_ips().iter().map(ToString::to_string));
    if !settings.api_bind.ip().is_unspecified() {
        names.push(settings.api_bind.ip().to_string());
    }
    names.extend(settings.tls_san.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })
    .with_context(|| format!("writing {}", path.display()))
}

fn kubeconfig(server: &str, authority: &str, admin: &Identity) -> String {
    let [authority, certificate, key] =
        [authority, &admin.certificate_pem, &admin.key_pem].map(|pem| BASE64.encode(pem));
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: skiff\n  cluster:\n    server: {server}\n    certificate-authority-data: {authority}\n\
         users:\n\
         - name: kubernetes-admin\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
         contexts:\n\
         - name: skiff\n  context:\n    cluster: skiff\n    user: kubernetes-admin\n\
         current-context: skiff\n"
    )
}
