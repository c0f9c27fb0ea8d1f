//! The node's Lease in `kube-node-lease`: its heartbeat.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_client::{chain, is_already_exists, is_not_found};
use tokio_util::sync::CancellationToken;

use crate::context::NodeContext;

const NAMESPACE: &str = "kube-node-lease";
const PERIOD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const DURATION_SECONDS: i32 = 40;

/// Renews the lease every ten seconds until cancelled.
pub(crate) async fn lease_loop(ctx: Arc<NodeContext>, token: CancellationToken) {
    loop {
        let wait = match renew(&ctx, ctx.clock.now()).await {
            Ok(()) => PERIOD,
            Err(error) => {
                tracing::debug!(node = ctx.config.node_name, error = %chain(&error), "renewing the node's lease");
                RETRY
            }
        };
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew(ctx: &NodeContext, now: Timestamp) -> kube::Result<()> {
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), NAMESPACE);
    let name = &ctx.config.node_name;
    let patch = Patch::Merge(json!({ "spec": {
        "holderIdentity": name,
        "leaseDurationSeconds": DURATION_SECONDS,
        "renewTime": MicroTime(now),
    }}));
    match api.patch(name, &PatchParams::default(), &patch).await {
        Err(error) if is_not_found(&error) => {}
        result => return result.map(|_| ()),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        Err(error) if !is_already_exists(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_made_and_renewed_every_ten_seconds() {
        let node = TestNode::new().await;
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
        let task = tokio::spawn(lease_loop(Arc::clone(&node.context), node.token.clone()));
        node.api.until("lease", |api| api.get(path).is_some()).await;
        let spec = |field: &str| node.api.get(path).unwrap()["spec"][field].clone();
        assert_eq!(spec("holderIdentity"), "n1");
        assert_eq!(spec("leaseDurationSeconds"), 40);
        let first = spec("renewTime");
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_ne!(spec("renewTime"), first);
        node.token.cancel();
        task.await.unwrap();
    }
}
