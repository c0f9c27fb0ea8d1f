//! What of a node is still on the machine.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

/// Everything that carries the node's name: namespaces, mounts, cgroups, files, processes, and rules and links in
/// the machine's own network. Empty when the node is gone without a trace.
///
/// # Errors
/// If the machine cannot be looked at.
pub fn leftovers(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/run", "/var/lib"] {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let entry = entry?;
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(format!("file {}", entry.path().display()));
            }
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if line.contains(name) {
            found.push(format!("mount {line}"));
        }
    }
    let mut cgroups = Vec::new();
    for line in fs::read_to_string("/proc/self/mounts")?.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(path), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) {
            cgroups.push(Path::new(path).join(name));
        }
    }
    found.extend(
        cgroups
            .iter()
            .filter(|dir| dir.exists())
            .map(|dir| format!("cgroup {}", dir.display())),
    );
    found.extend(processes(name)?);
    found.extend(machine_network()?);
    Ok(found)
}

/// What of ours is still in the node's own network: links, routes, rules.
pub(crate) fn node_leftovers(name: &str) -> Result<Vec<String>> {
    let inside = |program: &str, args: &[&str]| {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{name}"))
            .arg("--")
            .arg(program)
            .args(args);
        let output = command.output()?;
        anyhow::ensure!(
            output.status.success(),
            "{program} in the node's namespace: {output:?}"
        );
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut found = Vec::new();
    for link in inside("ip", &["-oneline", "link"])?.lines() {
        if link.contains("skiff") || link.contains("veth") {
            found.push(format!("link in the node's network: {link}"));
        }
    }
    for route in inside("ip", &["route", "show", "table", "all"])?.lines() {
        if route.contains("unreachable") || route.contains("skiff") {
            found.push(format!("route in the node's network: {route}"));
        }
    }
    for rule in inside("iptables-save", &[])?.lines() {
        if rule.contains("SKIFF") || rule.contains("skiff") {
            found.push(format!("rule in the node's network: {rule}"));
        }
    }
    Ok(found)
}

fn processes(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let program = command.split(' ').next().unwrap_or_default();
        let ours = ["skiff", "skiff-shim", "docker-registry"]
            .iter()
            .any(|bin| program.ends_with(bin));
        if ours && command.contains(name) {
            found.push(format!("process {} {command}", path.display()));
        }
    }
    Ok(found)
}

/// The machine's own network must never have had anything of ours, whatever the node's name.
fn machine_network() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (program, args) in [
        ("ip", ["-oneline", "link"].as_slice()),
        ("ip", &["route", "show", "table", "all"]),
        ("iptables-save", &[]),
    ] {
        let output = Command::new(program).args(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            if line.to_lowercase().contains("skiff")
                || line.contains("10.96.0.0")
                || line.contains("10.244.")
            {
                found.push(format!("{program}: {line}"));
            }
        }
    }
    Ok(found)
}
