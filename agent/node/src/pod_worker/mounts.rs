//! What a container sees of the pod's volumes and of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;
use skiff_client::chain;

use super::files;
use crate::NodeConfig;
use crate::engine::BindMount;
use crate::env::expand;
use crate::volumes::resolve_subpath;

/// A volume mount before its `subPath` is looked up on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedMount {
    place: PathBuf,
    subpath: Option<String>,
    target: String,
    read_only: bool,
    propagation: Option<String>,
}

/// The container's volume mounts; those of volumes that only show objects are read-only. Pure.
pub(super) fn plan(
    container: &Container,
    places: &BTreeMap<String, PathBuf>,
    shown: &BTreeSet<String>,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<PlannedMount>, String> {
    let mut planned = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let place = places
            .get(&mount.name)
            .ok_or_else(|| format!("mount {:?}: volume not found", mount.name))?;
        let expression = mount
            .sub_path_expr
            .as_deref()
            .filter(|text| !text.is_empty());
        let subpath = match expression {
            Some(expression) => Some(expand(expression, &lookup)),
            None => mount.sub_path.clone().filter(|text| !text.is_empty()),
        };
        planned.push(PlannedMount {
            place: place.clone(),
            subpath,
            target: mount.mount_path.clone(),
            read_only: mount.read_only == Some(true) || shown.contains(&mount.name),
            propagation: mount.mount_propagation.clone(),
        });
    }
    Ok(planned)
}

/// All bind mounts of the container. Blocking.
pub(super) fn resolve(
    config: &NodeConfig,
    uid: &str,
    container: &Container,
    planned: Vec<PlannedMount>,
    termination: &Path,
) -> Result<Vec<BindMount>, (&'static str, String)> {
    let mut binds = Vec::new();
    let refused = |error: &(dyn std::error::Error + 'static)| {
        ("CreateContainerConfigError", chain(error).to_string())
    };
    for mount in planned {
        let source = match &mount.subpath {
            Some(subpath) => {
                resolve_subpath(&mount.place, subpath).map_err(|error| refused(&error))?
            }
            None => mount.place,
        };
        binds.push(BindMount {
            source,
            target: mount.target,
            read_only: mount.read_only,
            propagation: mount.propagation,
        });
    }
    let taken: Vec<String> = binds.iter().map(|bind| bind.target.clone()).collect();
    let taken: Vec<&str> = taken.iter().map(String::as_str).collect();
    binds.extend(files::mounts(config, uid, &taken));
    let target = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    if !taken.contains(&target) {
        let make = || -> std::io::Result<()> {
            if let Some(parent) = termination.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(termination, b"")?;
            // Whatever user the container runs as may write it.
            fs::set_permissions(termination, fs::Permissions::from_mode(0o666))
        };
        make().map_err(|error| refused(&error))?;
        binds.push(BindMount {
            source: termination.to_owned(),
            target: target.to_owned(),
            read_only: false,
            propagation: None,
        });
    }
    Ok(binds)
}
