//! Leases as files: `<dataDir>/<network>/<ip>` holds its owner, as the reference `host-local` writes it.
//!
//! A lease is made by a hard link from a finished file, so it is either there with its owner or not there at all.
//! Everything happens under a lock on `<dir>/lock`, which the reference takes too. Beside the leases,
//! [`index`](super::index) remembers who has what.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{IpamError, index::Index};
use crate::types::AttachmentKey;

/// Every step under the lock takes microseconds; whoever holds it this long hangs.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_micros(500);

/// Who has an address. The link is empty in leases that old versions of the reference plugin made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The container.
    pub container: String,
    /// The link inside it.
    pub ifname: String,
}

impl Owner {
    /// The owner that an attachment is.
    #[must_use]
    pub fn new(key: &AttachmentKey) -> Self {
        Self {
            container: key.container_id.as_str().to_owned(),
            ifname: key.ifname.as_str().to_owned(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim().lines().map(str::trim);
        let container = lines.next().filter(|line| !line.is_empty())?.to_owned();
        Some(Self {
            container,
            ifname: lines.next().unwrap_or_default().to_owned(),
        })
    }

    fn text(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// The same container as an old version of the reference plugin wrote it.
    fn without_link(&self) -> Self {
        Self {
            container: self.container.clone(),
            ifname: String::new(),
        }
    }
}

/// The leases of one network.
#[derive(Debug, Clone)]
pub struct LeaseStore {
    dir: PathBuf,
}

/// The leases while nobody else changes them. Dropping it gives the lock back.
#[derive(Debug)]
pub struct LockedStore {
    dir: PathBuf,
    index: Index,
    _lock: Flock<File>,
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IpamError {
    let path = path.to_owned();
    move |source| IpamError::Io {
        action,
        path,
        source,
    }
}

impl LeaseStore {
    /// The store of a network in `data_dir`. Nothing is read or made yet.
    #[must_use]
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self {
            dir: data_dir.join(network),
        }
    }

    /// Whether the store can be written, without locking it.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn ensure_writable(&self) -> Result<(), IpamError> {
        fs::create_dir_all(&self.dir).map_err(io_error("making", &self.dir))?;
        self.open_lock().map(drop)
    }

    /// Locks the store; its folder is made if need be.
    ///
    /// # Errors
    /// [`IpamError::Locked`] if another process holds it too long, [`IpamError::Io`].
    pub fn lock(&self) -> Result<LockedStore, IpamError> {
        self.lock_within(LOCK_DEADLINE)
    }

    /// [`LeaseStore::lock`] with another patience.
    ///
    /// # Errors
    /// As there.
    pub fn lock_within(&self, patience: Duration) -> Result<LockedStore, IpamError> {
        let mut file = match self.open_lock() {
            Ok(file) => file,
            Err(_no_folder_yet) => {
                fs::create_dir_all(&self.dir).map_err(io_error("making", &self.dir))?;
                self.open_lock()?
            }
        };
        let path = self.lock_path();
        let deadline = Instant::now() + patience;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((again, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    file = again;
                    std::thread::sleep(LOCK_POLL);
                }
                Err((again, nix::errno::Errno::EINTR)) => file = again,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(IpamError::Locked { path }),
                Err((_, errno)) => return Err(io_error("locking", &path)(errno.into())),
            }
        };
        let index = Index::open(&self.dir)?;
        let mut store = LockedStore {
            dir: self.dir.clone(),
            index,
            _lock: lock,
        };
        if !store.index.is_current()? {
            store.rebuild_index()?;
        }
        Ok(store)
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn open_lock(&self) -> Result<File, IpamError> {
        let path = self.lock_path();
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("opening", &path))
    }
}

impl LockedStore {
    /// Leases `ip` to `owner`; `false` if somebody has it.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn lease(&mut self, ip: IpAddr, owner: &Owner) -> Result<bool, IpamError> {
        let path = self.dir.join(ip.to_string());
        // Most of a busy range is taken: asking first costs less than preparing a file.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.len() > 0) {
            return Ok(false);
        }
        let draft = self.index.draft_path();
        fs::write(&draft, owner.text()).map_err(io_error("writing", &draft))?;
        match fs::hard_link(&draft, &path) {
            Ok(()) => {}
            // Without an owner: a crash of the reference plugin, which writes in place (under this lock).
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::rename(&draft, &path).map_err(io_error("replacing", &path))?;
            }
            Err(error) => return Err(io_error("making", &path)(error)),
        }
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("removing", &draft)(error));
            }
            _ => {}
        }
        self.index.add(owner, ip)?;
        self.index.mark_current()?;
        Ok(true)
    }

    /// The addresses of `owner`.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn leases_of(&self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let mut ips = Vec::new();
        for candidate in [owner.clone(), owner.without_link()] {
            for ip in self.index.get(&candidate)? {
                if self.owner_of(ip)?.is_some_and(|found| found == candidate) && !ips.contains(&ip)
                {
                    ips.push(ip);
                }
            }
        }
        Ok(ips)
    }

    /// Gives back whatever `owner` has; returns what that was. Nothing is success.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let mut ips = self.leases_of(owner)?;
        if ips.is_empty() {
            // Rare (a repeated DEL), and on old kernels the index may miss what the reference plugin made within
            // one clock tick of ours.
            self.rebuild_index()?;
            ips = self.leases_of(owner)?;
        }
        for ip in &ips {
            self.remove(*ip)?;
        }
        self.index.remove(owner)?;
        self.index.remove(&owner.without_link())?;
        self.index.mark_current()?;
        Ok(ips)
    }

    /// Gives back every address whose owner `keep` refuses; returns them.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn retain(&mut self, keep: impl Fn(&Owner) -> bool) -> Result<Vec<IpAddr>, IpamError> {
        let mut removed = Vec::new();
        for ip in self.leased()?.collect::<Vec<_>>() {
            if self.owner_of(ip)?.is_some_and(|owner| !keep(&owner)) {
                self.remove(ip)?;
                removed.push(ip);
            }
        }
        self.rebuild_index()?;
        Ok(removed)
    }

    /// All leased addresses.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn leased(&self) -> Result<impl Iterator<Item = IpAddr> + use<>, IpamError> {
        let mut ips = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error("reading", &self.dir))? {
            let entry = entry.map_err(io_error("reading", &self.dir))?;
            if let Some(ip) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                ips.push(ip);
            }
        }
        Ok(ips.into_iter())
    }

    /// Who has `ip`.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn owner_of(&self, ip: IpAddr) -> Result<Option<Owner>, IpamError> {
        let path = self.dir.join(ip.to_string());
        match fs::read(&path) {
            Ok(text) => Ok(Owner::parse(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    /// The address that was last given away out of a range set.
    #[must_use]
    pub fn last_reserved(&self, set_index: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(set_index))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    pub(super) fn set_last_reserved(
        &mut self,
        set_index: usize,
        ip: IpAddr,
    ) -> Result<(), IpamError> {
        let (draft, path) = (self.index.draft_path(), self.last_path(set_index));
        fs::write(&draft, ip.to_string()).map_err(io_error("writing", &draft))?;
        // Out of the way first: some file systems write a file out to the disk that replaces another. If nothing is
        // there after a crash, the search begins at the start.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("removing", &path)(error));
            }
            _ => {}
        }
        fs::rename(&draft, &path).map_err(io_error("replacing", &path))?;
        self.index.mark_current()
    }

    fn last_path(&self, set_index: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set_index}"))
    }

    fn remove(&self, ip: IpAddr) -> Result<(), IpamError> {
        let path = self.dir.join(ip.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error("removing", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Reads every lease: after a crash, or when the reference plugin made or released some.
    fn rebuild_index(&mut self) -> Result<(), IpamError> {
        let mut owners: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
        for ip in self.leased()? {
            match self.owner_of(ip)? {
                Some(owner) => owners.entry(owner).or_default().push(ip),
                // Under the lock nobody is in the middle of writing: it belongs to no one.
                None => self.remove(ip)?,
            }
        }
        self.index.replace(&owners)?;
        self.index.mark_current()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
