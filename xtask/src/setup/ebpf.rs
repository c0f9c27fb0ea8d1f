//! What building the kernel programs needs beyond a stable Rust: the source of `core` for exactly this rustc,
//! and bpf-linker linked to the LLVM that rustc itself ships. Both go into the tools folder.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{apt, hex};
use crate::{command, paths};

const LINKER_VERSION: &str = "0.13.0";

/// Debian's package of the library source, per rustc release.
const RUST_SRC: &[(&str, &str, &str)] = &[(
    "1.95.0",
    "rust-src_1.95.0+dfsg1-2~bpo13+1_all.deb",
    "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b",
)];

/// A library source archive or folder to use should Debian's package have left the mirror.
const RUST_SRC_OVERRIDE: &str = "SKIFF_RUST_SRC";

struct Rustc {
    sysroot: PathBuf,
    release: String,
    llvm: String,
}

impl Rustc {
    fn query() -> Result<Self> {
        let root = paths::root();
        let sysroot = command::output(
            Command::new("rustc")
                .args(["--print", "sysroot"])
                .current_dir(&root),
        )?;
        let version = command::output(Command::new("rustc").arg("-vV").current_dir(&root))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("rustc -vV shows no {name}"))
        };
        let llvm = field("LLVM version:")?;
        Ok(Self {
            sysroot: PathBuf::from(sysroot.trim()),
            release: field("release:")?,
            llvm: llvm.split('.').next().unwrap_or_default().to_owned(),
        })
    }
}

/// Makes sure that both are there.
pub(crate) fn ensure() -> Result<()> {
    let tools = paths::tools();
    fs::create_dir_all(&tools)?;
    let rustc = Rustc::query()?;
    ensure_rust_src(&tools, &rustc)?;
    ensure_linker(&tools, &rustc)
}

fn ensure_rust_src(tools: &Path, rustc: &Rustc) -> Result<()> {
    let ours = tools.join("rust-src");
    let current = fs::read_to_string(ours.join("VERSION")).unwrap_or_default();
    if rustc
        .sysroot
        .join("lib/rustlib/src/rust/library/Cargo.lock")
        .exists()
        || (ours.join("library/Cargo.lock").exists() && current.trim() == rustc.release)
    {
        return Ok(());
    }
    eprintln!(
        "setup: fetching the source of core for rustc {}",
        rustc.release
    );
    let scratch = tools.join("rust-src.new");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    if let Some(given) = std::env::var_os(RUST_SRC_OVERRIDE) {
        unpack_given(Path::new(&given), &scratch)?;
    } else {
        unpack_debian(&rustc.release, &scratch)?;
    }
    fs::write(scratch.join("VERSION"), &rustc.release)?;
    if ours.exists() {
        fs::remove_dir_all(&ours)?;
    }
    fs::rename(&scratch, &ours)?;
    Ok(())
}

/// `given` is the `library` folder or a tar archive that has it at its top.
fn unpack_given(given: &Path, scratch: &Path) -> Result<()> {
    if given.is_dir() {
        command::output(
            Command::new("cp")
                .arg("-r")
                .arg(given)
                .arg(scratch.join("library")),
        )?;
    } else {
        command::output(
            Command::new("tar")
                .arg("xf")
                .arg(given)
                .arg("-C")
                .arg(scratch),
        )?;
    }
    if !scratch.join("library/Cargo.lock").exists() {
        bail!(
            "{RUST_SRC_OVERRIDE} names no library source: {}",
            given.display()
        );
    }
    Ok(())
}

fn unpack_debian(release: &str, scratch: &Path) -> Result<()> {
    let (_, deb, sum) = RUST_SRC
        .iter()
        .find(|(known, ..)| *known == release)
        .with_context(|| {
            format!(
                "no library source known for rustc {release}: run `rustup component add rust-src`"
            )
        })?;
    let file = scratch.join("rust-src.deb");
    let url = format!("{}/pool/main/r/rustc/{deb}", apt::mirror()?);
    command::output(
        Command::new("curl")
            .args(["-fsSL", "--retry", "3", "-o"])
            .arg(&file)
            .arg(url),
    )
    .with_context(|| {
        format!("{deb} has left the mirror? name an archive of the source by {RUST_SRC_OVERRIDE}")
    })?;
    let found = hex(&Sha256::digest(fs::read(&file)?));
    if found != *sum {
        bail!("{deb} has sha256 {found}, expected {sum}");
    }
    let tree = scratch.join("tree");
    command::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&tree))?;
    fs::rename(
        tree.join(format!("usr/src/rustc-{release}/library")),
        scratch.join("library"),
    )?;
    fs::remove_dir_all(tree)?;
    fs::remove_file(file)?;
    Ok(())
}

fn ensure_linker(tools: &Path, rustc: &Rustc) -> Result<()> {
    let llvm = tools.join("llvm");
    let library = shared_llvm(&rustc.sysroot)?;
    let lib = llvm.join("lib");
    fs::create_dir_all(&lib)?;
    let soname = library.file_name().unwrap_or_default();
    for name in [std::ffi::OsStr::new("libLLVM.so"), soname] {
        let link = lib.join(name);
        if fs::read_link(&link).ok().as_deref() != Some(library.as_path()) {
            fs::remove_file(&link).or_else(absent_is_fine)?;
            symlink(&library, &link)?;
        }
    }
    let linker = tools.join("bin/bpf-linker");
    let version = command::output(Command::new(&linker).arg("--version")).unwrap_or_default();
    if version.trim() == format!("bpf-linker {LINKER_VERSION}") {
        return Ok(());
    }
    eprintln!("setup: building bpf-linker (about 3 minutes, once)");
    let target = tools.join("target");
    command::output(
        Command::new("cargo")
            // Away from the workspace: its flags are not meant for this tool.
            .current_dir(tools)
            .args(["install", "bpf-linker", "--locked", "--quiet", "--force"])
            .args([
                "--version",
                &format!("={LINKER_VERSION}"),
                "--no-default-features",
            ])
            .args(["--features", &format!("llvm-{}", rustc.llvm)])
            .args(["--target", &host_triple()?, "--root"])
            .arg(tools)
            .env("LLVM_PREFIX", &llvm)
            .env("CARGO_TARGET_DIR", &target)
            // It must find libLLVM at run time, so it is the one thing that is not linked statically.
            .env("CARGO_ENCODED_RUSTFLAGS", "")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    )?;
    fs::remove_dir_all(target)?;
    Ok(())
}

fn absent_is_fine(err: std::io::Error) -> std::io::Result<()> {
    if err.kind() == std::io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(err)
    }
}

fn shared_llvm(sysroot: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(sysroot.join("lib"))? {
        let path = entry?.path();
        if path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .starts_with("libLLVM.so.")
        {
            return Ok(path);
        }
    }
    bail!("this Rust toolchain has no shared libLLVM")
}

fn host_triple() -> Result<String> {
    let version = command::output(Command::new("rustc").arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV shows no host")
}
