//! One case of a test: a namespace of its own in a shared cluster, and the words that cases are told in.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Deserializer, Value, json};

use crate::Cluster;

/// How long anything may take that a case waits for; a machine under load included.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The voting page's image: Python, dash and coreutils; runs as root.
pub const PYTHON: &str = "mcr.microsoft.com/azuredocs/azure-vote-front:v1";

/// The database's image: Redis, dash and coreutils; runs as user 1001.
pub const REDIS: &str = "mcr.microsoft.com/oss/bitnami/redis:6.0.8";

/// A namespace of a cluster; deleted when the case ends.
#[derive(Debug)]
pub struct Scene<'a> {
    cluster: &'a Cluster,
    namespace: String,
}

/// A case: what it shows, and the code.
pub type Case = (&'static str, fn(&Scene<'_>) -> Result<()>);

/// Runs every case, a few at a time because most of a case is waiting; each in a namespace named after it.
///
/// # Errors
/// Naming all cases that failed, each with its error.
pub fn play(cluster: &Cluster, cases: &[Case]) -> Result<()> {
    const AT_ONCE: usize = 4;
    let only = std::env::var("SKIFF_TEST_CASE").ok();
    let chosen = |case: &&Case| only.as_ref().is_none_or(|only| case.0.contains(only));
    let (queue, cases_left) = mpsc::channel();
    for case in cases.iter().filter(chosen) {
        queue.send(*case)?;
    }
    drop(queue);
    let cases_left = std::sync::Mutex::new(cases_left);
    let next = || cases_left.lock().ok()?.try_recv().ok();
    let (told, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let told = told.clone();
            scope.spawn(move || {
                while let Some((name, run)) = next() {
                    let result = Scene::open(cluster, name).and_then(|scene| run(&scene));
                    told.send((name, result)).ok();
                }
            });
        }
    });
    drop(told);
    let mut failures = String::new();
    for (name, result) in outcomes {
        if let Err(error) = result {
            writeln!(failures, "\n=== {name}\n{error:#}")?;
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

impl<'a> Scene<'a> {
    /// Makes the namespace.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = name.replace([' ', '_'], "-").to_lowercase();
        cluster
            .kubectl()
            .run(&["create", "namespace", &namespace])?;
        Ok(Self { cluster, namespace })
    }

    /// The cluster that the case shares with others.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// The namespace's name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn spell<'b>(&'b self, args: &[&'b str]) -> Vec<&'b str> {
        [&["-n", self.namespace.as_str()], args].concat()
    }

    /// kubectl in the namespace; its stdout.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl().run(&self.spell(args))
    }

    /// kubectl in the namespace, expecting failure; its stderr.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn fails(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl().fails(&self.spell(args))
    }

    /// kubectl in the namespace with something on stdin, however it ends.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn feed(&self, args: &[&str], stdin: &[u8]) -> Result<Output> {
        let mut command = self.cluster.kubectl().command();
        command.args(self.spell(args));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut pipe = child.stdin.take().context("no stdin")?;
        pipe.write_all(stdin)?;
        drop(pipe);
        Ok(child.wait_with_output()?)
    }

    /// `kubectl apply` of one object or a JSON array of them.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn apply(&self, objects: &Value) -> Result<()> {
        let documents = match objects {
            Value::Array(items) => items.iter().map(Value::to_string).collect(),
            one => vec![one.to_string()],
        };
        let text = documents.join("\n");
        let output = self.feed(&["apply", "-f", "-"], text.as_bytes())?;
        ensure!(output.status.success(), "kubectl apply: {output:?}");
        Ok(())
    }

    /// One object, or a list of them.
    ///
    /// # Errors
    /// If it is not there.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let args = [&["get"], args].concat();
        self.cluster.kubectl().json(&self.spell(&args))
    }

    /// Follows an object (there or not yet there) until it is as wanted: a watch, not a poll.
    ///
    /// # Errors
    /// After [`PATIENCE`], with the object as it was last.
    pub fn until(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.follow(kind, &format!("metadata.name={name}"), what, wanted)
    }

    /// Follows the objects that a field selector finds until one is as wanted.
    ///
    /// # Errors
    /// After [`PATIENCE`], with the object that was seen last.
    pub fn follow(
        &self,
        kind: &str,
        selector: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let timeout = format!("--request-timeout={}s", PATIENCE.as_secs());
        let field = format!("--field-selector={selector}");
        let mut command = self.cluster.kubectl().command();
        command.args(self.spell(&["get", kind, &field, "--watch", "-o", "json", &timeout]));
        let mut watch = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = watch.stdout.take().context("no stdout")?;
        let mut last = Value::Null;
        let mut found = None;
        for object in Deserializer::from_reader(std::io::BufReader::new(stdout))
            .into_iter::<Value>()
            .map_while(Result::ok)
        {
            if wanted(&object) {
                found = Some(object);
                break;
            }
            last = object;
        }
        watch.kill().ok();
        let ended = watch.wait_with_output()?;
        found.with_context(|| {
            let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
            format!("{kind} {selector}: {what}: not seen; {complaint}last: {last:#}")
        })
    }

    /// Waits until a pod is as wanted.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn pod(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.until("pods", name, what, wanted)
    }

    /// Waits until a pod is Ready.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn ready(&self, name: &str) -> Result<Value> {
        self.pod(name, "Ready", |pod| condition(pod, "Ready") == "True")
    }

    /// Waits until a pod has ended in this phase.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn phase(&self, name: &str, phase: &str) -> Result<Value> {
        self.pod(name, phase, |pod| pod["status"]["phase"] == phase)
    }

    /// Waits for an event about an object.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    pub fn event(&self, about: &str, reason: &str, message: &str) -> Result<Value> {
        let selector = format!("involvedObject.name={about},reason={reason}");
        self.follow("events", &selector, message, |event| {
            event["message"]
                .as_str()
                .unwrap_or_default()
                .contains(message)
        })
    }

    /// `kubectl exec` in a pod's first container; its stdout.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.run(&[&["exec", pod, "--"], command].concat())
    }

    /// `kubectl exec` of a shell script.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.exec(pod, &["sh", "-c", script])
    }

    /// `kubectl exec` of a Python program.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn python(&self, pod: &str, program: &str) -> Result<String> {
        self.exec(pod, &["python3", "-c", program])
    }

    /// `kubectl logs` of a pod, with more arguments.
    ///
    /// # Errors
    /// With both outputs, if it fails.
    pub fn logs(&self, pod: &str, args: &[&str]) -> Result<String> {
        self.run(&[&["logs", pod], args].concat())
    }

    /// Deletes a pod and waits until it is gone.
    ///
    /// # Errors
    /// If it stays.
    pub fn delete_pod(&self, name: &str, args: &[&str]) -> Result<()> {
        let delete = ["delete", "pod", name, "--timeout=90s"];
        self.run(&[&delete, args].concat()).map(drop)
    }
}

