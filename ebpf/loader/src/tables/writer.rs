//! Writes the tables and keeps the mirror. The only place that changes `LB_*`.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use skiff_ebpf_common as abi;
use skiff_ebpf_common::maps;

use super::{
    Backend, Frontend, FrontendSpec, Known, Member, Run, SetId, SetState, TableDiff, TableState,
    encode::{backend_of, flags_of, frontend_of, key_of, spec_of, value_of},
    maglev,
    runs::Runs,
    sources::Lists,
};
use crate::{
    DatapathError,
    sys::{HashTable, MappedArray, wait_for_readers},
};

/// How many writes to the kernel's tables there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Frontends written or removed.
    pub frontends: u64,
    /// Sets published or removed: one store each.
    pub sets: u64,
    /// Backends written or freed.
    pub backends: u64,
    /// Grace periods waited for.
    pub grace_periods: u64,
}

impl Writes {
    /// All writes of entries.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.frontends + self.sets + self.backends
    }
}

/// The maps, what is in them, and what is free.
#[derive(Debug)]
pub(crate) struct Writer {
    services: HashTable<abi::ServiceKey, abi::Service>,
    sets: MappedArray<abi::BackendSet>,
    slots: MappedArray<abi::Slot>,
    backends: MappedArray<abi::Backend>,
    lists: Lists,
    state: TableState,
    free_sets: Runs,
    free_slots: Runs,
    free_backends: Runs,
    writes: Writes,
}

impl Writer {
    /// Opens the pinned maps and reads back what they hold.
    pub(crate) fn open(folder: &Path) -> Result<Self, DatapathError> {
        let services = HashTable::open(folder, maps::SERVICES)?;
        let sets = MappedArray::<abi::BackendSet>::open(folder, maps::SETS)?;
        let slots = MappedArray::<abi::Slot>::open(folder, maps::SLOTS)?;
        let backends = MappedArray::<abi::Backend>::open(folder, maps::BACKENDS)?;
        let free = |start, limit| Runs::new(start, limit, []);
        let mut writer = Self {
            free_sets: free(1, sets.len()),
            free_slots: free(0, slots.len()),
            free_backends: free(0, backends.len()),
            services,
            sets,
            slots,
            backends,
            lists: Lists::open(folder)?,
            state: TableState::default(),
            writes: Writes::default(),
        };
        writer.read_back()?;
        writer.rest();
        Ok(writer)
    }

    pub(crate) fn state(&self) -> &TableState {
        &self.state
    }

    pub(crate) fn writes(&self) -> Writes {
        self.writes
    }

    /// Rebuilds the mirror, and repairs what a writer that was killed left behind.
    fn read_back(&mut self) -> Result<(), DatapathError> {
        self.sets.map(0, 1)?;
        let marks = self.sets.get(0).map_or(0, |marks| marks.word);
        let (backends, sets) = (
            abi::SetWord::unpack(marks).base,
            abi::SetWord::unpack(marks).count,
        );
        self.sets.map(0, sets)?;
        self.backends.map(0, backends)?;
        let mut owners = HashMap::new();
        for index in 1..sets {
            let Some(set) = self.sets.get(index) else {
                break;
            };
            let run = abi::SetWord::unpack(set.word);
            self.slots
                .map(run.base, run.base.saturating_add(run.count))?;
            if let Some(id) = SetId::from_owner(set.owner) {
                let members = self.read_members(index, run);
                owners.insert(index, id);
                let run = Run {
                    base: run.base,
                    count: run.count,
                };
                self.state.sets.insert(
                    id,
                    SetState {
                        index,
                        run,
                        members,
                    },
                );
            } else if set.word != 0 {
                // Killed between the two stores of a removal.
                self.sets.set(index, abi::BackendSet { word: 0, owner: 0 });
            }
        }
        let mut broken = Vec::new();
        for (key, service) in self.services.entries()? {
            let Some(spec) = spec_of(&service, &owners, &self.lists) else {
                broken.push(key);
                continue;
            };
            self.lists.adopt(service.sources);
            self.state.frontends.insert(frontend_of(&key), spec);
        }
        self.services.remove(&broken)?;
        self.find_free(backends);
        Ok(())
    }

    fn read_members(&self, set: u32, run: abi::SetWord) -> Vec<Member> {
        let slots = (run.base..run.base.saturating_add(run.count)).map_while(|i| self.slots.get(i));
        // In Maglev's order a backend has many slots.
        let mut seen = HashSet::new();
        slots
            .filter(|slot| seen.insert(slot.backend))
            .filter_map(|slot| {
                let found = self.backends.get(slot.backend)?;
                let valid = found.set == set && found.generation == slot.generation;
                valid.then(|| Member {
                    backend: backend_of(&found),
                    id: slot.backend,
                })
            })
            .collect()
    }

