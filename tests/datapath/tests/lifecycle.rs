//! What happens to connections when tables change, and when the daemon dies, returns or is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use skiff_ebpf_loader::{
    Backend, Datapath, DatapathConfig, DatapathError, Limits, TableDiff, attached_programs,
    teardown,
};
use skiff_tests_datapath::{
    PODS, TARGET, TestNode, VIP, pods, program, protocol::Command, servers, spec, tables, tcp, udp,
    web,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_datapath-probe");
/// How many programs there are at a node's cgroup.
const HOOKS: usize = 10;

/// The set swings between two halves that have nothing in common, thousands of times, while clients connect: none
/// fails, and none reaches an address that was in neither.
#[test]
fn swapping_a_set_under_load_fails_no_connection() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(2))?;
    let _servers = servers(&node)?;
    let mut clients = [node.pod()?, node.host()?];
    for client in &mut clients {
        client.tell(&Command::StartLoad { addr: VIP.into() })?;
    }
    let all = pods(5);
    let halves = [all[..2].to_vec(), all[2..4].to_vec()];
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut swaps = 0;
    while Instant::now() < deadline {
        for half in &halves {
            let publish = vec![(web(), half.clone())];
            datapath.apply(&TableDiff {
                publish,
                ..TableDiff::default()
            })?;
            swaps += 1;
        }
    }
    let mut seen = BTreeSet::new();
    for client in &mut clients {
        let answer = client.tell(&Command::StopLoad)?;
        assert_eq!(answer.errors, BTreeMap::new());
        assert!(answer.total() > 100, "{answer:?}");
        seen.extend(answer.names.into_keys());
    }
    let expected: BTreeSet<String> = PODS.iter().take(4).map(ToString::to_string).collect();
    assert_eq!(seen, expected);
    assert!(swaps > 1000, "only {swaps}");
    assert_eq!(datapath.counters()?.inconsistent, 0);
    // So many changes cannot do without using slots again.
    assert!(datapath.writes().grace_periods > 0);
    Ok(())
}

#[test]
fn services_go_on_when_the_daemon_is_gone_and_are_adopted_as_they_are() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    assert!(!datapath.adopted());
    let mut wanted = tables(3);
    let affine = skiff_ebpf_loader::FrontendSpec {
        affinity_seconds: 60,
        ..spec(web())
    };
    wanted.frontends.insert(udp(VIP), affine);
    wanted.sets.insert(
        web(),
        vec![
            Backend {
                local: true,
                ..Backend::new(PODS[0].into(), TARGET)
            },
            Backend {
                terminating: true,
                ..Backend::new(PODS[1].into(), TARGET)
            },
        ],
    );
    program(&mut datapath, &wanted)?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    client.tell(&Command::StartLoad { addr: VIP.into() })?;

    drop(datapath);
    let answer = node.host()?.tell(&Command::Tcp {
        addr: VIP.into(),
        times: 20,
    })?;
    assert_eq!(answer.total(), 20);

    let mut again = node.open()?;
    assert!(again.adopted());
    let diff = again.diff(&wanted);
    assert_eq!(diff, TableDiff::default());
    again.apply(&diff)?;
    assert_eq!(again.writes().total(), 0);
    assert_eq!(attached_programs(&node.cgroup)?.len(), HOOKS);

    // What it read back is what it goes on from.
    program(&mut again, &tables(1))?;
    let mut third = node.open()?;
    assert!(third.diff(&tables(1)).is_empty());
    let one_more = third.diff(&tables(2));
    assert_eq!((one_more.publish.len(), one_more.upsert.len()), (1, 0));
    third.apply(&one_more)?;
    let answer = client.tell(&Command::StopLoad)?;
    assert_eq!(answer.errors, BTreeMap::new());
    assert!(answer.total() > 50);
    Ok(())
}

