//! The links to the outside: a program for what comes in and one for what goes out, at each of them.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
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
    programs: [(Way, &'static str, OwnedFd); 2],
    dir: PathBuf,
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
        let programs = [
            (Way::In, "in", open(bpffs::UPLINK_IN)?),
            (Way::Out, "out", open(bpffs::UPLINK_OUT)?),
        ];
        let uplinks = Self { programs, dir };
        for ifindex in uplinks.attached() {
            for (_, prefix, program) in &uplinks.programs {
                let pin = uplinks.pin(prefix, ifindex);
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

    fn pin(&self, prefix: &str, ifindex: u32) -> PathBuf {
        self.dir.join(format!("{prefix}-{ifindex}"))
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
        for (way, prefix, program) in self.programs.iter().rev() {
            let pin = self.pin(prefix, ifindex);
            if let Ok(link) = sys::obj_get(&pin) {
                if is_at(&link, ifindex) && sys::link_update(link.as_fd(), program.as_fd()).is_ok()
                {
                    continue;
                }
                bpffs::remove_link(&pin)?;
            }
            let link = sys::link_create_tcx(program.as_fd(), ifindex, *way)
                .map_err(DatapathError::at_link)?;
            sys::obj_pin(link.as_fd(), &pin).map_err(|e| DatapathError::io("pinning", &pin, e))?;
        }
        Ok(())
    }

    /// Undoes [`Self::attach`]; what is gone already is no error.
    ///
    /// # Errors
    /// [`DatapathError`] if a pin cannot be removed.
    pub fn detach(&self, ifindex: u32) -> Result<(), DatapathError> {
        for (_, prefix, _) in &self.programs {
            bpffs::remove_link(&self.pin(prefix, ifindex))?;
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
    sys::link_tcx(link.as_fd()).is_ok_and(|found| found == ifindex)
}
