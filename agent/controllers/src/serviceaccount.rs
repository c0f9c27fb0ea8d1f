//! The ServiceAccount controller and the root CA publisher: every namespace has the ServiceAccount
//! `default` and, if a CA is given, the ConfigMap `kube-root-ca.crt`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use skiff_client::{Key, WorkQueue, is_already_exists, is_not_found, run_workers, status_code};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::errors::{Context, ControllerError};
use crate::informers::ROOT_CA_CONFIG_MAP;

const DEFAULT_ACCOUNT: &str = "default";
const CA_KEY: &str = "ca.crt";
const CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver \
     when using internal endpoints such as the internal service IP or \
     kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.";

pub(crate) async fn run(shared: Arc<Shared>, token: CancellationToken) {
    let queue = WorkQueue::new();
    let informers = &shared.informers;
    let add = queue.clone();
    informers
        .namespaces
        .on_change(move |change| add.add(Key::of(&**change.object())));
    let add = queue.clone();
    informers.service_accounts.on_change(move |change| {
        add.add(Key::new(
            "",
            change
                .object()
                .metadata
                .namespace
                .clone()
                .unwrap_or_default(),
        ));
    });
    let add = queue.clone();
    informers.root_cas.on_change(move |change| {
        add.add(Key::new(
            "",
            change
                .object()
                .metadata
                .namespace
                .clone()
                .unwrap_or_default(),
        ));
    });
    if !crate::synced(&shared, &token).await {
        return;
    }
    run_workers("serviceaccount", queue, 1, token, move |key| {
        let shared = Arc::clone(&shared);
        async move { reconcile(&shared, &key).await }
    })
    .await;
}

async fn reconcile(shared: &Shared, key: &Key) -> Result<Option<Duration>, ControllerError> {
    let Some(namespace) = shared.informers.namespaces.get(key) else {
        return Ok(None);
    };
    if namespace.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let name = &key.name;
    if shared
        .informers
        .service_accounts
        .get(&Key::new(name, DEFAULT_ACCOUNT))
        .is_none()
    {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT_ACCOUNT.to_owned()),
                namespace: Some(name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(shared.client.clone(), name);
        unless_there(api.create(&PostParams::default(), &account).await)
            .context("create service account default in", name)?;
    }
    if let Some(ca) = &shared.config.cluster_ca_pem {
        publish_root_ca(shared, name, ca).await?;
    }
    Ok(None)
}

async fn publish_root_ca(
    shared: &Shared,
    namespace: &str,
    ca: &str,
) -> Result<(), ControllerError> {
    let data = BTreeMap::from([(CA_KEY.to_owned(), ca.to_owned())]);
    let api: Api<ConfigMap> = Api::namespaced(shared.client.clone(), namespace);
    match shared
        .informers
        .root_cas
        .get(&Key::new(namespace, ROOT_CA_CONFIG_MAP))
    {
        Some(there) if there.data.as_ref() == Some(&data) => Ok(()),
        Some(there) => {
            let mut map = (*there).clone();
            map.data = Some(data);
            let result = api
                .replace(ROOT_CA_CONFIG_MAP, &PostParams::default(), &map)
                .await;
            result.map(|_| ()).context("update root CA of", namespace)
        }
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(ROOT_CA_CONFIG_MAP.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    annotations: Some(BTreeMap::from([(
                        "kubernetes.io/description".to_owned(),
                        CA_DESCRIPTION.to_owned(),
                    )])),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            unless_there(api.create(&PostParams::default(), &map).await)
                .context("create root CA of", namespace)
        }
    }
}

/// Being there already, or the namespace being on its way out, is as good as done.
fn unless_there<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(error)
            if !is_already_exists(&error)
                && !is_not_found(&error)
                && status_code(&error) != Some(403) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
