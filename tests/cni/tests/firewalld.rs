//! The firewall plugin's other backend, against a bus with a firewalld of our own.
#![expect(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};
use skiff_tests_cni::{Bench, raw::RawCall};

type Sources = Arc<Mutex<Vec<(String, String)>>>;

/// A bus on which firewalld runs, or does not.
struct Bus {
    path: PathBuf,
    /// What is in which zone.
    sources: Sources,
}

impl Bus {
    fn new(bench: &Bench, has_firewalld: bool) -> Self {
        let path = bench.dir.path().join("bus");
        std::fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path).unwrap();
        let sources = Sources::default();
        let shared = Arc::clone(&sources);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                serve(client.unwrap(), has_firewalld, &shared);
            }
        });
        Self { path, sources }
    }

    fn sources(&self) -> Vec<(String, String)> {
        let mut sources = self.sources.lock().unwrap().clone();
        sources.sort();
        sources
    }
}

fn serve(stream: UnixStream, has_firewalld: bool, sources: &Sources) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("\0AUTH EXTERNAL "), "{line:?}");
    writer.write_all(b"OK 0123456789abcdef\r\n").unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "BEGIN\r\n");
    let mut fixed = [0; 16];
    // A client that is gone needs no answer.
    while reader.read_exact(&mut fixed).is_ok() {
        let number = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().unwrap());
        let mut fields = vec![0; (number(12) as usize).next_multiple_of(8)];
        reader.read_exact(&mut fields).unwrap();
        let mut body = vec![0; number(4) as usize];
        reader.read_exact(&mut body).unwrap();
        // A signal first, which is no answer.
        let signal = message(4, None, &[]);
        let answer = message_for(&fields, &strings(&body), has_firewalld, sources);
        let answer = match answer {
            Ok(body) => message(2, Some((number(8), None)), &body),
            Err(error) => {
                let name = "org.fedoraproject.FirewallD1.Exception";
                message(3, Some((number(8), Some(name))), &string(error))
            }
        };
        if writer.write_all(&[signal, answer].concat()).is_err() {
            break;
        }
    }
}

fn message_for(
    fields: &[u8],
    args: &[String],
    has_firewalld: bool,
    sources: &Sources,
) -> Result<Vec<u8>, &'static str> {
    let fields = String::from_utf8_lossy(fields);
    let mut sources = sources.lock().unwrap();
    let source = || (args[0].clone(), args[1].clone());
    if fields.contains("Hello") {
        return Ok(string(":1.7"));
    }
    if fields.contains("GetNameOwner") {
        assert_eq!(args, ["org.fedoraproject.FirewallD1"]);
        return if has_firewalld {
            Ok(string(":1.2"))
        } else {
            Err("org.freedesktop.DBus.Error.NameHasNoOwner")
        };
    }
    assert!(fields.contains("/org/fedoraproject/FirewallD1"), "{fields}");
    if args[0] == "nowhere" {
        return Err("INVALID_ZONE: nowhere");
    }
    if fields.contains("addSource") {
        if sources.iter().any(|(_, ip)| *ip == args[1]) {
            return Err("ZONE_ALREADY_SET: it is in a zone");
        }
        sources.push(source());
        Ok(string(&args[0]))
    } else if fields.contains("removeSource") {
        let before = sources.len();
        sources.retain(|known| *known != source());
        if sources.len() == before {
            return Err("UNKNOWN_SOURCE: it is in no zone");
        }
        Ok(string(&args[0]))
    } else {
        assert!(fields.contains("querySource"), "{fields}");
        Ok(u32::from(sources.contains(&source()))
            .to_le_bytes()
            .to_vec())
    }
}

fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    [&length, text.as_bytes(), &[0]].concat()
}

fn strings(mut body: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while body.len() > 4 {
        let length = u32::from_le_bytes(body[..4].try_into().unwrap()) as usize;
        found.push(String::from_utf8(body[4..4 + length].to_vec()).unwrap());
        let used = (4 + length + 1).next_multiple_of(4).min(body.len());
        body = &body[used..];
    }
    found
}

/// An answer to a call with this number, perhaps an error with this name.
fn message(kind: u8, answers: Option<(u32, Option<&str>)>, body: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    if let Some((serial, error)) = answers {
        fields.extend([5, 1, b'u', 0]);
        fields.extend(serial.to_le_bytes());
        if let Some(error) = error {
            fields.extend([4, 1, b's', 0]);
            fields.extend(string(error));
        }
    }
    let mut message = vec![b'l', kind, 0, 1];
    for number in [body.len(), 9, fields.len()] {
        message.extend(u32::try_from(number).unwrap().to_le_bytes());
    }
    message.extend(fields);
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend(body);
    message
}

