//! What the kernel's maps cost alone: the calls that cannot be avoided by whoever writes entry by entry.
#![expect(unsafe_code, reason = "bpf(2), which no crate offers bare")]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::Instant,
};

use anyhow::{Context as _, Result};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const TYPE_HASH: u32 = 1;
const TYPE_ARRAY: u32 = 2;
const NO_PREALLOC: u32 = 1;
const KEY: usize = 20;
const VALUE: usize = 36;
const BACKEND: usize = 32;
/// Endpoints of each Service.
const ENDPOINTS: u32 = 5;

#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<RawFd> {
    let attr: *mut T = attr;
    // SAFETY: the kernel reads as much as the size says, which is that of the value.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    RawFd::try_from(answer)
        .ok()
        .filter(|answer| *answer >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn create(map_type: u32, [key_size, value_size]: [usize; 2], max_entries: u32) -> Result<OwnedFd> {
    let mut attr = CreateAttr {
        map_type,
        key_size: u32::try_from(key_size)?,
        value_size: u32::try_from(value_size)?,
        max_entries,
        map_flags: if map_type == TYPE_HASH {
            NO_PREALLOC
        } else {
            0
        },
    };
    let fd = bpf(MAP_CREATE, &mut attr).context("making a map")?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn update<const K: usize, const V: usize>(
    map: &OwnedFd,
    key: [u8; K],
    value: [u8; V],
) -> Result<()> {
    let mut attr = ElemAttr {
        map_fd: u32::try_from(map.as_raw_fd())?,
        pad: 0,
        key: key.as_ptr().expose_provenance() as u64,
        value: value.as_ptr().expose_provenance() as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attr).context("writing a map")?;
    Ok(())
}

/// A frontend and five backends for each Service.
pub(crate) fn run(count: u32, runs: usize) -> Result<()> {
    for _ in 0..runs {
        let frontends = create(TYPE_HASH, [KEY, VALUE], 2 * count)?;
        let backends = create(TYPE_ARRAY, [4, BACKEND], count * ENDPOINTS)?;
        let begun = Instant::now();
        for number in 0..count {
            for endpoint in 0..ENDPOINTS {
                let index = number * ENDPOINTS + endpoint;
                update(&backends, index.to_ne_bytes(), [1_u8; BACKEND])?;
            }
            let mut key = [0_u8; KEY];
            for (to, from) in key.iter_mut().zip(number.to_ne_bytes()) {
                *to = from;
            }
            update(&frontends, key, [1_u8; VALUE])?;
        }
        println!("{}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}
