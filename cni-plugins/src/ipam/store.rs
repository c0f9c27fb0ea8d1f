//! Leases as files: `<dataDir>/<network>/<ip>` holds its owner, as the reference `host-local` writes it.
//!
//! A lease is made by a hard link from a finished file, so it is either there with its owner or not there at all.
//! Everything happens under a lock on `<dir>/lock`, which the reference takes too. Beside the leases,
//! [`index`](super::index) remembers who has what. Giving back needs no space: on a full disk, where the index cannot be
//! written, the leases themselves are read.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg, OFlag};

use super::{IpamError, Range, index::Index};
use crate::types::AttachmentKey;

/// Every step under the lock takes microseconds; whoever holds it this long hangs.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_micros(500);

/// More than an environment variable can hold, and so more than any container's and link's names.
const MAX_LEASE: u64 = 256 << 10;

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
    /// As long as it is known to be right.
    index: Option<Index>,
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

/// Reads a small file; not through a link, and without waiting at a pipe.
fn read_plain(path: &Path) -> io::Result<String> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = File::options();
    let file = options.read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut text = Vec::with_capacity(256);
    file.take(MAX_LEASE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl LeaseStore {
    /// The store of a network in `data_dir`. Nothing is read or made yet.
    #[must_use]
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self {
            dir: data_dir.join(network),
        }
    }

    /// Whether there is a folder: a network that nobody used has none.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.exists()
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
        Ok(LockedStore {
            dir: self.dir.clone(),
            index: Index::open(&self.dir),
            _lock: lock,
        })
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
        // Somebody's, or something that is no lease at all and stays where it is.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.len() > 0 || !meta.is_file()) {
            self.note(|index| index.add_ownerless(ip));
            return Ok(false);
        }
        let draft = self.index()?.draft_path();
        write_draft(&draft, &owner.text()).map_err(io_error("writing", &draft))?;
        match fs::hard_link(&draft, &path) {
            Ok(()) => {}
            // Without an owner: a crash of the reference plugin, which writes in place (under this lock).
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::rename(&draft, &path).map_err(io_error("replacing", &path))?;
            }
            Err(error) => return Err(io_error("making", &path)(error)),
        }
        // What stays is removed before the next one is written.
        fs::remove_file(&draft).ok();
        self.note(|index| index.add(owner, ip).and_then(|()| index.mark_current()));
        Ok(true)
    }

    /// The addresses of `owner`.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn leases_of(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        let names = [owner.clone(), owner.without_link()];
        let indexed = self
            .index()
            .and_then(|index| Ok([index.get(&names[0])?, index.get(&names[1])?].concat()));
        let candidates = match indexed {
            Ok(ips) => ips,
            Err(_no_index) => self.leased()?.collect(),
        };
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in candidates {
            let is_theirs = self
                .owner_of(ip)
                .is_some_and(|owner| names.contains(&owner));
            if is_theirs && !ips.contains(&ip) {
                ips.push(ip);
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
            self.distrust_index();
            ips = self.leases_of(owner)?;
        }
        for ip in &ips {
            self.release_one(owner, *ip)?;
        }
        Ok(ips)
    }

    /// Gives `ip` back, which `owner` has.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn release_one(&mut self, owner: &Owner, ip: IpAddr) -> Result<(), IpamError> {
        self.remove(ip)?;
        let owners = [owner, &owner.without_link()];
        self.note(|index| {
            index.remove(&owners, ip)?;
            index.mark_current()
        });
        Ok(())
    }

    /// Gives back every address whose owner `keep` refuses; returns them.
    ///
    /// # Errors
    /// [`IpamError::Io`].
    pub fn retain(&mut self, keep: impl Fn(&Owner) -> bool) -> Result<Vec<IpAddr>, IpamError> {
        let mut removed = Vec::new();
        for ip in self.leased()?.collect::<Vec<_>>() {
            if self.owner_of(ip).is_some_and(|owner| !keep(&owner)) {
                self.remove(ip)?;
                removed.push(ip);
            }
        }
        // Whoever comes next tries again if there is no space for it.
        self.distrust_index();
        self.index().ok();
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
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // An address in another spelling is no lease: nobody would look there.
            if let Ok(ip) = name.parse::<IpAddr>()
                && ip.to_string() == name
            {
                ips.push(ip);
            }
        }
        Ok(ips.into_iter())
    }

    /// Who has `ip`; nobody if what is there is no lease.
    #[must_use]
    pub fn owner_of(&self, ip: IpAddr) -> Option<Owner> {
        match self.read_lease(ip) {
            Lease::Of(owner) => Some(owner),
            Lease::Ownerless | Lease::Foreign => None,
        }
    }

    fn read_lease(&self, ip: IpAddr) -> Lease {
        let path = self.dir.join(ip.to_string());
        // Whatever carries the name of an address takes it, as with the reference: a directory, a link, a file that
        // cannot be read.
        match read_plain(&path) {
            Ok(text) => Owner::parse(&text).map_or(Lease::Ownerless, Lease::Of),
            Err(_no_lease) => Lease::Foreign,
        }
    }

    /// The address that was last given away out of a range set.
    #[must_use]
    pub fn last_reserved(&self, set_index: usize) -> Option<IpAddr> {
        read_plain(&self.last_path(set_index))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Only a hint: where the next search begins. Written in place, since some file systems write a file out to the
    /// disk that replaces another; should it be half written, the search begins elsewhere.
    pub(super) fn set_last_reserved(&mut self, set_index: usize, ip: IpAddr) {
        let path = self.last_path(set_index);
        let text = ip.to_string();
        let mut options = File::options();
        options.write(true);
        options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
        let (file, is_new) = match options.open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                (options.create(true).truncate(false).open(&path), true)
            }
            opened => (opened, false),
        };
        let written = file.and_then(|file| {
            file.write_all_at(text.as_bytes(), 0)?;
            let length = text.len() as u64;
            if file.metadata()?.len() == length {
                return Ok(());
            }
            file.set_len(length)
        });
        // Only a new file changes the folder. If something else has its name, the next search begins at the start.
        if written.is_ok() && is_new {
            self.note(|index| index.mark_current());
        }
    }

    /// The first address of `range` within `from..=to` that is not known to be taken.
    pub(super) fn first_free(
        &mut self,
        range: &Range,
        from: u128,
        to: u128,
    ) -> Result<Option<IpAddr>, IpamError> {
        let ipv4 = range.subnet().is_ipv4();
        self.index()?.first_free(from, to, ipv4)
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

    /// The index, which is built again if it is not right.
    fn index(&mut self) -> Result<&mut Index, IpamError> {
        let index = match self.index.take() {
            Some(index) => index,
            None => self.build_index()?,
        };
        Ok(self.index.insert(index))
    }

    /// Reads every lease: after a crash, or when the reference plugin made or released some.
    fn build_index(&self) -> Result<Index, IpamError> {
        let mut index = Index::create(&self.dir)?;
        let (mut owned, mut foreign) = (Vec::new(), Vec::new());
        for ip in self.leased()? {
            match self.read_lease(ip) {
                Lease::Of(owner) => owned.push((owner, ip)),
                Lease::Foreign => foreign.push(ip),
                // Under the lock nobody is in the middle of writing: it belongs to no one.
                Lease::Ownerless => self.remove(ip)?,
            }
        }
        index.replace(&owned, &foreign)?;
        index.mark_current()?;
        Ok(index)
    }

    /// Lets the index be built again before it is used.
    pub(super) fn distrust_index(&mut self) {
        self.index = None;
    }

    /// Tells the index of a change that has been made. What it cannot note makes it stale, and so it is on the disk: its
    /// stamp is older than the change.
    fn note(&mut self, change: impl FnOnce(&mut Index) -> Result<(), IpamError>) {
        if let Some(index) = &mut self.index
            && change(index).is_err()
        {
            self.distrust_index();
        }
    }
}

/// Writes a new file. One that is there already is what a crash left, and may be somebody's lease under its other name.
fn write_draft(path: &Path, text: &str) -> io::Result<()> {
    let create = || File::options().write(true).create_new(true).open(path);
    let mut file = match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()?
        }
        created => created?,
    };
    file.write_all(text.as_bytes())
}

/// What a file with the name of an address is.
enum Lease {
    Of(Owner),
    /// A crash of the reference plugin, which makes the file and then writes it.
    Ownerless,
    /// Nothing that an allocator made.
    Foreign,
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
