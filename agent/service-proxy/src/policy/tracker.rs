//! What is known of policies, namespaces and pods, and what has to change in the tables when one of them does. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use skiff_ebpf_common::{IDENTITY_ISOLATED_EGRESS, IDENTITY_ISOLATED_INGRESS, IDENTITY_NONE};
use skiff_ebpf_loader::{PolicyChange, PolicyRuleKey, PolicyTables};

use super::{
    compile::{Compiled, Signature},
    objects::{Labels, PodInfo, PolicyInfo},
    rules::plan_rules,
};

/// Namespace and name.
pub type Key = (Arc<str>, Arc<str>);

/// All policies, namespaces and pods, and the tables that follow.
///
/// A pod whose signature has an identity costs one entry in the tables. Rules are planned anew when an identity appears or
/// disappears; everything is when a policy or a namespace changes.
#[derive(Debug, Default)]
pub struct Tracker {
    policies: BTreeMap<Key, PolicyInfo>,
    namespaces: HashMap<Arc<str>, Labels>,
    pods: HashMap<Key, PodInfo>,
    /// Addresses of this node's pods that their status does not tell yet, by UID.
    local: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Where the cluster's DNS is served, if a node does.
    dns: Option<SocketAddr>,
    /// Who has, or claims, an address.
    claims: HashMap<IpAddr, BTreeSet<Key>>,
    compiled: Compiled,
    identities: Identities,
    /// The signatures of addresses with an identity of their own.
    signatures: HashMap<IpAddr, Signature>,
    /// Addresses whose pods have changed.
    touched: BTreeSet<IpAddr>,
    /// Those of them that are new.
    fresh: BTreeSet<IpAddr>,
    stale: bool,
    wanted: PolicyTables,
}

impl Tracker {
    /// `dns`: where the node serves the cluster's DNS.
    #[must_use]
    pub fn new(dns: Option<SocketAddr>) -> Self {
        Self {
            dns,
            stale: true,
            ..Self::default()
        }
    }

    /// A policy is (or, with none, is not) there.
    pub fn set_policy(&mut self, key: Key, policy: Option<PolicyInfo>) {
        if self.policies.get(&key) == policy.as_ref() {
            return;
        }
        self.stale = true;
        match policy {
            Some(policy) => self.policies.insert(key, policy),
            None => self.policies.remove(&key),
        };
    }

    /// A namespace is (or is not) there.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        self.stale = true;
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// A pod is (or is not) there.
    pub fn set_pod(&mut self, key: Key, pod: Option<PodInfo>) {
        let before = match &pod {
            Some(pod) => self.pods.insert(key.clone(), pod.clone()),
            None => self.pods.remove(&key),
        };
        if before == pod {
            return;
        }
        let old = before.as_ref().map(|pod| self.addrs_of(pod));
        if let Some(before) = &before
            && pod.as_ref().is_none_or(|pod| pod.uid != before.uid)
        {
            self.local.remove(&before.uid);
        }
        let new = pod.as_ref().map(|pod| self.addrs_of(pod));
        self.claim(&key, old.unwrap_or_default(), new.unwrap_or_default());
    }

    /// The node has given addresses to one of its pods. False: no pod of that UID is known yet.
    pub fn set_local(&mut self, uid: &str, addrs: Vec<IpAddr>) -> bool {
        let mut all = self.pods.iter();
        let Some((key, pod)) = all.find(|(_, pod)| &*pod.uid == uid) else {
            return false;
        };
        let (key, pod) = (key.clone(), pod.clone());
        let old = self.addrs_of(&pod);
        self.local.insert(Arc::clone(&pod.uid), addrs);
        let new = self.addrs_of(&pod);
        self.claim(&key, old, new);
        true
    }

    fn addrs_of(&self, pod: &PodInfo) -> BTreeSet<IpAddr> {
        let local = self.local.get(&pod.uid).into_iter().flatten();
        local.chain(&pod.addrs).copied().collect()
    }

