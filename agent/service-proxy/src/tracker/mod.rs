//! What is known of all Services, and what has to change in the tables when one of them does. Pure.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
    net::SocketAddr,
    sync::Arc,
};

use skiff_ebpf_loader::{
    Backend, DesiredTables, Frontend, FrontendSpec, SetId, TableDiff, TableState,
};

use crate::{
    objects::{ServiceInfo, ServiceName, SliceInfo},
    plan::{HealthCheck, ServicePlan, plan_service},
};

/// What is in the tables now.
pub trait TableView {
    /// How a frontend is served.
    fn frontend(&self, frontend: &Frontend) -> Option<FrontendSpec>;
    /// Whether a set exists with these members, in whatever order.
    fn set_is(&self, id: SetId, members: &[Backend]) -> bool;
    /// All frontends.
    fn frontends(&self) -> Vec<Frontend>;
    /// All sets.
    fn sets(&self) -> Vec<SetId>;
}

impl TableView for TableState {
    fn frontend(&self, frontend: &Frontend) -> Option<FrontendSpec> {
        Self::frontend(self, frontend)
    }

    fn set_is(&self, id: SetId, members: &[Backend]) -> bool {
        Self::set_is(self, id, members)
    }

    fn frontends(&self) -> Vec<Frontend> {
        Self::frontends(self)
            .map(|(frontend, _)| *frontend)
            .collect()
    }

    fn sets(&self) -> Vec<SetId> {
        self.set_ids().collect()
    }
}

/// All Services and their slices, which have changed, and who owns which frontend.
#[derive(Debug, Default)]
pub struct Tracker {
    /// In boxes: the map is sparse, and moves its entries when it grows.
    services: HashMap<ServiceName, Box<Known>>,
    /// Namespace and name of a slice, and whose it was when last seen.
    slices: HashMap<(Arc<str>, Box<str>), ServiceName>,
    dirty: HashSet<ServiceName>,
    owners: HashMap<Frontend, ServiceName>,
    /// Frontends that more than one Service wants, oldest first; the owner is among them.
    contested: HashMap<Frontend, BTreeSet<(i64, ServiceName)>>,
    /// The node's zone.
    zone: Option<String>,
    /// Of the Services that have any: backends which still serve the clients they have.
    draining: HashMap<ServiceName, Vec<SocketAddr>>,
    /// Of the Services that load balancers may ask about.
    health: HashMap<ServiceName, HealthCheck>,
}

#[derive(Debug, Default)]
struct Known {
    service: Option<ServiceInfo>,
    /// By name, in order. Nearly always one, and a tree's node would be ten times as large.
    slices: Vec<(Box<str>, SliceInfo)>,
    /// What was planned last: its sets, and the frontends it claims.
    sets: Vec<SetId>,
    frontends: Vec<(Frontend, FrontendSpec)>,
    created: i64,
}

impl Known {
    /// Takes a slice. False if it is known to be so.
    fn put_slice(&mut self, name: &str, info: SliceInfo) -> bool {
        match self.slices.binary_search_by(|(have, _)| (**have).cmp(name)) {
            Ok(place) => match self.slices.get_mut(place) {
                Some((_, have)) if *have != info => *have = info,
                _ => return false,
            },
            Err(place) => {
                self.slices.reserve_exact(1);
                self.slices.insert(place, (name.into(), info));
            }
        }
        true
    }
}