impl Drop for Scene<'_> {
    #[expect(
        clippy::print_stderr,
        reason = "the case's own result must not be hidden by that of cleaning up"
    )]
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.namespace, "--wait=false"];
        if let Err(error) = self.cluster.kubectl().run(&delete) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

/// Status of a condition of an object, empty if it has none of that type.
#[must_use]
pub fn condition<'v>(object: &'v Value, kind: &str) -> &'v str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// Status of a container of a pod, null if it has none.
#[must_use]
pub fn container<'v>(pod: &'v Value, name: &str) -> &'v Value {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let statuses = lists
        .iter()
        .filter_map(|list| pod["status"][*list].as_array());
    statuses
        .flatten()
        .find(|status| status["name"] == name)
        .unwrap_or(&Value::Null)
}

/// A pod that is killed at once when it is deleted, labelled `app: NAME`. `spec` may say more or otherwise.
#[must_use]
pub fn pod(name: &str, spec: Value) -> Value {
    let mut whole = json!({"terminationGracePeriodSeconds": 0});
    if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
        whole.extend(spec);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": whole,
    })
}

/// A container of the Python image that runs a command. `more` may say more or otherwise.
#[must_use]
pub fn runs(name: &str, command: &[&str], more: Value) -> Value {
    let mut container = json!({"name": name, "image": PYTHON, "command": command});
    if let (Some(container), Value::Object(more)) = (container.as_object_mut(), more) {
        container.extend(more);
    }
    container
}

/// A container that runs a shell script.
#[must_use]
pub fn script(name: &str, script: &str) -> Value {
    runs(name, &["sh", "-c", script], json!({}))
}

/// A pod of one container, `c`, that runs a shell script.
#[must_use]
pub fn script_pod(name: &str, text: &str) -> Value {
    pod(name, json!({"containers": [script("c", text)]}))
}

/// Bails unless `text` has `part`.
///
/// # Errors
/// With both.
pub fn has(text: &str, part: &str) -> Result<()> {
    if !text.contains(part) {
        bail!("{part:?} is missing in:\n{text}");
    }
    Ok(())
}
