//! What a request is about, read from its method and path alone.

use http::Method;

/// A request for objects: everything below `/api/v1` and `/apis/GROUP/VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceRequest {
    /// API group, empty for core.
    pub(crate) group: String,
    /// API version.
    pub(crate) version: String,
    /// Namespace in the path; empty for cluster-scoped kinds and lists over all namespaces.
    pub(crate) namespace: String,
    /// Plural resource name.
    pub(crate) resource: String,
    /// Object name, empty for collections.
    pub(crate) name: String,
    /// Subresource, empty for none.
    pub(crate) subresource: String,
    /// The path below the subresource, as in `proxy/a/b`.
    pub(crate) rest: String,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/G`
    Group(String),
    /// `/api/v1`, `/apis/G/V`
    GroupVersion(String, String),
    /// Objects.
    Resource(ResourceRequest),
    /// Anything else: the path.
    Other,
}

impl Target {
    /// Reads a path.
    pub(crate) fn parse(path: &str) -> Self {
        let segments: Vec<String> = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(percent_decode)
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group((*group).to_owned()),
            ["api", version] => Self::GroupVersion(String::new(), (*version).to_owned()),
            ["apis", group, version] => {
                Self::GroupVersion((*group).to_owned(), (*version).to_owned())
            }
            ["api", version, rest @ ..] => Self::resource("", version, rest),
            ["apis", group, version, rest @ ..] => Self::resource(group, version, rest),
            _ => Self::Other,
        }
    }

    fn resource(group: &str, version: &str, rest: &[&str]) -> Self {
        let (namespace, rest) = match rest {
            // `namespaces/NAME/status` is a namespace's own subresource.
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            _ => ("", rest),
        };
        let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
        Self::Resource(ResourceRequest {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            resource: part(0),
            name: part(1),
            subresource: part(2),
            rest: rest.get(3..).unwrap_or_default().join("/"),
        })
    }
}

/// The verb of a request for objects, as authorisers know it.
pub(crate) fn verb(method: &Method, request: &ResourceRequest, watch: bool) -> &'static str {
    let collection = request.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if watch && request.subresource.is_empty() => "watch",
        Method::GET | Method::HEAD if collection => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let escaped = (*byte == b'%').then(|| tail.get(..2)).flatten();
        let escaped =
            escaped.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        out.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> ResourceRequest {
        match Target::parse(path) {
            Target::Resource(request) => request,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        for (path, group, namespace, resource, name, subresource) in [
            ("/api/v1/pods", "", "", "pods", "", ""),
            ("/api/v1/namespaces", "", "", "namespaces", "", ""),
            ("/api/v1/namespaces/dev", "", "", "namespaces", "dev", ""),
            (
                "/api/v1/namespaces/dev/finalize",
                "",
                "",
                "namespaces",
                "dev",
                "finalize",
            ),
            (
                "/api/v1/namespaces/dev/status",
                "",
                "",
                "namespaces",
                "dev",
                "status",
            ),
            ("/api/v1/namespaces/dev/pods", "", "dev", "pods", "", ""),
            (
                "/api/v1/namespaces/dev/pods/web/log",
                "",
                "dev",
                "pods",
                "web",
                "log",
            ),
            (
                "/apis/apps/v1/namespaces/dev/deployments/web",
                "apps",
                "dev",
                "deployments",
                "web",
                "",
            ),
            (
                "/api/v1/namespaces/dev/events/a%3Ab",
                "",
                "dev",
                "events",
                "a:b",
                "",
            ),
        ] {
            let request = request(path);
            assert_eq!(
                (
                    &*request.group,
                    &*request.namespace,
                    &*request.resource,
                    &*request.name,
                    &*request.subresource
                ),
                (group, namespace, resource, name, subresource),
                "{path}"
            );
        }
        assert_eq!(request("/api/v1/nodes/n/proxy/a/b").rest, "a/b");
        assert_eq!(Target::parse("/apis/"), Target::Groups);
        assert_eq!(Target::parse("/nope"), Target::Other);
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(percent_decode("a%2"), "a%2");
        assert_eq!(percent_decode("%zz%41"), "%zzA");
    }
}
