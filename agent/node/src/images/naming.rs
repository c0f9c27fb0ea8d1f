//! Keys of root filesystems and the pull policy.

use k8s_openapi::api::core::v1::Container;

/// Key of the root filesystem of one container instance; starts with the pod's UID, so that a sweep knows
/// whose it is.
pub(crate) fn snapshot_key(uid: &str, container: &str, restart_count: u32) -> String {
    format!("{uid}_{container}_{restart_count}")
}

/// UID of the pod that a root filesystem belongs to.
pub(crate) fn owner_of(key: &str) -> &str {
    key.split('_').next().unwrap_or(key)
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    /// At every start.
    Always,
    /// If it is not on the node.
    IfNotPresent,
    /// Never.
    Never,
}

/// The container's pull policy, defaulted as the API server does.
pub(crate) fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ if is_latest(container.image.as_deref().unwrap_or_default()) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_the_default_policy() {
        for (image, latest) in [
            ("redis", true),
            ("redis:latest", true),
            ("redis:6", false),
            ("host:5000/redis", true),
            ("host:5000/redis:6", false),
            ("redis@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn keys_name_their_pod() {
        assert_eq!(owner_of(&snapshot_key("6c0a-11", "web_x", 3)), "6c0a-11");
    }
}