    fn find_free(&mut self, backends: u32) {
        let used = self.state.sets.values();
        self.free_sets = Runs::new(1, self.sets.len(), used.clone().map(|set| (set.index, 1)));
        let runs = used.clone().map(|set| (set.run.base, set.run.count));
        self.free_slots = Runs::new(0, self.slots.len(), runs);
        let ids: HashSet<u32> = used
            .flat_map(|set| set.members.iter().map(|m| m.id))
            .collect();
        for id in (0..backends).filter(|id| !ids.contains(id)) {
            // Written, but never published or not yet freed: nobody's affinity may point to it.
            if let Some(backend) = self.backends.get(id).filter(|backend| backend.set != 0) {
                self.backends.set(id, abi::Backend { set: 0, ..backend });
            }
        }
        let ids = ids.into_iter().map(|id| (id, 1));
        self.free_backends = Runs::new(0, self.backends.len(), ids);
    }

    /// Lets go of what only changes need.
    fn rest(&mut self) {
        self.slots.unmap();
        self.backends.unmap();
    }

    /// Makes the change. After an error, what was done is in the mirror: the next diff continues from there.
    pub(crate) fn apply(&mut self, diff: &TableDiff) -> Result<(), DatapathError> {
        let result = self.apply_all(diff);
        self.rest();
        result
    }

    fn apply_all(&mut self, diff: &TableDiff) -> Result<(), DatapathError> {
        if let Err(error) = self.add(diff) {
            // A full table would stay full, and what goes never go.
            self.make_room(diff)?;
            return Err(error);
        }
        self.remove_frontends(&diff.remove_frontends)?;
        for id in &diff.remove_sets {
            self.remove_set(*id);
        }
        Ok(())
    }

    fn add(&mut self, diff: &TableDiff) -> Result<(), DatapathError> {
        for (id, members) in &diff.publish {
            self.publish(*id, members)?;
        }
        self.upsert(&diff.upsert)
    }

    /// Removes of a change what nothing in the tables refers to.
    fn make_room(&mut self, diff: &TableDiff) -> Result<(), DatapathError> {
        self.remove_frontends(&diff.remove_frontends)?;
        let frontends = self.state.frontends();
        let used = frontends.flat_map(|(_, spec)| [Some(spec.inside), spec.outside]);
        let used: HashSet<SetId> = used.flatten().collect();
        for id in diff.remove_sets.iter().filter(|id| !used.contains(id)) {
            self.remove_set(*id);
        }
        Ok(())
    }

    /// Gives a set its new members. Members that stay keep their id, so affinity holds.
    fn publish(&mut self, id: SetId, wanted: &[Backend]) -> Result<(), DatapathError> {
        let mut old = self.state.sets.remove(&id);
        let result = self.publish_over(id, old.as_ref(), wanted);
        match result {
            Ok(new) => old = Some(new),
            Err(error) => {
                if let Some(old) = old {
                    self.state.sets.insert(id, old);
                }
                return Err(error);
            }
        }
        if let Some(new) = old {
            self.state.sets.insert(id, new);
        }
        Ok(())
    }

    fn publish_over(
        &mut self,
        id: SetId,
        old: Option<&SetState>,
        wanted: &[Backend],
    ) -> Result<SetState, DatapathError> {
        let order = order_of(id, wanted);
        let count = u32::try_from(order.len()).unwrap_or(u32::MAX);
        let index = match old {
            Some(old) => old.index,
            None => self.take(Pool::Sets, 1)?,
        };
        let base = match self.take(Pool::Slots, count) {
            Ok(base) => base,
            Err(error) => {
                if old.is_none() {
                    self.free_sets.give_back(index, 1);
                }
                return Err(error);
            }
        };
        let members = match self.members(index, old, wanted) {
            Ok(members) => members,
            Err(error) => {
                self.free_slots.give_back(base, count);
                if old.is_none() {
                    self.free_sets.give_back(index, 1);
                }
                return Err(error);
            }
        };
        self.fill(base, &order, &members);
        let word = abi::SetWord { base, count }.pack();
        // The owner lies behind the word and is stored before it: a set that is seen has an owner.
        self.sets.set(
            index,
            abi::BackendSet {
                word,
                owner: id.owner(),
            },
        );
        self.writes.sets += 1;
        if let Some(old) = old {
            self.retire(old, &members);
        }
        Ok(SetState {
            index,
            run: Run { base, count },
            members,
        })
    }

