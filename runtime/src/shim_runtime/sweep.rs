//! Removing what no pod owns, and everything.

use std::{collections::HashSet, sync::Arc};

use super::{ShimRuntime, directories};
use crate::RuntimeError;

impl ShimRuntime {
    /// Removes every sandbox whose pod is not in `keep`: shim, namespaces, cgroups, directory. Finds them by
    /// their directories and by their cgroups, so that none is missed of which only one is left.
    ///
    /// # Errors
    /// The first [`RuntimeError`], after all were tried.
    pub async fn sweep(&self, keep: &HashSet<String>) -> Result<(), RuntimeError> {
        let shared = Arc::clone(&self.shared);
        let mut found: HashSet<String> = directories(&shared.config.run_dir.join("pods"))?
            .into_iter()
            .collect();
        found.extend(shared.cgroups.pods());
        let mut result = Ok(());
        for uid in found.difference(keep) {
            if let Err(error) = self.unmake_sandbox(uid).await {
                tracing::warn!(pod_uid = uid, %error, "sweeping a sandbox");
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Removes every sandbox and the node's own cgroups, for `skiff down`.
    ///
    /// # Errors
    /// The first [`RuntimeError`], after all were tried.
    pub async fn remove_everything(&self) -> Result<(), RuntimeError> {
        let result = self.sweep(&HashSet::new()).await;
        self.shared.cgroups.remove_empty_parents();
        result
    }
}
