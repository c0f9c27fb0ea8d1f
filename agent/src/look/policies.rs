//! The policies that the API has, and the pods that they select.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use skiff_service_proxy::policy::{PodInfo, PolicyInfo};

/// As the API has them; by `NAMESPACE/NAME`.
#[derive(Debug, Default)]
pub(super) struct Policies {
    pub(super) all: BTreeMap<String, PolicyInfo>,
    pub(super) pods: BTreeMap<String, PodInfo>,
}

impl Policies {
    pub(super) async fn ask(client: Client) -> Result<Self> {
        let everything = ListParams::default();
        let policies = Api::<NetworkPolicy>::all(client.clone());
        let policies = policies.list(&everything).await?;
        let pods = Api::<Pod>::all(client).list(&everything).await?;
        let name = |namespace: Option<String>, name| {
            format!("{}/{name}", namespace.as_deref().unwrap_or_default())
        };
        let policies = policies.items.iter().map(|policy| {
            let name = name(policy.namespace(), policy.name_any());
            (name, PolicyInfo::of(policy))
        });
        let pods = pods.items.iter().filter_map(|pod| {
            let name = name(pod.namespace(), pod.name_any());
            Some((name, PodInfo::of(pod)?))
        });
        Ok(Self {
            all: policies.collect(),
            pods: pods.collect(),
        })
    }

    /// The pods that a policy selects.
    pub(super) fn selected<'a>(&'a self, policy: &'a PolicyInfo) -> impl Iterator<Item = &'a str> {
        let pods = self.pods.iter();
        pods.filter(|(name, pod)| selects(policy, name, pod))
            .map(|(name, _)| name.as_str())
    }

    /// The policies that select a pod.
    pub(super) fn selecting<'a>(
        &'a self,
        pod: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a PolicyInfo)> {
        let info = self.pods.get(pod);
        let policies = self.all.iter();
        policies
            .filter(move |(_, policy)| info.is_some_and(|info| selects(policy, pod, info)))
            .map(|(name, policy)| (name.as_str(), policy))
    }

    /// The addresses of a pod.
    pub(super) fn addrs(&self, pod: &str) -> &[IpAddr] {
        self.pods.get(pod).map_or(&[], |info| &info.addrs)
    }
}

fn selects(policy: &PolicyInfo, name: &str, pod: &PodInfo) -> bool {
    let namespace = name.split_once('/').map(|(namespace, _)| namespace);
    namespace == Some(&*policy.namespace) && policy.subject.matches(&pod.labels)
}

/// `ingress`, `egress` or both.
pub(super) fn directions(policy: &PolicyInfo) -> String {
    let ingress = policy.ingress.as_ref().map(|_| "ingress");
    let egress = policy.egress.as_ref().map(|_| "egress");
    let both: Vec<&str> = ingress.into_iter().chain(egress).collect();
    both.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_selects_pods_of_its_own_namespace() {
        let policy = json!({
            "metadata": {"namespace": "shop", "name": "p"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress", "Ingress"]},
        });
        let pod = json!({
            "metadata": {"uid": "1", "labels": {"app": "web"}},
            "spec": {"containers": []},
            "status": {"podIPs": [{"ip": "10.244.0.7"}]},
        });
        let pod = PodInfo::of(&serde_json::from_value(pod).unwrap()).unwrap();
        let policy = PolicyInfo::of(&serde_json::from_value(policy).unwrap());
        assert_eq!(directions(&policy), "ingress,egress");
        let policies = Policies {
            all: [("shop/p".to_owned(), policy.clone())].into(),
            pods: ["shop/a", "other/a"]
                .map(|name| (name.to_owned(), pod.clone()))
                .into(),
        };
        let selected: Vec<&str> = policies.selected(&policy).collect();
        assert_eq!(selected, ["shop/a"]);
        let selecting = |pod| policies.selecting(pod).count();
        assert_eq!((selecting("shop/a"), selecting("other/a")), (1, 0));
        assert_eq!(policies.addrs("shop/a"), [IpAddr::from([10, 244, 0, 7])]);
    }
}
