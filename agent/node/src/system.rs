//! Facts of the machine, read from `/proc` and the file system.

use std::fs;
use std::path::Path;

/// Size of a file system and what is free of it, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk {
    pub(crate) total: i64,
    pub(crate) free: i64,
}

/// The file's text without the white space around it; empty if it cannot be read.
pub(crate) fn read_trimmed(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// As Go and OCI name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// All memory, in bytes.
pub(crate) fn memory_total() -> Option<i64> {
    meminfo(&read_trimmed("/proc/meminfo"), "MemTotal")
}

/// Memory that can be had without swapping, in bytes.
pub(crate) fn memory_available() -> Option<i64> {
    meminfo(&read_trimmed("/proc/meminfo"), "MemAvailable")
}

fn meminfo(text: &str, field: &str) -> Option<i64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// The file system that `path`, or its nearest parent that exists, is on.
pub(crate) fn disk(path: &Path) -> Option<Disk> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let size = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.fragment_size())).ok();
    Some(Disk {
        total: size(stat.blocks())?,
        free: size(stat.blocks_available())?,
    })
}

/// How many more processes the machine takes.
pub(crate) fn pids_left() -> Option<i64> {
    let limit: i64 = read_trimmed("/proc/sys/kernel/pid_max").parse().ok()?;
    let load = read_trimmed("/proc/loadavg");
    let used: i64 = load
        .split_whitespace()
        .nth(3)?
        .split_once('/')?
        .1
        .parse()
        .ok()?;
    Some(limit - used)
}

/// The distribution's own name.
pub(crate) fn os_image() -> String {
    let text = read_trimmed("/etc/os-release");
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kilobytes() {
        let text = "MemTotal:       16 kB\nMemAvailable:    8 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(8 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
