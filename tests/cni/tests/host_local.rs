//! host-local in one folder with the reference's: what one leases the other honours and releases.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};
use skiff_tests_cni::{Bench, TestNetns, compare::References, raw::RawCall};

fn conf(bench: &Bench) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "host-local",
        "ipam": {
            "type": "host-local", "dataDir": bench.dir.path().join("networks"),
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd99::1"}],
        },
        // CHECK wants one; what is in it does not matter here.
        "prevResult": {"cniVersion": "1.0.0"},
    })
}

/// Calls the host-local in the folder `plugins`; the addresses of the result, if there is one.
fn call(
    plugins: &Path,
    bench: &Bench,
    command: &str,
    container: &str,
    conf: &Value,
) -> Result<Vec<String>, Value> {
    let answer = RawCall::new(plugins, "host-local")
        .command(command)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", "/run/netns/skiff-t-not-looked-at")
        .stdin(conf.to_string())
        .run(&bench.node);
    let json = match &*answer.stdout {
        [] => Value::Null,
        stdout => serde_json::from_slice(stdout).unwrap(),
    };
    if answer.exit != Some(0) {
        return Err(json);
    }
    let ips = json["ips"].as_array().into_iter().flatten();
    Ok(ips
        .map(|ip| ip["address"].as_str().unwrap().to_owned())
        .collect())
}

fn references() -> [PathBuf; 2] {
    let found = References::find();
    [found.old, found.new]
}

#[test]
fn what_one_leases_the_other_honours_and_releases() {
    for theirs in references() {
        let bench = Bench::new();
        let (ours, conf) = (bench.plugins(), conf(&bench));
        let run = |plugins: &Path, command, container| {
            call(plugins, &bench, command, container, &conf)
                .unwrap_or_else(|error| panic!("{command} {container}: {error}"))
        };
        assert_eq!(run(&theirs, "ADD", "a"), ["10.99.0.2/24", "fd99::2/64"]);
        assert_eq!(run(ours, "ADD", "b"), ["10.99.0.3/24", "fd99::3/64"]);
        assert_eq!(run(&theirs, "ADD", "c"), ["10.99.0.4/24", "fd99::4/64"]);
        assert_eq!(run(ours, "ADD", "d"), ["10.99.0.5/24", "fd99::5/64"]);
        for container in ["a", "b", "c", "d"] {
            run(ours, "CHECK", container);
            run(&theirs, "CHECK", container);
            // Neither gives a second address.
            assert!(call(ours, &bench, "ADD", container, &conf).is_err());
            assert!(call(&theirs, &bench, "ADD", container, &conf).is_err());
        }
        run(ours, "DEL", "a");
        run(&theirs, "DEL", "b");
        assert_eq!(
            bench.leases(),
            ["10.99.0.4", "10.99.0.5", "fd99::4", "fd99::5"]
        );
        assert!(call(ours, &bench, "CHECK", "b", &conf).is_err());
        assert!(call(&theirs, &bench, "CHECK", "a", &conf).is_err());
        run(&theirs, "DEL", "c");
        run(ours, "DEL", "d");
        assert!(bench.leases().is_empty());
        // The search goes on behind the last one, whoever gave that away.
        assert_eq!(run(&theirs, "ADD", "e"), ["10.99.0.6/24", "fd99::6/64"]);
        assert_eq!(run(ours, "ADD", "f"), ["10.99.0.7/24", "fd99::7/64"]);
    }
}

