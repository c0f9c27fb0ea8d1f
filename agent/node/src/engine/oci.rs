//! [`SpecBuilder`] over `skiff-spec`, with users looked up in the root filesystem by `skiff-image`.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use skiff_client::chain;
use skiff_spec::{
    Architecture, ImageDefaults, MountInput, Propagation, SandboxPaths, SpecError, SpecInput, User,
    build_spec, user_to_resolve,
};

use super::{BindMount, SpecBuilder, SpecRefused, SpecRequest};

/// Makes specs for this machine.
pub(crate) struct OciSpecs {
    node_memory_bytes: u64,
}

impl OciSpecs {
    pub(crate) fn new(node_memory_bytes: u64) -> Self {
        Self { node_memory_bytes }
    }
}

fn refused(error: &SpecError) -> SpecRefused {
    SpecRefused {
        reason: error.reason(),
        message: chain(error).to_string(),
    }
}

fn mount(bind: &BindMount) -> MountInput {
    MountInput {
        source: bind.source.clone(),
        destination: PathBuf::from(&bind.target),
        read_only: bind.read_only,
        propagation: match bind.propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::None,
        },
        ..MountInput::default()
    }
}

impl SpecBuilder for OciSpecs {
    fn build(&self, request: &SpecRequest<'_>) -> Result<Spec, SpecRefused> {
        let user = user_to_resolve(request.pod, request.container, &request.image.user)
            .map_err(|error| refused(&error))?;
        let user =
            skiff_image::resolve_user(request.rootfs, &user).map_err(|error| SpecRefused {
                reason: "CreateContainerConfigError",
                message: chain(&error).to_string(),
            })?;
        let input = SpecInput {
            pod: request.pod,
            container: request.container,
            image: ImageDefaults {
                entrypoint: request.image.entrypoint.clone(),
                cmd: request.image.cmd.clone(),
                env: request.image.env.clone(),
                working_dir: request.image.working_dir.clone(),
            },
            user: User {
                uid: user.uid,
                gid: user.gid,
                additional_gids: user.additional_gids,
                home: user.home,
            },
            env: request.env.clone(),
            hostname: request.hostname.clone(),
            mounts: request.mounts.iter().map(mount).collect(),
            rootfs: request.rootfs,
            // The runtime knows its cgroup root and the sandbox's namespaces and puts them in.
            cgroup_path: Path::new("/"),
            namespaces: SandboxPaths::default(),
            node_memory_bytes: self.node_memory_bytes,
            pids_limit: None,
            devices: Vec::new(),
            architecture: Architecture::current(),
        };
        build_spec(&input).map_err(|error| refused(&error))
    }
}
