//! The sizes of the tables, and what they cost.
//!
//! Arrays (`LB_SETS`, `LB_SLOTS`, `LB_BACKENDS`, `LB_CONNECTIONS`) and tables that drop their oldest entries take their memory when
//! they are made; the others have their buckets then, and each entry when it is written. So sizes are chosen for the machine:
//! see [`Limits::for_services`].

use std::fs;

use skiff_ebpf_common::{ABI_VERSION, limits, maps};

use crate::bpffs;

/// The sizes of the tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frontends: Services times ports times addresses.
    pub services: u32,
    /// Backend sets: about one per port of a Service.
    pub sets: u32,
    /// Members of all sets, with room for changes.
    pub slots: u32,
    /// Backends of all sets.
    pub backends: u32,
    /// Sockets with a translated peer.
    pub rev_nat: u32,
    /// Clients with session affinity.
    pub affinity: u32,
    /// Unconnected UDP sockets that use Services.
    pub flows: u32,
    /// Directions of connections from outside: two for each.
    pub nat_flows: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: limits::SERVICES,
            sets: limits::SETS,
            slots: limits::SLOTS,
            backends: limits::BACKENDS,
            rev_nat: limits::REV_NAT,
            affinity: limits::AFFINITY,
            flows: limits::FLOWS,
            nat_flows: limits::NAT_FLOWS,
        }
    }
}

/// The largest Service that sizes are chosen for: two families, two ports, and for each of these four an address of a load
/// balancer or a NodePort beside the ClusterIP; five endpoints.
const PORTS: u32 = 4;
const FRONTENDS: u32 = 2 * PORTS;
/// One for clients inside, one for those outside.
const SETS: u32 = 2 * PORTS;
const ENDPOINTS: u32 = 5;
/// A set for clients outside has so many places if it has two to eight backends: see `tables::maglev`.
const PLACES: u32 = 131;
const SLOTS: u32 = PORTS * (ENDPOINTS + PLACES);
const BACKENDS: u32 = SETS * ENDPOINTS;

impl Limits {
    /// For so many Services with two ports, both families, five endpoints and clients outside, and a sixteenth more for changes.
    /// Smaller Services are more. Never less than [`Limits::default`].
    #[must_use]
    pub fn for_services(services: u32) -> Self {
        let least = Self::default();
        let room = |least: u32, each: u32| {
            let needed = services.saturating_mul(each);
            least.max(needed.saturating_add(needed / 16))
        };
        Self {
            services: room(least.services, FRONTENDS),
            sets: room(least.sets, SETS),
            slots: room(least.slots, SLOTS),
            backends: room(least.backends, BACKENDS),
            ..least
        }
    }

    /// As large as fits this machine: for at most 50,000 Services, and for fewer where their arrays would take more than a
    /// four-hundredth of its memory: they are taken whether there are Services or not.
    #[must_use]
    pub fn for_machine() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::for_services(services_for(total_kib(&text)))
    }

    pub(crate) fn by_map(&self) -> [(&'static str, u32); 9] {
        [
            (maps::SERVICES, self.services),
            (maps::SETS, self.sets),
            (maps::CONNECTIONS, self.sets),
            (maps::SLOTS, self.slots),
            (maps::BACKENDS, self.backends),
            (maps::REV_NAT, self.rev_nat),
            (maps::AFFINITY, self.affinity),
            (maps::FLOWS, self.flows),
            (maps::NAT_FLOWS, self.nat_flows),
        ]
    }

    /// The folder for maps of this ABI and these sizes.
    pub(crate) fn folder(&self) -> String {
        let sizes = self.by_map().map(|(_, size)| format!("{size:x}")).join(".");
        // No dot: the BPF file system keeps names with dots for itself.
        format!(
            "{}{ABI_VERSION}-{}",
            bpffs::MAPS_PREFIX,
            sizes.replace('.', "_")
        )
    }
}

fn total_kib(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Few different answers, so that a machine with a little more or less memory than last time keeps its tables.
fn services_for(total_kib: u64) -> u32 {
    const STEPS: [u32; 5] = [50_000, 24_000, 12_000, 6_000, 3_000];
    /// What the arrays take for each Service (measured: see `ebpf/README.md`).
    const BYTES: u64 = 6_200;
    let budget = total_kib * 1024 / 400;
    let fits = |services: &u32| u64::from(*services) * BYTES <= budget;
    STEPS.into_iter().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * 1024;

    #[test]
    fn sizes_follow_the_machines_memory_in_few_steps() {
        for (gib, services) in [
            (0, 0),
            (1, 0),
            (4, 0),
            (8, 3_000),
            (16, 6_000),
            (24, 6_000),
            (64, 24_000),
            (128, 50_000),
        ] {
            assert_eq!(services_for(gib * GIB), services, "{gib} GiB");
        }
        let text = "MemFree: 1 kB\nMemTotal:       16384000 kB\n";
        assert_eq!(total_kib(text), 16_384_000);
        assert_eq!(total_kib(""), 0);
    }

    #[test]
    fn fifty_thousand_of_the_largest_services_have_room() {
        assert_eq!(Limits::for_services(0), Limits::default());
        let limits = Limits::for_services(50_000);
        assert!(limits.services > 400_000 && limits.sets > 400_000);
        assert!(limits.slots > 50_000 * 4 * 136 && limits.backends > 2_000_000);
        assert_ne!(limits.folder(), Limits::default().folder());
    }
}
