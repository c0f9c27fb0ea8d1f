//! Services as rules of iptables.

use std::io::BufRead as _;

use anyhow::{Result, bail};
use skiff_ebpf_loader::{DesiredTables, TableDiff};
use skiff_netns::NodeNetns;
use skiff_service_proxy::{Dataplane as _, Iptables, IptablesConfig};

use super::{Service, tables};

/// As with programs, but nothing goes around the bridge.
pub(super) fn serve(service: &Service) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let config = IptablesConfig {
        // The bench has started us in the node's namespace; it goes with everything in it.
        netns: NodeNetns::machine(),
        node_addresses: Vec::new(),
        pod_ranges: vec!["10.88.0.0/24".parse()?],
        service_ranges: Vec::new(),
    };
    let mut iptables = runtime.block_on(Iptables::open(config))?;
    let mut before = DesiredTables::default();
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let ["services", count] = *line.split(' ').collect::<Vec<_>>() else {
            bail!("{line:?} is no order");
        };
        let after = tables(service, count.parse()?)?;
        iptables.apply(&more(&before, &after))?;
        before = after;
        println!("ok");
    }
    Ok(())
}

/// What has come: the bench asks for more each time.
fn more(before: &DesiredTables, after: &DesiredTables) -> TableDiff {
    let sets = after.sets.iter();
    let frontends = after.frontends.iter();
    TableDiff {
        publish: sets
            .filter(|(id, _)| !before.sets.contains_key(id))
            .map(|(id, members)| (*id, members.clone()))
            .collect(),
        upsert: frontends
            .filter(|(frontend, _)| !before.frontends.contains_key(frontend))
            .map(|(frontend, spec)| (*frontend, spec.clone()))
            .collect(),
        ..TableDiff::default()
    }
}