impl Tracker {
    /// The node is in that zone, or (with none) in none that anybody knows.
    pub fn set_zone(&mut self, zone: Option<String>) {
        if self.zone != zone {
            self.zone = zone;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// A Service is (or, with none, is not) there.
    pub fn set_service(&mut self, name: ServiceName, service: Option<ServiceInfo>) {
        if service.is_none() && !self.services.contains_key(&name) {
            return;
        }
        let known = self.services.entry(name.clone()).or_default();
        if known.service != service {
            known.service = service;
            self.dirty.insert(name);
        }
    }

    /// A slice is (or is not) there.
    pub fn set_slice(&mut self, namespace: &str, slice: &str, info: Option<SliceInfo>) {
        let Some(mut info) = info else {
            let key = (Arc::from(namespace), Box::from(slice));
            if let Some(before) = self.slices.remove(&key) {
                self.forget_slice(before, slice);
            }
            return;
        };
        let name = match self.services.get_key_value(&info.service) {
            // The name is kept once.
            Some((name, _)) => name.clone(),
            None => info.service,
        };
        info.service = name.clone();
        let key = (Arc::clone(&name.namespace), Box::from(slice));
        if let Some(before) = self.slices.insert(key, name.clone())
            && before != name
        {
            self.forget_slice(before, slice);
        }
        let known = self.services.entry(name.clone()).or_default();
        if known.put_slice(slice, info) {
            self.dirty.insert(name);
        }
    }

    fn forget_slice(&mut self, service: ServiceName, slice: &str) {
        if let Some(known) = self.services.get_mut(&service) {
            known.slices.retain(|(name, _)| **name != *slice);
            self.dirty.insert(service);
        }
    }

    /// After a complete list: Services that were not in it are gone.
    pub fn retain_services(&mut self, listed: &HashSet<ServiceName>) {
        let gone: Vec<ServiceName> = self
            .services
            .keys()
            .filter(|name| !listed.contains(name))
            .cloned()
            .collect();
        for name in gone {
            self.set_service(name, None);
        }
    }

    /// After a complete list: slices that were not in it are gone.
    pub fn retain_slices(&mut self, listed: &HashSet<(String, String)>) {
        let gone: Vec<_> = self
            .slices
            .keys()
            .filter(|(namespace, name)| {
                !listed.contains(&(namespace.to_string(), name.to_string()))
            })
            .cloned()
            .collect();
        for (namespace, name) in gone {
            self.set_slice(&namespace, &name, None);
        }
    }

    /// Backends that get no new clients, but still serve those they have; as of the last diff.
    #[must_use]
    pub fn draining(&self) -> HashSet<SocketAddr> {
        self.draining.values().flatten().copied().collect()
    }

    /// The Services that load balancers may ask about; as of the last diff.
    #[must_use]
    pub fn health_checks(&self) -> &HashMap<ServiceName, HealthCheck> {
        &self.health
    }

    /// Whether something changed since the last diff.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// How many Services with frontends there are.
    #[must_use]
    pub fn services(&self) -> usize {
        self.services
            .values()
            .filter(|known| known.service.is_some())
            .count()
    }

    /// Whose frontend is which.
    #[must_use]
    pub fn owners(&self) -> Vec<(Frontend, ServiceName)> {
        let owners = self.owners.iter();
        owners
            .map(|(frontend, owner)| (*frontend, owner.clone()))
            .collect()
    }

    /// How many frontends are wanted by more than one Service.
    #[must_use]
    pub fn conflicts(&self) -> usize {
        self.contested.len()
    }

    /// Plans what has changed, and returns what that changes in the tables: only sets and frontends of those Services.
    pub fn diff(&mut self, view: &dyn TableView) -> TableDiff {
        let mut diff = TableDiff::default();
        let mut touched = Vec::new();
        for name in mem::take(&mut self.dirty) {
            self.replan(&name, view, &mut diff, &mut touched);
        }
        touched.sort_unstable();
        touched.dedup();
        self.settle(touched.iter(), view, &mut diff);
        diff
    }

    /// As [`Self::diff`], but compares everything: for the first time and after an error.
    pub fn full_diff(&mut self, view: &dyn TableView) -> TableDiff {
        self.dirty.extend(self.services.keys().cloned());
        let mut diff = self.diff(view);
        let wanted: HashSet<SetId> = self
            .services
            .values()
            .flat_map(|known| &known.sets)
            .copied()
            .collect();
        diff.remove_sets = view.sets();
        diff.remove_sets.retain(|id| !wanted.contains(id));
        diff.remove_frontends = view.frontends();
        diff.remove_frontends
            .retain(|frontend| !self.owners.contains_key(frontend));
        diff
    }

    /// Everything that is wanted. Ends the tracking: later diffs would be against what this returned.
    #[must_use]
    pub(crate) fn into_desired(mut self) -> DesiredTables {
        let diff = self.full_diff(&Nothing);
        DesiredTables {
            sets: diff.publish.into_iter().collect(),
            frontends: diff.upsert.into_iter().collect(),
        }
    }

    fn replan(
        &mut self,
        name: &ServiceName,
        view: &dyn TableView,
        diff: &mut TableDiff,
        touched: &mut Vec<Frontend>,
    ) {
        let Some(known) = self.services.get_mut(name) else {
            return;
        };
        let plan = match &known.service {
            Some(service) => {
                let slices = known.slices.iter().map(|(_, slice)| slice);
                plan_service(name, service, slices, self.zone.as_deref())
            }
            None => ServicePlan::default(),
        };
        if plan.draining.is_empty() {
            self.draining.remove(name);
        } else {
            self.draining.insert(name.clone(), plan.draining);
        }
        match plan.health {
            Some(health) => drop(self.health.insert(name.clone(), health)),
            None => drop(self.health.remove(name)),
        }
        let sets: Vec<SetId> = plan.sets.iter().map(|(id, _)| *id).collect();
        let gone = known.sets.iter().copied().filter(|id| !sets.contains(id));
        diff.remove_sets.extend(gone);
        let changed = plan
            .sets
            .into_iter()
            .filter(|(id, members)| !view.set_is(*id, members));
        diff.publish.extend(changed);
        known.sets = sets;
        let before = mem::replace(&mut known.frontends, plan.frontends.clone());
        let created_before = known.created;
        known.created = known.service.as_ref().map_or(0, |service| service.created);
        let created = known.created;
        if known.service.is_none() && known.slices.is_empty() {
            self.services.remove(name);
        }
        for (frontend, _) in before {
            if created != created_before
                || !plan.frontends.iter().any(|(still, _)| *still == frontend)
            {
                self.release(frontend, created_before, name);
                touched.push(frontend);
            }
        }
        for (frontend, _) in plan.frontends {
            self.claim(frontend, created, name);
            touched.push(frontend);
        }
    }

    fn claim(&mut self, frontend: Frontend, created: i64, name: &ServiceName) {
        match self.owners.get(&frontend) {
            None => drop(self.owners.insert(frontend, name.clone())),
            Some(owner) if owner == name => {}
            Some(owner) => {
                let rank = self.services.get(owner).map_or(0, |known| known.created);
                let claims = self.contested.entry(frontend).or_default();
                claims.insert((rank, owner.clone()));
                if claims.insert((created, name.clone())) {
                    tracing::warn!(%frontend, service = %name, %owner, "two Services claim one frontend");
                }
                if let Some((_, first)) = claims.first() {
                    self.owners.insert(frontend, first.clone());
                }
            }
        }
    }

    fn release(&mut self, frontend: Frontend, created: i64, name: &ServiceName) {
        if let Some(claims) = self.contested.get_mut(&frontend) {
            claims.remove(&(created, name.clone()));
            if let Some((_, first)) = claims.first() {
                self.owners.insert(frontend, first.clone());
            }
            if claims.len() < 2 {
                self.contested.remove(&frontend);
            }
        } else if self.owners.get(&frontend) == Some(name) {
            self.owners.remove(&frontend);
        }
    }

    /// Compares the owners' wishes for these frontends with the tables.
    fn settle<'a>(
        &self,
        frontends: impl Iterator<Item = &'a Frontend>,
        view: &dyn TableView,
        diff: &mut TableDiff,
    ) {
        for frontend in frontends {
            let have = view.frontend(frontend);
            let owner = self
                .owners
                .get(frontend)
                .and_then(|owner| self.services.get(owner));
            let wanted = owner.and_then(|known| {
                let found = known
                    .frontends
                    .iter()
                    .find(|(claimed, _)| claimed == frontend);
                found.map(|(_, spec)| spec.clone())
            });
            match wanted {
                Some(spec) if have.as_ref() != Some(&spec) => diff.upsert.push((*frontend, spec)),
                None if have.is_some() => diff.remove_frontends.push(*frontend),
                _ => {}
            }
        }
    }
}

/// Empty tables.
struct Nothing;

impl TableView for Nothing {
    fn frontend(&self, _frontend: &Frontend) -> Option<FrontendSpec> {
        None
    }

    fn set_is(&self, _id: SetId, _members: &[Backend]) -> bool {
        false
    }

    fn frontends(&self) -> Vec<Frontend> {
        Vec::new()
    }

    fn sets(&self) -> Vec<SetId> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests;
