//! `skiff service`, `skiff policy` and `skiff trace`: what the node's datapath holds and decides. Reads the pinned tables, so it works
//! while the daemon is down; the API, if it answers, gives the names.

mod names;
mod policies;
mod policy;
mod service;
mod table;
mod trace;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use names::Names;
use policies::Policies;

pub(crate) use policy::run as policy;
pub(crate) use service::run as service;
pub(crate) use trace::run as trace;

use crate::{cli::LookArgs, proxy};

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the node's pins are.
fn bpffs_dir(args: &LookArgs) -> PathBuf {
    match &args.bpffs_dir {
        Some(dir) => dir.clone(),
        None => args.run_dir.join("bpf"),
    }
}

/// Asks the API. Says why if it does not answer; addresses do without names then.
async fn ask<T: Default, F: Future<Output = Result<T>>>(
    args: &LookArgs,
    question: impl FnOnce(kube::Client) -> F,
) -> T {
    let kubeconfig = match &args.kubeconfig {
        Some(file) => file.clone(),
        None => args.data_dir.join("admin.kubeconfig"),
    };
    let asked = async { question(proxy::connect(&kubeconfig).await?).await };
    let result = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(result) => result,
        Err(elapsed) => Err(elapsed).context("asking the API"),
    };
    result.unwrap_or_else(|error| {
        tracing::warn!("no names: {error:#}");
        T::default()
    })
}

/// The names, as far as the API tells.
async fn names(args: &LookArgs) -> Names {
    ask(args, Names::ask).await
}

/// The policies too.
async fn names_and_policies(args: &LookArgs) -> (Names, Policies) {
    ask(args, |client| async {
        Ok((
            Names::ask(client.clone()).await?,
            Policies::ask(client).await?,
        ))
    })
    .await
}

/// The part of an identity of policies that tells it from others.
fn number(identity: u32) -> String {
    format!("{:08x}", identity << 2 >> 2)
}

/// What an IP protocol is called.
fn protocol_name(number: u8) -> String {
    match number {
        1 | 58 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
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
