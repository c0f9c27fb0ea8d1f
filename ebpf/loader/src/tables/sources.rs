//! The lists of clients that frontends are for, as they lie in the kernel's trie of prefixes.
//!
//! A list is written once and never changed: a frontend with other clients gets another list, by the one write that it is. One
//! that nobody uses is removed with the next change of lists, when no program can be about to ask it.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use skiff_ebpf_common::{SOURCE_LIST_BITS, Source, SourceKey, maps};

use crate::{
    DatapathError,
    policy::{Prefix, cidr_key, prefix_of},
    sys::HashTable,
};

/// All lists, and how many frontends use each.
#[derive(Debug)]
pub(super) struct Lists {
    table: HashTable<SourceKey, u32>,
    lists: HashMap<u16, Arc<[Prefix]>>,
    numbers: HashMap<Arc<[Prefix]>, u16>,
    users: HashMap<u16, usize>,
    last: u16,
}

impl Lists {
    /// Reads back what the table holds. Nobody uses it until [`Self::adopt`] says so.
    pub(super) fn open(folder: &Path) -> Result<Self, DatapathError> {
        let table = HashTable::<SourceKey, u32>::open(folder, maps::SOURCES)?;
        let mut all: HashMap<u16, BTreeSet<Prefix>> = HashMap::new();
        for (key, _) in table.entries()? {
            let list = all.entry(key.source.list).or_default();
            let bits = key.prefix_len.saturating_sub(SOURCE_LIST_BITS);
            list.extend(prefix_of(bits, key.source.addr));
        }
        let lists = all.into_iter();
        Ok(Self {
            table,
            lists: lists
                .map(|(number, list)| (number, list.into_iter().collect()))
                .collect(),
            numbers: HashMap::new(),
            users: HashMap::new(),
            last: 0,
        })
    }

    /// The list of that number.
    pub(super) fn get(&self, number: u16) -> Option<Arc<[Prefix]>> {
        self.lists.get(&number).cloned()
    }

    /// A frontend was found that uses a list.
    pub(super) fn adopt(&mut self, number: u16) {
        if let Some(list) = self.lists.get(&number) {
            self.numbers.insert(Arc::clone(list), number);
            *self.users.entry(number).or_default() += 1;
        }
    }

    /// The number of a list, for one more frontend; 0 if there is none. Writes what is not in the table yet.
    pub(super) fn take(&mut self, list: Option<&Arc<[Prefix]>>) -> Result<u16, DatapathError> {
        let Some(list) = list else { return Ok(0) };
        let number = match self.numbers.get(list) {
            Some(number) => *number,
            None => self.write(list)?,
        };
        *self.users.entry(number).or_default() += 1;
        Ok(number)
    }

    fn write(&mut self, list: &Arc<[Prefix]>) -> Result<u16, DatapathError> {
        self.remove_unused()?;
        let full = DatapathError::Full {
            map: maps::SOURCES,
            limit: self.table.limit(),
        };
        let mut numbers = (1..=u16::MAX).map(|step| self.last.wrapping_add(step));
        let is_free = |number: &u16| *number != 0 && !self.lists.contains_key(number);
        let number = numbers.find(is_free).ok_or(full)?;
        let keys = keys_of(number, list);
        if let Err((written, error)) = self.table.insert(&keys, &vec![1; keys.len()]) {
            let written = keys.get(..written).unwrap_or_default();
            self.table.remove(written)?;
            return Err(error);
        }
        self.last = number;
        self.lists.insert(number, Arc::clone(list));
        self.numbers.insert(Arc::clone(list), number);
        Ok(number)
    }

    /// A frontend has this list no longer.
    pub(super) fn give_back(&mut self, list: Option<&Arc<[Prefix]>>) {
        let number = list.and_then(|list| self.numbers.get(list));
        if let Some(users) = number.and_then(|number| self.users.get_mut(number)) {
            *users = users.saturating_sub(1);
        }
    }

    fn remove_unused(&mut self) -> Result<(), DatapathError> {
        self.users.retain(|_, users| *users > 0);
        let unused: Vec<u16> = self
            .lists
            .keys()
            .filter(|number| !self.users.contains_key(number))
            .copied()
            .collect();
        for number in unused {
            if let Some(list) = self.get(number) {
                self.table.remove(&keys_of(number, &list))?;
                self.lists.remove(&number);
                self.numbers.retain(|_, other| *other != number);
            }
        }
        Ok(())
    }
}

fn keys_of(number: u16, list: &[Prefix]) -> Vec<SourceKey> {
    list.iter().map(|prefix| key_of(number, *prefix)).collect()
}

fn key_of(list: u16, prefix: Prefix) -> SourceKey {
    let key = cidr_key(prefix);
    SourceKey {
        prefix_len: SOURCE_LIST_BITS + key.prefix_len,
        source: Source {
            list,
            pad: 0,
            addr: key.addr,
        },
    }
}
