//! `cargo xtask up`.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Instance, InstanceArgs, free_port, registry::Registry};
use crate::{build, command, images, paths, setup};

/// The node's own address inside its namespace.
const NODE_IP: &str = "10.240.0.1";

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Only start the cluster; apply nothing.
    #[arg(long)]
    bare: bool,
    /// Port on 127.0.0.1 for the Kubernetes API; another one is taken if it is in use.
    #[arg(long, default_value_t = 6443)]
    api_port: u16,
    /// Port on 127.0.0.1 for the voting page; another one is taken if it is in use.
    #[arg(long, default_value_t = 8080)]
    page_port: u16,
    /// Expect set-up and build to have been done.
    #[arg(long)]
    no_build: bool,
}

/// Starts a cluster, applies the example and says how to use it.
pub(crate) fn run(args: &UpArgs) -> Result<()> {
    let instance = Instance::new(&args.instance)?;
    if !args.no_build {
        setup::run()?;
        step("building skiff");
        build::run(args.instance.release)?;
    }
    if is_up(&instance) {
        bail!(
            "cluster {} is up already; `cargo xtask down` ends it",
            instance.name
        );
    }
    if let Err(err) = bring_up(&instance, args) {
        // The log goes with the data directory, so its end is shown now.
        let log = fs::read_to_string(instance.data_dir().join("skiff.log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(15).collect();
        for line in tail.iter().rev() {
            eprintln!("skiff.log: {line}");
        }
        return Err(
            err.context("the cluster did not come up; `cargo xtask down` removes what there is")
        );
    }
    Ok(())
}

fn bring_up(instance: &Instance, args: &UpArgs) -> Result<()> {
    prepare(instance)?;
    step("starting skiff");
    let page_port = free_port(args.page_port)?;
    let mut skiff = skiff_command(instance, free_port(args.api_port)?);
    if !args.bare {
        skiff
            .arg("--publish")
            .arg(format!("127.0.0.1:{page_port}=default/azure-vote-front:80"));
    }
    wait_ready(instance, &mut start(instance, &mut skiff)?)?;
    if !args.bare {
        step("applying examples/azure-vote-all-in-one-redis.yaml");
        apply_example(instance)?;
        wait_for_page(page_port)?;
    }
    explain(instance, args, page_port);
    Ok(())
}

/// A cluster without workloads and without words, for benches.
pub(crate) fn start_bare(instance: &Instance) -> Result<()> {
    prepare(instance)?;
    let mut skiff = skiff_command(instance, free_port(0)?);
    wait_ready(instance, &mut start(instance, &mut skiff)?)
}

/// Everything that the node finds when it starts: a registry with the images, a network namespace.
fn prepare(instance: &Instance) -> Result<()> {
    fs::create_dir_all(instance.data_dir())?;
    let registry_port = free_port(5000)?;
    step("starting a registry and filling it with the example's images");
    Registry::at(instance.registry_dir()).start(registry_port)?;
    images::build_and_push(&format!("127.0.0.1:{registry_port}"))?;
    write_registries(instance, registry_port)?;
    make_netns(instance)
}

fn step(what: &str) {
    eprintln!("up: {what}");
}

fn is_up(instance: &Instance) -> bool {
    let mut probe = instance.kubectl();
    probe.args(["get", "--raw", "/readyz", "--request-timeout=2s"]);
    instance.kubeconfig().exists() && command::succeeds(&mut probe)
}

/// Sends what the public registry would be asked for to ours.
fn write_registries(instance: &Instance, port: u16) -> Result<()> {
    let text = format!(
        "mirrors:\n  mcr.microsoft.com:\n    endpoint:\n      - http://127.0.0.1:{port}\n    \
         disableDefaultEndpoint: true\n"
    );
    fs::write(instance.data_dir().join("registries.yaml"), text).context("writing registries.yaml")
}

/// A network of its own for the node, with an address but without a way out.
pub(crate) fn make_netns(instance: &Instance) -> Result<()> {
    if !instance.netns().exists() {
        command::output(Command::new("ip").args(["netns", "add", &instance.name]))?;
    }
    let inside = |args: &[&str]| {
        command::output(
            Command::new("ip")
                .args(["-netns", &instance.name])
                .args(args),
        )
    };
    inside(&["link", "set", "lo", "up"])?;
    inside(&["address", "replace", &format!("{NODE_IP}/32"), "dev", "lo"])?;
    Ok(())
}

/// The daemon's command line.
pub(crate) fn skiff_command(instance: &Instance, api_port: u16) -> Command {
    let mut skiff = instance.skiff("up");
    skiff.args(["--node-ip", NODE_IP]);
    skiff.arg("--api-bind").arg(format!("127.0.0.1:{api_port}"));
    skiff
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // It stays when the terminal goes.
    skiff.process_group(0);
    skiff
}

fn start(instance: &Instance, skiff: &mut Command) -> Result<Child> {
    let log = fs::File::create(instance.data_dir().join("skiff.log"))?;
    skiff
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting skiff")
}

fn wait_ready(instance: &Instance, skiff: &mut Child) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_up(instance) {
        if let Some(status) = skiff.try_wait()? {
            bail!("skiff ended with {status}");
        }
        if Instant::now() > deadline {
            bail!("skiff is not ready after 60 s");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn apply_example(instance: &Instance) -> Result<()> {
    let manifest = paths::root().join("examples/azure-vote-all-in-one-redis.yaml");
    command::output(instance.kubectl().args(["apply", "-f"]).arg(manifest))?;
    for deployment in ["azure-vote-back", "azure-vote-front"] {
        command::output(instance.kubectl().args([
            "rollout",
            "status",
            &format!("deployment/{deployment}"),
            "--timeout=120s",
        ]))?;
    }
    Ok(())
}

/// Asks for the page as a browser would until it is there.
fn wait_for_page(port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match fetch(port) {
            Ok(page) if page.starts_with("HTTP/1.1 200") => return Ok(()),
            last if Instant::now() > deadline => bail!("the page does not answer: {last:?}"),
            _ => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn fetch(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn explain(instance: &Instance, args: &UpArgs, page_port: u16) {
    let flags = if instance.name == "skiff-demo" {
        String::new()
    } else {
        format!(" --name {}", instance.name)
    };
    println!(
        "\nA one-node Kubernetes cluster is up, in network namespace {}.\n",
        instance.name
    );
    if !args.bare {
        println!("  Voting page        http://127.0.0.1:{page_port}/");
    }
    println!("  kubectl            {}", paths::kubectl().display());
    println!("  Node's own shell   cargo xtask node-exec{flags} -- sh");
    println!(
        "  Log                {}",
        instance.data_dir().join("skiff.log").display()
    );
    println!("  Stop and clean up  cargo xtask down{flags}\n");
    println!("export KUBECONFIG={}", instance.kubeconfig().display());
}
