//! Debian packages: installing them, and fetching single ones of a newer suite without installing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command;

/// Installs those of `packages` that are not installed.
pub(crate) fn install_missing(packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .copied()
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("setup: installing {}", missing.join(" "));
    command::output(Command::new("apt-get").args(["update", "--quiet"]))?;
    command::output(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Servers that a package starts by itself would be in the way; policy-rc.d is not ours to write.
            .env("RUNLEVEL", "1")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(&missing),
    )
    .map(drop)
}

fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    command::output(&mut query).is_ok_and(|status| status == "installed")
}

/// The Debian mirror that this machine's apt is set up with.
pub(crate) fn mirror() -> Result<String> {
    let targets =
        command::output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    targets
        .lines()
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
        .map(|uri| uri.trim_end_matches('/').to_owned())
        .context("apt is set up with no Debian mirror")
}

/// An apt of its own: other suites or an empty status, without touching the machine's. apt checks signatures
/// and checksums as always.
pub(crate) struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    /// Reads the package index of `suite` into `dir`.
    pub(crate) fn open(dir: &Path, suite: &str) -> Result<Self> {
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(
            dir.join("sources.list"),
            format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {suite} main\n",
                mirror()?
            ),
        )?;
        let apt = Self {
            dir: dir.to_owned(),
        };
        command::output(apt.command().arg("update"))
            .with_context(|| format!("reading the package index of {suite}"))?;
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache::Archives={dir}/archives"),
            format!("Dir::Cache::pkgcache={dir}/pkgcache.bin"),
            format!("Dir::Cache::srcpkgcache={dir}/srcpkgcache.bin"),
            // The download runs as root, in a folder that the sandbox user cannot enter.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("--option").arg(option);
        }
        command
    }

    /// Downloads `packages` and all that they depend on, as onto an empty machine. Returns the files.
    pub(crate) fn download_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        command::output(
            self.command()
                .args([
                    "install",
                    "--yes",
                    "--quiet",
                    "--no-install-recommends",
                    "--download-only",
                ])
                .args(packages),
        )?;
        let mut files = Vec::new();
        for entry in fs::read_dir(self.dir.join("archives"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Downloads one package without what it depends on. Returns the file.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        let archives = self.dir.join("archives");
        command::output(
            self.command()
                .current_dir(&archives)
                .args(["download", package]),
        )?;
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with(&format!("{package}_")) {
                return Ok(path);
            }
        }
        bail!("apt downloaded no {package}")
    }
}