#[test]
fn a_node_changes_from_one_to_the_other_under_load() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 12;
    for theirs in references() {
        let bench = Bench::new();
        let conf = conf(&bench);
        let makers = [bench.plugins(), &theirs];
        let ips: Vec<String> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (bench, conf) = (&bench, &conf);
                    scope.spawn(move || {
                        let mut ips = Vec::new();
                        for round in 0..ROUNDS {
                            let (maker, other) = (makers[round % 2], makers[(round + 1) % 2]);
                            let name = format!("c{thread}-{round}");
                            let run = |plugins, command, name: &str| {
                                call(plugins, bench, command, name, conf)
                                    .unwrap_or_else(|error| panic!("{command} {name}: {error}"))
                            };
                            ips.extend(run(maker, "ADD", &name));
                            // Guests come and go in between.
                            let guest = format!("guest{thread}");
                            run(other, "ADD", &guest);
                            run(maker, "DEL", &guest);
                        }
                        ips
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let unique: HashSet<&String> = ips.iter().collect();
        assert_eq!((unique.len(), ips.len()), (2 * THREADS * ROUNDS, ips.len()));
        assert_eq!(bench.leases().len(), ips.len());
        for thread in 0..THREADS {
            for round in 0..ROUNDS {
                let name = format!("c{thread}-{round}");
                let other = makers[(round + 1) % 2];
                call(other, &bench, "DEL", &name, &conf).unwrap();
            }
        }
        assert!(bench.leases().is_empty(), "{:?}", bench.leases());
    }
}

#[test]
fn a_lease_of_the_oldest_form_is_released() {
    let bench = Bench::new();
    let conf = conf(&bench);
    let net = bench.dir.path().join("networks/net");
    fs::create_dir_all(&net).unwrap();
    fs::write(net.join("10.99.0.2"), "a").unwrap();
    fs::write(net.join("10.99.0.3"), "ab").unwrap();
    let ours = bench.plugins();
    assert_eq!(
        call(ours, &bench, "ADD", "b", &conf).unwrap()[0],
        "10.99.0.4/24"
    );
    call(ours, &bench, "CHECK", "a", &conf).unwrap();
    call(ours, &bench, "DEL", "a", &conf).unwrap();
    assert_eq!(bench.leases(), ["10.99.0.3", "10.99.0.4", "fd99::2"]);
}

#[test]
fn the_result_has_what_the_configuration_says() {
    let bench = Bench::new();
    let mut conf = conf(&bench);
    let resolv = bench.dir.path().join("resolv.conf");
    fs::write(
        &resolv,
        "nameserver 192.0.2.53\nsearch a.example\noptions ndots:5\n",
    )
    .unwrap();
    conf["cniVersion"] = json!("1.1.0");
    let route = json!({
        "dst": "192.0.2.0/24", "gw": "10.99.0.9",
        "mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 253,
    });
    conf["ipam"]["routes"] = json!([route]);
    conf["ipam"]["resolvConf"] = json!(resolv);
    conf["ipam"]["ranges"][0][0]["gateway"] = json!("10.99.0.9");
    conf["runtimeConfig"] = json!({"ips": ["10.99.0.77/24"]});
    conf["args"] = json!({"cni": {"ips": ["fd99::77"]}});
    let pod = TestNetns::new("pod");
    let answer = bench.add(&conf, "a", &pod).json;
    assert_eq!(
        answer,
        json!({
            "cniVersion": "1.1.0",
            "ips": [
                {"address": "10.99.0.77/24", "gateway": "10.99.0.9"},
                {"address": "fd99::77/64", "gateway": "fd99::1"},
            ],
            "routes": [route],
            "dns": {"nameservers": ["192.0.2.53"], "search": ["a.example"], "options": ["ndots:5"]},
        })
    );
    // Older versions do not know a route's properties.
    conf["cniVersion"] = json!("1.0.0");
    bench.del(&conf, "a", &pod);
    let answer = bench.add(&conf, "a", &pod).json;
    assert_eq!(
        answer["routes"],
        json!([{"dst": "192.0.2.0/24", "gw": "10.99.0.9"}])
    );
    bench.del(&conf, "a", &pod);
    assert!(bench.leases().is_empty());
}

#[test]
fn an_add_that_fails_at_its_second_range_leaves_nothing() {
    let bench = Bench::new();
    let mut conf = conf(&bench);
    conf["ipam"]["ranges"][1] = json!([{"subnet": "fd99::/126"}]);
    let ours = bench.plugins();
    for container in ["a", "b"] {
        call(ours, &bench, "ADD", container, &conf).unwrap();
    }
    let before = bench.leases();
    let error = call(ours, &bench, "ADD", "c", &conf).unwrap_err();
    assert_eq!(error["code"], 101, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("no IP addresses available in range set: fd99::1-fd99::3"),
        "{text}"
    );
    assert_eq!(bench.leases(), before);
}

#[test]
fn status_and_gc_know_the_folder() {
    let bench = Bench::new();
    let mut conf = conf(&bench);
    conf["cniVersion"] = json!("1.1.0");
    let ours = bench.plugins();
    call(ours, &bench, "STATUS", "x", &conf).unwrap();
    for container in ["a", "b"] {
        call(ours, &bench, "ADD", container, &conf).unwrap();
    }
    let missing = call(ours, &bench, "GC", "x", &conf).unwrap_err();
    assert_eq!(missing["code"], 7);
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    call(ours, &bench, "GC", "x", &conf).unwrap();
    assert_eq!(bench.leases(), ["10.99.0.3", "fd99::3"]);
    // A list that a runtime in Go has left empty.
    conf["cni.dev/valid-attachments"] = Value::Null;
    call(ours, &bench, "GC", "x", &conf).unwrap();
    assert!(bench.leases().is_empty());

    let file = bench.dir.path().join("file");
    fs::write(&file, "").unwrap();
    conf["ipam"]["dataDir"] = json!(file.join("below"));
    let error = call(ours, &bench, "STATUS", "x", &conf).unwrap_err();
    assert_eq!(error["code"], 50, "{error}");
}

/// Mounts a small disk that only the calling thread sees, and those that it starts.
#[expect(
    clippy::disallowed_methods,
    reason = "not a network's namespace: those alone are skiff-netns'"
)]
fn mount_small_disk(at: &Path) {
    fs::create_dir_all(at).unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let size = Some("size=256k");
    mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), size).unwrap();
}