    fn claim(&mut self, key: &Key, old: BTreeSet<IpAddr>, new: BTreeSet<IpAddr>) {
        for addr in old.difference(&new) {
            if let Some(claims) = self.claims.get_mut(addr) {
                claims.remove(key);
                if claims.is_empty() {
                    self.claims.remove(addr);
                    self.fresh.remove(addr);
                }
            }
        }
        for addr in new.difference(&old) {
            let claims = self.claims.entry(*addr).or_default();
            if claims.is_empty() {
                self.fresh.insert(*addr);
            }
            claims.insert(key.clone());
        }
        self.touched.extend(old);
        self.touched.extend(new);
    }

    /// After complete lists: what was not in them is gone.
    pub fn retain_policies(&mut self, listed: &HashSet<Key>) {
        let gone = self.policies.keys().filter(|key| !listed.contains(*key));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.set_policy(key, None);
        }
    }

    /// As [`Self::retain_policies`].
    pub fn retain_namespaces(&mut self, listed: &HashSet<Key>) {
        let is_listed = |name: &Arc<str>| listed.contains(&(Arc::from(""), Arc::clone(name)));
        let gone = self.namespaces.keys().filter(|name| !is_listed(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.set_namespace(&name, None);
        }
    }

    /// As [`Self::retain_policies`].
    pub fn retain_pods(&mut self, listed: &HashSet<Key>) {
        let gone = self.pods.keys().filter(|key| !listed.contains(*key));
        for key in gone.cloned().collect::<Vec<_>>() {
            self.set_pod(key, None);
        }
    }

    /// How many policies there are.
    #[must_use]
    pub fn policies(&self) -> usize {
        self.policies.len()
    }

    /// Whether [`Self::change`] may have something to say.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.stale || !self.touched.is_empty()
    }

    /// What leads from the tables as they are to those that are wanted, planned in full.
    pub fn full_change(&mut self, have: &PolicyTables) -> PolicyChange {
        self.stale = true;
        self.change();
        PolicyChange::between(have, &self.wanted)
    }

    /// What has to change since the last time.
    pub fn change(&mut self) -> PolicyChange {
        let touched = mem::take(&mut self.touched);
        let fresh = mem::take(&mut self.fresh);
        if mem::take(&mut self.stale) {
            let before = self.wanted.clone();
            self.plan_all();
            let change = PolicyChange::between(&before, &self.wanted);
            return PolicyChange { fresh, ..change };
        }
        let mut ids = Vec::new();
        for addr in touched {
            let id = self.place(addr);
            let before = match id {
                Some(id) => self.wanted.ids.insert(addr, id),
                None => self.wanted.ids.remove(&addr),
            };
            if before != id {
                ids.push((addr, id));
            }
        }
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        if self.identities.take_changed() {
            let rules = self.plan_rules();
            add.extend(rules.difference(&self.wanted.rules).copied());
            remove.extend(self.wanted.rules.difference(&rules).copied());
            self.wanted.rules = rules;
        }
        PolicyChange {
            ids,
            fresh,
            cidrs: Vec::new(),
            add,
            remove,
        }
    }

    fn plan_rules(&self) -> BTreeSet<PolicyRuleKey> {
        let dns = self.dns.map_or(0, |dns| dns.port());
        plan_rules(&self.compiled, &self.identities.ids, dns)
    }

    fn plan_all(&mut self) {
        self.compiled = Compiled::of(self.policies.values());
        let old = mem::take(&mut self.signatures);
        let prefixes: Vec<_> = self.compiled.prefixes().collect();
        // The new ones are counted before the old ones are given back: who stays keeps its identity.
        let held = mem::take(&mut self.identities.of_prefixes);
        let mut cidrs = BTreeMap::new();
        for (prefix, signature) in prefixes {
            cidrs.insert(prefix, self.identities.take(&signature, &self.compiled));
            self.identities.of_prefixes.push(signature);
        }
        self.wanted.cidrs = cidrs;
        self.wanted.ids.clear();
        let addrs = self
            .claims
            .keys()
            .copied()
            .chain(self.dns.map(|dns| dns.ip()));
        for addr in addrs.collect::<BTreeSet<_>>() {
            if let Some(id) = self.place(addr) {
                self.wanted.ids.insert(addr, id);
            }
        }
        for signature in old.into_values().chain(held) {
            self.identities.give_back(&signature);
        }
        self.identities.take_changed();
        self.wanted.rules = self.plan_rules();
    }

    /// The identity of an address; `None` if it needs none of its own.
    fn place(&mut self, addr: IpAddr) -> Option<u32> {
        let signature = self.signature(addr);
        let id = signature
            .as_ref()
            .map(|s| self.identities.take(s, &self.compiled));
        let old = match signature {
            Some(signature) => self.signatures.insert(addr, signature),
            None => self.signatures.remove(&addr),
        };
        if let Some(old) = old {
            self.identities.give_back(&old);
        }
        id
    }

    fn signature(&self, addr: IpAddr) -> Option<Signature> {
        let claims = self.claims.get(&addr).into_iter().flatten();
        let claims = claims.filter_map(|key| Some((key, self.pods.get(key)?)));
        let owner = claims.max_by_key(|(key, pod)| (pod.created, *key));
        let mut atoms = match owner {
            Some((key, pod)) => self.compiled.atoms_of_pod(&key.0, pod, &self.namespaces),
            None if self.dns.is_some_and(|dns| dns.ip() == addr) => {
                self.compiled.atoms_of_dns(&self.namespaces)
            }
            None => BTreeSet::new(),
        };
        if atoms.is_empty() {
            return None;
        }
        atoms.extend(self.compiled.atoms_of_addr(addr));
        Some(Arc::new(atoms))
    }
}

