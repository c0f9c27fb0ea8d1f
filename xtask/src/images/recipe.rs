//! What goes into each image.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::setup::hex;

/// One image.
pub(crate) struct Recipe {
    /// Short name, for folders and messages.
    pub(super) name: &'static str,
    /// Repository in the registry.
    pub(super) repository: &'static str,
    /// Tag in the registry.
    pub(super) tag: &'static str,
    /// Debian packages; what they depend on comes along.
    pub(super) packages: &'static [&'static str],
    /// Files of our own: path, mode, contents.
    pub(super) files: &'static [(&'static str, u32, &'static str)],
    /// Folders that the image's user may write to.
    pub(super) writable: &'static [&'static str],
    /// `USER`.
    pub(super) user: &'static str,
    /// `ENTRYPOINT`.
    pub(super) entrypoint: &'static [&'static str],
    /// `WORKDIR`.
    pub(super) workdir: &'static str,
    /// `EXPOSE`.
    pub(super) port: u16,
}

/// Non-root user of the database image, as in the public one.
const REDIS_UID: u32 = 1001;

pub(super) const RECIPES: &[Recipe] = &[
    Recipe {
        name: "redis",
        repository: "oss/bitnami/redis",
        tag: "6.0.8",
        packages: &[
            "redis-server",
            "redis-tools",
            "dash",
            "coreutils",
            "base-files",
            "netbase",
        ],
        files: &[
            (
                "entrypoint.sh",
                0o755,
                include_str!("files/redis-entrypoint.sh"),
            ),
            (
                "etc/passwd",
                0o644,
                "root:x:0:0:root:/root:/bin/sh\nredis:x:1001:1001::/data:/bin/sh\n",
            ),
            ("etc/group", 0o644, "root:x:0:\nredis:x:1001:\n"),
        ],
        writable: &["data"],
        user: "redis",
        entrypoint: &["/entrypoint.sh"],
        workdir: "/data",
        port: 6379,
    },
    Recipe {
        name: "azure-vote-front",
        repository: "azuredocs/azure-vote-front",
        tag: "v1",
        packages: &[
            "python3-flask",
            "python3-redis",
            "dash",
            "coreutils",
            "base-files",
            "netbase",
        ],
        files: &[
            ("app/main.py", 0o644, include_str!("files/vote.py")),
            ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", 0o644, "root:x:0:\n"),
        ],
        writable: &[],
        user: "",
        entrypoint: &["/usr/bin/python3", "-u", "/app/main.py"],
        workdir: "/app",
        port: 80,
    },
];

impl Recipe {
    /// Changes with whatever of ours goes into the image.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for package in self.packages {
            hash.update(package);
        }
        for (path, mode, contents) in self.files {
            hash.update(path);
            hash.update(mode.to_le_bytes());
            hash.update(contents);
        }
        for word in self.entrypoint.iter().chain([&self.user, &self.workdir]) {
            hash.update(word);
        }
        hex(hash.finalize().get(..6).unwrap_or_default())
    }

    /// Writes our own files, the upper layer.
    pub(super) fn write_app(&self, root: &Path) -> Result<()> {
        for (path, mode, contents) in self.files {
            let file = root.join(path);
            fs::create_dir_all(file.parent().context("a file at the root of all")?)?;
            fs::write(&file, contents)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
        }
        for dir in self.writable {
            fs::create_dir_all(root.join(dir))?;
            chown(root.join(dir), Some(REDIS_UID), Some(REDIS_UID))?;
        }
        Ok(())
    }
}

/// Unpacks packages as the base layer, without running their scripts and without documentation.
pub(super) fn unpack_packages(packages: &[PathBuf], root: &Path) -> Result<()> {
    // A merged /usr, as every Debian has it; packages still name the old paths.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(dir))?;
        symlink(format!("usr/{dir}"), root.join(dir))?;
    }
    for package in packages {
        let mut extract = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("running dpkg-deb")?;
        let tar = Command::new("tar")
            .args(["--extract", "--keep-directory-symlink", "--no-same-owner"])
            .args(["--exclude=./usr/share/doc/*", "--exclude=./usr/share/man/*"])
            .args([
                "--exclude=./usr/share/locale/*",
                "--exclude=./usr/share/info/*",
            ])
            .arg("--directory")
            .arg(root)
            .stdin(extract.stdout.take().context("dpkg-deb has no stdout")?)
            .status()
            .context("running tar")?;
        if !tar.success() || !extract.wait()?.success() {
            bail!("unpacking {} failed", package.display());
        }
    }
    for dir in ["tmp", "proc", "sys", "dev", "root", "run"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    Ok(())
}
