//! The tables as last applied, and what of the rules a change touches. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use skiff_ebpf_loader::{Backend, Frontend, FrontendSpec, IpFamily, SetId, TableDiff};

use crate::tracker::TableView;

/// The tables, and who uses which set.
#[derive(Debug, Default)]
pub(super) struct State {
    sets: HashMap<SetId, Vec<Backend>>,
    /// As the rules have them: see [`in_rules`].
    frontends: BTreeMap<Frontend, FrontendSpec>,
    /// As they were asked for.
    asked: HashMap<Frontend, FrontendSpec>,
    users: HashMap<SetId, BTreeSet<Frontend>>,
}

/// What a change touches: the sets and frontends whose rules may differ from now on.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) sets: BTreeSet<SetId>,
    pub(super) frontends: BTreeSet<Frontend>,
}

impl State {
    /// The members of a set; none if there is no such set.
    pub(super) fn members(&self, set: SetId) -> &[Backend] {
        self.sets.get(&set).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether a set has no member for frontends of that family.
    pub(super) fn is_empty(&self, set: SetId, family: IpFamily) -> bool {
        let mut members = self.members(set).iter();
        !members.any(|member| IpFamily::of(member.addr) == family)
    }

    pub(super) fn frontends(&self) -> &BTreeMap<Frontend, FrontendSpec> {
        &self.frontends
    }

    /// The frontends that a set serves.
    pub(super) fn users(&self, set: SetId) -> impl Iterator<Item = (Frontend, FrontendSpec)> + '_ {
        let users = self.users.get(&set).into_iter().flatten();
        users.filter_map(|frontend| Some((*frontend, self.frontends.get(frontend)?.clone())))
    }

    /// Everything.
    pub(super) fn all(&self) -> Touched {
        Touched {
            sets: self.users.keys().chain(self.sets.keys()).copied().collect(),
            frontends: self.frontends.keys().copied().collect(),
        }
    }

    /// Notes a change and says what it touches.
    pub(super) fn apply(&mut self, diff: &TableDiff) -> Touched {
        let mut touched = Touched::default();
        for (id, members) in &diff.publish {
            let mut members = members.clone();
            // The same rules whatever order they come in.
            members.sort_unstable();
            self.sets.insert(*id, members);
            touched.sets.insert(*id);
        }
        for (frontend, spec) in &diff.upsert {
            self.asked.insert(*frontend, spec.clone());
            let spec = in_rules(spec);
            let sets = sets_of(&spec);
            let before = self.frontends.insert(*frontend, spec);
            self.unlink(*frontend, before, &mut touched);
            for set in sets {
                self.users.entry(set).or_default().insert(*frontend);
                touched.sets.insert(set);
            }
            touched.frontends.insert(*frontend);
        }
        for frontend in &diff.remove_frontends {
            self.asked.remove(frontend);
            let before = self.frontends.remove(frontend);
            self.unlink(*frontend, before, &mut touched);
            touched.frontends.insert(*frontend);
        }
        for id in &diff.remove_sets {
            self.sets.remove(id);
            touched.sets.insert(*id);
        }
        let changed: Vec<SetId> = diff.publish.iter().map(|(id, _)| *id).collect();
        for set in changed.iter().chain(&diff.remove_sets) {
            let users: Vec<_> = self.users(*set).collect();
            for (frontend, spec) in users {
                // How it is reached from outside is written with the set for clients inside.
                touched.sets.insert(spec.inside);
                touched.frontends.insert(frontend);
            }
        }
        touched
    }

    fn unlink(&mut self, frontend: Frontend, spec: Option<FrontendSpec>, touched: &mut Touched) {
        for set in spec.iter().flat_map(sets_of) {
            touched.sets.insert(set);
            if let Some(users) = self.users.get_mut(&set) {
                users.remove(&frontend);
                if users.is_empty() {
                    self.users.remove(&set);
                }
            }
        }
    }
}

/// Where all endpoints serve clients outside, one chain does for them and for clients inside: the order that the set for packets
/// from outside has means nothing to rules.
fn in_rules(spec: &FrontendSpec) -> FrontendSpec {
    let outside = spec.outside;
    FrontendSpec {
        outside: outside.map(|set| if spec.local_only { set } else { spec.inside }),
        ..spec.clone()
    }
}

fn sets_of(spec: &FrontendSpec) -> impl Iterator<Item = SetId> + use<> {
    [Some(spec.inside), spec.outside].into_iter().flatten()
}

impl TableView for State {
    fn frontend(&self, frontend: &Frontend) -> Option<FrontendSpec> {
        self.asked.get(frontend).cloned()
    }

    fn set_is(&self, id: SetId, members: &[Backend]) -> bool {
        self.sets.get(&id).is_some_and(|have| {
            have.len() == members.len() && {
                let have: HashSet<&Backend> = have.iter().collect();
                members.iter().all(|member| have.contains(member))
            }
        })
    }

    fn frontends(&self) -> Vec<Frontend> {
        self.frontends.keys().copied().collect()
    }

    fn sets(&self) -> Vec<SetId> {
        self.sets.keys().copied().collect()
    }
}
