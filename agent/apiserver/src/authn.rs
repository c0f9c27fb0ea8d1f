//! Who is asking.

use http::{Extensions, HeaderMap};
use skiff_api::resource::GroupResource;
use skiff_api::status::ApiStatus;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::failure::Failure;

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

/// The user of a request: whoever sends it, or whom an administrator asks to be taken for.
pub(crate) fn authenticate(
    extensions: &Extensions,
    headers: &HeaderMap,
) -> Result<UserInfo, Failure> {
    let sender = extensions
        .get::<UserInfo>()
        .cloned()
        .unwrap_or_else(UserInfo::anonymous);
    impersonated(&sender, headers).map(|user| user.unwrap_or(sender))
}

/// `kubectl --as`: only who may do everything may do it as somebody else.
fn impersonated(sender: &UserInfo, headers: &HeaderMap) -> Result<Option<UserInfo>, Failure> {
    let values = |name: &str| -> Vec<String> {
        let all = headers.get_all(name).iter();
        all.filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect()
    };
    let names = values("impersonate-user");
    let Some(name) = names.first().filter(|name| !name.is_empty()) else {
        let orphan = headers
            .keys()
            .find(|key| key.as_str().starts_with("impersonate-"));
        return match orphan {
            None => Ok(None),
            Some(header) => Err(ApiStatus::bad_request(format!(
                "requested {header} without impersonating a user"
            ))
            .into()),
        };
    };
    if sender.is_anonymous() {
        return Err(ApiStatus::unauthorized().into());
    }
    if !sender.is_in(MASTERS) {
        let users = GroupResource {
            group: "",
            resource: "users",
        };
        let why = format!(
            "User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            sender.name
        );
        return Err(ApiStatus::forbidden(users, name, &why).into());
    }
    let mut groups = values("impersonate-group");
    if groups.is_empty()
        && let Some((namespace, _)) = name
            .strip_prefix("system:serviceaccount:")
            .and_then(|rest| rest.split_once(':'))
    {
        groups.push("system:serviceaccounts".to_owned());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    let every = if name == ANONYMOUS {
        "system:unauthenticated"
    } else {
        "system:authenticated"
    };
    if !groups.iter().any(|group| group == every) {
        groups.push(every.to_owned());
    }
    Ok(Some(UserInfo {
        name: name.clone(),
        groups,
    }))
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
        let user = authenticate(&Extensions::new(), &HeaderMap::new()).unwrap();
        assert!(user.is_anonymous());
        assert!(UserInfo::from_certificate(b"no certificate").is_none());
    }

    #[test]
    fn only_administrators_may_be_taken_for_others() {
        let admin = UserInfo {
            name: "kubernetes-admin".to_owned(),
            groups: vec![MASTERS.to_owned()],
        };
        let jane = UserInfo::component("jane");
        let mut headers = HeaderMap::new();
        assert_eq!(impersonated(&jane, &headers).unwrap(), None);
        headers.insert("impersonate-group", "dev".parse().unwrap());
        assert_eq!(impersonated(&admin, &headers).unwrap_err().code, 400);
        headers.insert("impersonate-user", "bob".parse().unwrap());
        assert_eq!(impersonated(&jane, &headers).unwrap_err().code, 403);
        let nobody = UserInfo::anonymous();
        assert_eq!(impersonated(&nobody, &headers).unwrap_err().code, 401);
        let bob = impersonated(&admin, &headers).unwrap().unwrap();
        assert_eq!(bob.name, "bob");
        assert_eq!(bob.groups, ["dev", "system:authenticated"]);
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