fn conf(keys: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "firewall",
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.9.0.2/24", "interface": 1},
                {"address": "fd09::2/64", "interface": 1},
            ],
        },
    });
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn call(bench: &Bench, bus: &str, command: &str, conf: &Value) -> Option<u64> {
    let call = RawCall::new(bench.plugins(), "firewall")
        .command(command)
        .env("CNI_NETNS", "/run/netns/skiff-t-none")
        .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={bus}"))
        .stdin(conf.to_string());
    call.run(&bench.node).code(command)
}

fn pairs(zone: &str) -> Vec<(String, String)> {
    let of = |ip: &str| (zone.to_owned(), ip.to_owned());
    vec![of("10.9.0.2/32"), of("fd09::2/128")]
}

#[test]
fn addresses_become_sources_of_a_zone() {
    let bench = Bench::new();
    let bus = Bus::new(&bench, true);
    let path = bus.path.to_str().unwrap();
    for (keys, zone) in [
        (json!({}), "trusted"),
        (json!({"backend": "firewalld"}), "trusted"),
        (
            json!({"backend": "firewalld", "firewalldZone": "work"}),
            "work",
        ),
    ] {
        let conf = conf(&keys);
        let call = |command: &str| call(&bench, path, command, &conf);
        assert_eq!(call("CHECK"), Some(103));
        assert_eq!((call("ADD"), call("ADD")), (None, None));
        assert_eq!(bus.sources(), pairs(zone));
        assert_eq!((call("CHECK"), call("STATUS")), (None, None));
        let rules = bench.node.sh("iptables-save; ip6tables-save");
        assert!(!rules.contains("CNI-"), "{rules}");
        assert_eq!((call("DEL"), call("DEL")), (None, None));
        assert!(bus.sources().is_empty());
    }
    // iptables, if that is what the configuration says.
    let conf = conf(&json!({"backend": "iptables"}));
    assert_eq!(call(&bench, path, "ADD", &conf), None);
    assert!(bus.sources().is_empty());
    assert!(
        bench
            .node
            .sh("iptables-save")
            .contains("-s 10.9.0.2/32 -j ACCEPT")
    );
}

#[test]
fn a_policy_is_made_of_rules_all_the_same() {
    let bench = Bench::new();
    let bus = Bus::new(&bench, true);
    let path = bus.path.to_str().unwrap();
    let conf = conf(&json!({"ingressPolicy": "same-bridge"}));
    assert_eq!(call(&bench, path, "ADD", &conf), None);
    assert_eq!(call(&bench, path, "CHECK", &conf), None);
    let rules = bench.node.sh("iptables-save");
    assert!(
        rules.contains("-A FORWARD") && rules.contains("CNI-ISOLATION-STAGE-2"),
        "{rules}"
    );
    assert!(
        !rules.contains("CNI-FORWARD") && !rules.contains("10.9.0.2"),
        "{rules}"
    );
    assert_eq!(bus.sources(), pairs("trusted"));
    assert_eq!(call(&bench, path, "DEL", &conf), None);
    assert!(bus.sources().is_empty());
}

#[test]
fn a_zone_that_is_not_there_is_an_error_and_nothing_to_remove() {
    let bench = Bench::new();
    let bus = Bus::new(&bench, true);
    let path = bus.path.to_str().unwrap();
    let conf = conf(&json!({"firewalldZone": "nowhere"}));
    assert_eq!(call(&bench, path, "ADD", &conf), Some(104));
    assert_eq!(call(&bench, path, "DEL", &conf), None);
}

#[test]
fn without_firewalld_it_is_iptables_unless_firewalld_is_asked_for() {
    let bench = Bench::new();
    let bus = Bus::new(&bench, false);
    let nowhere = bench.dir.path().join("nowhere");
    for path in [bus.path.to_str().unwrap(), nowhere.to_str().unwrap()] {
        let asked = conf(&json!({"backend": "firewalld"}));
        assert_eq!(call(&bench, path, "ADD", &asked), Some(104));
        assert_eq!(call(&bench, path, "CHECK", &asked), Some(104));
        assert_eq!(call(&bench, path, "STATUS", &asked), Some(50));
        assert_eq!(call(&bench, path, "DEL", &asked), None);
        let open = conf(&json!({}));
        assert_eq!(call(&bench, path, "ADD", &open), None);
        assert!(
            bench
                .node
                .sh("iptables-save")
                .contains("-s 10.9.0.2/32 -j ACCEPT")
        );
        assert_eq!(call(&bench, path, "DEL", &open), None);
        assert!(!bench.node.sh("iptables-save").contains("10.9.0.2"));
    }
}