    /// Writes the slots from `base` on: for each the member that it is for.
    fn fill(&mut self, base: u32, order: &[u32], members: &[Member]) {
        let slots: Vec<abi::Slot> = members
            .iter()
            .map(|member| {
                let found = self.backends.get(member.id);
                abi::Slot {
                    backend: member.id,
                    generation: found.map_or(0, |found| found.generation),
                }
            })
            .collect();
        for (place, member) in (base..).zip(order) {
            if let Some(slot) = slots.get(*member as usize) {
                self.slots.set(place, *slot);
            }
        }
    }

    /// Ids for the members: the old one if the backend was there, else a new one.
    fn members(
        &mut self,
        set: u32,
        old: Option<&SetState>,
        wanted: &[Backend],
    ) -> Result<Vec<Member>, DatapathError> {
        let known = Known::of(old.map_or(&[], |old| old.members.as_slice()));
        let kept: Vec<Option<Member>> = wanted.iter().map(|b| known.get(b)).collect();
        // Before new ones are taken, which would be nobody's after an error; those are within reach when they are taken.
        for member in kept.iter().flatten() {
            self.backends.map(member.id, member.id.saturating_add(1))?;
        }
        let missing = kept.iter().filter(|member| member.is_none()).count();
        let mut fresh = self.take_backends(missing)?.into_iter();
        let mut members = Vec::with_capacity(wanted.len());
        for (backend, kept) in wanted.iter().zip(kept) {
            let Some(id) = kept.map(|member| member.id).or_else(|| fresh.next()) else {
                break;
            };
            let member = Member {
                backend: *backend,
                id,
            };
            if kept.is_none_or(|kept| kept.backend != *backend) {
                self.write_backend(set, &member, kept.is_none());
            }
            members.push(member);
        }
        Ok(members)
    }

