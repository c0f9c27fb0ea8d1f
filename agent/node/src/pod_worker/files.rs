//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod. The text is pure.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::NodeConfig;
use crate::engine::BindMount;

/// Longest search path and number of name servers that resolvers read.
const MAX_SEARCHES: usize = 32;
const MAX_SERVERS: usize = 3;

/// The pod's host name.
pub(crate) fn hostname(pod: &Pod, node_name: &str) -> String {
    let spec = pod.spec.as_ref();
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        return node_name.to_owned();
    }
    let own = spec
        .and_then(|spec| spec.hostname.as_deref())
        .filter(|name| !name.is_empty());
    let name = own.or(pod.metadata.name.as_deref()).unwrap_or_default();
    name.chars()
        .take(63)
        .collect::<String>()
        .trim_end_matches(['-', '.'])
        .to_owned()
}

/// The directory of the files.
pub(crate) fn etc_dir(config: &NodeConfig, uid: &str) -> PathBuf {
    config.pod_dir(uid).join("etc")
}

/// Writes the files. Blocking.
pub(crate) fn write(pod: &Pod, ips: &[IpAddr], config: &NodeConfig) -> io::Result<()> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let etc = etc_dir(config, uid);
    fs::create_dir_all(&etc)?;
    let hostname = hostname(pod, &config.node_name);
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| format!("{subdomain}.{namespace}.svc.{}", config.cluster_domain));
    let hosts = if spec.host_network == Some(true) {
        let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
        format!(
            "# Kubernetes-managed hosts file (host network).\n{own}{}",
            aliases(spec)
        )
    } else {
        hosts(spec, ips, &hostname, domain.as_deref())
    };
    put(&etc.join("hosts"), &hosts)?;
    put(&etc.join("hostname"), &format!("{hostname}\n"))?;
    let node = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    put(
        &etc.join("resolv.conf"),
        &resolv_conf(spec, namespace, &node, config),
    )
}

/// Written in place: the file is mounted into containers already when it is written again.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text)
}

/// The mounts that show the files in a container, unless it mounts something there itself.
pub(crate) fn mounts(config: &NodeConfig, uid: &str, taken: &[&str]) -> Vec<BindMount> {
    let etc = etc_dir(config, uid);
    ["hosts", "hostname", "resolv.conf"]
        .into_iter()
        .map(|name| (name, format!("/etc/{name}")))
        .filter(|(_, target)| !taken.contains(&target.as_str()))
        .map(|(name, target)| BindMount {
            source: etc.join(name),
            target,
            read_only: false,
            propagation: None,
        })
        .collect()
}

fn hosts(spec: &PodSpec, ips: &[IpAddr], hostname: &str, domain: Option<&str>) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        match domain {
            Some(domain) => text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n")),
            None => text.push_str(&format!("{ip}\t{hostname}\n")),
        }
    }
    text.push_str(&aliases(spec));
    text
}

fn aliases(spec: &PodSpec) -> String {
    let mut lines = String::new();
    for alias in spec.host_aliases.iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        lines.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    if lines.is_empty() {
        lines
    } else {
        format!("\n# Entries added by HostAliases.\n{lines}")
    }
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let rest = words.map(str::to_owned);
        match keyword {
            Some("nameserver") => resolver.servers.extend(rest.take(1)),
            Some("search") => resolver.searches = rest.collect(),
            Some("options") => resolver.options = rest.collect(),
            _ => {}
        }
    }
    resolver
}

/// The resolver configuration by the pod's `dnsPolicy` and `dnsConfig`; `node` is the node's own.
pub(crate) fn resolv_conf(
    spec: &PodSpec,
    namespace: &str,
    node: &str,
    config: &NodeConfig,
) -> String {
    let domain = &config.cluster_domain;
    let host_network = spec.host_network == Some(true);
    let policy = match spec.dns_policy.as_deref() {
        // With the node's network, "ClusterFirst" means "Default".
        Some("ClusterFirst") | None if host_network => "Default",
        Some(policy) => policy,
        None => "ClusterFirst",
    };
    let mut resolver = match policy {
        "None" => Resolver::default(),
        "Default" => parse(node),
        _ => {
            let mut searches = vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.clone(),
            ];
            searches.extend(
                parse(node)
                    .searches
                    .into_iter()
                    .filter(|search| search != "."),
            );
            Resolver {
                servers: vec![config.cluster_dns.to_string()],
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    if let Some(extra) = &spec.dns_config {
        resolver
            .servers
            .extend(extra.nameservers.iter().flatten().cloned());
        resolver
            .searches
            .extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let of_name = |old: &String| old.split(':').next() == Some(name);
            resolver.options.retain(|old| !of_name(old));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    let mut text = String::new();
    let searches = unique(resolver.searches, MAX_SEARCHES);
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in unique(resolver.servers, MAX_SERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !resolver.options.is_empty() {
        text.push_str(&format!("options {}\n", resolver.options.join(" ")));
    }
    text
}

fn unique(all: Vec<String>, limit: usize) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for item in all {
        if !kept.contains(&item) && kept.len() < limit {
            kept.push(item);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::config_in;

    const NODE: &str =
        "# made by hand\nsearch lan.example\nnameserver 192.0.2.53\noptions timeout:1\n";

    fn resolv(spec: serde_json::Value) -> String {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        resolv_conf(&spec, "dev", NODE, &config_in(Path::new("/nowhere")))
    }

    #[test]
    fn cluster_first_asks_the_cluster() {
        assert_eq!(
            resolv(json!({})),
            "search dev.svc.cluster.local svc.cluster.local cluster.local lan.example\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            resolv(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})),
            resolv(json!({}))
        );
    }

    #[test]
    fn the_node_s_own_is_used_for_default_and_host_network() {
        let own = "search lan.example\nnameserver 192.0.2.53\noptions timeout:1\n";
        assert_eq!(resolv(json!({"dnsPolicy": "Default"})), own);
        assert_eq!(
            resolv(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})),
            own
        );
    }

    #[test]
    fn dns_config_adds_and_overrides() {
        let config = json!({"nameservers": ["192.0.2.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        assert_eq!(
            resolv(json!({"dnsPolicy": "None", "dnsConfig": config})),
            "search a.b\nnameserver 192.0.2.1\noptions ndots:2 edns0\n"
        );
        assert!(
            resolv(json!({"dnsConfig": config}))
                .ends_with("nameserver 10.96.0.10\nnameserver 192.0.2.1\noptions ndots:2 edns0\n")
        );
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [], "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}],
        }))
        .unwrap();
        let text = hosts(
            &spec,
            &["10.244.0.5".parse().unwrap()],
            "web",
            Some("sub.dev.svc.cluster.local"),
        );
        assert!(text.contains("10.244.0.5\tweb.sub.dev.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"));
    }

    #[test]
    fn host_names_are_at_most_63_long() {
        let mut pod = crate::testing::pod_named(&"a".repeat(80));
        assert_eq!(hostname(&pod, "n1").len(), 63);
        pod.spec.as_mut().unwrap().hostname = Some("own".to_owned());
        assert_eq!(hostname(&pod, "n1"), "own");
        pod.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(hostname(&pod, "n1"), "n1");
    }
}
