//! The CNI plugins in one executable.
//!
//! It is the plugin whose name it is called by (a link `bridge` to it is the bridge plugin) or that its first argument
//! names. `skiff-cni --install DIR` makes the links.

mod attachment;
mod bandwidth;
mod bridge;
mod firewall;
mod host_local;
mod install;
mod ipam;
mod loopback;
mod portmap;
mod ptp;
mod runtime;
mod tuning;
mod veth;
mod vxlan;

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    path::Path,
};

use skiff_cni::{
    skel::{self, Call, Environment, Plugin},
    types::CniError,
};

/// Every plugin by the name under which it is installed.
const PLUGINS: [(&str, &dyn Plugin); 9] = [
    ("bandwidth", &bandwidth::Bandwidth),
    ("bridge", &bridge::Bridge),
    ("firewall", &firewall::Firewall),
    ("host-local", &host_local::HostLocal),
    ("loopback", &loopback::Loopback),
    ("portmap", &portmap::Portmap),
    ("ptp", &ptp::Ptp),
    ("tuning", &tuning::Tuning),
    ("vxlan", &vxlan::Vxlan),
];

const USAGE: &str = "skiff-cni: the CNI plugins in one executable

usage: skiff-cni --install DIR    make a link in DIR for each plugin
       skiff-cni PLUGIN           be that plugin (as when called by its name); CNI_COMMAND and stdin say what to do
       skiff-cni --version
";

/// The whole program; returns its exit code.
#[must_use]
pub fn run() -> u8 {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let first = args.next();
    let name = Path::new(&called).file_name().unwrap_or_default();
    match plugin(name).or_else(|| first.as_deref().and_then(plugin)) {
        Some(plugin) => skel::run(
            plugin,
            &Environment::from_process(),
            io::stdin().lock(),
            io::stdout().lock(),
        ),
        None => match (first.as_deref().and_then(OsStr::to_str), args.next()) {
            (Some("--install"), Some(dir)) => say(install::install(Path::new(&dir))),
            (Some("--version"), None) => {
                say(Ok(format!("skiff-cni {}\n", env!("CARGO_PKG_VERSION"))))
            }
            (Some("--help"), None) => say(Ok(USAGE.to_owned())),
            _ => say(Err(USAGE.to_owned())),
        },
    }
}

/// Whether a plugin takes a configuration, for ADD and for DEL, as far as that can be told without doing anything. `None`
/// if there is no such plugin. For whoever tries what comes from outside.
#[must_use]
pub fn read_config(call: &Call) -> Option<[Result<(), CniError>; 2]> {
    let read: fn(&Call) -> [Result<(), CniError>; 2] = match call.conf.plugin_type.as_str() {
        "bandwidth" => bandwidth::read_config,
        "bridge" => bridge::read_config,
        "firewall" => firewall::read_config,
        "host-local" => host_local::read_config,
        "portmap" => portmap::read_config,
        "ptp" => ptp::read_config,
        "tuning" => tuning::read_config,
        "vxlan" => vxlan::read_config,
        _ => return None,
    };
    Some(read(call))
}

fn plugin(name: &OsStr) -> Option<&'static dyn Plugin> {
    PLUGINS
        .iter()
        .find(|(known, _)| name == *known)
        .map(|(_, plugin)| *plugin)
}

fn say(answer: Result<String, String>) -> u8 {
    let (written, code) = match answer {
        Ok(text) => (io::stdout().write_all(text.as_bytes()), 0),
        Err(text) => (io::stderr().write_all(text.as_bytes()), 1),
    };
    if written.is_ok() { code } else { 1 }
}
