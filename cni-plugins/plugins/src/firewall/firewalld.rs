//! firewalld: a container's addresses become sources of a zone.

use std::{cell::RefCell, net::IpAddr};

use skiff_cni::types::{CniError, code};

use super::{
    config::Backend,
    dbus::{Bus, DbusError, Method},
    differs,
};

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";

/// What firewalld says of an address that is in a zone already.
const ALREADY: &str = "ZONE_ALREADY_SET";
/// What it says of one that is in none, or of a zone that there is not.
const ABSENT: [&str; 3] = ["UNKNOWN_SOURCE", "NOT_ENABLED", "INVALID_ZONE"];

/// A firewalld that runs.
#[derive(Debug)]
pub(super) struct Firewalld {
    bus: RefCell<Bus>,
}

fn failed(what: &str, error: DbusError) -> CniError {
    match error {
        DbusError::Io(error) => CniError::from_error(code::FIREWALL, what, &error),
        DbusError::Refused { name, message } => CniError {
            code: code::FIREWALL,
            msg: what.to_owned(),
            details: format!("{name}: {message}"),
        },
    }
}

fn says(error: &DbusError, words: &[&str]) -> bool {
    matches!(error, DbusError::Refused { message, .. }
        if words.iter().any(|word| message.contains(word)))
}

fn source(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

impl Firewalld {
    /// firewalld, if it is to be used; `None` for iptables.
    ///
    /// # Errors
    /// Code 104 if it is asked for and does not run.
    pub(super) fn choose(backend: Backend) -> Result<Option<Self>, CniError> {
        if backend == Backend::Iptables {
            return Ok(None);
        }
        match Self::connect() {
            Ok(firewalld) => Ok(Some(firewalld)),
            Err(_) if backend == Backend::Auto => Ok(None),
            Err(error) => Err(failed(
                "backend \"firewalld\": firewalld does not run",
                error,
            )),
        }
    }

    fn connect() -> Result<Self, DbusError> {
        let mut bus = Bus::system()?;
        let bus_itself = "org.freedesktop.DBus";
        let owner = Method {
            destination: bus_itself,
            path: "/org/freedesktop/DBus",
            interface: bus_itself,
            member: "GetNameOwner",
        };
        bus.call(owner, &[NAME])?;
        Ok(Self {
            bus: RefCell::new(bus),
        })
    }

    fn call(&self, member: &str, zone: &str, ip: IpAddr) -> Result<Vec<u8>, DbusError> {
        let method = Method {
            destination: NAME,
            path: PATH,
            interface: ZONE,
            member,
        };
        self.bus
            .borrow_mut()
            .call(method, &[zone, source(ip).as_str()])
    }

    /// Lets packets of all addresses through, or of none.
    pub(super) fn add(&self, zone: &str, addresses: &[IpAddr]) -> Result<(), CniError> {
        for (count, ip) in addresses.iter().enumerate() {
            match self.call("addSource", zone, *ip) {
                Err(error) if !says(&error, &[ALREADY]) => {
                    for done in addresses.iter().take(count) {
                        // The first error is the one to report.
                        self.call("removeSource", zone, *done).ok();
                    }
                    let what = format!("cannot add {ip} to firewalld's zone {zone:?}");
                    return Err(failed(&what, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Absent is success.
    pub(super) fn remove(&self, zone: &str, addresses: &[IpAddr]) -> Result<(), CniError> {
        let mut errors = Vec::new();
        for ip in addresses {
            if let Err(error) = self.call("removeSource", zone, *ip)
                && !says(&error, &ABSENT)
            {
                let what = format!("cannot remove {ip} from firewalld's zone {zone:?}");
                errors.push(failed(&what, error));
            }
        }
        CniError::join(errors)
    }

    pub(super) fn check(&self, zone: &str, addresses: &[IpAddr]) -> Result<(), CniError> {
        for ip in addresses {
            let what = format!("cannot ask for {ip} in firewalld's zone {zone:?}");
            let body = self
                .call("querySource", zone, *ip)
                .map_err(|error| failed(&what, error))?;
            // A boolean is a number of four bytes, in either order of them.
            if body.iter().take(4).all(|byte| *byte == 0) {
                return Err(differs(format!("{ip} is not in firewalld's zone {zone:?}")));
            }
        }
        Ok(())
    }
}
