//! The two images of the voting example, built from Debian packages, for machines that reach no public registry.
//!
//! They do the job of the public images and are pushed under the same repository names, so that the public
//! manifest runs without an edit through a registry mirror.

mod oci;
mod recipe;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use recipe::{RECIPES, Recipe};

use crate::{command, paths, setup::apt::PrivateApt};

/// The suite whose packages go into the images; any machine can make them.
const SUITE: &str = "bookworm";

/// Builds what is missing and pushes both to the registry at `registry` (`host:port`, plain HTTP).
pub(crate) fn build_and_push(registry: &str) -> Result<()> {
    for recipe in RECIPES {
        let layout = ensure_built(recipe)?;
        command::output(
            Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--insecure-policy",
                    "--dest-tls-verify=false",
                ])
                .arg(format!("oci:{}:{}", layout.display(), recipe.tag))
                .arg(format!(
                    "docker://{registry}/{}:{}",
                    recipe.repository, recipe.tag
                )),
        )?;
    }
    Ok(())
}

/// Returns the OCI layout of the image, built unless it is there already.
fn ensure_built(recipe: &Recipe) -> Result<PathBuf> {
    let images = paths::tools().join("images");
    let layout = images.join(format!("{}-{}", recipe.name, recipe.fingerprint()));
    if layout.exists() {
        return Ok(layout);
    }
    eprintln!("images: building {} from Debian packages", recipe.name);
    let scratch = images.join(format!("{}.new", recipe.name));
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    let packages =
        PrivateApt::open(&scratch.join("apt"), SUITE)?.download_closure(recipe.packages)?;
    let base = scratch.join("base");
    recipe::unpack_packages(&packages, &base)?;
    let app = scratch.join("app");
    recipe.write_app(&app)?;
    let built = scratch.join("layout");
    oci::write_layout(&built, recipe, &[base, app])?;
    fs::rename(&built, &layout)?;
    fs::remove_dir_all(&scratch)?;
    Ok(layout)
}

/// The files of the page's image, in a new folder `root`.
pub(crate) fn unpack_front(root: &Path) -> Result<PathBuf> {
    let front = RECIPES
        .iter()
        .find(|recipe| recipe.port == 80)
        .context("no recipe of a page")?;
    let layout = ensure_built(front)?;
    fs::create_dir_all(root)?;
    for layer in oci::layer_blobs(&layout)? {
        command::output(
            Command::new("tar")
                .arg("xzf")
                .arg(layer)
                .arg("-C")
                .arg(root),
        )?;
    }
    Ok(root.to_owned())
}
