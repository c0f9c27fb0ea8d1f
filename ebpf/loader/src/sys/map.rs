//! Pinned maps: hash maps by batches, arrays through a shared mapping.

use std::{
    fs, io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use skiff_ebpf_common::Plain;

use super::{
    BPF_MAP_DELETE_BATCH, BPF_MAP_LOOKUP_BATCH, BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_BATCH,
    BPF_MAP_UPDATE_ELEM, MapInfo, bpf, map_info, obj_get, raw,
};
use crate::DatapathError;

/// A flag of a map: `linux/bpf.h`.
const BPF_F_NO_PREALLOC: u32 = 1;

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn open<K, V>(folder: &Path, name: &'static str) -> Result<(OwnedFd, MapInfo), DatapathError> {
    let failed = |what| {
        move |source| DatapathError::Map {
            what,
            map: name,
            source,
        }
    };
    let fd = obj_get(&folder.join(name)).map_err(failed("opening"))?;
    let info = map_info(fd.as_fd()).map_err(failed("asking about"))?;
    if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
        return Err(DatapathError::MapShape { map: name });
    }
    Ok((fd, info))
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().expose_provenance() as u64
}

/// A hash map or a trie of prefixes; single values of arrays too.
#[derive(Debug)]
pub(crate) struct HashTable<K, V> {
    fd: OwnedFd,
    name: &'static str,
    limit: u32,
    grows: bool,
    types: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> HashTable<K, V> {
    pub(crate) fn open(folder: &Path, name: &'static str) -> Result<Self, DatapathError> {
        let (fd, info) = open::<K, V>(folder, name)?;
        Ok(Self {
            fd,
            name,
            limit: info.max_entries,
            grows: info.flags & BPF_F_NO_PREALLOC != 0,
            types: PhantomData,
        })
    }

    /// Whether an entry's memory is taken when it is written, not when the table is made.
    pub(crate) fn grows(&self) -> bool {
        self.grows
    }

    /// The memory that the kernel says the table has. Exact since Linux 6.4.
    pub(crate) fn bytes(&self) -> Result<u64, DatapathError> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = fs::read_to_string(&path).map_err(|e| DatapathError::io("reading", &path, e))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0))
    }

    /// How many entries it can have.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    fn error(&self, what: &'static str, source: io::Error) -> DatapathError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => DatapathError::Full {
                map: self.name,
                limit: self.limit,
            },
            _ => DatapathError::Map {
                what,
                map: self.name,
                source,
            },
        }
    }

    /// Writes all of them, in order. On failure tells how many were written.
    pub(crate) fn insert(&self, keys: &[K], values: &[V]) -> Result<(), (usize, DatapathError)> {
        debug_assert_eq!(keys.len(), values.len());
        let mut attr = self.batch(keys, address(values));
        if keys.is_empty() {
            return Ok(());
        }
        match bpf(BPF_MAP_UPDATE_BATCH, &mut attr) {
            Ok(_) => Ok(()),
            Err(source) => Err((attr.count as usize, self.error("writing", source))),
        }
    }

    /// Removes all of them; what is absent already is no error.
    pub(crate) fn remove(&self, mut keys: &[K]) -> Result<(), DatapathError> {
        while !keys.is_empty() {
            let mut attr = self.batch(keys, 0);
            match bpf(BPF_MAP_DELETE_BATCH, &mut attr) {
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    // The batch stops at the first absent key.
                    keys = keys.get(attr.count as usize + 1..).unwrap_or_default();
                }
                Err(error) => return Err(self.error("removing from", error)),
            }
        }
        Ok(())
    }

    fn batch(&self, keys: &[K], values: u64) -> BatchAttr {
        BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: address(keys),
            values,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map_fd: raw(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        }
    }

    /// Everything in it.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        // A hash map hands out whole buckets: the room must be enough for one.
        const ROOM: u32 = 4096;
        const CURSOR: usize = 8;
        let mut all = Vec::new();
        let mut keys = Vec::<K>::with_capacity(ROOM as usize);
        let mut values = Vec::<V>::with_capacity(ROOM as usize);
        // The place where it goes on: a number in a hash map, a key in a trie.
        let (mut last, mut next) = ([0_u64; CURSOR], [0_u64; CURSOR]);
        const { assert!(size_of::<K>() <= CURSOR * 8) };
        let mut first = true;
        loop {
            keys.clear();
            values.clear();
            let mut attr = self.batch(&[], values.as_mut_ptr().expose_provenance() as u64);
            attr.keys = keys.as_mut_ptr().expose_provenance() as u64;
            attr.count = ROOM;
            attr.in_batch = if first { 0 } else { address(&last) };
            attr.out_batch = next.as_mut_ptr().expose_provenance() as u64;
            first = false;
            let end = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(self.error("reading", error)),
            };
            let count = attr.count.min(ROOM) as usize;
            // SAFETY: the kernel has filled `count` elements, which are plain bytes.
            unsafe { keys.set_len(count) };
            // SAFETY: as above.
            unsafe { values.set_len(count) };
            all.extend(keys.iter().copied().zip(values.iter().copied()));
            if end {
                return Ok(all);
            }
            last = next;
        }
    }

    /// One value.
    pub(crate) fn get(&self, key: K) -> Result<Option<V>, DatapathError> {
        let mut value = MaybeUninit::<V>::uninit();
        let keys = [key];
        let mut attr = ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            pad: 0,
            key: address(&keys),
            value: value.as_mut_ptr().expose_provenance() as u64,
            flags: 0,
        };
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
            // SAFETY: the kernel has filled it; it is plain bytes.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.error("reading", error)),
        }
    }

    /// Writes one value.
    pub(crate) fn set(&self, key: K, value: V) -> Result<(), DatapathError> {
        update(self.fd.as_fd(), key, value).map_err(|error| self.error("writing", error))
    }
}