    /// Ids for so many new backends: side by side if there is such a run, which is found at once.
    fn take_backends(&mut self, count: usize) -> Result<Vec<u32>, DatapathError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if let Some(base) = self.free_backends.take(count) {
            let end = base.saturating_add(count);
            self.reach(Pool::Backends, base, end)?;
            return Ok((base..end).collect());
        }
        let mut ids = Vec::new();
        for _ in 0..count {
            match self.take(Pool::Backends, 1) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    // Nobody has seen them.
                    ids.iter()
                        .for_each(|id| self.free_backends.give_back(*id, 1));
                    return Err(error);
                }
            }
        }
        Ok(ids)
    }

    fn write_backend(&mut self, set: u32, member: &Member, new: bool) {
        let last = self
            .backends
            .get(member.id)
            .map_or(0, |backend| backend.generation);
        let generation = if new { last.wrapping_add(1) } else { last };
        let value = value_of(&member.backend, set, generation);
        self.backends.set(member.id, value);
        self.writes.backends += 1;
    }

    /// Frees the slots of the replaced set and the backends that are not in the new one.
    fn retire(&mut self, old: &SetState, kept: &[Member]) {
        self.free_slots.give_back(old.run.base, old.run.count);
        let kept = Known::of(kept);
        for member in &old.members {
            if kept
                .get(&member.backend)
                .is_none_or(|kept| kept.id != member.id)
            {
                self.free_backend(member.id);
            }
        }
    }

    fn free_backend(&mut self, id: u32) {
        // A program that chose it a moment ago sees that it is no member any more and chooses again, from the
        // set that has replaced this one; so does whoever remembers it (affinity).
        let mapped = self.backends.map(id, id.saturating_add(1));
        if let Err(error) = &mapped {
            // It gets another generation before it is used again.
            tracing::debug!(%error, id, "a freed backend keeps its set");
        }
        if let Some(backend) = self.backends.get(id) {
            self.backends.set(id, abi::Backend { set: 0, ..backend });
        }
        self.free_backends.give_back(id, 1);
        self.writes.backends += 1;
    }

    fn remove_set(&mut self, id: SetId) {
        if let Some(old) = self.state.sets.remove(&id) {
            self.sets
                .set(old.index, abi::BackendSet { word: 0, owner: 0 });
            self.writes.sets += 1;
            self.retire(&old, &[]);
            self.free_sets.give_back(old.index, 1);
        }
    }

    fn upsert(&mut self, wanted: &[(Frontend, FrontendSpec)]) -> Result<(), DatapathError> {
        let mut keys = Vec::with_capacity(wanted.len());
        let mut values = Vec::with_capacity(wanted.len());
        let mut result = Ok(());
        for (frontend, spec) in wanted {
            match self.service_of(frontend, spec) {
                Ok(service) => {
                    keys.push(service.key);
                    values.push(service);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let mut written = keys.len();
        if let Err((until_then, error)) = self.services.insert(&keys, &values) {
            (written, result) = (until_then, Err(error));
        }
        for (number, (frontend, spec)) in wanted.iter().take(keys.len()).enumerate() {
            let gone = if number < written {
                let before = self.state.frontends.insert(*frontend, spec.clone());
                before.and_then(|before| before.sources)
            } else {
                spec.sources.clone()
            };
            self.lists.give_back(gone.as_ref());
        }
        self.writes.frontends += written as u64;
        result
    }

    /// What is written for a frontend.
    fn service_of(
        &mut self,
        frontend: &Frontend,
        spec: &FrontendSpec,
    ) -> Result<abi::Service, DatapathError> {
        let index = |set: SetId| {
            let unknown = DatapathError::UnknownSet {
                frontend: *frontend,
                set,
            };
            let set = self.state.sets.get(&set);
            set.map(|set| set.index).ok_or(unknown)
        };
        Ok(abi::Service {
            key: key_of(frontend),
            inside: index(spec.inside)?,
            outside: spec.outside.map(index).transpose()?.unwrap_or(0),
            affinity_seconds: spec.affinity_seconds,
            flags: flags_of(spec),
            // Last: whoever gets a number has to give it back.
            sources: self.lists.take(spec.sources.as_ref())?,
        })
    }

    fn remove_frontends(&mut self, gone: &[Frontend]) -> Result<(), DatapathError> {
        let keys: Vec<_> = gone.iter().map(key_of).collect();
        self.services.remove(&keys)?;
        for frontend in gone {
            let before = self.state.frontends.remove(frontend);
            self.lists
                .give_back(before.and_then(|spec| spec.sources).as_ref());
        }
        self.writes.frontends += gone.len() as u64;
        Ok(())
    }

    /// Takes a free run; if there is none, waits until what was given back is free for sure.
    fn take(&mut self, pool: Pool, len: u32) -> Result<u32, DatapathError> {
        let base = match self.pool(pool).take(len) {
            Some(base) => base,
            None => self.take_after_waiting(pool, len)?,
        };
        self.reach(pool, base, base.saturating_add(len))?;
        Ok(base)
    }

    /// Makes these elements accessible, and notes that they may be in use.
    fn reach(&mut self, pool: Pool, first: u32, end: u32) -> Result<(), DatapathError> {
        match pool {
            Pool::Sets => self.sets.map(first, end)?,
            Pool::Slots => self.slots.map(first, end)?,
            Pool::Backends => self.backends.map(first, end)?,
        }
        self.raise_marks(pool, end);
        Ok(())
    }

    fn take_after_waiting(&mut self, pool: Pool, len: u32) -> Result<u32, DatapathError> {
        let full = DatapathError::Full {
            map: pool.map(),
            limit: self.pool(pool).limit(),
        };
        if self.pool(pool).waiting() == 0 {
            return Err(full);
        }
        if let Err(error) = wait_for_readers() {
            // Kernels with nohz_full CPUs have no such barrier. Generations still catch a reader that slow.
            tracing::debug!(%error, "no grace period to be had");
        }
        self.writes.grace_periods += 1;
        for pool in [Pool::Sets, Pool::Slots, Pool::Backends] {
            self.pool(pool).release_waiting();
        }
        self.pool(pool).take(len).ok_or(full)
    }

    /// Set 0 is nobody's. It holds how far sets and backends were ever used, so that [`Self::read_back`] need not look
    /// (and map) any further.
    fn raise_marks(&mut self, pool: Pool, end: u32) {
        let Some(zero) = self.sets.get(0) else { return };
        let mut marks = abi::SetWord::unpack(zero.word);
        match pool {
            Pool::Backends => marks.base = marks.base.max(end),
            Pool::Sets => marks.count = marks.count.max(end),
            Pool::Slots => return,
        }
        let word = marks.pack();
        if word != zero.word {
            self.sets.set(0, abi::BackendSet { word, owner: 0 });
        }
    }

    fn pool(&mut self, pool: Pool) -> &mut Runs {
        match pool {
            Pool::Sets => &mut self.free_sets,
            Pool::Slots => &mut self.free_slots,
            Pool::Backends => &mut self.free_backends,
        }
    }
}

/// For each slot of a set, which of its members is there.
fn order_of(id: SetId, members: &[Backend]) -> Vec<u32> {
    if id.is_outside() {
        maglev::layout(members)
    } else {
        (0..).take(members.len()).collect()
    }
}

#[derive(Clone, Copy)]
enum Pool {
    Sets,
    Slots,
    Backends,
}

impl Pool {
    fn map(self) -> &'static str {
        match self {
            Self::Sets => maps::SETS,
            Self::Slots => maps::SLOTS,
            Self::Backends => maps::BACKENDS,
        }
    }
}
