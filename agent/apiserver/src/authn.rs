//! Who is asking.

use http::Extensions;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Group of everyone who may do everything.
pub(crate) const MASTERS: &str = "system:masters";
/// Name of whoever presents no credentials.
const ANONYMOUS: &str = "system:anonymous";

/// A user, as the TLS session or the composition vouches for. The composition adds it as an extension to
/// requests of components in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserInfo {
    /// Name, such as `kubernetes-admin` or `system:kube-scheduler`.
    pub name: String,
    /// Groups, such as `system:masters`.
    pub groups: Vec<String>,
}

impl UserInfo {
    /// A component of the control plane or a node in this process.
    #[must_use]
    pub fn component(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            groups: vec!["system:authenticated".to_owned()],
        }
    }

    /// Whoever presents no credentials.
    pub(crate) fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
        }
    }

    /// Whether these are no credentials at all.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The user that a verified client certificate names: CN is the user, each O a group.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|group| group.as_str().ok().map(str::to_owned))
            .collect();
        groups.push("system:authenticated".to_owned());
        Some(Self { name, groups })
    }
}

/// Set on every request that arrives over TLS, so that a client cannot pass for a component.
#[derive(Debug, Clone)]
pub(crate) struct Remote;

/// The user of a request.
pub(crate) fn authenticate(extensions: &Extensions) -> UserInfo {
    extensions
        .get::<UserInfo>()
        .cloned()
        .unwrap_or_else(UserInfo::anonymous)
}

/// Whether the request came from within this process.
pub(crate) fn is_local(extensions: &Extensions) -> bool {
    extensions.get::<Remote>().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credentials_one_is_anonymous() {
        assert!(authenticate(&Extensions::new()).is_anonymous());
        assert!(UserInfo::from_certificate(b"no certificate").is_none());
    }

    #[test]
    fn a_certificate_names_user_and_groups() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "jane");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, MASTERS);
        let key = rcgen::KeyPair::generate().unwrap();
        let user = UserInfo::from_certificate(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(user.name, "jane");
        assert!(user.is_in(MASTERS) && user.is_in("system:authenticated"));
    }
}
