//! Who may do what. For now: administrators and components everything, everyone a look at health and
//! version, others nothing.

use skiff_api::resource::GroupResource;
use skiff_api::status::ApiStatus;

use crate::authn::{MASTERS, UserInfo};
use crate::failure::Failure;
use crate::request_info::ResourceRequest;

/// Paths that need no credentials.
pub(crate) const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action<'a> {
    /// A verb on objects.
    Resource(&'a str, &'a ResourceRequest),
    /// A verb on a path.
    Path(&'a str, &'a str),
}

/// Lets the request pass or says why not. `local`: it comes from within this process.
pub(crate) fn authorize(user: &UserInfo, local: bool, action: Action<'_>) -> Result<(), Failure> {
    if let Action::Path(_, path) = action
        && is_public(path)
    {
        return Ok(());
    }
    if user.is_anonymous() {
        return Err(ApiStatus::unauthorized().into());
    }
    if user.is_in(MASTERS) || (local && user.name.starts_with("system:")) {
        return Ok(());
    }
    Err(match action {
        Action::Path(verb, path) => {
            let why = format!("User {:?} cannot {verb} path {path:?}", user.name);
            ApiStatus::new(
                403,
                skiff_api::status::StatusReason::Forbidden,
                format!("forbidden: {why}"),
            )
        }
        Action::Resource(verb, request) => {
            let resource = qualified(request);
            let scope = if request.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", request.namespace)
            };
            let why = format!(
                "User {:?} cannot {verb} resource {resource:?} in API group {:?} {scope}",
                user.name, request.group
            );
            let about = GroupResource {
                group: &request.group,
                resource: &request.resource,
            };
            ApiStatus::forbidden(about, &request.name, &why)
        }
    }
    .into())
}

fn qualified(request: &ResourceRequest) -> String {
    if request.subresource.is_empty() {
        request.resource.clone()
    } else {
        format!("{}/{}", request.resource, request.subresource)
    }
}

fn is_public(path: &str) -> bool {
    PUBLIC.iter().any(|public| {
        path.strip_prefix(public)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        }
    }

    #[test]
    fn table() {
        let pods = Action::Path("get", "/api");
        for (who, local, action, code) in [
            (
                UserInfo::anonymous(),
                false,
                Action::Path("get", "/readyz/ping"),
                0,
            ),
            (
                UserInfo::anonymous(),
                false,
                Action::Path("get", "/readyzz"),
                401,
            ),
            (UserInfo::anonymous(), true, pods, 401),
            (user("admin", &[MASTERS]), false, pods, 0),
            (user("system:kube-scheduler", &[]), true, pods, 0),
            (user("system:kube-scheduler", &[]), false, pods, 403),
            (user("jane", &["dev"]), true, pods, 403),
        ] {
            let result = authorize(&who, local, action);
            assert_eq!(
                result.map_or_else(|failure| failure.code, |()| 0),
                code,
                "{who:?} {action:?}"
            );
        }
    }
}
