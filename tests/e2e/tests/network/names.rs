//! Names: those of Services, of their pods, and of nobody.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use skiff_test_harness::{
    eventually,
    scene::{PATIENCE, Scene},
};

use crate::{answer, client, cluster_ip, pod_ip, server, service, words};

pub(crate) fn a_service_has_its_names(scene: &Scene<'_>) -> Result<()> {
    let other = Scene::open(scene.cluster(), "names-other")?;
    scene.apply(&json!([
        server("web"),
        client("me"),
        service("shop", "web", json!({}))
    ]))?;
    other.apply(&client("me"))?;
    let web = scene.ready("web")?;
    let (me, stranger) = (scene.ready("me")?, other.ready("me")?);
    let vip = cluster_ip(scene, "shop")?;
    let expected = [vip.clone(), "web".to_owned(), pod_ip(&me)?];
    for name in [
        "shop",
        "shop.names",
        "shop.names.svc",
        "shop.names.svc.cluster.local",
        "shop.names.svc.cluster.local.",
        &vip,
    ] {
        let said = answer(scene, "me", name, "80")?;
        ensure!(said == expected, "{name}: {said:?}");
    }
    let said = answer(&other, "me", "shop.names", "80")?;
    ensure!(
        said == [vip.as_str(), "web", &pod_ip(&stranger)?],
        "{said:?}"
    );
    // The short name is of the pod's own namespace.
    let look_up = "import socket, sys\ntry: print(socket.gethostbyname(sys.argv[1]))\nexcept socket.gaierror as e: print(e.errno)";
    let unknown = words(&other, "me", look_up, &["shop"])?;
    // EAI_NONAME, or EAI_AGAIN if nobody can be asked about the bare name in the end.
    ensure!(unknown == ["-2"] || unknown == ["-3"], "{unknown:?}");
    let unknown = words(
        &other,
        "me",
        look_up,
        &["shop.names-other.svc.cluster.local."],
    )?;
    ensure!(unknown == ["-2"], "{unknown:?}");
    // The pod's own name resolves to its own address.
    let own = scene.python(
        "web",
        "import socket; print(socket.gethostbyname(socket.gethostname()))",
    )?;
    ensure!(own.trim() == pod_ip(&web)?, "{own}");
    Ok(())
}

fn addresses(scene: &Scene<'_>, from: &str, name: &str) -> Result<BTreeSet<String>> {
    let program = "import socket, sys\nfor a in socket.getaddrinfo(sys.argv[1], None, socket.AF_INET, socket.SOCK_STREAM): print(a[4][0])";
    Ok(words(scene, from, program, &[name])?.into_iter().collect())
}

/// A DNS question as resolvers send it, and of the answer every record: owner, type, data.
const QUERY: &str = r#"
import socket, struct, sys
def name(m, i):
    labels, end = [], None
    while m[i]:
        if m[i] >= 192:
            end = end or i + 2
            i = struct.unpack("!H", m[i:i+2])[0] & 0x3fff
        else:
            labels.append(m[i+1:i+1+m[i]].decode()); i += 1 + m[i]
    return ".".join(labels), end or i + 1
q = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0)
q += b"".join(bytes([len(l)]) + l.encode() for l in sys.argv[1].split(".")) + b"\0" + struct.pack("!HH", int(sys.argv[2]), 1)
server = [l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver")][0]
if sys.argv[3] == "tcp":
    s = socket.create_connection((server, 53), 5)
    s.sendall(struct.pack("!H", len(q)) + q)
    f = s.makefile("rb"); m = f.read(struct.unpack("!H", f.read(2))[0])
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect((server, 53))
    s.send(q); m = s.recv(4096)
_, flags, _, answers, _, _ = struct.unpack("!HHHHHH", m[:12])
print("rcode", flags & 15)
_, i = name(m, 12)
i += 4
for _ in range(answers):
    owner, i = name(m, i)
    kind, _, _, length = struct.unpack("!HHIH", m[i:i+10]); i += 10
    if kind == 1: print(owner, "A", socket.inet_ntoa(m[i:i+4]))
    elif kind == 33: print(owner, "SRV", struct.unpack("!H", m[i+4:i+6])[0], name(m, i+6)[0])
    else: print(owner, kind)
    i += length
"#;

fn query(scene: &Scene<'_>, name: &str, kind: &str, transport: &str) -> Result<Vec<String>> {
    let said = scene.exec("me", &["python3", "-c", QUERY, name, kind, transport])?;
    Ok(said.lines().map(str::to_owned).collect())
}

pub(crate) fn a_headless_service_names_its_pods(scene: &Scene<'_>) -> Result<()> {
    let headless = json!({"clusterIP": "None", "selector": {"team": "web"}});
    let mut servers = [server("one"), server("two")];
    for pod in &mut servers {
        pod["metadata"]["labels"]["team"] = json!("web");
    }
    scene.apply(&json!([
        servers[0],
        servers[1],
        client("me"),
        service("team", "", headless)
    ]))?;
    let one = pod_ip(&scene.ready("one")?)?;
    let two = pod_ip(&scene.ready("two")?)?;
    scene.ready("me")?;
    let both: BTreeSet<_> = [one.clone(), two].into();
    eventually(
        "both pods",
        PATIENCE,
        || addresses(scene, "me", "team"),
        |found| *found == both,
    )?;
    let full = "team.headless.svc.cluster.local";
    for transport in ["udp", "tcp"] {
        let answer = query(scene, &format!("_talk._tcp.{full}"), "33", transport)?;
        ensure!(
            answer.first().is_some_and(|line| line == "rcode 0"),
            "{answer:?}"
        );
        let records: Vec<_> = answer
            .iter()
            .filter(|line| line.contains(" SRV 8080 "))
            .collect();
        ensure!(records.len() == 2, "{answer:?}");
        // Each names a host that has an address.
        for record in records {
            let host = record.split(' ').next_back().context("an empty record")?;
            let answer = query(scene, host, "1", transport)?;
            ensure!(
                answer
                    .iter()
                    .any(|line| both.iter().any(|ip| line.ends_with(ip))),
                "{host}: {answer:?}"
            );
        }
    }
    scene.delete_pod("two", &[])?;
    let left: BTreeSet<_> = [one].into();
    eventually(
        "one pod",
        PATIENCE,
        || addresses(scene, "me", "team"),
        |found| *found == left,
    )?;
    Ok(())
}

pub(crate) fn names_that_nobody_knows_fail_quickly(scene: &Scene<'_>) -> Result<()> {
    scene.apply(&client("me"))?;
    scene.ready("me")?;
    let look_up = r#"
import socket, sys, time
start = time.monotonic()
try:
    socket.gethostbyname(sys.argv[1]); print("found", 0)
except socket.gaierror as e: print(e.errno, time.monotonic() - start)
"#;
    // The cluster's own zone: known not to exist (EAI_NONAME), at once.
    let said = words(
        scene,
        "me",
        look_up,
        &["nothing.foreign-names.svc.cluster.local."],
    )?;
    ensure!(said.first().is_some_and(|word| word == "-2"), "{said:?}");
    let answer = query(scene, "nothing.foreign-names.svc.cluster.local", "1", "udp")?;
    ensure!(answer == ["rcode 3"], "{answer:?}");
    // Elsewhere: the node has no way out, so its resolver says so (or has none) instead of keeping silent.
    let said = words(scene, "me", look_up, &["www.example.org."])?;
    let [error, seconds] = said.as_slice() else {
        bail!("{said:?}");
    };
    ensure!(error == "-3" || error == "-2", "{said:?}");
    ensure!(seconds.parse::<f64>()? < 10.0, "{said:?}");
    Ok(())
}
