//! Security contexts: users, capabilities, sysctls, hidden paths.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::SpecError;
use crate::build::User;

/// The sysctls that a pod may set: namespaced, and harmless to other pods. Upstream's list.
pub const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Docker's default set.
const DEFAULT_CAPABILITIES: &[Capability] = &[
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

const ALL_CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// A container's security context over its pod's.
pub(crate) struct Effective<'a> {
    pub(crate) pod: Option<&'a PodSecurityContext>,
    pub(crate) own: Option<&'a SecurityContext>,
}

impl<'a> Effective<'a> {
    pub(crate) fn of(pod: &'a Pod, container: &'a Container) -> Effective<'a> {
        Effective {
            pod: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.security_context.as_ref()),
            own: container.security_context.as_ref(),
        }
    }

    pub(crate) fn privileged(&self) -> bool {
        self.own.and_then(|own| own.privileged).unwrap_or_default()
    }

    fn run_as_user(&self) -> Option<i64> {
        self.own
            .and_then(|own| own.run_as_user)
            .or_else(|| self.pod.and_then(|pod| pod.run_as_user))
    }

    fn run_as_group(&self) -> Option<i64> {
        self.own
            .and_then(|own| own.run_as_group)
            .or_else(|| self.pod.and_then(|pod| pod.run_as_group))
    }

    fn run_as_non_root(&self) -> bool {
        let pod = || self.pod.and_then(|pod| pod.run_as_non_root);
        self.own
            .and_then(|own| own.run_as_non_root)
            .or_else(pod)
            .unwrap_or_default()
    }

    /// `Some(true)` or nothing: the engine fails on `Some(false)` with a seccomp profile and a user
    /// other than root.
    pub(crate) fn no_new_privileges(&self) -> Option<bool> {
        (self.own.and_then(|own| own.allow_privilege_escalation) == Some(false)).then_some(true)
    }

    pub(crate) fn read_only_root(&self) -> bool {
        self.own
            .and_then(|own| own.read_only_root_filesystem)
            .unwrap_or_default()
    }

    /// Whether `/proc` shows everything.
    pub(crate) fn unmasked(&self) -> bool {
        self.privileged() || self.own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked")
    }

    pub(crate) fn capabilities(&self) -> Result<Capabilities, SpecError> {
        let all = || {
            ALL_CAPABILITIES
                .iter()
                .filter_map(|name| Capability::from_str(name).ok())
        };
        if self.privileged() {
            return Ok(all().collect());
        }
        let mut set: Capabilities = DEFAULT_CAPABILITIES.iter().copied().collect();
        let Some(wanted) = self.own.and_then(|own| own.capabilities.as_ref()) else {
            return Ok(set);
        };
        let (add, drop) = (
            wanted.add.as_deref().unwrap_or_default(),
            wanted.drop.as_deref().unwrap_or_default(),
        );
        // ALL first, so that `drop: [ALL], add: [X]` leaves X and `add: [ALL], drop: [X]` all but X.
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        if add.iter().any(is_all) {
            set = all().collect();
        }
        if drop.iter().any(is_all) {
            set.clear();
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set.insert(capability(name, "add")?);
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set.remove(&capability(name, "drop")?);
        }
        Ok(set)
    }

    /// The groups beside the primary one.
    pub(crate) fn additional_gids(&self, user: &User) -> Result<Vec<u32>, SpecError> {
        let Some(pod) = self.pod else {
            return Ok(user.additional_gids.clone());
        };
        let mut gids = match pod.supplemental_groups_policy.as_deref() {
            Some("Strict") => Vec::new(),
            _ => user.additional_gids.clone(),
        };
        for gid in pod
            .supplemental_groups
            .iter()
            .flatten()
            .chain(&pod.fs_group)
        {
            gids.push(id(*gid, "securityContext.supplementalGroups")?);
        }
        gids.sort_unstable();
        gids.dedup();
        Ok(gids)
    }

    pub(crate) fn sysctls(&self, pod: &Pod) -> Result<Option<HashMap<String, String>>, SpecError> {
        let Some(sysctls) = self
            .pod
            .and_then(|pod| pod.sysctls.as_ref())
            .filter(|list| !list.is_empty())
        else {
            return Ok(None);
        };
        let host_network = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or_default();
        let mut map = HashMap::new();
        for sysctl in sysctls {
            let name = sysctl.name.replace('/', ".");
            // With the node's network the sysctl would be the node's.
            if !SAFE_SYSCTLS.contains(&name.as_str()) || (host_network && name.starts_with("net."))
            {
                return Err(SpecError::Sysctl(sysctl.name.clone()));
            }
            map.insert(name, sysctl.value.clone());
        }
        Ok(Some(map))
    }
}

/// The user to look up in the image: `runAsUser` or the image's own, with `runAsGroup` if it is given.
///
/// # Errors
/// [`SpecError::RunAsRoot`] or [`SpecError::RunAsName`] if `runAsNonRoot` forbids it.
pub fn user_to_resolve(
    pod: &Pod,
    container: &Container,
    image_user: &str,
) -> Result<String, SpecError> {
    let effective = Effective::of(pod, container);
    let image_name = image_user.split(':').next().unwrap_or_default();
    if effective.run_as_non_root() {
        let root = || SpecError::RunAsRoot {
            container: container.name.clone(),
        };
        match (effective.run_as_user(), image_name.parse::<u32>()) {
            (Some(0), _) | (None, Ok(0)) => return Err(root()),
            (Some(_), _) | (None, Ok(_)) => {}
            (None, Err(_)) if image_name.is_empty() => return Err(root()),
            (None, Err(_)) => {
                let (container, user) = (container.name.clone(), image_name.to_owned());
                return Err(SpecError::RunAsName { container, user });
            }
        }
    }
    let user = match effective.run_as_user() {
        Some(uid) => id(uid, "securityContext.runAsUser")?.to_string(),
        None if effective.run_as_group().is_none() => return Ok(image_user.to_owned()),
        None => image_name.to_owned(),
    };
    match effective.run_as_group() {
        Some(gid) => Ok(format!("{user}:{}", id(gid, "securityContext.runAsGroup")?)),
        None => Ok(user),
    }
}

fn id(value: i64, field: &str) -> Result<u32, SpecError> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| SpecError::field(field, format!("{value} is not a user or group id")))
}

fn capability(name: &str, list: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(bare).map_err(|_parse| {
        SpecError::field(
            format!("securityContext.capabilities.{list}"),
            format!("unknown capability {name:?}"),
        )
    })
}

/// The sets of a process. Nothing is inheritable or ambient: a user other than root gets capabilities only
/// from the files it executes.
pub(crate) fn capability_sets(set: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set.clone()))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

/// Paths of `/proc` and `/sys` that are hidden from containers.
pub(crate) fn masked_paths() -> Vec<String> {
    [
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/interrupts",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Paths of `/proc` that containers may only read.
pub(crate) fn read_only_paths() -> Vec<String> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Container environment over the image's, in the order of first appearance.
pub(crate) fn merge_env(layers: &[Vec<(String, String)>]) -> Vec<String> {
    let mut order: Vec<&str> = Vec::new();
    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, value) in layers.iter().flatten() {
        if values.insert(name, value).is_none() {
            order.push(name);
        }
    }
    order
        .into_iter()
        .filter_map(|name| values.get(name).map(|value| format!("{name}={value}")))
        .collect()
}
