//! What a case works with: names, addresses and ports of its own, objects that go with it, clients.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use skiff_test_harness::probe::{
    Probe,
    protocol::{Answer, Command, How},
};

use crate::{
    api::{Api, Kind},
    proxy::Proxy,
    site::Site,
    who::{Client, Ep, Family, TARGET, Who, at, bridge_address, net, node_address},
};

/// How long anything may take that a case waits for; a machine under load included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// After so long without an answer there is none.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);
/// The port of most frontends.
pub(crate) const PORT: u16 = 80;

/// So many cases have addresses in the first row of each network.
const CASES_ABREAST: u16 = 250;

/// What all cases of a run share.
pub(crate) struct Run {
    pub(crate) site: Site,
    pub(crate) api: Api,
}

/// One of those that play cases at the same time: its clients, and the Service by which it knows how far the proxy is.
pub(crate) struct Player<'a> {
    run: &'a Run,
    number: u8,
    clients: BTreeMap<Client, Probe>,
    rounds: BTreeMap<Family, u16>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(run: &'a Run, number: u8) -> Result<Self> {
        let player = Self {
            run,
            number,
            clients: BTreeMap::new(),
            rounds: BTreeMap::new(),
        };
        run.api.create_namespace(&player.namespace())?;
        Ok(player)
    }

    fn namespace(&self) -> String {
        format!("player-{}", self.number)
    }

    fn tell(&mut self, client: Client, command: &Command) -> Result<Answer> {
        let probe = match self.clients.entry(client) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(self.run.site.client(client)?)
            }
        };
        probe.tell(command)
    }

    /// Waits until the proxy has taken in everything that was written until now. A Service of the player's own gets
    /// another backend and another port: each watch keeps its order, so when the new port leads to the new backend, both
    /// watches have come so far.
    fn settle(&mut self, family: Family) -> Result<()> {
        let round = self.rounds.get(&family).copied().unwrap_or(0) + 1;
        self.rounds.insert(family, round);
        let (api, namespace) = (&self.run.api, self.namespace());
        let name = format!("canary-{}", family.text().to_lowercase());
        let backend = if round % 2 == 0 { Who::B0 } else { Who::B1 };
        let address = family.address(net::SERVICES, 255, self.number);
        let endpoints = json!([at(backend).object(family)]);
        let ports = json!([{"port": round, "targetPort": TARGET, "protocol": "TCP"}]);
        if round == 1 {
            let slice = slice_object(&name, &name, family, json!([{"port": TARGET}]), endpoints);
            api.create(Kind::Slice, &namespace, slice)?;
            let spec = json!({"clusterIP": address.to_string(), "ports": ports});
            api.create(Kind::Service, &namespace, service_object(&name, &spec))?;
        } else {
            let change = json!({"endpoints": endpoints});
            api.patch(Kind::Slice, &namespace, &name, &change)?;
            let change = json!({"spec": {"ports": ports}});
            api.patch(Kind::Service, &namespace, &name, &change)?;
        }
        let ask = Command::Ask {
            how: How::Tcp,
            addr: (address, round).into(),
            from: None,
            times: 1,
            patience_ms: 50,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.tell(Client::Host, &ask)?;
            if answer.names.contains_key(&backend.on(TARGET)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the proxy has not taken in all changes within {PATIENCE:?}: {answer:?}");
            }
            thread::sleep(Duration::from_millis(3));
        }
    }
}

/// Where a case asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// The ClusterIP.
    Vip,
    /// The NodePort, on the address of the node's uplink.
    NodePort,
    /// The NodePort, on the address of the node's bridge.
    Bridge,
    /// The NodePort, on the loopback address.
    Loopback,
    /// An external IP.
    External,
    /// An address of a load balancer.
    Balancer,
}

/// One case being played.
pub(crate) struct Stage<'s, 'p> {
    player: &'s mut Player<'p>,
    /// The proxy, for a case that is alone with it.
    pub(crate) proxy: Option<&'s mut Proxy>,
    number: u16,
    namespace: String,
    pub(crate) family: Family,
    pub(crate) how: How,
    made: Vec<(Kind, String)>,
}

impl<'s, 'p> Stage<'s, 'p> {
    pub(crate) fn open(
        player: &'s mut Player<'p>,
        proxy: Option<&'s mut Proxy>,
        number: u16,
        (family, how): (Family, How),
    ) -> Result<Self> {
        let namespace = format!("case-{number}");
        player.run.api.create_namespace(&namespace)?;
        Ok(Self {
            player,
            proxy,
            number,
            namespace,
            family,
            how,
            made: Vec::new(),
        })
    }

    /// The case's `n`th address of a network, up to 99; none is handed out twice.
    fn address(&self, net: u8, n: u8) -> IpAddr {
        let [_, high] = (self.number % CASES_ABREAST).to_be_bytes();
        let [_, row] = (self.number / CASES_ABREAST).to_be_bytes();
        self.family.address(net, high, row * 100 + n + 1)
    }

