//! Who has which addresses, so that neither ADD nor DEL reads every lease of a large network.
//!
//! `<dir>/.skiff/<hash of the owner>` lists the owner's addresses. The index is a cache: the leases themselves are the
//! truth. `<dir>/.skiff/stamp` holds the time of the last change of `<dir>` that the index knows; any other change (by
//! the reference plugin, or by a process that died between two steps) makes it stale, and it is built again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{IpamError, Owner, store::io_error};
use crate::fingerprint;

const FOLDER: &str = ".skiff";

#[derive(Debug)]
pub(super) struct Index {
    leases: PathBuf,
    dir: PathBuf,
}

impl Index {
    pub(super) fn open(leases: &Path) -> Result<Self, IpamError> {
        let dir = leases.join(FOLDER);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(io_error("making", &dir)(error))
            }
            _ => Ok(Self {
                leases: leases.to_owned(),
                dir,
            }),
        }
    }

    /// Where a file is written before it gets its name. One suffices: the lock is held.
    pub(super) fn draft_path(&self) -> PathBuf {
        self.dir.join("draft")
    }

    fn stamp_path(&self) -> PathBuf {
        self.dir.join("stamp")
    }

    fn entry_path(&self, owner: &Owner) -> PathBuf {
        self.dir
            .join(fingerprint(&[&owner.container, &owner.ifname], 32))
    }

    fn change_time(&self) -> io::Result<String> {
        let meta = fs::metadata(&self.leases)?;
        Ok(format!("{:020}.{:09}", meta.mtime(), meta.mtime_nsec()))
    }

    pub(super) fn is_current(&self) -> Result<bool, IpamError> {
        match fs::read_to_string(self.stamp_path()) {
            Ok(stamp) => Ok(stamp
                == self
                    .change_time()
                    .map_err(io_error("reading", &self.leases))?),
            Err(_missing) => Ok(false),
        }
    }

    pub(super) fn mark_current(&self) -> Result<(), IpamError> {
        let path = self.stamp_path();
        // Always of the same length, and written over the old one: some file systems write a file out to the disk that
        // is cut off and filled again.
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(self.change_time()?.as_bytes()))
            .map_err(io_error("writing", &path))
    }

    pub(super) fn get(&self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let path = self.entry_path(owner);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    pub(super) fn add(&self, owner: &Owner, ip: IpAddr) -> Result<(), IpamError> {
        let mut ips = self.get(owner)?;
        ips.push(ip);
        self.put(owner, &ips)
    }

    fn put(&self, owner: &Owner, ips: &[IpAddr]) -> Result<(), IpamError> {
        let text: String = ips.iter().map(|ip| format!("{ip}\n")).collect();
        let path = self.entry_path(owner);
        fs::write(&path, text).map_err(io_error("writing", &path))
    }

    pub(super) fn remove(&self, owner: &Owner) -> Result<(), IpamError> {
        let path = self.entry_path(owner);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error("removing", &path)(error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn replace(&self, owners: &BTreeMap<Owner, Vec<IpAddr>>) -> Result<(), IpamError> {
        for entry in fs::read_dir(&self.dir).map_err(io_error("reading", &self.dir))? {
            let path = entry.map_err(io_error("reading", &self.dir))?.path();
            fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
        for (owner, ips) in owners {
            self.put(owner, ips)?;
        }
        Ok(())
    }
}
