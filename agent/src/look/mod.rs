//! `skiff service` and `skiff trace`: what the node's datapath holds and decides. Reads the pinned tables, so it works
//! while the daemon is down; the API, if it answers, gives the names.

mod names;
mod service;
mod table;
mod trace;

use std::path::PathBuf;

use anyhow::Result;
use names::Names;

pub(crate) use service::run as service;
pub(crate) use trace::run as trace;

use crate::cli::LookArgs;

/// Where the node's pins are.
fn bpffs_dir(args: &LookArgs) -> PathBuf {
    match &args.bpffs_dir {
        Some(dir) => dir.clone(),
        None => args.run_dir.join("bpf"),
    }
}

/// The names, as far as the API tells.
async fn names(args: &LookArgs) -> Names {
    let kubeconfig = match &args.kubeconfig {
        Some(file) => file.clone(),
        None => args.data_dir.join("admin.kubeconfig"),
    };
    Names::fetch(&kubeconfig).await
}

/// Prints a line on stdout. False: nobody reads it any more.
fn say(line: &str) -> Result<bool> {
    use std::io::Write as _;
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
