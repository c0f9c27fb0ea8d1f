//! Where things are.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Tools that `setup` makes and that belong to nobody else; `SKIFF_TOOLS` moves it.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("SKIFF_TOOLS").map_or_else(|| root().join(".tools"), PathBuf::from)
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the built binaries are. The target is named in `.cargo/config.toml`, so they lie one folder deeper.
pub(crate) fn binaries(release: bool) -> PathBuf {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    target()
        .join(triple)
        .join(if release { "release" } else { "debug" })
}

/// The kubectl of `setup`.
pub(crate) fn kubectl() -> PathBuf {
    tools().join("kubectl/usr/bin/kubectl")
}

/// The reference CNI plugins of `setup`.
pub(crate) fn cni_reference() -> PathBuf {
    tools().join("cni-reference")
}
