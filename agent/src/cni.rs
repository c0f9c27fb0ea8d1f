//! `skiff cni`: runs a configuration list by hand, as `cnitool` does. What plugins say, results and errors, goes to
//! stdout as JSON; anything that failed makes the exit code 1.

use std::{
    collections::HashSet,
    io::Write as _,
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use futures::future::join_all;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha512};
use skiff_cni::{
    libcni::{Attachment, AttachmentKey, CniRunner, Conflist, ConflistError, RunnerError},
    types::{CniError, CniVersion, code},
};
use skiff_netns::NodeNetns;

use crate::cli::{CniArgs, CniVerb};

/// Where `ip netns` keeps namespaces.
const NETNS_DIR: &str = "/run/netns";

pub(crate) fn run(args: &CniArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let answers = match Tool::new(args) {
        Ok(tool) => runtime.block_on(tool.run(&args.verb)),
        Err(error) => vec![Err(error.to_json(CniVersion::LATEST))],
    };
    let mut stdout = std::io::stdout().lock();
    for json in answers.iter().flat_map(|answer| match answer {
        Ok(result) => result.as_ref(),
        Err(error) => Some(error),
    }) {
        writeln!(stdout, "{json:#}").context("writing to stdout")?;
    }
    if answers.iter().all(Result::is_ok) {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}

/// What is printed: a result, if there is one, or an error.
type Answer = Result<Option<Value>, Value>;

struct Tool<'a> {
    runner: CniRunner,
    list: Conflist,
    args: &'a CniArgs,
    cni_args: Vec<(String, String)>,
    capability_args: Map<String, Value>,
}

impl<'a> Tool<'a> {
    fn new(args: &'a CniArgs) -> Result<Self, CniError> {
        let cni_args = parse_args(&args.args)?;
        let capability_args = serde_json::from_str(&args.capabilities).map_err(|error| {
            CniError::from_error(code::DECODE, "CAP_ARGS is not a JSON object", &error)
        })?;
        let list = Conflist::load_network(&args.conf_dir, args.network.as_deref())
            .map_err(conflist_error)?;
        let netns = match &args.node_netns {
            Some(path) => NodeNetns::open(netns_path(path)).map_err(|error| {
                CniError::from_error(code::ENVIRONMENT, "the namespace for plugins", &error)
            })?,
            None => NodeNetns::machine(),
        };
        let runner = CniRunner::new(args.plugin_path.clone(), args.cache_dir.clone(), netns);
        Ok(Self {
            runner,
            list,
            args,
            cni_args,
            capability_args,
        })
    }

    async fn run(&self, verb: &CniVerb) -> Vec<Answer> {
        match verb {
            CniVerb::Add { netns } => {
                let add = |attachment: Attachment| async move {
                    let result = self.runner.add(&self.list, &attachment).await?;
                    Ok(Some(result.to_json(self.list.version)))
                };
                self.each(netns, add).await
            }
            CniVerb::Del { netns } => {
                let del = |attachment: Attachment| async move {
                    self.runner.detach(&self.list, &attachment).await?;
                    Ok(None)
                };
                self.each(netns, del).await
            }
            CniVerb::Check { netns } => {
                let check = |attachment| async move {
                    self.check(attachment).await?;
                    Ok(None)
                };
                self.each(netns, check).await
            }
            CniVerb::Gc { netns } => vec![self.told(self.gc(netns).await.map(|()| None))],
            CniVerb::Status => {
                let status = self.runner.status(&self.list).await;
                vec![self.told(status.map(|()| None).map_err(Failure::from))]
            }
        }
    }

    /// Does the same with all namespaces at once.
    async fn each<F>(&self, netns: &[PathBuf], act: impl Fn(Attachment) -> F) -> Vec<Answer>
    where
        F: Future<Output = Result<Option<Value>, Failure>>,
    {
        match self.attachments(netns) {
            Ok(attachments) => {
                let acts = attachments.into_iter().map(|attachment| async {
                    let netns = attachment.netns.clone();
                    let answer = act(attachment).await;
                    self.told(answer).map_err(|error| named(error, &netns))
                });
                join_all(acts).await
            }
            Err(error) => vec![Err(error.to_json(self.list.version))],
        }
    }

    async fn check(&self, attachment: Attachment) -> Result<(), Failure> {
        let list = &self.list;
        if !list.version.has_check() {
            let msg = format!("CNI {} has no CHECK", list.version);
            return Err(CniError::new(code::VERSION, msg).into());
        }
        let attachment = match self.runner.cached(&list.name, &attachment.key()) {
            Some(mut cached) => {
                cached.fill_from(&attachment);
                cached.attachment
            }
            None => attachment,
        };
        Ok(self.runner.check(list, &attachment).await?)
    }

