//! Kernel settings of a network namespace. All of this runs inside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use skiff_cni::types::{CniError, IfName, code};

use super::differs;

const ROOT: &str = "/proc/sys";
/// What stands for the container's link in a key.
const PLACEHOLDER: &str = "IFNAME";

/// A setting and its value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sysctl {
    key: String,
    value: String,
    /// Where it may be: as all dots are slashes, or as sysctl(8) reads it, where the first separator counts and the
    /// other one is part of a name (`net/ipv4/conf/eth0.7/arp_filter`).
    paths: Vec<PathBuf>,
}

/// What a setting was before it was written.
#[derive(Debug)]
pub(super) struct Written {
    path: PathBuf,
    before: Vec<u8>,
}

impl Sysctl {
    /// # Errors
    /// Code 7 if the setting is none of the network.
    pub(super) fn new(key: &str, value: &str, ifname: &IfName) -> Result<Self, CniError> {
        let with_slashes = key.replace('.', "/");
        let swapped = match key.find(['.', '/']).map(|at| &key[at..=at]) {
            Some("/") => key.to_owned(),
            _ => key
                .chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    other => other,
                })
                .collect(),
        };
        let mut paths = Vec::new();
        for relative in [with_slashes, swapped] {
            // Last, so that a link's dots are no separators.
            let relative = relative.replacen(PLACEHOLDER, ifname.as_str(), 1);
            if let Some(path) = path_of(&relative)
                && !paths.contains(&path)
            {
                paths.push(path);
            }
        }
        if paths.is_empty() {
            return Err(CniError::config(format!(
                "sysctl {key:?} is not a setting of the network (net.*)"
            )));
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
            paths,
        })
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn is_same_setting(&self, other: &Self) -> bool {
        self.paths == other.paths
    }

    fn path(&self) -> Result<&Path, CniError> {
        let found = self.paths.iter().find(|path| path.exists());
        found.map(PathBuf::as_path).ok_or_else(|| {
            CniError::config(format!("sysctl {:?}: there is no such setting", self.key))
        })
    }

    fn failed(&self, verb: &str, error: &io::Error) -> CniError {
        let msg = format!("cannot {verb} sysctl {:?}", self.key);
        CniError::from_error(code::KERNEL, msg, error)
    }

    fn write(&self) -> Result<Written, CniError> {
        let path = self.path()?;
        // Some can only be written; those cannot be given back.
        let before = fs::read(path).unwrap_or_default();
        fs::write(path, &self.value).map_err(|error| self.failed("write", &error))?;
        Ok(Written {
            path: path.to_owned(),
            before,
        })
    }

    /// Compares it with the kernel's. Lists come back with tabs between, whatever they were written with.
    pub(super) fn check(&self) -> Result<(), CniError> {
        // It may have gone with its link.
        let path = self.path().map_err(|error| differs(error.msg))?;
        let text = fs::read_to_string(path).map_err(|error| self.failed("read", &error))?;
        if text.split_whitespace().eq(self.value.split_whitespace()) {
            return Ok(());
        }
        let (key, value, text) = (&self.key, &self.value, text.trim_end());
        Err(differs(format!(
            "sysctl {key:?} is {text:?}, not {value:?}"
        )))
    }
}

/// The file of a setting of the network; `None` for what would be anywhere else.
fn path_of(relative: &str) -> Option<PathBuf> {
    let inside = relative
        .strip_prefix("net/")
        .filter(|rest| !rest.contains('\0'))?;
    let plain = inside
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    plain.then(|| Path::new(ROOT).join(relative))
}

/// Writes all settings, or none. Returns how they were.
pub(super) fn write_all(sysctls: &[Sysctl]) -> Result<Vec<Written>, CniError> {
    for sysctl in sysctls {
        sysctl.path()?;
    }
    let mut written = Vec::new();
    for sysctl in sysctls {
        match sysctl.write() {
            Ok(before) => written.push(before),
            Err(error) => {
                restore(&written);
                return Err(error);
            }
        }
    }
    Ok(written)
}

/// Gives settings back, the last one first.
pub(super) fn restore(written: &[Written]) {
    for setting in written.iter().rev() {
        if !setting.before.is_empty() {
            // Undoing goes on whatever fails.
            fs::write(&setting.path, &setting.before).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(key: &str, ifname: &str) -> Vec<String> {
        let sysctl = Sysctl::new(key, "1", &ifname.parse().unwrap());
        sysctl.map_or_else(
            |_| Vec::new(),
            |sysctl| {
                let paths = sysctl.paths.iter();
                paths
                    .map(|path| {
                        path.strip_prefix(ROOT)
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .to_owned()
                    })
                    .collect()
            },
        )
    }

    #[test]
    fn dots_and_slashes_lead_to_the_same_file() {
        assert_eq!(
            paths("net.ipv4.ip_forward", "eth0"),
            ["net/ipv4/ip_forward"]
        );
        assert_eq!(
            paths("net/ipv4/ip_forward", "eth0"),
            ["net/ipv4/ip_forward"]
        );
        assert_eq!(
            paths("net/ipv4/conf/eth0.7/arp_filter", "eth0"),
            [
                "net/ipv4/conf/eth0/7/arp_filter",
                "net/ipv4/conf/eth0.7/arp_filter"
            ]
        );
        assert_eq!(
            paths("net.ipv4.conf.eth0/7.arp_filter", "eth0"),
            [
                "net/ipv4/conf/eth0/7/arp_filter",
                "net/ipv4/conf/eth0.7/arp_filter"
            ]
        );
    }

    #[test]
    fn the_placeholder_is_the_containers_link() {
        assert_eq!(
            paths("net.ipv4.conf.IFNAME.arp_filter", "eth0.7"),
            ["net/ipv4/conf/eth0.7/arp_filter"]
        );
    }

    #[test]
    fn nothing_but_the_networks_settings_is_reached() {
        for key in [
            "",
            "net",
            "net.",
            "net/",
            "kernel.pid_max",
            "/net/ipv4/ip_forward",
            "net/../kernel/pid_max",
            "net/./x",
            "net//x",
            "net.ipv4..ip_forward",
            "net/a\0b",
            "network.x",
        ] {
            assert!(paths(key, "eth0").is_empty(), "{key:?}");
        }
    }
}
