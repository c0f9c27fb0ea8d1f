use std::{collections::HashSet, thread};

use super::*;
use crate::ipam::{RangeConfig, RangeSet, allocate};

fn owner(name: &str) -> Owner {
    Owner {
        container: name.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

fn set(subnet: &str) -> RangeSet {
    let subnet = subnet.parse().unwrap();
    RangeSet::new(&[RangeConfig {
        subnet,
        range_start: None,
        range_end: None,
        gateway: None,
    }])
    .unwrap()
}

fn take(store: &LeaseStore, set: &RangeSet, name: &str) -> Result<IpAddr, IpamError> {
    allocate(&mut store.lock()?, 0, set, None, &owner(name)).map(|got| got.address.ip())
}

#[test]
fn the_files_are_those_of_the_reference_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let store = LeaseStore::new(dir.path(), "net");
    let ip = take(&store, &set("10.0.0.0/24"), "c1").unwrap();
    assert_eq!(ip.to_string(), "10.0.0.2");
    let read = |name: &str| fs::read_to_string(dir.path().join("net").join(name)).unwrap();
    assert_eq!(read("10.0.0.2"), "c1\r\neth0");
    assert_eq!(read("last_reserved_ip.0"), "10.0.0.2");
    assert!(dir.path().join("net/lock").exists());
}

#[test]
fn an_address_is_not_used_again_at_once_and_exhaustion_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/29"));
    let first = take(&store, &set, "a").unwrap();
    assert_eq!(store.lock().unwrap().release(&owner("a")).unwrap(), [first]);
    assert_ne!(take(&store, &set, "b").unwrap(), first);
    for name in ["c", "d", "e", "f"] {
        take(&store, &set, name).unwrap();
    }
    assert!(matches!(
        take(&store, &set, "g"),
        Err(IpamError::Exhausted { .. })
    ));
    store.lock().unwrap().release(&owner("d")).unwrap();
    take(&store, &set, "g").unwrap();
}

#[test]
fn leases_of_the_reference_plugin_are_honoured_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    take(&store, &set, "ours").unwrap();
    let net = dir.path().join("net");
    fs::write(net.join("10.0.0.3"), "theirs\r\neth0").unwrap();
    fs::write(net.join("10.0.0.4"), "old-format").unwrap();
    assert_eq!(take(&store, &set, "next").unwrap().to_string(), "10.0.0.5");
    let mut locked = store.lock().unwrap();
    assert_eq!(locked.leases_of(&owner("theirs")).unwrap().len(), 1);
    assert_eq!(locked.release(&owner("theirs")).unwrap().len(), 1);
    assert_eq!(locked.release(&owner("old-format")).unwrap().len(), 1);
    assert!(!net.join("10.0.0.3").exists() && !net.join("10.0.0.4").exists());
    assert!(locked.release(&owner("theirs")).unwrap().is_empty());
}

#[test]
fn a_lease_without_owner_is_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let net = dir.path().join("net");
    fs::create_dir_all(&net).unwrap();
    fs::write(net.join("10.0.0.2"), "").unwrap();
    assert_eq!(take(&store, &set, "c").unwrap().to_string(), "10.0.0.2");
}