    async fn gc(&self, netns: &[PathBuf]) -> Result<(), Failure> {
        let in_use: HashSet<PathBuf> = netns.iter().map(|path| netns_path(path)).collect();
        // Of what an older libcni cached nobody knows the namespace: that is left alone.
        let is_kept = |Attachment { netns, .. }: &Attachment| {
            netns.as_os_str().is_empty()
                || in_use.contains(netns)
                || (in_use.is_empty() && netns.exists())
        };
        Ok(self.runner.gc_all_but(&self.list, is_kept).await?)
    }

    /// One for each namespace. Two that have one name would undo each other.
    fn attachments(&self, netns: &[PathBuf]) -> Result<Vec<Attachment>, CniError> {
        let attachments = netns.iter().map(|path| self.attachment(path));
        let attachments: Vec<Attachment> = attachments.collect::<Result<_, _>>()?;
        let keys: HashSet<AttachmentKey> = attachments.iter().map(Attachment::key).collect();
        if keys.len() < attachments.len() {
            let msg = "several namespaces of one container: give each once, and a container's id with one only";
            return Err(CniError::environment(msg));
        }
        Ok(attachments)
    }

    fn attachment(&self, netns: &Path) -> Result<Attachment, CniError> {
        let wrong = |error: skiff_cni::types::InvalidName| CniError::environment(error.to_string());
        let netns = netns_path(netns);
        let container_id = match &self.args.container_id {
            Some(id) => id.parse().map_err(wrong)?,
            None => container_id(&netns).parse().map_err(wrong)?,
        };
        Ok(Attachment {
            container_id,
            netns,
            ifname: self.args.ifname.parse().map_err(wrong)?,
            args: self.cni_args.clone(),
            capability_args: self.capability_args.clone(),
        })
    }

    fn told(&self, result: Result<Option<Value>, Failure>) -> Answer {
        result.map_err(|error| error.0.to_json(self.list.version))
    }
}

/// What goes to stdout as the error's object.
struct Failure(CniError);

impl From<CniError> for Failure {
    fn from(error: CniError) -> Self {
        Self(error)
    }
}

impl From<RunnerError> for Failure {
    fn from(error: RunnerError) -> Self {
        Self(error.to_cni())
    }
}

fn conflist_error(error: ConflistError) -> CniError {
    match error {
        ConflistError::Invalid { path, source } => CniError {
            msg: format!("{}: {}", path.display(), source.msg),
            ..source
        },
        ConflistError::Read { .. } => {
            CniError::from_error(code::IO, "the network's configuration", &error)
        }
        _ => CniError::config(error.to_string()),
    }
}

/// Says which of several namespaces an error is about.
fn named(mut error: Value, netns: &Path) -> Value {
    if let Some(Value::String(msg)) = error.get_mut("msg") {
        *msg = format!("{}: {msg}", netns.display());
    }
    error
}

/// `CNI_ARGS`, where each key has a value.
fn parse_args(text: &str) -> Result<Vec<(String, String)>, CniError> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(CniError::environment(format!(
            "CNI_ARGS: {pair:?} is not KEY=VALUE"
        ))),
    });
    pairs.collect()
}

/// A namespace's path: a bare name is one of `ip netns`, unless there is a file of that name here.
fn netns_path(given: &Path) -> PathBuf {
    let mut components = given.components();
    let is_name = matches!(components.next(), Some(Component::Normal(_)))
        && components.next().is_none()
        && !given.exists();
    if is_name {
        return Path::new(NETNS_DIR).join(given);
    }
    std::path::absolute(given).unwrap_or_else(|_no_directory| given.to_owned())
}

/// The name that cnitool gives a container, so that either can detach what the other attached.
fn container_id(netns: &Path) -> String {
    let digest = Sha512::digest(netns.as_os_str().as_encoded_bytes());
    let digits = digest.iter().take(10).map(|byte| format!("{byte:02x}"));
    format!("cnitool-{}", digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_as_cnitool_names_them() {
        // printf %s /var/run/netns/testing | sha512sum | head -c 20
        let id = container_id(Path::new("/var/run/netns/testing"));
        assert_eq!(id, "cnitool-77383ca0a0715733ca6f");
    }

    #[test]
    fn bare_names_are_those_of_ip_netns() {
        let path = |text: &str| netns_path(Path::new(text)).display().to_string();
        assert_eq!(path("skiff-t-none"), "/run/netns/skiff-t-none");
        assert_eq!(path("/var/run/netns/x"), "/var/run/netns/x");
        assert!(path("./skiff-t-none").ends_with("/skiff-t-none"));
        assert!(!path("./skiff-t-none").starts_with("/run/netns"));
    }

    #[test]
    fn arguments_are_pairs() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parse_args("").unwrap(), []);
        let pairs = parse_args("A=1;B=x=y;C=").unwrap();
        assert_eq!(pairs, [pair("A", "1"), pair("B", "x=y"), pair("C", "")]);
        for bad in ["A", "=1", "A=1;B"] {
            assert_eq!(
                parse_args(bad).unwrap_err().code,
                code::ENVIRONMENT,
                "{bad}"
            );
        }
    }
}
