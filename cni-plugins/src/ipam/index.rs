//! Who has which addresses and which are taken, so that neither ADD nor DEL reads every lease of a large network.
//!
//! ```text
//! <dir>/.skiff/owners           a hash table from the owner's fingerprint to its addresses, with a stamp in its head
//! <dir>/.skiff/taken-<address>  a bit for each of the 4,096 addresses from that one on
//! ```
//! The index is a cache: the leases themselves are the truth, and what is read here is compared with them. The stamp is
//! the time of the last change of `<dir>` that the index knows; any other change (by the reference plugin, or by a
//! process that died between two steps) makes it stale, and it is built again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    IpamError, Owner,
    range::{address, number},
    store::io_error,
};
use crate::fingerprint;

const FOLDER: &str = ".skiff";

const MAGIC: [u8; 8] = *b"skiffip1";
/// Magic, time of the change (seconds, nanoseconds), slots, slots that were ever filled.
const HEAD: usize = 40;
/// A fingerprint and an address.
const SLOT: usize = 32;
const MIN_SLOTS: u64 = 256;
/// So many slots are read at once.
const PROBE: usize = 64;

const BLOCK_BITS: u32 = 12;
const BLOCK_BYTES: usize = 1 << (BLOCK_BITS - 3);

/// One slot of the table: whose address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    owner: u128,
    ip: u128,
}

impl Entry {
    const EMPTY: Self = Self { owner: 0, ip: 0 };
    const REMOVED: Self = Self { owner: 0, ip: 1 };

    fn new(owner: &Owner, ip: IpAddr) -> Self {
        let ip = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self {
            owner: key(owner),
            ip: ip.to_bits(),
        }
    }

    fn address(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(self.ip)).to_canonical()
    }

    fn read(bytes: &[u8]) -> Self {
        let half = |at: usize| {
            bytes
                .get(at..at + 16)
                .and_then(|half| half.try_into().ok())
                .map_or(0, u128::from_le_bytes)
        };
        Self {
            owner: half(0),
            ip: half(16),
        }
    }

    fn bytes(self) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        let (owner, ip) = bytes.split_at_mut(16);
        owner.copy_from_slice(&self.owner.to_le_bytes());
        ip.copy_from_slice(&self.ip.to_le_bytes());
        bytes
    }
}

/// Never zero, which marks a slot without an owner.
fn key(owner: &Owner) -> u128 {
    let text = fingerprint(&[&owner.container, &owner.ifname], 32);
    u128::from_str_radix(&text, 16).unwrap_or_default().max(1)
}

/// The time of a change: seconds and nanoseconds.
type Stamp = [u64; 2];

#[derive(Debug)]
pub(super) struct Index {
    leases: PathBuf,
    dir: PathBuf,
    table: File,
    slots: u64,
    filled: u64,
}

impl Index {
    /// Opens what is there; `None` if that is behind and has to be built.
    pub(super) fn open(leases: &Path) -> Option<Self> {
        let mut index = Self::new(leases, false).ok()?;
        let stamp = index.read_head()?;
        let is_current = index.change_time().is_ok_and(|time| time == stamp);
        is_current.then_some(index)
    }