/// The identities in use. An identity is the hash of its signature and tells whether it is isolated, so it is the same after a
/// restart.
#[derive(Debug, Default)]
struct Identities {
    ids: HashMap<Signature, u32>,
    uses: HashMap<Signature, usize>,
    taken: HashMap<u32, Signature>,
    of_prefixes: Vec<Signature>,
    changed: bool,
}

const ISOLATED: u32 = IDENTITY_ISOLATED_INGRESS | IDENTITY_ISOLATED_EGRESS;

impl Identities {
    fn take(&mut self, signature: &Signature, compiled: &Compiled) -> u32 {
        if signature.is_empty() {
            return IDENTITY_NONE;
        }
        let isolation = compiled.isolation(signature);
        *self.uses.entry(Arc::clone(signature)).or_default() += 1;
        if let Some(id) = self.ids.get(signature)
            && id & ISOLATED == isolation
        {
            return *id;
        }
        self.changed = true;
        let mut number = hash(signature);
        // Another signature with the same hash: the next number. None and "any" are nobody's.
        while number == 0
            || number == !ISOLATED
            || self
                .taken
                .get(&number)
                .is_some_and(|other| other != signature)
        {
            number = (number + 1) & !ISOLATED;
        }
        self.taken.insert(number, Arc::clone(signature));
        let id = number | isolation;
        self.ids.insert(Arc::clone(signature), id);
        id
    }

    fn give_back(&mut self, signature: &Signature) {
        let Some(uses) = self.uses.get_mut(signature) else {
            return;
        };
        *uses -= 1;
        if *uses == 0 {
            self.changed = true;
            self.uses.remove(signature);
            if let Some(id) = self.ids.remove(signature) {
                self.taken.remove(&(id & !ISOLATED));
            }
        }
    }

    fn take_changed(&mut self) -> bool {
        mem::take(&mut self.changed)
    }
}

/// FNV-1a, folded to the bits that an identity has for it.
fn hash(signature: &BTreeSet<Arc<str>>) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in signature.iter().flat_map(|atom| atom.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes([e, f, g, h])) & !ISOLATED
}
