//! A folder of leases in which we, the reference plugin and a vandal take turns: each byte pair is a step.
//!
//! Compared after its steps with what a look at the files says: nobody loses an address, no address is given twice.
#![no_main]

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use skiff_cni::ipam::{LeaseStore, Owner, RangeConfig, RangeSet, allocate};

/// 10.0.0.0/27 has 29 addresses for containers.
const SUBNET: &str = "10.0.0.0/27";

fn set() -> RangeSet {
    RangeSet::new(&[RangeConfig {
        subnet: SUBNET.parse().expect("a subnet"),
        range_start: None,
        range_end: None,
        gateway: None,
    }])
    .expect("a range")
}

fn owner(number: u8) -> Owner {
    Owner {
        container: format!("c{}", number % 8),
        ifname: ["eth0", "eth1"][usize::from(number / 8 % 2)].to_owned(),
    }
}

fn lease_path(dir: &Path, number: u8) -> PathBuf {
    dir.join(format!("10.0.0.{}", number % 32))
}

/// The leases as somebody reads them who knows nothing of an index.
fn look(dir: &Path) -> BTreeMap<IpAddr, String> {
    let mut leases = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("the folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("text");
        let (Ok(ip), true) = (name.parse(), entry.file_type().expect("a type").is_file()) else {
            continue;
        };
        leases.insert(ip, fs::read_to_string(entry.path()).expect("a lease"));
    }
    leases
}

fn of(leases: &BTreeMap<IpAddr, String>, owner: &Owner) -> Vec<IpAddr> {
    let text = format!("{}\r\n{}", owner.container, owner.ifname);
    let own = |lease: &String| lease.trim() == text || lease.trim() == owner.container;
    leases
        .iter()
        .filter(|(_, lease)| own(lease))
        .map(|(ip, _)| *ip)
        .collect()
}

fn step(store: &LeaseStore, set: &RangeSet, dir: &Path, kind: u8, number: u8) {
    let owner = owner(number);
    let path = lease_path(dir, number);
    match kind % 10 {
        // Ours: any address, or a certain one.
        asked @ (0 | 1) => {
            let before = look(dir);
            let mut locked = store.lock().expect("the lock");
            let wanted: IpAddr = format!("10.0.0.{}", number % 32)
                .parse()
                .expect("an address");
            let requested = (asked == 1).then_some(wanted);
            let taken = fs::symlink_metadata(&path).is_ok();
            match allocate(&mut locked, 0, set, requested, &owner) {
                Ok(got) => {
                    let ip = got.address.ip();
                    let had = before
                        .get(&ip)
                        .is_some_and(|lease| !lease.trim().is_empty());
                    assert!(!had, "{ip} was taken");
                    assert!(requested.is_none_or(|asked| asked == ip));
                    assert!(look(dir).contains_key(&ip));
                }
                Err(_refused) => {
                    let is_gateway = number % 32 == 1;
                    let outside = matches!(number % 32, 0 | 31);
                    let lost = asked == 1 && !taken && !is_gateway && !outside;
                    assert!(!lost, "{wanted} was free");
                    let full = (2..=30).all(|n| fs::symlink_metadata(lease_path(dir, n)).is_ok());
                    assert!(asked == 1 || full, "an address was free");
                }
            }
        }
        2 => {
            let mut locked = store.lock().expect("the lock");
            let before = of(&look(dir), &owner);
            let mut released = locked.release(&owner).expect("a release");
            released.sort();
            assert_eq!(released, before);
            assert!(of(&look(dir), &owner).is_empty());
        }
        3 => {
            let mut locked = store.lock().expect("the lock");
            locked
                .retain(|one| one.container != owner.container)
                .expect("a sweep");
        }
        // The reference's: made, made by an old version, given back, begun and not finished.
        4 if !path.exists() => {
            fs::write(&path, format!("{}\r\n{}", owner.container, owner.ifname)).ok();
        }
        5 if !path.exists() => drop(fs::write(&path, &owner.container)),
        6 => drop(fs::remove_file(&path)),
        7 if !path.exists() => drop(fs::write(&path, "")),
        // The vandal's.
        8 => match number % 4 {
            0 => drop(fs::create_dir(&path)),
            1 => drop(symlink("/dev/zero", &path)),
            2 => drop(fs::remove_dir(&path)),
            _ => drop(fs::write(
                dir.join(format!("10.0.0.0{number}")),
                "c1\r\neth0",
            )),
        },
        9 => match number % 4 {
            0 => drop(fs::write(dir.join(".skiff/owners"), [number; 100])),
            1 => drop(fs::remove_dir_all(dir.join(".skiff"))),
            2 => drop(fs::write(dir.join("last_reserved_ip.0"), [number; 3])),
            _ => drop(fs::remove_file(dir.join("last_reserved_ip.0"))),
        },
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let scratch = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let (store, set) = (LeaseStore::new(scratch.path(), "net"), set());
    let dir = scratch.path().join("net");
    drop(store.lock().expect("the lock"));
    let agree = |numbers: std::ops::Range<u8>| {
        let mut locked = store.lock().expect("the lock");
        let leases = look(&dir);
        for number in numbers {
            let owner = owner(number);
            let mut known = locked.leases_of(&owner).expect("leases");
            known.sort();
            assert_eq!(known, of(&leases, &owner), "{owner:?}");
        }
    };
    for pair in data.chunks_exact(2).take(48) {
        step(&store, &set, &dir, pair[0], pair[1]);
        agree(pair[1] % 16..pair[1] % 16 + 1);
    }
    agree(0..16);
});