    /// The case's `n`th ClusterIP.
    pub(crate) fn vip(&self, n: u8) -> IpAddr {
        self.address(net::SERVICES, n)
    }

    /// The case's `n`th external IP.
    pub(crate) fn external(&self, n: u8) -> IpAddr {
        self.address(net::EXTERNAL, n)
    }

    /// The case's `n`th address of a load balancer.
    pub(crate) fn balancer(&self, n: u8) -> IpAddr {
        self.address(net::BALANCERS, n)
    }

    /// The case's `n`th NodePort, up to 5.
    pub(crate) fn node_port(&self, n: u16) -> u16 {
        30_000 + self.number * 6 + n
    }

    /// Where a frontend is.
    pub(crate) fn front(&self, front: Front) -> SocketAddr {
        let loopback: [IpAddr; 2] = [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()];
        match front {
            Front::Vip => (self.vip(0), PORT),
            Front::NodePort => (node_address(self.family), self.node_port(0)),
            Front::Bridge => (bridge_address(self.family), self.node_port(0)),
            Front::Loopback => (loopback[self.family as usize], self.node_port(0)),
            Front::External => (self.external(0), PORT),
            Front::Balancer => (self.balancer(0), PORT),
        }
        .into()
    }

    /// `TCP` or `UDP`.
    pub(crate) fn protocol(&self) -> &'static str {
        match self.how {
            How::Tcp => "TCP",
            How::Udp | How::UdpUnconnected => "UDP",
        }
    }

    /// A port of a Service. A name of `""` is none.
    pub(crate) fn port(&self, name: &str, port: u16) -> Value {
        let mut object = json!({"port": port, "targetPort": TARGET, "protocol": self.protocol()});
        if !name.is_empty() {
            object["name"] = json!(name);
        }
        object
    }

    /// Makes Service `name`. `spec` may say more or otherwise than: the first ClusterIP, one unnamed port 80, and for a
    /// kind that has them the first NodePort and the first address of a load balancer.
    pub(crate) fn service(&mut self, name: &str, spec: Value) -> Result<()> {
        self.labelled(name, json!({}), spec)
    }

    /// [`Stage::service`] with labels.
    pub(crate) fn labelled(&mut self, name: &str, labels: Value, spec: Value) -> Result<()> {
        let mut port = self.port("", PORT);
        let kind = spec["type"].as_str().unwrap_or("ClusterIP").to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            port["nodePort"] = json!(self.node_port(0));
        }
        let mut whole = json!({"ports": [port]});
        if kind != "ExternalName" {
            whole["clusterIP"] = json!(self.vip(0).to_string());
        }
        merge(&mut whole, spec);
        let mut object = service_object(name, &whole);
        object["metadata"]["labels"] = labels;
        let (api, namespace) = (&self.player.run.api, &self.namespace);
        api.create(Kind::Service, namespace, object)?;
        self.made.push((Kind::Service, name.to_owned()));
        if kind == "LoadBalancer" {
            let ingress = json!([{"ip": self.balancer(0).to_string(), "ipMode": "VIP"}]);
            self.ingress(name, ingress)?;
        }
        Ok(())
    }

    /// Says where the Service's load balancer is.
    pub(crate) fn ingress(&self, name: &str, ingress: Value) -> Result<()> {
        let change = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let api = &self.player.run.api;
        api.patch_status(&self.namespace, name, &change)
    }

    /// Changes a Service's `spec`.
    pub(crate) fn change(&self, name: &str, spec: Value) -> Result<()> {
        let change = json!({"spec": spec});
        let api = &self.player.run.api;
        api.patch(Kind::Service, &self.namespace, name, &change)
    }

    /// Changes a Service's labels.
    pub(crate) fn relabel(&self, name: &str, labels: Value) -> Result<()> {
        let change = json!({"metadata": {"labels": labels}});
        let api = &self.player.run.api;
        api.patch(Kind::Service, &self.namespace, name, &change)
    }

    /// Makes slice `name` of Service `service` with the unnamed port 8080, or replaces its endpoints.
    pub(crate) fn endpoints(&mut self, name: &str, service: &str, all: &[Ep]) -> Result<()> {
        let ports = json!([{"port": TARGET, "protocol": self.protocol()}]);
        self.slice(name, service, ports, all)
    }

    /// Makes slice `name` of Service `service`, or replaces its ports and endpoints.
    pub(crate) fn slice(
        &mut self,
        name: &str,
        service: &str,
        ports: Value,
        all: &[Ep],
    ) -> Result<()> {
        let endpoints: Vec<Value> = all.iter().map(|one| one.object(self.family)).collect();
        let object = slice_object(name, service, self.family, ports, json!(endpoints));
        self.put_slice(name, object)
    }

    /// Makes a slice, or replaces its ports and endpoints.
    pub(crate) fn put_slice(&mut self, name: &str, object: Value) -> Result<()> {
        let api = &self.player.run.api;
        let key = (Kind::Slice, name.to_owned());
        if self.made.contains(&key) {
            let change = json!({"ports": object["ports"], "endpoints": object["endpoints"]});
            return api.patch(Kind::Slice, &self.namespace, name, &change);
        }
        api.create(Kind::Slice, &self.namespace, object)?;
        self.made.push(key);
        Ok(())
    }

    /// A slice as an object, to be changed before [`Stage::put_slice`].
    pub(crate) fn slice_of(&self, name: &str, service: &str, all: &[Ep]) -> Value {
        let endpoints: Vec<Value> = all.iter().map(|one| one.object(self.family)).collect();
        let ports = json!([{"port": TARGET, "protocol": self.protocol()}]);
        slice_object(name, service, self.family, ports, json!(endpoints))
    }

    /// Deletes a Service or a slice.
    pub(crate) fn delete(&mut self, kind: Kind, name: &str) -> Result<()> {
        self.made.retain(|made| *made != (kind, name.to_owned()));
        self.player.run.api.delete(kind, &self.namespace, name)
    }

    /// Service `web` with these endpoints, in effect.
    pub(crate) fn web(&mut self, spec: Value, endpoints: &[Ep]) -> Result<()> {
        self.service("web", spec)?;
        self.endpoints("web-1", "web", endpoints)?;
        self.settle()
    }

    /// Makes a Service of this name in a namespace beside the case's.
    pub(crate) fn in_another_namespace(
        &mut self,
        name: &str,
        address: IpAddr,
        endpoints: &[Ep],
    ) -> Result<Aside> {
        let aside = Aside {
            namespace: format!("{}-b", self.namespace),
            name: name.to_owned(),
        };
        let slice = self.slice_of(name, name, endpoints);
        let spec = json!({"clusterIP": address.to_string(), "ports": [self.port("", PORT)]});
        let api = &self.player.run.api;
        api.create_namespace(&aside.namespace)?;
        api.create(Kind::Slice, &aside.namespace, slice)?;
        api.create(Kind::Service, &aside.namespace, service_object(name, &spec))?;
        Ok(aside)
    }

    /// Waits until all changes are in effect.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.player.settle(self.family)
    }

    /// Tells a client something.
    pub(crate) fn tell(&mut self, client: Client, command: &Command) -> Result<Answer> {
        self.player.tell(client, command)
    }

    /// Asks once on each of so many new sockets.
    pub(crate) fn ask(
        &mut self,
        client: Client,
        addr: SocketAddr,
        times: u32,
        patience: Duration,
    ) -> Result<Answer> {
        let own = client.addresses(self.family);
        let command = Command::Ask {
            how: self.how,
            addr,
            from: own.first().copied().filter(|_| client.is_outside()),
            times,
            patience_ms: patience.as_millis().try_into()?,
        };
        self.tell(client, &command)
    }

    /// Opens a socket that stays open.
    pub(crate) fn dial(&mut self, client: Client, id: u32, addr: SocketAddr) -> Result<Answer> {
        let command = Command::Open {
            id,
            how: self.how,
            addr,
            patience_ms: PATIENCE.as_millis().try_into()?,
        };
        self.tell(client, &command)
    }

    /// Asks once on an open socket.
    pub(crate) fn say(&mut self, client: Client, id: u32, patience: Duration) -> Result<Answer> {
        let patience_ms = patience.as_millis().try_into()?;
        self.tell(client, &Command::Say { id, patience_ms })
    }
}

/// What is in another namespace than the case's.
pub(crate) struct Aside {
    namespace: String,
    name: String,
}

impl Aside {
    pub(crate) fn remove(self, stage: &Stage<'_, '_>) -> Result<()> {
        let api = &stage.player.run.api;
        api.delete(Kind::Service, &self.namespace, &self.name)?;
        api.delete(Kind::Slice, &self.namespace, &self.name)
    }
}

impl Drop for Stage<'_, '_> {
    fn drop(&mut self) {
        for (kind, name) in std::mem::take(&mut self.made) {
            let api = &self.player.run.api;
            if let Err(error) = api.delete(kind, &self.namespace, &name) {
                println!("cleaning up: {error:#}");
            }
        }
    }
}

/// Puts the fields of `more` into `whole`.
pub(crate) fn merge(whole: &mut Value, more: Value) {
    if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), more) {
        whole.extend(more);
    }
}

fn service_object(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn slice_object(
    name: &str,
    service: &str,
    family: Family,
    ports: Value,
    endpoints: Value,
) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }},
        "addressType": family.text(),
        "ports": ports,
        "endpoints": endpoints,
    })
}