#[test]
fn tables_of_other_sizes_are_built_beside_and_swapped_when_they_are_filled() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    program(&mut node.open()?, &tables(2))?;
    let _servers = servers(&node)?;
    let mut client = node.pod()?;
    client.tell(&Command::StartLoad { addr: VIP.into() })?;
    let limits = Limits {
        services: 2048,
        ..node.config().limits
    };
    let mut larger = Datapath::open(&DatapathConfig {
        limits,
        ..node.config()
    })?;
    larger.set_node(&node.settings()?)?;
    assert!(!larger.adopted());
    let diff = larger.diff(&tables(2));
    assert_eq!(diff.upsert.len(), 4);
    // Not filled yet: the old ones answer.
    assert_eq!(
        node.host()?
            .tell(&Command::Tcp {
                addr: VIP.into(),
                times: 10
            })?
            .total(),
        10
    );
    assert_eq!(larger.counters()?.connects, 0);
    larger.apply(&diff)?;
    assert_eq!(
        node.host()?
            .tell(&Command::Tcp {
                addr: VIP.into(),
                times: 10
            })?
            .total(),
        10
    );
    assert!(larger.counters()?.connects >= 10);
    let answer = client.tell(&Command::StopLoad)?;
    assert_eq!(answer.errors, BTreeMap::new());
    // The file system has files of its own.
    let folders = fs::read_dir(&node.bpffs)?
        .flatten()
        .filter(|entry| entry.path().is_dir());
    assert_eq!(folders.count(), 2, "links and one folder of maps");
    assert_eq!(attached_programs(&node.cgroup)?.len(), HOOKS);
    Ok(())
}

#[test]
fn teardown_leaves_nothing_even_while_a_daemon_holds_everything_open() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let mut datapath = node.open()?;
    program(&mut datapath, &tables(2))?;
    assert_eq!(attached_programs(&node.cgroup)?.len(), HOOKS);
    assert!(fs::read_to_string("/proc/self/mountinfo")?.contains(&*node.bpffs.to_string_lossy()));
    teardown(&node.bpffs)?;
    assert_eq!(attached_programs(&node.cgroup)?, Vec::<u32>::new());
    assert!(!node.bpffs.exists());
    assert!(!fs::read_to_string("/proc/self/mountinfo")?.contains(&*node.bpffs.to_string_lossy()));
    teardown(&node.bpffs)?;
    Ok(())
}

#[test]
fn programs_of_others_at_the_same_cgroup_stay() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let folder = tempfile::tempdir()?;
    let other = DatapathConfig {
        bpffs_dir: folder.path().join("other"),
        ..node.config()
    };
    let _other = Datapath::open(&other)?;
    drop(node.open()?);
    assert_eq!(attached_programs(&node.cgroup)?.len(), 2 * HOOKS);
    teardown(&node.bpffs)?;
    assert_eq!(attached_programs(&node.cgroup)?.len(), HOOKS);
    teardown(&other.bpffs_dir)?;
    assert_eq!(attached_programs(&node.cgroup)?.len(), 0);
    Ok(())
}

#[test]
fn a_folder_that_is_no_cgroup_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = DatapathConfig {
        cgroup_path: folder.path().to_owned(),
        bpffs_dir: folder.path().join("bpf"),
        limits: Limits::default(),
    };
    let error = Datapath::open(&config).map(drop).unwrap_err();
    assert!(matches!(error, DatapathError::NotCgroup2 { .. }), "{error}");
    assert!(!config.bpffs_dir.exists());
    Ok(())
}

#[test]
fn a_full_table_is_an_error_and_the_rest_stays_as_it_was() -> Result<()> {
    let node = TestNode::new(PROGRAM)?;
    let limits = Limits {
        services: 4,
        backends: 3,
        ..node.config().limits
    };
    let mut datapath = Datapath::open(&DatapathConfig {
        limits,
        ..node.config()
    })?;
    program(&mut datapath, &tables(3))?;
    let error = program(&mut datapath, &tables(4)).unwrap_err();
    assert!(
        format!("{error}").contains("LB_BACKENDS is full: 3"),
        "{error}"
    );
    assert!(datapath.diff(&tables(3)).is_empty());
    let mut more = tables(3);
    more.frontends
        .insert(tcp(std::net::SocketAddrV4::new(PODS[0], 1)), spec(web()));
    let error = program(&mut datapath, &more).unwrap_err();
    assert!(
        format!("{error}").contains("LB_SERVICES is full: 4"),
        "{error}"
    );
    let _servers = servers(&node)?;
    assert_eq!(
        node.pod()?
            .tell(&Command::Tcp {
                addr: VIP.into(),
                times: 5
            })?
            .total(),
        5
    );
    // There is room again once something is gone.
    program(&mut datapath, &tables(1))?;
    program(&mut datapath, &tables(3))?;
    Ok(())
}