    /// To be built, in the place of what may be there.
    pub(super) fn create(leases: &Path) -> Result<Self, IpamError> {
        let dir = leases.join(FOLDER);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io_error("making", &dir)(error));
            }
            _ => {}
        }
        Self::new(leases, true).map_err(io_error("opening", &dir))
    }

    fn new(leases: &Path, create: bool) -> io::Result<Self> {
        let dir = leases.join(FOLDER);
        let mut options = File::options();
        options.create(create).read(true).write(true);
        Ok(Self {
            leases: leases.to_owned(),
            table: options.open(dir.join("owners"))?,
            dir,
            slots: 0,
            filled: 0,
        })
    }

    /// Where a file is written before it gets its name. One suffices: the lock is held.
    pub(super) fn draft_path(&self) -> PathBuf {
        self.dir.join("draft")
    }

    /// The stamp; nothing if the file is not a whole table.
    fn read_head(&mut self) -> Option<Stamp> {
        let mut head = [0; HEAD];
        self.table.read_exact_at(&mut head, 0).ok()?;
        let (magic, numbers) = head.split_at(MAGIC.len());
        let mut numbers = numbers
            .chunks_exact(8)
            .filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes));
        let stamp = [numbers.next()?, numbers.next()?];
        let (slots, filled) = (numbers.next()?, numbers.next()?);
        let length = slots.checked_mul(SLOT as u64)?.checked_add(HEAD as u64)?;
        let whole = self.table.metadata().ok()?.len() == length;
        if magic != MAGIC || !slots.is_power_of_two() || filled >= slots || !whole {
            return None;
        }
        (self.slots, self.filled) = (slots, filled);
        Some(stamp)
    }

    fn head(&self, stamp: Stamp) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let (magic, numbers) = head.split_at_mut(MAGIC.len());
        magic.copy_from_slice(&MAGIC);
        let values = [stamp[0], stamp[1], self.slots, self.filled];
        for (bytes, value) in numbers.chunks_exact_mut(8).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        head
    }

    fn change_time(&self) -> io::Result<Stamp> {
        let meta = fs::metadata(&self.leases)?;
        Ok([
            meta.mtime().cast_unsigned(),
            meta.mtime_nsec().cast_unsigned(),
        ])
    }

    /// Notes that the index knows of every change so far.
    pub(super) fn mark_current(&self) -> Result<(), IpamError> {
        self.change_time()
            .and_then(|stamp| self.table.write_all_at(&self.head(stamp), 0))
            .map_err(io_error("writing", &self.dir))
    }

    /// What may be the addresses of `owner`.
    pub(super) fn get(&self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let wanted = key(owner);
        let mut ips = Vec::new();
        self.probe(wanted, |_slot, entry| {
            if entry.owner == wanted {
                ips.push(entry.address());
            }
            false
        })
        .map_err(io_error("reading", &self.dir))?;
        Ok(ips)
    }

    /// Notes that `owner` has `ip`.
    pub(super) fn add(&mut self, owner: &Owner, ip: IpAddr) -> Result<(), IpamError> {
        self.insert(Entry::new(owner, ip))
            .and_then(|()| self.set_taken(ip, true))
            .map_err(io_error("writing", &self.dir))
    }

    fn insert(&mut self, entry: Entry) -> io::Result<()> {
        if self.filled.saturating_add(1) >= self.slots / 4 * 3 {
            let live = self.live()?;
            self.write_table(&live)?;
        }
        let mut place = None;
        let end = self.probe(entry.owner, |slot, found| {
            if found == Entry::REMOVED && place.is_none() {
                place = Some(slot);
            }
            found == entry
        })?;
        match (end, place) {
            // It is there already.
            (Probed::Stopped, _) => Ok(()),
            (_, Some(removed)) => self.write_slot(removed, entry),
            (Probed::Empty(slot), None) => {
                self.filled += 1;
                self.write_slot(slot, entry)
            }
            // Its head counts wrongly: not of our making.
            (Probed::Full, None) => {
                let mut live = self.live()?;
                live.push(entry);
                self.write_table(&live)
            }
        }
    }

    /// Notes that `ip` is free, which one of `owners` had.
    pub(super) fn remove(&self, owners: &[&Owner], ip: IpAddr) -> Result<(), IpamError> {
        owners
            .iter()
            .try_for_each(|owner| self.remove_entry(Entry::new(owner, ip)))
            .and_then(|()| self.set_taken(ip, false))
            .map_err(io_error("writing", &self.dir))
    }

    fn remove_entry(&self, entry: Entry) -> io::Result<()> {
        let mut place = None;
        self.probe(entry.owner, |slot, found| {
            place = (found == entry).then_some(slot);
            found == entry
        })?;
        match place {
            Some(slot) => self.write_slot(slot, Entry::REMOVED),
            None => Ok(()),
        }
    }

    /// Goes through the slots that may hold `owner` until `stop` or an empty one.
    fn probe(&self, owner: u128, mut stop: impl FnMut(u64, Entry) -> bool) -> io::Result<Probed> {
        let mask = self.slots.saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a fingerprint's lower half"
        )]
        let mut slot = owner as u64 & mask;
        let mut bytes = [0; PROBE * SLOT];
        let mut left = self.slots;
        while left > 0 {
            let count = (PROBE as u64).min(self.slots - slot).min(left);
            let length = usize::try_from(count).unwrap_or_default() * SLOT;
            let Some(chunk) = bytes.get_mut(..length) else {
                break;
            };
            self.table.read_exact_at(chunk, offset(slot))?;
            for (step, bytes) in (0..count).zip(chunk.chunks_exact(SLOT)) {
                let entry = Entry::read(bytes);
                if entry == Entry::EMPTY {
                    return Ok(Probed::Empty(slot + step));
                }
                if stop(slot + step, entry) {
                    return Ok(Probed::Stopped);
                }
            }
            left -= count;
            slot = (slot + count) & mask;
        }
        Ok(Probed::Full)
    }

    fn write_slot(&self, slot: u64, entry: Entry) -> io::Result<()> {
        self.table.write_all_at(&entry.bytes(), offset(slot))
    }

    fn live(&self) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; usize::try_from(self.slots).unwrap_or_default() * SLOT];
        self.table.read_exact_at(&mut bytes, HEAD as u64)?;
        let entries = bytes.chunks_exact(SLOT).map(Entry::read);
        Ok(entries.filter(|entry| entry.owner != 0).collect())
    }

    /// Writes a table that holds `entries` and as many again. It is stale until it is marked.
    fn write_table(&mut self, entries: &[Entry]) -> io::Result<()> {
        self.filled = entries.len() as u64;
        self.slots = (self.filled * 2).next_power_of_two().max(MIN_SLOTS);
        let mask = self.slots - 1;
        let length = HEAD + usize::try_from(self.slots).unwrap_or_default() * SLOT;
        let mut bytes = vec![0; length];
        if let Some(head) = bytes.get_mut(..HEAD) {
            head.copy_from_slice(&self.head([0; 2]));
        }
        for entry in entries {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a fingerprint's lower half"
            )]
            let mut slot = entry.owner as u64 & mask;
            loop {
                let at = usize::try_from(offset(slot)).unwrap_or(length);
                match bytes.get_mut(at..at + SLOT) {
                    Some(place) if Entry::read(place) == Entry::EMPTY => {
                        place.copy_from_slice(&entry.bytes());
                        break;
                    }
                    Some(_) => slot = (slot + 1) & mask,
                    None => break,
                }
            }
        }
        self.table.set_len(0)?;
        self.table.write_all_at(&bytes, 0)
    }

    /// Builds everything again. `ownerless` addresses are taken too.
    pub(super) fn replace(
        &mut self,
        owned: &[(Owner, IpAddr)],
        ownerless: &[IpAddr],
    ) -> Result<(), IpamError> {
        let entries: Vec<Entry> = owned
            .iter()
            .map(|(owner, ip)| Entry::new(owner, *ip))
            .collect();
        let taken = owned.iter().map(|(_, ip)| ip).chain(ownerless);
        self.write_blocks(taken)
            .and_then(|()| self.write_table(&entries))
            .map_err(io_error("writing", &self.dir))
    }

    fn write_blocks<'a>(&self, taken: impl Iterator<Item = &'a IpAddr>) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b"taken-") {
                fs::remove_file(entry.path())?;
            }
        }
        let mut blocks: BTreeMap<PathBuf, [u8; BLOCK_BYTES]> = BTreeMap::new();
        for ip in taken {
            let (path, byte, bit) = self.place(*ip);
            let block = blocks.entry(path).or_insert([0; BLOCK_BYTES]);
            if let Some(byte) = block.get_mut(byte) {
                *byte |= bit;
            }
        }
        blocks
            .into_iter()
            .try_for_each(|(path, block)| fs::write(path, block))
    }

    /// The file, the byte and the bit that stand for `ip`.
    fn place(&self, ip: IpAddr) -> (PathBuf, usize, u8) {
        let number = number(ip);
        let first = address(number >> BLOCK_BITS << BLOCK_BITS, ip.is_ipv4());
        let within = usize::try_from(number & ((1 << BLOCK_BITS) - 1)).unwrap_or_default();
        let path = self.dir.join(format!("taken-{first}"));
        (path, within / 8, 1 << (within % 8))
    }

    /// Notes whether `ip` is taken.
    fn set_taken(&self, ip: IpAddr, taken: bool) -> io::Result<()> {
        let (path, byte, bit) = self.place(ip);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let file = options.open(path)?;
        let mut value = [0];
        // What is behind the end of the file is free.
        file.read_at(&mut value, byte as u64)?;
        if taken {
            value[0] |= bit;
        } else {
            value[0] &= !bit;
        }
        file.write_all_at(&value, byte as u64)
    }

    /// Notes that `ip` is taken, whoever has it.
    pub(super) fn add_ownerless(&self, ip: IpAddr) -> Result<(), IpamError> {
        self.set_taken(ip, true)
            .map_err(io_error("writing", &self.dir))
    }

    /// The first address of `from..=to` that is not noted as taken.
    pub(super) fn first_free(
        &self,
        from: u128,
        to: u128,
        ipv4: bool,
    ) -> Result<Option<IpAddr>, IpamError> {
        let mut candidate = from;
        while candidate <= to {
            let last = to.min(candidate | ((1 << BLOCK_BITS) - 1));
            let (path, first_byte, _) = self.place(address(candidate, ipv4));
            let block = match fs::read(&path) {
                Ok(block) => block,
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(io_error("reading", &path)(error)),
            };
            let mut byte = first_byte;
            loop {
                let bits = block.get(byte).copied().unwrap_or(0);
                // What comes before the candidate within its byte does not count.
                let free = !bits & (u8::MAX << (candidate % 8));
                let found = (candidate & !7) + u128::from(free.trailing_zeros());
                if free != 0 {
                    return Ok((found <= to).then(|| address(found, ipv4)));
                }
                byte += 1;
                match (candidate | 7).checked_add(1) {
                    Some(next) if next <= last => candidate = next,
                    _ => break,
                }
            }
            match last.checked_add(1) {
                Some(next) => candidate = next,
                None => break,
            }
        }
        Ok(None)
    }
}

/// How a walk through the table ended.
#[derive(Debug, Clone, Copy)]
enum Probed {
    Stopped,
    Empty(u64),
    Full,
}

fn offset(slot: u64) -> u64 {
    HEAD as u64 + slot * SLOT as u64
}
