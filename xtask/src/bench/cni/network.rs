//! One side's network: a node and the list of plugins that a container goes through there.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Bench,
    call::{self, Attachment, Cost, Prepared},
    parse, site,
};

pub(super) const BRIDGE: &str = "br0";
/// Both, the reference of Debian 12 and we, know it.
const VERSION: &str = "1.0.0";

pub(super) struct Network {
    pub(super) node: PathBuf,
    plugins: PathBuf,
    list: Vec<Value>,
}

impl Network {
    /// A fresh node. `list` is what a conflist has under `plugins`.
    pub(super) fn new(
        bench: &Bench<'_>,
        name: &str,
        plugins: &Path,
        list: impl IntoIterator<Item = Value>,
    ) -> Result<Self> {
        let node = bench.site.netns(&format!("{name}-node"))?;
        site::ip(&node, "link set lo up")?;
        let data = bench.site.dir().join(format!("{name}-leases"));
        let list = list.into_iter().map(|mut conf| {
            conf["cniVersion"] = VERSION.into();
            conf["name"] = "bench".into();
            if conf.get("ipam").is_some() {
                conf["ipam"]["dataDir"] = data.display().to_string().into();
            }
            conf
        });
        Ok(Self {
            node,
            plugins: plugins.to_owned(),
            list: list.collect(),
        })
    }

    /// The same with a bridge that exists and has a port already, as any node but a new one has.
    pub(super) fn with_bridge(
        bench: &Bench<'_>,
        name: &str,
        plugins: &Path,
        list: impl IntoIterator<Item = Value>,
    ) -> Result<Self> {
        let network = Self::new(bench, name, plugins, list)?;
        let resident = attachment("resident", &bench.site.netns(&format!("{name}-resident"))?);
        network.add(&resident)?;
        // Once more, so that whatever is made once is made.
        let guest = attachment("guest", &bench.site.netns(&format!("{name}-guest"))?);
        let (_, result) = network.add(&guest)?;
        network.del(&guest, &result)?;
        Ok(network)
    }

    /// ADD through the whole list.
    pub(super) fn add(&self, attachment: &Attachment) -> Result<(Cost, Value)> {
        let mut total = Cost::default();
        let mut result = Value::Null;
        for conf in &self.list {
            let prepared = self.prepare("ADD", conf, attachment, &result)?;
            let (cost, answer) = site::inside(&self.node, || prepared.run())?;
            total = total + cost;
            result = parse(&answer)?;
        }
        Ok((total, result))
    }

    /// DEL, from the list's end.
    pub(super) fn del(&self, attachment: &Attachment, result: &Value) -> Result<Cost> {
        let mut total = Cost::default();
        for conf in self.list.iter().rev() {
            let prepared = self.prepare("DEL", conf, attachment, result)?;
            let (cost, _) = site::inside(&self.node, || prepared.run())?;
            total = total + cost;
        }
        Ok(total)
    }

    /// One call of the first plugin, to be started by the caller.
    pub(super) fn prepare_first(
        &self,
        verb: &str,
        attachment: &Attachment,
        result: &Value,
    ) -> Result<Prepared> {
        ensure!(self.list.len() == 1, "only one plugin can be called so");
        self.prepare(verb, &self.list[0], attachment, result)
    }

    fn prepare(
        &self,
        verb: &str,
        conf: &Value,
        attachment: &Attachment,
        result: &Value,
    ) -> Result<Prepared> {
        let mut conf = conf.clone();
        if !result.is_null() {
            conf["prevResult"] = result.clone();
        }
        let plugin = conf["type"].as_str().unwrap_or_default();
        call::prepare(&self.plugins, plugin, verb, attachment, &conf.to_string())
    }

    /// How many links the node has.
    pub(super) fn links(&self) -> Result<usize> {
        links(&self.node)
    }
}

/// How many links a namespace has.
pub(super) fn links(netns: &Path) -> Result<usize> {
    Ok(site::ip(netns, "-oneline link show")?.lines().count())
}

pub(super) fn attachment(container: &str, netns: &Path) -> Attachment {
    Attachment {
        container: container.to_owned(),
        netns: netns.to_owned(),
        ifname: "eth0",
    }
}

/// Bridge and host-local.
pub(super) fn bridge() -> Value {
    json!({
        "type": "bridge", "bridge": BRIDGE, "isDefaultGateway": true,
        "ipam": host_local(),
    })
}

/// The same, and its containers are seen outside with the node's address.
pub(super) fn bridge_with_masquerade() -> Value {
    let mut conf = bridge();
    conf["ipMasq"] = true.into();
    conf
}

/// One TCP port.
pub(super) fn portmap() -> Value {
    json!({
        "type": "portmap",
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    })
}

pub(super) fn host_local() -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]})
}
