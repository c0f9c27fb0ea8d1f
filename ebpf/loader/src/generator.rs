//! Packets made in the kernel, for benches of the programs that get them.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapError},
    programs::{ProgramError, Xdp},
};

use crate::{DatapathError, sys};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/packet-generator"));

const GENERATE: &str = "generate";
const BOUNCE: &str = "bounce";
const REMEMBER: &str = "remember";
/// Bytes of every frame.
const LENGTH: usize = 96;

/// What the generator is told; see `ebpf/programs/src/generator`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    frame: [u8; LENGTH],
    count: u32,
    mask: u32,
    port_at: u32,
    addr_at: u32,
}

// SAFETY: repr(C), integers only, no padding.
unsafe impl aya::Pod for Plan {}

/// Runs an XDP program on one packet after the other, each as it comes from a client.
pub struct PacketGenerator {
    object: Ebpf,
}

impl std::fmt::Debug for PacketGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketGenerator").finish_non_exhaustive()
    }
}

impl PacketGenerator {
    /// Loads it.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel refuses it.
    pub fn load() -> Result<Self, DatapathError> {
        let mut object = EbpfLoader::new()
            .load(OBJECT)
            .map_err(DatapathError::Load)?;
        for name in [GENERATE, BOUNCE, REMEMBER] {
            xdp(&mut object, name)?
                .load()
                .map_err(|source| failed(name, source))?;
        }
        Ok(Self { object })
    }

    /// Feeds the program that is pinned as `name` in `bpffs_dir`.
    ///
    /// # Errors
    /// [`DatapathError`] if there is none.
    pub fn feed(&mut self, bpffs_dir: &Path, name: &'static str) -> Result<(), DatapathError> {
        let pin = bpffs_dir.join(name);
        let program = sys::obj_get(&pin).map_err(|e| DatapathError::io("opening", &pin, e))?;
        self.set_next(program.as_fd())
    }

    /// Feeds a program that sends every frame back: what the others are compared with.
    ///
    /// # Errors
    /// [`DatapathError`] if a map cannot be written.
    pub fn feed_bounce(&mut self) -> Result<(), DatapathError> {
        self.feed_own(BOUNCE)
    }

    /// Feeds one that sends every frame back too, and writes two entries of the size of a connection's into a table of the same size
    /// as theirs.
    ///
    /// # Errors
    /// As [`Self::feed_bounce`].
    pub fn feed_remember(&mut self) -> Result<(), DatapathError> {
        self.feed_own(REMEMBER)
    }

    fn feed_own(&mut self, name: &'static str) -> Result<(), DatapathError> {
        let program = xdp(&mut self.object, name)?;
        let fd = program.fd().map_err(|source| failed(name, source))?;
        let fd = fd
            .try_clone()
            .map_err(|e| DatapathError::io("opening", name, e))?;
        self.set_next(fd.as_fd())
    }

    /// Makes `times` packets like `frame` (of at most 96 bytes) that come in by the link, from `clients` (a power of two) different
    /// ports and addresses in turn, beginning with client number `first`; the program's last verdict, and the mean time of a packet.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel refuses it.
    pub fn run(
        &mut self,
        frame: &[u8],
        (first, clients): (u32, u32),
        times: u32,
        ifindex: u32,
    ) -> Result<(u32, Duration), DatapathError> {
        let is_v4 = frame.get(12..14) == Some(&[8, 0]);
        let mut plan = Plan {
            frame: [0; LENGTH],
            count: first,
            mask: clients.wrapping_sub(1),
            port_at: if is_v4 { 34 } else { 54 },
            addr_at: if is_v4 { 28 } else { 36 },
        };
        for (to, from) in plan.frame.iter_mut().zip(frame) {
            *to = *from;
        }
        let map = self.object.map_mut("PLAN");
        let map = map.ok_or(DatapathError::NoProgram { program: GENERATE })?;
        let mut map = Array::<_, Plan>::try_from(map).map_err(map_error)?;
        map.set(0, plan, 0).map_err(map_error)?;
        let program = xdp(&mut self.object, GENERATE)?;
        let fd = program.fd().map_err(|source| failed(GENERATE, source))?;
        let (verdict, _, nanos) =
            sys::prog_test_run(fd.as_fd(), &[0; LENGTH], times, Some(ifindex))
                .map_err(|e| DatapathError::io("running", GENERATE, e))?;
        Ok((verdict, Duration::from_nanos(nanos.into())))
    }

    fn set_next(&self, program: BorrowedFd<'_>) -> Result<(), DatapathError> {
        let Some(Map::ProgramArray(map)) = self.object.map("NEXT") else {
            return Err(DatapathError::NoProgram { program: GENERATE });
        };
        sys::update(map.fd().as_fd(), 0_u32, sys::raw(program))
            .map_err(|e| DatapathError::io("writing", "NEXT", e))
    }
}

fn xdp<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DatapathError> {
    let program = object.program_mut(name);
    let program = program.ok_or(DatapathError::NoProgram { program: name })?;
    program.try_into().map_err(|source| failed(name, source))
}

fn failed(program: &'static str, source: ProgramError) -> DatapathError {
    DatapathError::Program { program, source }
}

fn map_error(error: MapError) -> DatapathError {
    DatapathError::Load(EbpfError::MapError(error))
}
