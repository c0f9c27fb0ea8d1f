//! `tuning`: changes kernel settings and the link that a plugin before it has made in a container.
//!
//! ADD checks everything, then writes the settings (`sysctl`), keeps what the link was like in a file under `dataDir`
//! and changes the link; a failure undoes what was done in reverse order. DEL gives the link back what the file says:
//! it may outlive the container, as one does that was moved into it. The settings go with the namespace. The file has
//! the reference plugin's name and form, so that either undoes what the other has done.

mod allowlist;
mod backup;
mod config;
mod link;
mod sysctl;

use skiff_cni::{
    netlink::{Link, Netlink},
    skel::{Call, Plugin, Target},
    types::{CniError, CniResult, IfName, code},
};
use skiff_netns::NetNs;

use self::{
    backup::Backup,
    config::{Config, data_dir},
    link::LinkSettings,
    sysctl::Sysctl,
};
use crate::runtime::{block_on, kernel};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Tuning;

fn previous(call: &Call) -> Result<&CniResult, CniError> {
    call.conf.prev_result.as_ref().ok_or_else(|| {
        CniError::config("\"prevResult\" is missing: tuning comes after another plugin")
    })
}

fn open(target: &Target) -> Result<NetNs, CniError> {
    NetNs::open(target.netns()?)
        .map_err(|error| CniError::from_error(code::ENVIRONMENT, "cannot open CNI_NETNS", &error))
}

/// Runs `f` inside the container's namespace: the kernel settings that a thread sees are those of its namespace.
fn inside<T: Send>(
    netns: &NetNs,
    f: impl FnOnce() -> Result<T, CniError> + Send,
) -> Result<T, CniError> {
    netns.run(f).map_err(|error| {
        CniError::from_error(code::ENVIRONMENT, "cannot enter CNI_NETNS", &error)
    })?
}

async fn find_link(pod: &Netlink, target: &Target) -> Result<Option<Link>, CniError> {
    pod.find_link(target.ifname.as_str())
        .await
        .map_err(kernel("cannot look for links"))
}

fn differs(msg: impl Into<String>) -> CniError {
    CniError::new(code::CHECK_FAILED, msg)
}

/// Whether ADD and DEL take the configuration.
pub(crate) fn read_config(call: &Call) -> [Result<(), CniError>; 2] {
    let ifname = "eth0".parse::<IfName>();
    let added = ifname
        .map_err(|error| CniError::config(error.to_string()))
        .and_then(|any| Config::new(call, &any).map(drop));
    [added, data_dir(call).map(drop)]
}

impl Plugin for Tuning {
    fn add(&self, call: &Call, target: &Target) -> Result<CniResult, CniError> {
        let config = Config::new(call, &target.ifname)?;
        let mut result = previous(call)?.clone();
        let netns = open(target)?;
        if !config.link.is_empty() {
            // A wrong link is found out before the first setting is written.
            block_on(async {
                let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
                let link = find_link(&pod, target).await?.ok_or_else(|| {
                    CniError::config(format!("the container has no link {}", target.ifname))
                })?;
                config.link.check_fits(&link)
            })?;
        }
        let written = inside(&netns, || sysctl::write_all(&config.sysctls))?;
        if !config.link.is_empty()
            && let Err(error) = block_on(tune_link(call, target, &config, &netns))
        {
            // The first error is the one to report.
            inside(&netns, || {
                sysctl::restore(&written);
                Ok(())
            })
            .ok();
            return Err(error);
        }
        config.link.write_into(&mut result, target);
        Ok(result)
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let backup = Backup::of(&data_dir(call)?, target);
        let Some(original) = backup.read()? else {
            return Ok(());
        };
        // Without the namespace there is no link whose state could matter.
        let mut restored = Ok(());
        if let Some(netns) = target
            .netns
            .as_ref()
            .and_then(|path| NetNs::open(path).ok())
        {
            restored = block_on(async {
                let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
                match find_link(&pod, target).await? {
                    Some(link) => {
                        original.check_fits(&link)?;
                        original.set(&pod, link.index).await
                    }
                    None => Ok(()),
                }
            });
        }
        // What the kernel refuses now it refuses again: it is told once, and does not keep the next DEL from its end.
        backup.remove().and(restored)
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), CniError> {
        let config = Config::new(call, &target.ifname)?;
        previous(call)?;
        let netns = open(target)?;
        inside(&netns, || config.sysctls.iter().try_for_each(Sysctl::check))?;
        block_on(async {
            let pod = Netlink::open_in(&netns).map_err(kernel("cannot enter CNI_NETNS"))?;
            let link = find_link(&pod, target).await?;
            let link = link
                .ok_or_else(|| differs(format!("the container has no link {}", target.ifname)))?;
            config.link.check(&link)
        })
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let valid = call.conf.valid_attachments.as_deref().unwrap_or_default();
        backup::sweep(&data_dir(call)?, &call.conf.name, valid)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        Config::for_status(call)
    }
}

async fn tune_link(
    call: &Call,
    target: &Target,
    config: &Config,
    netns: &NetNs,
) -> Result<(), CniError> {
    let pod = Netlink::open_in(netns).map_err(kernel("cannot enter CNI_NETNS"))?;
    let link = find_link(&pod, target)
        .await?
        .ok_or_else(|| CniError::new(code::KERNEL, "the container's link is gone"))?;
    let original = LinkSettings::of(&link, &config.link);
    let backup = Backup::of(&config.data_dir, target);
    backup.write(&original, &call.conf.name)?;
    let set = config.link.set(&pod, link.index).await;
    if set.is_err() {
        // The kernel may have done some of it.
        original.set(&pod, link.index).await.ok();
        backup.remove().ok();
    }
    set
}
