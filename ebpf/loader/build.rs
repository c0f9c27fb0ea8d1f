//! Builds the kernel programs (`ebpf/programs`) and leaves the objects in `OUT_DIR`.
//!
//! They are a cargo workspace of their own: another target, which needs the source of `core` and a linker for bitcode.
//! Both lie in the folder that `cargo xtask setup` fills (`SKIFF_TOOLS`, else `.tools` of the workspace).
//! `SKIFF_EBPF_OBJECT` names a ready-made object instead (and, for benches, one beside it).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

const NAME: &str = "skiff-programs";
const GENERATOR: &str = "packet-generator";

fn main() -> Result<()> {
    for name in ["SKIFF_EBPF_OBJECT", "SKIFF_TOOLS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if let Some(object) = env::var_os("SKIFF_EBPF_OBJECT").map(PathBuf::from) {
        rerun_if_changed(&object);
        return copy_out(&object);
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .join("../..")
        .canonicalize()?;
    let tools = env::var_os("SKIFF_TOOLS").map_or_else(|| root.join(".tools"), PathBuf::from);
    for path in [
        root.join("ebpf/programs/src"),
        root.join("ebpf/programs/Cargo.toml"),
        root.join("ebpf/programs/Cargo.lock"),
        root.join("ebpf/common/src"),
        root.join("ebpf/lb/src"),
        tools.join("rust-src/VERSION"),
        tools.join("bin/bpf-linker"),
    ] {
        if path.exists() {
            rerun_if_changed(&path);
        }
    }
    copy_out(&build(&root, &tools)?)
}

fn copy_out(object: &Path) -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let copy = |from: &Path, name| {
        fs::copy(from, out.join(name)).with_context(|| format!("copying {}", from.display()))
    };
    copy(object, NAME)?;
    if env::var_os("CARGO_FEATURE_BENCH").is_some() {
        copy(&object.with_file_name(GENERATOR), GENERATOR)?;
    }
    Ok(())
}

fn rerun_if_changed(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}

fn build(root: &Path, tools: &Path) -> Result<PathBuf> {
    let mut path = vec![tools.join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    if !path.iter().any(|folder| folder.join("bpf-linker").exists()) {
        bail!(
            "no bpf-linker in {}: run `cargo xtask setup`",
            tools.display()
        );
    }
    let programs = root.join("ebpf/programs");
    let mut cargo = Command::new(env::var_os("CARGO").context("CARGO is not set")?);
    if let Some(library) = core_source(tools)? {
        // The way to name another source than the toolchain's own, which stays untouched.
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    // Also keeps the flags of the outer build away.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ]
    .join("\x1f");
    // One for all profiles and for clippy: the programs are always optimised.
    let target = root.join("target/ebpf");
    let built = cargo
        .current_dir(&programs)
        .args(["build", "--locked", "--release", "-Zbuild-std=core"])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("PATH", env::join_paths(path)?)
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR")
        .output()?;
    if !built.status.success() {
        bail!(
            "building {}:\n{}",
            programs.display(),
            String::from_utf8_lossy(&built.stderr)
        );
    }
    Ok(target.join("bpfel-unknown-none/release").join(NAME))
}

/// The source of `core` that matches the compiler: ours, or none if the toolchain has its own.
fn core_source(tools: &Path) -> Result<Option<PathBuf>> {
    let rustc = env::var_os("RUSTC").context("RUSTC is not set")?;
    let ask = |argument: &[&str]| -> Result<String> {
        let output = Command::new(&rustc).args(argument).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    if Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/Cargo.lock")
        .exists()
    {
        return Ok(None);
    }
    let library = tools.join("rust-src/library");
    let have = fs::read_to_string(tools.join("rust-src/VERSION")).unwrap_or_default();
    let version = ask(&["-vV"])?;
    let release = version
        .lines()
        .find_map(|line| line.strip_prefix("release: "));
    if !library.join("Cargo.lock").exists() || release != Some(have.trim()) {
        bail!(
            "no source of core for this rustc in {}: run `cargo xtask setup`",
            tools.display()
        );
    }
    Ok(Some(library))
}
