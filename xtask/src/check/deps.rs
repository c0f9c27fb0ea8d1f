//! Which crate may depend on which: the plan of the house, enforced.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{command, paths};

/// Each crate of ours and the crates of ours that it may use. Everything else fails.
const ALLOWED: &[(&str, &[&str])] = &[
    ("skiff-api", &[]),
    ("skiff-storage", &[]),
    ("skiff-apiserver", &["skiff-api", "skiff-storage"]),
    ("skiff-client", &["skiff-api"]),
    ("skiff-controllers", &["skiff-api", "skiff-client"]),
    ("skiff-scheduler", &["skiff-api", "skiff-client"]),
    ("skiff-dns", &["skiff-client", "skiff-netns"]),
    (
        "skiff-service-proxy",
        &[
            "skiff-api",
            "skiff-client",
            "skiff-cni",
            "skiff-ebpf-common",
            "skiff-ebpf-loader",
            "skiff-lb",
            "skiff-netns",
        ],
    ),
    (
        "skiff-node",
        &[
            "skiff-api",
            "skiff-client",
            "skiff-cni",
            "skiff-image",
            "skiff-netns",
            "skiff-runtime",
            "skiff-spec",
        ],
    ),
    ("skiff-netns", &[]),
    ("skiff-image", &[]),
    ("skiff-spec", &["skiff-api"]),
    ("skiff-runtime", &["skiff-netns"]),
    ("skiff-shim", &["skiff-runtime"]),
    ("skiff-cni", &["skiff-netns"]),
    ("skiff-cni-plugins", &["skiff-cni", "skiff-netns"]),
    ("skiff-ebpf-common", &[]),
    ("skiff-lb", &["skiff-ebpf-common"]),
    ("skiff-ebpf-loader", &["skiff-ebpf-common", "skiff-lb"]),
    ("xtask", &[]),
];

/// What a heavy or dangerous dependency's one owner is.
const OWNERS: &[(&str, &[&str])] = &[
    ("aya", &["skiff-ebpf-loader", "skiff-ebpf-common"]),
    ("hickory-proto", &["skiff-dns"]),
    ("iptables", &["skiff-cni"]),
    ("libcontainer", &["skiff-shim"]),
    ("oci-client", &["skiff-image"]),
    ("redb", &["skiff-storage"]),
    ("rtnetlink", &["skiff-cni"]),
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Compares `cargo metadata` with the table.
pub(crate) fn run() -> Result<()> {
    let json = command::output(Command::new("cargo").current_dir(paths::root()).args([
        "metadata",
        "--locked",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Metadata = serde_json::from_str(&json).context("reading cargo metadata")?;
    let wrong = violations(&metadata);
    if !wrong.is_empty() {
        bail!("dependencies against the plan:\n  {}", wrong.join("\n  "));
    }
    println!(
        "check-deps: {} crates depend on each other as planned",
        metadata.packages.len()
    );
    Ok(())
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        // The binary wires everything together, tests look at everything.
        let free = package.name == "skiff" || package.name.starts_with("skiff-test");
        let allowed = ALLOWED
            .iter()
            .find(|(name, _)| *name == package.name)
            .map(|(_, to)| *to);
        if allowed.is_none() && !free {
            wrong.push(format!(
                "{} is not in the table of xtask/src/check/deps.rs",
                package.name
            ));
        }
        let direct = package
            .dependencies
            .iter()
            .filter(|dep| dep.kind.as_deref() != Some("dev"));
        for dependency in direct {
            let name = dependency.name.as_str();
            let ours = metadata.packages.iter().any(|package| package.name == name);
            if ours && !free && !allowed.is_some_and(|allowed| allowed.contains(&name)) {
                wrong.push(format!("{} -> {name}", package.name));
            }
            let owners = OWNERS
                .iter()
                .find(|(owned, _)| *owned == name)
                .map(|(_, owners)| *owners);
            if owners.is_some_and(|owners| !owners.contains(&package.name.as_str())) {
                wrong.push(format!(
                    "{} uses {name}, which belongs to another crate",
                    package.name
                ));
            }
            if name == "skiff" {
                wrong.push(format!(
                    "{} -> skiff: nobody depends on the binary",
                    package.name
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|name| Dependency {
                name: (*name).to_owned(),
                kind: None,
            })
            .collect();
        Package {
            name: name.to_owned(),
            dependencies,
        }
    }

    #[test]
    fn a_dependency_against_the_plan_is_named() {
        let metadata = Metadata {
            packages: vec![
                package("skiff-api", &["skiff-storage"]),
                package("skiff-storage", &["redb"]),
                package("skiff-client", &["skiff-api", "redb"]),
                package("skiff-new", &[]),
            ],
        };
        assert_eq!(
            violations(&metadata),
            [
                "skiff-api -> skiff-storage",
                "skiff-client uses redb, which belongs to another crate",
                "skiff-new is not in the table of xtask/src/check/deps.rs",
            ]
        );
    }
}