#[test]
fn a_release_by_the_reference_plugin_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let ip = take(&store, &set, "c").unwrap();
    fs::remove_file(dir.path().join("net").join(ip.to_string())).unwrap();
    assert!(
        store
            .lock()
            .unwrap()
            .leases_of(&owner("c"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn garbage_in_the_folder_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let net = dir.path().join("net");
    fs::create_dir_all(&net).unwrap();
    fs::write(net.join("not-an-address"), "c\r\neth0").unwrap();
    fs::write(net.join("last_reserved_ip.0"), "nonsense").unwrap();
    fs::write(net.join("10.0.0.2"), [0xff, 0xfe, b'\n']).unwrap();
    assert_eq!(take(&store, &set, "c").unwrap().to_string(), "10.0.0.3");
    assert_eq!(store.lock().unwrap().release(&owner("c")).unwrap().len(), 1);
    assert!(net.join("not-an-address").exists());
}

#[test]
fn retain_releases_what_is_not_valid() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    for name in ["a", "b", "c"] {
        take(&store, &set, name).unwrap();
    }
    let mut locked = store.lock().unwrap();
    assert_eq!(
        locked.retain(|owner| owner.container == "b").unwrap().len(),
        2
    );
    assert_eq!(locked.leased().unwrap().count(), 1);
    assert_eq!(locked.leases_of(&owner("b")).unwrap().len(), 1);
}

#[test]
fn many_at_once_get_different_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let ips: HashSet<IpAddr> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (store, set) = (&store, &set);
                scope.spawn(move || {
                    (0..10)
                        .map(|n| take(store, set, &format!("c{thread}-{n}")).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(ips.len(), 80);
}

#[test]
fn a_held_lock_is_an_error_after_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let store = LeaseStore::new(dir.path(), "net");
    let _held = store.lock().unwrap();
    let again = store.lock_within(Duration::from_millis(5));
    assert!(matches!(again, Err(IpamError::Locked { .. })));
}

#[test]
fn a_requested_address_must_be_free_and_in_range() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let mut locked = store.lock().unwrap();
    let mut ask = |ip: &str, name: &str| {
        allocate(
            &mut locked,
            0,
            &set,
            Some(ip.parse().unwrap()),
            &owner(name),
        )
    };
    assert_eq!(
        ask("10.0.0.77", "a").unwrap().address.to_string(),
        "10.0.0.77/24"
    );
    assert!(ask("10.0.0.77", "b").is_err());
    assert!(ask("10.0.0.1", "b").is_err());
    assert!(ask("10.9.0.1", "b").is_err());
}

#[test]
fn what_only_looks_like_a_lease_takes_its_address_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let net = dir.path().join("net");
    fs::create_dir_all(net.join("10.0.0.2")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", net.join("10.0.0.3")).unwrap();
    std::os::unix::fs::symlink("nowhere", net.join("10.0.0.4")).unwrap();
    nix::unistd::mkfifo(&net.join("10.0.0.5"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(net.join("010.0.0.6"), "c\r\neth0").unwrap();
    fs::write(net.join("10.0.0.6 "), "c\r\neth0").unwrap();
    std::os::unix::fs::symlink("/dev/zero", net.join("last_reserved_ip.0")).unwrap();
    let mut locked = store.lock().unwrap();
    // Before the index knows of them, and with it.
    for name in ["c", "d"] {
        let ask = |store: &mut LockedStore, ip: &str| {
            allocate(store, 0, &set, Some(ip.parse().unwrap()), &owner(name))
        };
        for taken in ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"] {
            assert!(ask(&mut locked, taken).is_err(), "{taken}");
        }
    }
    drop(locked);
    fs::remove_file(net.join("last_reserved_ip.0")).unwrap();
    assert_eq!(take(&store, &set, "c").unwrap().to_string(), "10.0.0.6");
    let mut locked = store.lock().unwrap();
    assert_eq!(locked.release(&owner("c")).unwrap().len(), 1);
    assert_eq!(locked.retain(|_| false).unwrap().len(), 0);
    assert!(net.join("10.0.0.2").is_dir() && net.join("10.0.0.3").is_symlink());
    assert!(net.join("010.0.0.6").exists());
}

#[test]
fn a_last_address_that_is_a_link_is_not_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let net = dir.path().join("net");
    fs::create_dir_all(&net).unwrap();
    std::os::unix::fs::symlink(&victim, net.join("last_reserved_ip.0")).unwrap();
    take(&store, &set, "c").unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_broken_index_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    take(&store, &set, "a").unwrap();
    let owners = dir.path().join("net/.skiff/owners");
    let whole = fs::read(&owners).unwrap();
    let mut wild = whole.clone();
    // The number of slots.
    wild[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut nonsense = whole.clone();
    nonsense[40..].fill(0xaa);
    for (number, broken) in [&[][..], &whole[..100], &wild, &nonsense]
        .iter()
        .enumerate()
    {
        fs::write(&owners, broken).unwrap();
        let name = format!("c{number}");
        let ip = take(&store, &set, &name).unwrap();
        let mut locked = store.lock().unwrap();
        assert_eq!(locked.release(&owner(&name)).unwrap(), [ip], "{number}");
    }
    assert_eq!(store.lock().unwrap().release(&owner("a")).unwrap().len(), 1);
}

#[test]
fn a_draft_that_a_crash_left_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/24"));
    let first = take(&store, &set, "a").unwrap();
    // Killed after the lease had got its name, and before the draft had lost its own.
    let net = dir.path().join("net");
    fs::hard_link(net.join(first.to_string()), net.join(".skiff/draft")).unwrap();
    let second = take(&store, &set, "b").unwrap();
    for (name, ip) in [("a", first), ("b", second)] {
        let mut locked = store.lock().unwrap();
        assert_eq!(locked.owner_of(ip), Some(owner(name)));
        assert_eq!(locked.release(&owner(name)).unwrap(), [ip]);
    }
}

#[test]
fn a_table_grows_with_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/20"));
    let names: Vec<String> = (0..1000).map(|number| format!("c{number}")).collect();
    let mut locked = store.lock().unwrap();
    let mut ips = Vec::new();
    for name in &names {
        ips.push(allocate(&mut locked, 0, &set, None, &owner(name)).unwrap());
    }
    // Many that came and went fill the table with what was removed.
    for round in 0..1000 {
        let guest = owner(&format!("guest{round}"));
        let ip = allocate(&mut locked, 0, &set, None, &guest).unwrap();
        assert_eq!(locked.release(&guest).unwrap(), [ip.address.ip()]);
    }
    for (name, ip) in names.iter().zip(&ips) {
        assert_eq!(locked.leases_of(&owner(name)).unwrap(), [ip.address.ip()]);
    }
    drop(locked);
    let size = fs::metadata(dir.path().join("net/.skiff/owners"))
        .unwrap()
        .len();
    assert!(size < 200_000, "{size}");
}

#[test]
fn the_last_free_address_of_a_full_network_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, set) = (LeaseStore::new(dir.path(), "net"), set("10.0.0.0/19"));
    let net = dir.path().join("net");
    fs::create_dir_all(&net).unwrap();
    for number in 2..8191u32 {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number);
        if number != 7000 {
            fs::write(net.join(ip.to_string()), format!("c{number}\r\neth0")).unwrap();
        }
    }
    assert_eq!(take(&store, &set, "c").unwrap().to_string(), "10.0.27.88");
    assert!(matches!(
        take(&store, &set, "d"),
        Err(IpamError::Exhausted { .. })
    ));
    assert_eq!(
        store.lock().unwrap().release(&owner("c5")).unwrap().len(),
        1
    );
    assert_eq!(take(&store, &set, "d").unwrap().to_string(), "10.0.0.5");
}
