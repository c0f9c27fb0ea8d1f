//! Writes an OCI image layout.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::recipe::Recipe;
use crate::setup::hex;

/// What a descriptor needs to know of a blob.
struct Blob {
    digest: String,
    size: u64,
}

/// Writes the layout of an image whose layers are the folders `layers`, lowest first.
pub(super) fn write_layout(layout: &Path, recipe: &Recipe, layers: &[PathBuf]) -> Result<()> {
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::write(
        layout.join("oci-layout"),
        json!({"imageLayoutVersion": "1.0.0"}).to_string(),
    )?;
    let mut diff_ids = Vec::new();
    let mut descriptors = Vec::new();
    for layer in layers {
        let (blob, diff_id) = write_layer(layout, layer)?;
        descriptors.push(descriptor(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &blob,
        ));
        diff_ids.push(diff_id);
    }
    let config = write_json(layout, &config(recipe, &diff_ids))?;
    let manifest = write_json(
        layout,
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": descriptors,
        }),
    )?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": recipe.tag});
    fs::write(
        layout.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
    )?;
    Ok(())
}

/// The files of a layout's layers, lowest first.
pub(super) fn layer_blobs(layout: &Path) -> Result<Vec<PathBuf>> {
    let blob = |digest: &Value| {
        let sum = digest
            .as_str()
            .and_then(|digest| digest.strip_prefix("sha256:"));
        sum.map(|sum| layout.join("blobs/sha256").join(sum))
            .context("a descriptor without a digest")
    };
    let read = |path: &Path| Ok::<Value, anyhow::Error>(serde_json::from_slice(&fs::read(path)?)?);
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0]["digest"])?)?;
    manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|layer| blob(&layer["digest"]))
        .collect()
}

fn config(recipe: &Recipe, diff_ids: &[String]) -> Value {
    let port = format!("{}/tcp", recipe.port);
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": recipe.user,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": recipe.entrypoint,
            "WorkingDir": recipe.workdir,
            "ExposedPorts": {port: {}},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// As Go, and so OCI, names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
}

fn write_json(layout: &Path, value: &Value) -> Result<Blob> {
    let bytes = value.to_string().into_bytes();
    let sum = hex(&Sha256::digest(&bytes));
    fs::write(layout.join("blobs/sha256").join(&sum), &bytes)?;
    Ok(Blob {
        digest: format!("sha256:{sum}"),
        size: bytes.len().try_into()?,
    })
}

/// Returns the compressed blob and the digest of the uncompressed tar.
fn write_layer(layout: &Path, folder: &Path) -> Result<(Blob, String)> {
    let blobs = layout.join("blobs/sha256");
    let temporary = blobs.join("layer.new");
    let compressed = Hashing::new(File::create(&temporary)?);
    let gzip = GzEncoder::new(compressed, Compression::fast());
    let mut tar = tar::Builder::new(Hashing::new(gzip));
    tar.follow_symlinks(false);
    tar.append_dir_all(".", folder)?;
    let (gzip, diff_id) = tar.into_inner()?.finish();
    let (file, sum) = gzip.finish()?.finish();
    file.sync_all()?;
    let size = file.metadata()?.len();
    fs::rename(&temporary, blobs.join(&sum))?;
    Ok((
        Blob {
            digest: format!("sha256:{sum}"),
            size,
        },
        format!("sha256:{diff_id}"),
    ))
}

/// Hashes what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn finish(self) -> (W, String) {
        (self.inner, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
