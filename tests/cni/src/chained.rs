//! A container with a link, made by ptp, on which a plugin works that comes later in the list.

use serde_json::{Value, json};

use crate::{Answer, Bench, TestNetns, traffic::after};

/// The container `a`, and the plugin.
#[derive(Debug)]
pub struct Chained {
    /// The node.
    pub bench: Bench,
    /// The container's namespace.
    pub pod: TestNetns,
    /// What ptp answered.
    pub first: Answer,
    plugin: &'static str,
}

impl Chained {
    /// A fresh one, with an address of each family and an MTU of 1400.
    #[must_use]
    pub fn new(plugin: &'static str) -> Self {
        let bench = Bench::new();
        let pod = TestNetns::new("pod");
        let conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "ptp", "mtu": 1400,
            "ipam": {
                "type": "host-local", "dataDir": bench.dir.path().join("networks"),
                "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        });
        let first = bench.add(&conf, "a", &pod);
        Self {
            bench,
            pod,
            first,
            plugin,
        }
    }

    /// The plugin's configuration, as it is called after ptp.
    #[must_use]
    pub fn conf(&self, keys: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": self.plugin,
            "dataDir": self.bench.dir.path().join(self.plugin),
        });
        for (key, value) in keys.as_object().unwrap() {
            conf[key] = value.clone();
        }
        after(&self.first, &conf)
    }

    /// ADD that must succeed.
    #[track_caller]
    pub fn add(&self, keys: &Value) -> Answer {
        self.bench.add(&self.conf(keys), "a", &self.pod)
    }

    /// CHECK.
    #[must_use]
    pub fn check(&self, keys: &Value) -> Answer {
        let conf = self.conf(keys);
        self.bench.call("CHECK", &conf, "a", self.pod.path())
    }

    /// DEL that must succeed.
    #[track_caller]
    pub fn del(&self, keys: &Value) {
        self.bench.del(&self.conf(keys), "a", &self.pod);
    }
}