/// Leaves no space on it.
fn fill(disk: &Path) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(disk.join("filler"))
        .unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
}

#[test]
fn a_full_disk_takes_no_lease_and_gives_all_back() {
    let bench = Bench::new();
    let disk = bench.dir.path().join("networks");
    let net = disk.join("net");
    let mut conf = conf(&bench);
    conf["cniVersion"] = json!("1.1.0");
    conf["prevResult"]["cniVersion"] = json!("1.1.0");
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let run = |command, container| call(bench.plugins(), &bench, command, container, &conf);
    // What becomes of the index before the disk is full. It is only ever a help.
    let stale = |net: &Path| fs::write(net.join("10.99.0.200"), "theirs\r\neth0").unwrap();
    let gone = |net: &Path| fs::remove_dir_all(net.join(".skiff")).unwrap();
    let broken = |net: &Path| fs::write(net.join(".skiff/owners"), "").unwrap();
    type Damage<'a> = &'a (dyn Fn(&Path) + Sync);
    let cases: [(&str, Damage<'_>); 4] = [
        ("right", &|_| {}),
        ("stale", &stale),
        ("gone", &gone),
        ("broken", &broken),
    ];
    for (case, prepare) in cases {
        thread::scope(|scope| {
            scope.spawn(|| {
                mount_small_disk(&disk);
                for container in ["a", "b", "kept"] {
                    run("ADD", container).unwrap();
                }
                prepare(&net);
                fill(&disk);
                let before = bench.leases();
                assert!(before.len() >= 6, "{case}: {before:?}");
                let error = run("ADD", "more").unwrap_err();
                assert_eq!(error["code"], 5, "{case}: {error}");
                assert_eq!(bench.leases(), before, "{case}");
                for container in ["a", "more"] {
                    fill(&disk);
                    run("DEL", container).unwrap();
                }
                assert_eq!(bench.leases().len(), before.len() - 2, "{case}");
                fill(&disk);
                run("CHECK", "b").unwrap();
                run("CHECK", "a").unwrap_err();
                run("GC", "x").unwrap();
                assert_eq!(bench.leases(), ["10.99.0.4", "fd99::4"], "{case}");
                fs::remove_file(disk.join("filler")).unwrap();
                run("ADD", "more").unwrap();
                run("DEL", "kept").unwrap();
                run("DEL", "more").unwrap();
                assert!(bench.leases().is_empty(), "{case}");
            });
        });
    }
}
