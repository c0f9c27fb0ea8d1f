//! IPAM as bridge and ptp use it: our own host-local without another process if that is what `CNI_PATH` finds, otherwise
//! whatever executable is there.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use skiff_cni::{
    libcni::delegate,
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, IpConfig, PluginType, Route, code},
};

use crate::host_local::HostLocal;

/// How addresses are had.
#[derive(Debug)]
pub(crate) enum Ipam {
    /// Not at all: a bridge without addresses.
    None,
    /// By our own code.
    HostLocal,
    /// By another executable.
    Exec(PathBuf),
}

impl Ipam {
    /// Finds the plugin.
    pub(crate) fn find(call: &Call, plugin_type: Option<&PluginType>) -> Result<Self, CniError> {
        let Some(plugin_type) = plugin_type else {
            return Ok(Self::None);
        };
        let path = delegate::find(call, plugin_type)?;
        if plugin_type.as_str() == "host-local" && is_this_executable(&path) {
            return Ok(Self::HostLocal);
        }
        Ok(Self::Exec(path))
    }

    pub(crate) fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        match self {
            Self::None => Ok(CniResult::default()),
            Self::HostLocal => HostLocal.add(call, target),
            Self::Exec(path) => delegate::run(call, Some(target), path.clone())?
                .ok_or_else(|| CniError::new(code::DELEGATE, "the IPAM plugin gave no result")),
        }
    }

    pub(crate) fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        match self {
            Self::None => Ok(()),
            Self::HostLocal => HostLocal.del(call, target),
            Self::Exec(path) => delegate::run(call, Some(target), path.clone()).map(drop),
        }
    }

    pub(crate) fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        match self {
            Self::None => Ok(()),
            Self::HostLocal => HostLocal.check(call, target),
            Self::Exec(path) => delegate::run(call, Some(target), path.clone()).map(drop),
        }
    }

    pub(crate) fn gc(&self, call: &Call) -> Result<(), CniError> {
        match self {
            Self::None => Ok(()),
            Self::HostLocal => HostLocal.gc(call),
            Self::Exec(path) => delegate::run(call, None, path.clone()).map(drop),
        }
    }

    pub(crate) fn status(&self, call: &Call) -> Result<(), CniError> {
        match self {
            Self::None => Ok(()),
            Self::HostLocal => HostLocal.status(call),
            Self::Exec(path) => delegate::run(call, None, path.clone()).map(drop),
        }
    }
}

fn is_this_executable(path: &Path) -> bool {
    let file = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    match (file(path), file(Path::new("/proc/self/exe"))) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}

/// An ADD's `Call` turned into the DEL that undoes it.
pub(crate) fn as_del(call: &Call) -> Call {
    Call {
        command: skiff_cni::skel::Command::Del,
        ..call.clone()
    }
}

/// A route without a gateway goes through that of the container's first address of the same family, unless it is
/// confined to the link.
pub(crate) fn gateway_of(route: &Route, ips: &[IpConfig]) -> Option<IpAddr> {
    const SCOPE_LINK: u8 = 253;
    if route.gw.is_none() && route.scope.is_some_and(|scope| scope >= SCOPE_LINK) {
        return None;
    }
    route.gw.or_else(|| {
        ips.iter()
            .filter(|ip| ip.address.is_ipv4() == route.dst.is_ipv4())
            .find_map(|ip| ip.gateway)
    })
}
