//! What whoever runs the node ought to know: Events about it.

use std::error::Error;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use skiff_client::{EventKind, EventRecorder};
use skiff_ebpf_loader::DatapathError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{dataplane::DataplaneError, objects::ServiceName};

/// A table has no room for what the API wants.
const TABLE_FULL: &str = "DatapathTableFull";
/// So many Services at most get an Event of their own each time.
const NAMED: usize = 10;

/// Writes Events.
#[derive(Clone, Debug)]
pub(crate) struct NodeWarnings {
    recorder: EventRecorder,
    node: String,
}

impl NodeWarnings {
    pub(crate) fn start(
        client: Client,
        component: &str,
        node: &str,
        tasks: &mut JoinSet<()>,
        token: &CancellationToken,
    ) -> Self {
        Self {
            recorder: EventRecorder::start(client, component, node, tasks, token),
            node: node.to_owned(),
        }
    }

    /// About the node.
    pub(crate) fn warn(&self, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            // By that `kubectl describe node` finds it, as the kubelet's.
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        self.record(about, reason, message);
    }

    /// About any object.
    pub(crate) fn record(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.recorder
            .record(about, EventKind::Warning, reason, message);
    }

    /// If an error is that a table is full: says so about the node, and about the Services (if any) that are not served.
    pub(crate) fn table_full(
        &self,
        error: &(dyn Error + 'static),
        unserved: impl FnOnce() -> Vec<ServiceName>,
    ) {
        let Some((map, limit)) = full_table(error) else {
            return;
        };
        let text = format!("{map} on node {} is full: {limit} entries", self.node);
        self.warn(TABLE_FULL, text.clone());
        for name in unserved().into_iter().take(NAMED) {
            let about = ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Service".into()),
                namespace: Some(name.namespace.to_string()),
                name: Some(name.name.to_string()),
                ..ObjectReference::default()
            };
            self.record(about, TABLE_FULL, format!("not served: {text}"));
        }
    }
}

/// The table that is full, and its size.
fn full_table(error: &(dyn Error + 'static)) -> Option<(&'static str, u32)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let datapath = match error.downcast_ref() {
            // Transparent: the error inside is none of its sources.
            Some(DataplaneError::Ebpf(datapath)) => Some(datapath),
            _ => error.downcast_ref(),
        };
        if let Some(DatapathError::Full { map, limit }) = datapath {
            return Some((map, *limit));
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_found_among_the_causes() {
        let full = || DatapathError::Full {
            map: "LB_SETS",
            limit: 7,
        };
        assert_eq!(full_table(&full()), Some(("LB_SETS", 7)));
        assert_eq!(
            full_table(&DataplaneError::from(full())),
            Some(("LB_SETS", 7))
        );
        let other = DatapathError::MapShape { map: "LB_SETS" };
        assert_eq!(full_table(&other), None);
    }
}
