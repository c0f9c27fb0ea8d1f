use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::network::PodPort;
use crate::testing::config_in;

struct NoPaths;

impl PodPaths for NoPaths {
    fn attach(&self, _pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    fn detach(&self, _pod: &PodPort) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    fn sync(&self, _pods: &[PodPort]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// A node whose plugins log their calls, as the next daemon has it, too.
fn network(dir: &Path) -> CniNetwork {
    let mut config = config_in(dir);
    config.cni_bin_dirs = vec![dir.to_owned()];
    let cache = dir.join("cni/cache");
    let runner = CniRunner::new(
        config.cni_bin_dirs.clone(),
        cache,
        config.node_netns.clone(),
    );
    CniNetwork::new(runner, config, Arc::new(NoPaths))
}

fn plugin(dir: &Path, name: &str) {
    let log = dir.join("log");
    let text = format!(
        r#"#!/bin/sh
cat > /dev/null
echo "$CNI_COMMAND {name} $CNI_CONTAINERID" >> {log}
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion":"1.1.0","ips":[{{"address":"10.0.0.2/24"}}]}}'
exit 0
"#,
        log = log.display()
    );
    fs::write(dir.join(name), text).unwrap();
    fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

/// The node's list: one plugin that has the network's name.
fn configure(dir: &Path, name: &str) {
    plugin(dir, name);
    let list =
        format!(r#"{{"cniVersion":"1.1.0","name":"{name}","plugins":[{{"type":"{name}"}}]}}"#);
    fs::create_dir_all(dir.join("cni/net.d")).unwrap();
    fs::write(dir.join("cni/net.d/10-net.conflist"), list).unwrap();
}

/// The plugins' calls since the last look.
fn calls(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("log")).unwrap_or_default();
    fs::remove_file(dir.join("log")).ok();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn pod(uid: &str) -> PodAttachment {
    PodAttachment {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        netns: "/nowhere".into(),
    }
}

#[tokio::test]
async fn a_pods_addresses_outlive_the_daemon_but_not_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    configure(dir, "net");
    let ips = network(dir).attach(&pod("u1"), Map::new()).await.unwrap();
    assert_eq!(network(dir).addresses(&pod("u1")).await, Some(ips.clone()));
    assert_eq!(calls(dir), ["ADD net u1"]);

    fs::remove_dir_all(dir.join("run")).unwrap();
    assert_eq!(network(dir).addresses(&pod("u1")).await, None);
    let again = network(dir).attach(&pod("u1"), Map::new()).await.unwrap();
    assert_eq!(again, ips);
    // The address that it had is given back first.
    assert_eq!(calls(dir), ["DEL net u1", "ADD net u1"]);

    network(dir).detach(&pod("u1")).await.unwrap();
    assert_eq!(calls(dir), ["DEL net u1"]);
    assert_eq!(network(dir).addresses(&pod("u1")).await, None);
}

#[tokio::test]
async fn a_pod_is_detached_from_what_it_was_attached_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    configure(dir, "old");
    for uid in ["u1", "u2", "u3"] {
        network(dir).attach(&pod(uid), Map::new()).await.unwrap();
    }
    configure(dir, "new");
    calls(dir);
    network(dir).detach(&pod("u1")).await.unwrap();
    assert_eq!(calls(dir), ["DEL old u1"]);

    // Also by the sweep, and then from the network of today.
    network(dir).sweep(&|| vec!["u3".to_owned()]).await.unwrap();
    assert_eq!(calls(dir), ["DEL old u2", "GC new"]);
    assert_eq!(network(dir).addresses(&pod("u2")).await, None);

    fs::remove_dir_all(dir.join("cni/net.d")).unwrap();
    network(dir).detach(&pod("u3")).await.unwrap();
    assert_eq!(calls(dir), ["DEL old u3"]);
    // Nothing is known of it, and no plugin to ask.
    network(dir).detach(&pod("u4")).await.unwrap();
    assert_eq!(calls(dir), [""; 0]);
}
