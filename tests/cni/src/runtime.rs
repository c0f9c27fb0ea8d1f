//! A container runtime as small as can be: it calls the plugins of network lists as libcni does. Ours, the
//! reference's or now one and now the other; that is why it does not use our own libcni.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Map, Value, json};

use crate::{Answer, NO_BUS, TestNetns};

/// A container's interface in one network.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The pod, whose name is the container id.
    pub pod: &'static str,
    /// Which of the lists.
    pub list: usize,
    /// The interface.
    pub ifname: &'static str,
    /// Capability arguments; each plugin gets those that it declares.
    pub capabilities: Value,
    /// `CNI_ARGS`.
    pub args: &'static str,
}

impl Attachment {
    /// `eth0` of a pod in the first network, without arguments.
    #[must_use]
    pub fn new(pod: &'static str) -> Self {
        Self {
            pod,
            list: 0,
            ifname: "eth0",
            capabilities: json!({}),
            args: "",
        }
    }
}

/// A node with network lists, and what earlier ADDs answered.
#[derive(Debug)]
pub struct Runtime<'a> {
    node: &'a TestNetns,
    lists: &'a [Value],
    results: HashMap<(&'static str, &'static str), Value>,
}

impl<'a> Runtime<'a> {
    /// One that has added nothing yet.
    #[must_use]
    pub fn new(node: &'a TestNetns, lists: &'a [Value]) -> Self {
        Self {
            node,
            lists,
            results: HashMap::new(),
        }
    }

    /// Calls all plugins of the attachment's list: DEL in reverse order, anything else in order up to the first
    /// failure.
    pub fn call(
        &mut self,
        plugins: &Path,
        command: &str,
        attachment: &Attachment,
        netns: &Path,
    ) -> Answer {
        let list = &self.lists[attachment.list];
        let key = (attachment.pod, attachment.ifname);
        let version = list["cniVersion"].as_str().unwrap_or_default();
        let mut previous = match command {
            "ADD" => None,
            "DEL" if version < "0.4.0" => None,
            _ => self.results.get(&key).cloned(),
        };
        let mut confs: Vec<&Value> = list["plugins"].as_array().unwrap().iter().collect();
        if command == "DEL" {
            confs.reverse();
        }
        let call = Call {
            node: self.node,
            plugins: plugins.to_owned(),
            command,
            netns: Some(netns),
        };
        let mut last = Answer {
            ok: true,
            json: Value::Null,
        };
        for conf in confs {
            let conf = complete(list, conf, attachment, previous.as_ref());
            last = call.plugin(&conf, attachment);
            if !last.ok {
                return last;
            }
            if command == "ADD" {
                previous = Some(last.json.clone());
            }
        }
        if command == "ADD" {
            self.results.insert(key, last.json.clone());
        }
        last
    }

    /// GC of one list: all but `valid` is garbage.
    #[must_use]
    pub fn gc(&self, plugins: &Path, list: usize, valid: &[&Attachment]) -> Answer {
        let valid: Vec<Value> = valid
            .iter()
            .map(|valid| json!({"containerID": valid.pod, "ifname": valid.ifname}))
            .collect();
        self.all_of(
            plugins,
            "GC",
            list,
            &json!({"cni.dev/valid-attachments": valid}),
        )
    }

    /// STATUS of one list.
    #[must_use]
    pub fn status(&self, plugins: &Path, list: usize) -> Answer {
        self.all_of(plugins, "STATUS", list, &json!({}))
    }

    fn all_of(&self, plugins: &Path, command: &str, list: usize, extra: &Value) -> Answer {
        let list = &self.lists[list];
        let call = Call {
            node: self.node,
            plugins: plugins.to_owned(),
            command,
            netns: None,
        };
        let mut last = Answer {
            ok: true,
            json: Value::Null,
        };
        for conf in list["plugins"].as_array().unwrap() {
            let mut conf = complete(list, conf, &Attachment::new(""), None);
            for (key, value) in extra.as_object().unwrap() {
                conf[key] = value.clone();
            }
            last = call.plugin(&conf, &Attachment::new(""));
            if !last.ok {
                break;
            }
        }
        last
    }
}

/// What a plugin is given: its part of the list, with what the list says of all, and what the runtime adds.
fn complete(
    list: &Value,
    conf: &Value,
    attachment: &Attachment,
    previous: Option<&Value>,
) -> Value {
    let mut conf = conf.clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    conf["name"] = list["name"].clone();
    if let Some(declared) = conf["capabilities"].as_object() {
        let given = attachment.capabilities.as_object().unwrap();
        let wanted: Map<_, _> = given
            .iter()
            .filter(|(name, _)| declared.get(*name) == Some(&Value::Bool(true)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            conf["runtimeConfig"] = Value::Object(wanted);
        }
    }
    if let Some(object) = conf.as_object_mut() {
        object.remove("capabilities");
    }
    if let Some(previous) = previous {
        conf["prevResult"] = previous.clone();
    }
    conf
}

struct Call<'a> {
    node: &'a TestNetns,
    plugins: PathBuf,
    command: &'a str,
    netns: Option<&'a Path>,
}

impl Call<'_> {
    fn plugin(&self, conf: &Value, attachment: &Attachment) -> Answer {
        let mut call = Command::new(self.plugins.join(conf["type"].as_str().unwrap()));
        call.env("CNI_COMMAND", self.command)
            .env("CNI_PATH", &self.plugins)
            .envs([NO_BUS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(netns) = self.netns {
            call.env("CNI_CONTAINERID", attachment.pod)
                .env("CNI_IFNAME", attachment.ifname)
                .env("CNI_NETNS", netns)
                .env("CNI_ARGS", attachment.args);
        }
        let output = self.node.run(|| {
            let mut child = call.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            // A plugin that refuses its environment does not read.
            std::io::Write::write_all(&mut stdin, conf.to_string().as_bytes()).ok();
            drop(stdin);
            child.wait_with_output().unwrap()
        });
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            // Without an answer, what a failing plugin had to say helps; of others it is a warning.
            match String::from_utf8_lossy(&output.stderr).trim() {
                said if !said.is_empty() && !output.status.success() => json!({ "msg": said }),
                _ => Value::Null,
            }
        });
        Answer {
            ok: output.status.success(),
            json,
        }
    }
}