/// Writes one value of a map whose keys and values have the sizes of these.
pub(crate) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: K, value: V) -> io::Result<()> {
    let (keys, values) = ([key], [value]);
    let mut attr = ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key: address(&keys),
        value: address(&values),
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// An array, read by system calls: for a look from another process.
#[derive(Debug)]
pub(crate) struct ArrayTable<V> {
    table: HashTable<u32, V>,
}

impl<V: Plain> ArrayTable<V> {
    pub(crate) fn open(folder: &Path, name: &'static str) -> Result<Self, DatapathError> {
        let table = HashTable::open(folder, name)?;
        Ok(Self { table })
    }

    /// How many elements it has.
    pub(crate) fn len(&self) -> u32 {
        self.table.limit
    }

    /// As [`HashTable::bytes`].
    pub(crate) fn bytes(&self) -> Result<u64, DatapathError> {
        self.table.bytes()
    }

    /// One element; none if there is no such.
    pub(crate) fn get(&self, index: u32) -> Result<Option<V>, DatapathError> {
        self.table.get(index)
    }
}

/// An array that both sides have mapped: a write is a store.
///
/// Elements are whole 64-bit words and are only ever accessed as such, atomically. What is mapped counts as this process's
/// memory, so it is mapped in pieces, where it is used and as long as that is so.
#[derive(Debug)]
pub(crate) struct MappedArray<T: Plain> {
    fd: OwnedFd,
    name: &'static str,
    pieces: Vec<Option<NonNull<AtomicU64>>>,
    length: u32,
    types: PhantomData<T>,
}

/// A multiple of every page size, and of every element's size.
const PIECE: usize = 256 * 1024;

// SAFETY: all access goes through atomics; the mappings belong to this value alone.
unsafe impl<T: Plain> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for MappedArray<T> {}

impl<T: Plain> MappedArray<T> {
    const WORDS: usize = size_of::<T>() / 8;
    const PER_PIECE: usize = PIECE / size_of::<T>();

    pub(crate) fn open(folder: &Path, name: &'static str) -> Result<Self, DatapathError> {
        const { assert!(size_of::<T>().is_power_of_two() && size_of::<T>() >= 8) };
        let (fd, info) = open::<u32, T>(folder, name)?;
        let array = Self {
            fd,
            name,
            pieces: Vec::new(),
            length: info.max_entries,
            types: PhantomData,
        };
        Ok(array)
    }

    /// How many elements it has.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    /// Maps the elements from `first` to before `end`, so that they can be read and written until [`Self::unmap`].
    pub(crate) fn map(&mut self, first: u32, end: u32) -> Result<(), DatapathError> {
        let end = (end.min(self.length) as usize).div_ceil(Self::PER_PIECE);
        for number in first as usize / Self::PER_PIECE..end {
            if self.pieces.len() <= number {
                self.pieces.resize(number + 1, None);
            }
            let Some(place @ None) = self.pieces.get_mut(number) else {
                continue;
            };
            let offset = number * PIECE;
            let bytes = PIECE.min(self.length as usize * size_of::<T>() - offset);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let (shared, fd) = (libc::MAP_SHARED, self.fd.as_raw_fd());
            let from = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
            // SAFETY: a fresh mapping at an address the kernel chooses.
            let mapped =
                unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, shared, fd, from) };
            let Some(piece) = NonNull::new(mapped.cast()).filter(|_| mapped != libc::MAP_FAILED)
            else {
                let source = io::Error::last_os_error();
                return Err(DatapathError::Map {
                    what: "mapping",
                    map: self.name,
                    source,
                });
            };
            *place = Some(piece);
        }
        Ok(())
    }

    /// Undoes [`Self::map`], for all elements.
    pub(crate) fn unmap(&mut self) {
        let total = self.length as usize * size_of::<T>();
        for (number, piece) in self.pieces.drain(..).enumerate() {
            let Some(piece) = piece else { continue };
            let bytes = PIECE.min(total - number * PIECE);
            // SAFETY: a mapping made in `map`, unmapped once.
            let _unmapped = unsafe { libc::munmap(piece.as_ptr().cast(), bytes) };
        }
    }

    /// One 64-bit word of one element.
    fn word(&self, index: u32, word: usize) -> Option<&AtomicU64> {
        let index = index as usize;
        if index >= self.length as usize || word >= Self::WORDS {
            return None;
        }
        let piece = (*self.pieces.get(index / Self::PER_PIECE)?)?;
        let offset = index % Self::PER_PIECE * Self::WORDS + word;
        // SAFETY: within the piece: the index is in the array and the piece covers it up to the array's end.
        let pointer = unsafe { piece.add(offset) };
        // SAFETY: aligned (the piece is), mapped as long as `self` is borrowed, and only accessed atomically.
        Some(unsafe { pointer.as_ref() })
    }

    /// A copy of an element; none if it does not exist or is not mapped.
    pub(crate) fn get(&self, index: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        for word in 0..Self::WORDS {
            let bits = self.word(index, word)?.load(Ordering::Acquire);
            // SAFETY: `T` has WORDS words.
            let target = unsafe { value.as_mut_ptr().cast::<u64>().add(word) };
            // SAFETY: points into `value`; `T` may be aligned to less than a word.
            unsafe { target.write_unaligned(bits) };
        }
        // SAFETY: all words are written, and every bit pattern is a `T`.
        Some(unsafe { value.assume_init() })
    }

    /// Stores an element, its first word last: whoever sees that sees the rest. The element must be mapped.
    pub(crate) fn set(&self, index: u32, value: T) {
        let source: *const T = &raw const value;
        for word in (0..Self::WORDS).rev() {
            // SAFETY: `T` has WORDS words.
            let from = unsafe { source.cast::<u64>().add(word) };
            // SAFETY: points into `value`; `T` may be aligned to less than a word.
            let bits = unsafe { from.read_unaligned() };
            let target = self.word(index, word);
            debug_assert!(
                target.is_some(),
                "{}: element {index} is not mapped",
                self.name
            );
            if let Some(target) = target {
                target.store(bits, Ordering::Release);
            }
        }
    }
}

impl<T: Plain> Drop for MappedArray<T> {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// A per-CPU array of counters.
#[derive(Debug)]
pub(crate) struct PerCpuCounters {
    fd: OwnedFd,
    name: &'static str,
    cpus: usize,
}

impl PerCpuCounters {
    pub(crate) fn open(folder: &Path, name: &'static str) -> Result<Self, DatapathError> {
        let (fd, _) = open::<u32, u64>(folder, name)?;
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, source)| DatapathError::io("reading", path, source))?;
        Ok(Self { fd, name, cpus })
    }

    /// The sum over all CPUs.
    pub(crate) fn sum(&self, index: u32) -> Result<u64, DatapathError> {
        let mut values = vec![0_u64; self.cpus];
        let keys = [index];
        let mut attr = ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            pad: 0,
            key: address(&keys),
            value: values.as_mut_ptr().expose_provenance() as u64,
            flags: 0,
        };
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).map_err(|source| DatapathError::Map {
            what: "reading",
            map: self.name,
            source,
        })?;
        Ok(values.iter().sum())
    }
}
