//! `skiff down`: removes everything that `up` made, in the reverse order. Goes on after an error, reports all.

use std::{collections::HashSet, fs, io, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{cli::NodeArgs, compose, config::NodeSettings, dataplane, lock};

/// How long a running daemon may take to end.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);

/// Ends the daemon if it runs and removes pods, network, kernel programs and folders.
pub(crate) async fn run(mut args: NodeArgs) -> Result<()> {
    // A reboot takes the namespace and all that was in it; then there is no network of the node to remove, and the
    // machine's own must not be taken for it.
    let network_is_gone = args
        .place
        .node_netns
        .as_ref()
        .is_some_and(|path| !path.exists());
    if network_is_gone {
        args.place.node_netns = None;
    }
    let settings = NodeSettings::try_from(args)?;
    let lock = lock::take_over(&settings.place.run_dir, DAEMON_PATIENCE)?;
    let mut problems: Vec<String> = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{what}: {error:#}"));
        }
    };
    attempt("pods", remove_pods(&settings).await);
    attempt("volumes", remove_volumes(&settings));
    attempt("images", release_images(&settings).await);
    if !network_is_gone {
        attempt("network", remove_network(&settings).await);
    }
    attempt(
        "rules of Services",
        dataplane::remove_rules(&settings.place, network_is_gone).await,
    );
    attempt(
        "kernel programs",
        skiff_ebpf_loader::teardown(&settings.place.bpffs_dir).map_err(Into::into),
    );
    attempt("cgroups", remove_cgroups(&settings));
    for dir in [&settings.data_dir, &settings.place.run_dir] {
        attempt("files", remove_dir(dir));
    }
    drop(lock);
    if problems.is_empty() {
        return Ok(());
    }
    bail!("something is left:\n  {}", problems.join("\n  "))
}

async fn remove_pods(settings: &NodeSettings) -> Result<()> {
    let runtime = compose::open_runtime(settings).await?;
    runtime.remove_everything().await.map_err(Into::into)
}

/// Unmounts what pods had in memory.
fn remove_volumes(settings: &NodeSettings) -> Result<()> {
    skiff_node::remove_volumes(&compose::node_config(settings)).map_err(Into::into)
}

/// Unmounts containers' root file systems.
async fn release_images(settings: &NodeSettings) -> Result<()> {
    if !settings.data_dir.join("images").exists() {
        return Ok(());
    }
    let images = compose::open_images(settings, None)?;
    images.sweep_snapshots(&HashSet::new()).await?;
    Ok(())
}

async fn remove_network(settings: &NodeSettings) -> Result<()> {
    let config = compose::node_config(settings);
    let cni = compose::cni_runner(&config);
    Ok(skiff_node::remove_network(&config, &cni).await?)
}

fn remove_cgroups(settings: &NodeSettings) -> Result<()> {
    let cgroups = compose::cgroups(&settings.place)?;
    cgroups.remove_node().map_err(Into::into)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
