//! The links to the outside: a program for what comes in and one for what goes out, at each of them. Where it is asked for, a
//! third one sees the frames that come in before the kernel does (XDP).

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use crate::{
    DatapathError, bpffs,
    sys::{self, Way},
};

/// The programs at a node's links to the outside. They are pinned: nothing changes when this is dropped.
///
/// Methods that attach must be called on a thread in the node's network namespace: that is where the kernel looks for
/// the link.
#[derive(Debug)]
pub struct Uplinks {
    programs: [(Hook, OwnedFd); 3],
    dir: PathBuf,
}

/// Where at a link a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Tcx(Way),
    Xdp,
}

impl Hook {
    /// How its pins' names begin.
    fn prefix(self) -> &'static str {
        match self {
            Self::Tcx(Way::In) => "in",
            Self::Tcx(Way::Out) => "out",
            Self::Xdp => "xdp",
        }
    }

    fn create(self, program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
        match self {
            Self::Tcx(way) => sys::link_create_tcx(program, ifindex, way),
            Self::Xdp => sys::link_create_xdp(program, ifindex),
        }
    }
}

impl Uplinks {
    /// Opens the programs of a node's datapath and puts them in the place of earlier ones wherever those are attached. Tables
    /// that are still to be filled serve nobody: the first [`crate::Datapath::apply`] comes before.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be opened.
    pub fn open(bpffs_dir: &Path) -> Result<Self, DatapathError> {
        let dir = bpffs_dir.join(bpffs::UPLINKS);
        fs::create_dir_all(&dir).map_err(|e| DatapathError::io("making", &dir, e))?;
        let open = |name| {
            let pin = bpffs_dir.join(name);
            sys::obj_get(&pin).map_err(|e| DatapathError::io("opening", &pin, e))
        };
        let [xdp, uplink_in, uplink_out] = bpffs::UPLINK_PROGRAMS;
        let programs = [
            (Hook::Xdp, open(xdp)?),
            (Hook::Tcx(Way::In), open(uplink_in)?),
            (Hook::Tcx(Way::Out), open(uplink_out)?),
        ];
        let uplinks = Self { programs, dir };
        for ifindex in uplinks.attached() {
            for (hook, program) in &uplinks.programs {
                let pin = uplinks.pin(*hook, ifindex);
                let exchanged = sys::obj_get(&pin)
                    .and_then(|link| sys::link_update(link.as_fd(), program.as_fd()));
                if exchanged.is_err() {
                    // Its link is gone.
                    bpffs::remove_link(&pin)?;
                }
            }
        }
        Ok(uplinks)
    }

    fn pin(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.dir.join(format!("{}-{ifindex}", hook.prefix()))
    }

    /// The numbers of the links that have one of the programs, or had one when they went.
    #[must_use]
    pub fn attached(&self) -> Vec<u32> {
        let pins = bpffs::children(&self.dir);
        let number = |pin: &PathBuf| {
            let name = pin.file_name()?.to_str()?;
            name.rsplit('-').next()?.parse().ok()
        };
        let mut all: Vec<u32> = pins.iter().filter_map(number).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Serves Services to whoever comes in by this link. Doing it again changes nothing. A link must have Ethernet frames.
    ///
    /// # Errors
    /// [`DatapathError::MissingFeature`] before Linux 6.6; [`DatapathError`] if the link is gone.
    pub fn attach(&self, ifindex: u32) -> Result<(), DatapathError> {
        // What goes out first: no packet comes in whose answer would not be translated.
        let [_, programs @ ..] = &self.programs;
        for (hook, program) in programs.iter().rev() {
            self.attach_one(*hook, program, ifindex)?
                .map_err(DatapathError::at_link)?;
        }
        Ok(())
    }

    /// Has the link's driver send on what comes in by it and leaves by it again (native XDP), after [`Self::attach`]. Doing it
    /// again changes nothing. The driver must see checksums complete, which those of veth and other purely virtual links do not.
    ///
    /// False: it cannot, or serves another's program already. [`Self::attach`] does the same with more work.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be written.
    pub fn attach_xdp(&self, ifindex: u32) -> Result<bool, DatapathError> {
        let [(hook, program), ..] = &self.programs;
        Ok(self.attach_one(*hook, program, ifindex)?.is_ok())
    }

    /// The inner error is the kernel's, which did not attach it.
    fn attach_one(
        &self,
        hook: Hook,
        program: &OwnedFd,
        ifindex: u32,
    ) -> Result<io::Result<()>, DatapathError> {
        let pin = self.pin(hook, ifindex);
        if let Ok(link) = sys::obj_get(&pin) {
            if is_at(&link, ifindex) && sys::link_update(link.as_fd(), program.as_fd()).is_ok() {
                return Ok(Ok(()));
            }
            bpffs::remove_link(&pin)?;
        }
        let link = match hook.create(program.as_fd(), ifindex) {
            Ok(link) => link,
            Err(error) => return Ok(Err(error)),
        };
        sys::obj_pin(link.as_fd(), &pin).map_err(|e| DatapathError::io("pinning", &pin, e))?;
        Ok(Ok(()))
    }

    /// Undoes [`Self::attach_xdp`]; what is gone already is no error.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be removed.
    pub fn detach_xdp(&self, ifindex: u32) -> Result<(), DatapathError> {
        bpffs::remove_link(&self.pin(Hook::Xdp, ifindex))
    }

    /// Undoes [`Self::attach`] and [`Self::attach_xdp`]; what is gone already is no error.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be removed.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        for (hook, _) in &self.programs {
            bpffs::remove_link(&self.pin(*hook, ifindex))?;
        }
        Ok(())
    }

    /// Undoes it for every link but these.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be removed; all are tried.
    pub fn retain(&self, keep: &[u32]) -> Result<(), DatapathError> {
        let gone = self.attached().into_iter();
        let gone = gone.filter(|ifindex| !keep.contains(ifindex));
        let results: Vec<_> = gone.map(|ifindex| self.detach(ifindex)).collect();
        results.into_iter().collect()
    }
}

/// Whether it still is at its link: a link that goes leaves the pin, and its number may be given to another.
fn is_at(link: &OwnedFd, ifindex: u32) -> bool {
    sys::link_ifindex(link.as_fd()).is_ok_and(|found| found == ifindex)
}
