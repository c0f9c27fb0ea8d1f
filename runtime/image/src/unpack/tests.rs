//! Hostile and odd layers. Everything is unpacked as the current user, so that no test needs root.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::*;

/// A tar with names as given: the library's own builder refuses what an attacker would write.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_mtime(1_600_000_000);
        header
    }

    fn raw(mut self, path: &str, mut header: Header, link: &str, body: &[u8]) -> Tar {
        let name = &mut header.as_old_mut().name;
        name.fill(0);
        name[..path.len()].copy_from_slice(path.as_bytes());
        let linkname = &mut header.as_old_mut().linkname;
        linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, body).unwrap();
        self
    }

    fn file(self, path: &str, body: &[u8]) -> Tar {
        self.raw(
            path,
            Tar::header(EntryType::Regular, body.len() as u64),
            "",
            body,
        )
    }

    fn dir(self, path: &str) -> Tar {
        self.raw(path, Tar::header(EntryType::Directory, 0), "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Tar {
        self.raw(path, Tar::header(EntryType::Symlink, 0), target, b"")
    }

    fn link(self, path: &str, target: &str) -> Tar {
        self.raw(path, Tar::header(EntryType::Link, 0), target, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len.to_string().len() + rest != len {
                len = len.to_string().len() + rest;
            }
            body.extend(format!("{len} {key}=").bytes());
            body.extend(*value);
            body.push(b'\n');
        }
        self.raw(
            "pax",
            Tar::header(EntryType::XHeader, body.len() as u64),
            "",
            &body,
        )
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A place with a layer directory beside something that must stay as it is.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("diff")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        fs::create_dir(dir.path().join("outside/sub")).unwrap();
        fs::write(dir.path().join("outside/sub/f"), "f").unwrap();
        Place { dir }
    }

    fn diff(&self) -> PathBuf {
        self.dir.path().join("diff")
    }

    fn unpack_with(&self, content: &[u8], limits: UnpackLimits) -> Result<Unpacked, UnpackError> {
        self.unpack_as(content, &Digest::of(content), limits)
    }

    fn unpack_as(
        &self,
        blob: &[u8],
        diff_id: &Digest,
        limits: UnpackLimits,
    ) -> Result<Unpacked, UnpackError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(blob).unwrap();
        unpack(file, &self.diff(), diff_id, limits)
    }

    fn unpack(&self, content: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_with(content, UnpackLimits::default())
    }

    fn assert_untouched(&self) {
        let names = |dir: &Path| -> BTreeSet<String> {
            fs::read_dir(dir)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        let set = |items: &[&str]| {
            items
                .iter()
                .map(ToString::to_string)
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(names(self.dir.path()), set(&["diff", "outside"]));
        let outside = self.dir.path().join("outside");
        assert_eq!(names(&outside), set(&["secret", "sub"]));
        assert_eq!(names(&outside.join("sub")), set(&["f"]));
        assert_eq!(fs::metadata(outside.join("sub/f")).unwrap().nlink(), 1);
        let secret = self.dir.path().join("outside/secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn attacks_are_refused_and_nothing_outside_is_touched() {
    let place = Place::new();
    let outside = place.dir.path().join("outside").display().to_string();
    let up = "../outside";
    let attacks: Vec<(&str, Tar)> = vec![
        ("parent path", Tar::new().file("../outside/x", b"x")),
        (
            "parent path inside",
            Tar::new().dir("a").file("a/../../outside/x", b"x"),
        ),
        ("parent path that returns", Tar::new().file("a/../b", b"x")),
        (
            "absolute symlink as parent",
            Tar::new().symlink("a", &outside).file("a/x", b"x"),
        ),
        (
            "relative symlink as parent",
            Tar::new().symlink("a", up).file("a/x", b"x"),
        ),
        (
            "symlink to a symlink as parent",
            Tar::new()
                .symlink("a", up)
                .symlink("b", "a")
                .file("b/x", b"x"),
        ),
        (
            "symlink deep in the parents",
            Tar::new()
                .dir("d")
                .symlink("d/a", "../../outside")
                .file("d/a/b/x", b"x"),
        ),
        (
            "file below a symlink",
            Tar::new().symlink("a", up).file("a/sub/x", b"x"),
        ),
        (
            "file below a deep symlink",
            Tar::new()
                .dir("d")
                .symlink("d/a", "../../outside")
                .file("d/a/sub/x", b"x"),
        ),
        (
            "file below an absolute symlink",
            Tar::new().symlink("a", &outside).file("a/sub/x", b"x"),
        ),
        (
            "directory below a symlink",
            Tar::new().symlink("a", up).dir("a/sub/x"),
        ),
        (
            "whiteout below a symlink",
            Tar::new().symlink("a", up).file("a/sub/.wh.x", b""),
        ),
        (
            "replacement below a symlink",
            Tar::new().symlink("a", up).file("a/sub/f", b""),
        ),
        (
            "hard link below a symlink",
            Tar::new().symlink("a", up).link("x", "a/sub/f"),
        ),
        (
            "directory through a symlink",
            Tar::new().symlink("a", up).dir("a/x"),
        ),
        (
            "symlink through a symlink",
            Tar::new().symlink("a", up).symlink("a/x", "/"),
        ),
        (
            "whiteout through a symlink",
            Tar::new().symlink("a", up).file("a/.wh.secret", b""),
        ),
        (
            "opaque through a symlink",
            Tar::new().symlink("a", up).file("a/.wh..wh..opq", b""),
        ),
        ("whiteout of the parent", Tar::new().file("a/.wh...", b"")),
        ("whiteout of nothing", Tar::new().file("a/.wh.", b"")),
        ("whiteout of the directory", Tar::new().file(".wh..", b"")),
        (
            "hard link to the parent",
            Tar::new().link("x", "../outside/secret"),
        ),
        (
            "hard link through a symlink",
            Tar::new().symlink("a", up).link("x", "a/secret"),
        ),
        (
            "hard link to an absolute path",
            Tar::new().link("x", &format!("{outside}/secret")),
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d").link("x", "d"),
        ),
        (
            "hard link to itself",
            Tar::new().file("x", b"1").link("x", "./x"),
        ),
        ("hard link to what is missing", Tar::new().link("x", "y")),
        ("file as the root", Tar::new().file("./", b"x")),
        ("symlink as the root", Tar::new().symlink(".", up)),
        (
            "file as parent",
            Tar::new().file("f", b"x").file("f/x", b"x"),
        ),
        (
            "forged whiteout",
            Tar::new().raw("w", Tar::header(EntryType::Char, 0), "", b""),
        ),
        (
            "sparse",
            Tar::new().raw("s", Tar::header(EntryType::GNUSparse, 0), "", b""),
        ),
        (
            "unknown type",
            Tar::new().raw("s", Tar::header(EntryType::new(b'Z'), 0), "", b""),
        ),
        (
            "pax parent path",
            Tar::new()
                .pax(&[("path", b"../outside/x")])
                .file("fine", b"x"),
        ),
        (
            "pax link to the parent",
            Tar::new()
                .pax(&[("linkpath", b"../outside/secret")])
                .link("x", "fine"),
        ),
        (
            "pax NUL",
            Tar::new().pax(&[("path", b"a\0b")]).file("fine", b"x"),
        ),
        (
            "pax other size",
            Tar::new().pax(&[("size", b"9")]).file("fine", b"x"),
        ),
        (
            "pax sparse",
            Tar::new()
                .pax(&[("GNU.sparse.major", b"1")])
                .file("fine", b"x"),
        ),
        (
            "user id out of range",
            Tar::new().pax(&[("uid", b"4294967295")]).file("fine", b"x"),
        ),
        (
            "deep path",
            Tar::new()
                .pax(&[("path", "d/".repeat(300).as_bytes())])
                .dir("fine"),
        ),
        (
            "long path",
            Tar::new()
                .pax(&[("path", "d".repeat(5000).as_bytes())])
                .file("fine", b"x"),
        ),
        (
            "long name",
            Tar::new()
                .pax(&[("path", "d".repeat(256).as_bytes())])
                .file("fine", b"x"),
        ),
        ("empty symlink", Tar::new().symlink("s", "")),
    ];
    for (what, tar) in attacks {
        let place = Place::new();
        let tar = tar.bytes();
        // The outside of this place, for attacks that name it absolutely, is that of the first one.
        let error = place.unpack(&tar).expect_err(what);
        assert!(error.is_invalid(), "{what}: {error}");
        assert!(
            matches!(error, UnpackError::Refused { .. }),
            "{what}: {error}"
        );
        place.assert_untouched();
    }
    place.assert_untouched();
}

#[test]
fn what_looks_odd_but_is_sound_is_unpacked_inside() {
    let place = Place::new();
    let tar = Tar::new()
        .file("/etc/passwd", b"absolute names are meant from the root")
        .file("./x//y", b"dots and slashes")
        .symlink("mtab", "/proc/mounts")
        .symlink("escape", "../../../../outside/secret")
        .link("escape2", "escape")
        // A file takes the place of a symbolic link, it is not written through it.
        .symlink("swap", "../outside/secret")
        .file("swap", b"mine")
        .dir("tree/a/b")
        .file("tree/a/b/c", b"x")
        .file("tree", b"file now")
        .dir("kept")
        .file("kept/f", b"1")
        .dir("kept")
        .link("hard", "kept/f")
        .pax(&[
            ("path", b"long/name"),
            ("mtime", b"1700000000.25"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .file("short", b"x")
        .bytes();
    let unpacked = place.unpack(&tar).unwrap();
    let diff = place.diff();
    assert_eq!(fs::read(diff.join("swap")).unwrap(), b"mine");
    assert_eq!(fs::read(diff.join("tree")).unwrap(), b"file now");
    assert_eq!(fs::read(diff.join("kept/f")).unwrap(), b"1");
    assert_eq!(fs::metadata(diff.join("hard")).unwrap().nlink(), 2);
    assert_eq!(fs::read(diff.join("etc/passwd")).unwrap().len(), 38);
    assert_eq!(
        fs::read_link(diff.join("mtab")).unwrap(),
        Path::new("/proc/mounts")
    );
    assert!(
        fs::symlink_metadata(diff.join("escape2"))
            .unwrap()
            .is_symlink()
    );
    let named = fs::metadata(diff.join("long/name")).unwrap();
    assert_eq!(
        (named.mtime(), named.mtime_nsec()),
        (1_700_000_000, 250_000_000)
    );
    assert_eq!(
        fs::metadata(diff.join("kept")).unwrap().mtime(),
        1_600_000_000
    );
    assert_eq!(unpacked.implicit, ["etc", "long", "x"]);
    assert_eq!(unpacked.bytes, tar.len() as u64);
    place.assert_untouched();
}

#[test]
fn modes_are_set_whatever_the_umask() {
    let place = Place::new();
    let mut header = Tar::header(EntryType::Regular, 0);
    header.set_mode(0o6777);
    let mut directory = Tar::header(EntryType::Directory, 0);
    directory.set_mode(0o1777);
    place
        .unpack(
            &Tar::new()
                .raw("suid", header, "", b"")
                .raw("tmp", directory, "", b"")
                .bytes(),
        )
        .unwrap();
    let mode = |name: &str| {
        fs::metadata(place.diff().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!((mode("suid"), mode("tmp")), (0o6777, 0o1777));
}

#[test]
fn whiteouts_become_devices_and_spare_what_the_layer_itself_has() {
    let place = Place::new();
    let tar = Tar::new()
        .file("a/.wh.gone", b"")
        .file(".wh.replaced", b"")
        .file("replaced", b"new")
        .file("own", b"own")
        .file(".wh.own", b"")
        .file(".wh..wh.plnk", b"")
        .bytes();
    place.unpack(&tar).unwrap();
    let gone = fs::symlink_metadata(place.diff().join("a/gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    assert_eq!(fs::read(place.diff().join("replaced")).unwrap(), b"new");
    assert_eq!(fs::read(place.diff().join("own")).unwrap(), b"own");
    assert!(!place.diff().join(".wh..wh.plnk").exists());
}

#[test]
fn gzip_zstd_and_plain_layers_are_the_same() {
    let tar = Tar::new().file("f", b"content").bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&tar).unwrap();
    let zstd = zstd::stream::encode_all(&tar[..], 1).unwrap();
    for blob in [tar.clone(), gzip.finish().unwrap(), zstd] {
        let place = Place::new();
        place
            .unpack_as(&blob, &Digest::of(&tar), UnpackLimits::default())
            .unwrap();
        assert_eq!(fs::read(place.diff().join("f")).unwrap(), b"content");
    }
}

#[test]
fn a_layer_of_another_content_is_refused() {
    let place = Place::new();
    let tar = Tar::new().file("f", b"content").bytes();
    let error = place
        .unpack_as(&tar, &Digest::of(b"other"), UnpackLimits::default())
        .unwrap_err();
    assert!(matches!(error, UnpackError::WrongDiffId { .. }), "{error}");
    // What follows the end of the tar counts too.
    let mut longer = tar.clone();
    longer.extend([0; 4096]);
    longer.extend(b"hidden");
    let place = Place::new();
    assert!(
        place
            .unpack_as(&longer, &Digest::of(&tar), UnpackLimits::default())
            .is_err()
    );
}

#[test]
fn bombs_are_stopped_at_the_limit() {
    let tar = Tar::new().file("zeros", &vec![0; 4 << 20]).bytes();
    let bomb = zstd::stream::encode_all(&tar[..], 1).unwrap();
    assert!(bomb.len() < 2000);
    let limits = UnpackLimits {
        max_bytes: 1 << 20,
        max_entries: 10,
    };
    let place = Place::new();
    let error = place
        .unpack_as(&bomb, &Digest::of(&tar), limits)
        .unwrap_err();
    assert!(
        matches!(error, UnpackError::TooLarge { what: "bytes", .. }),
        "{error}"
    );
    assert!(fs::metadata(place.diff().join("zeros")).unwrap().len() <= 1 << 20);

    let many = (0..11)
        .fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), b""))
        .bytes();
    let error = Place::new().unpack_with(&many, limits).unwrap_err();
    assert!(
        matches!(
            error,
            UnpackError::TooLarge {
                what: "entries",
                ..
            }
        ),
        "{error}"
    );
    let implicit = Tar::new()
        .file("a/b/c/d/e/f/g/h/i/j/k/l", b"")
        .file("x", b"")
        .bytes();
    let error = Place::new().unpack_with(&implicit, limits).unwrap_err();
    assert!(
        matches!(
            error,
            UnpackError::TooLarge {
                what: "entries",
                ..
            }
        ),
        "{error}"
    );

    let long = vec![b'x'; 2 << 20];
    let header = Tar::header(EntryType::GNULongName, long.len() as u64);
    let names = Tar::new().raw("././@LongLink", header, "", &long).bytes();
    let error = Place::new().unpack(&names).unwrap_err();
    assert!(
        error.to_string().contains("extended header is too long"),
        "{error}"
    );
}

#[test]
fn a_tar_without_its_last_padding_is_read() {
    let mut tar = Tar::new().file("a", b"first").file("b", b"last").bytes();
    tar.truncate(512 + 512 + 512 + 4);
    let place = Place::new();
    place.unpack(&tar).unwrap();
    assert_eq!(fs::read(place.diff().join("b")).unwrap(), b"last");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the order of nasty entries: no panic, and nothing outside is touched.
    #[test]
    fn prop_no_sequence_of_entries_escapes(entries in proptest::collection::vec(
        (0_u8..6, "(\\.\\./|/)?(a|b|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq)(/(a|b|sub|f|\\.\\.|\\.|secret|\\.wh\\.secret)){0,3}",
         "(\\.\\./outside|/|\\.|\\.\\.|a|b|a/b|\\.\\./outside/secret)"), 1..12))
    {
        let place = Place::new();
        let mut tar = Tar::new();
        for (kind, path, target) in &entries {
            tar = match kind {
                0 => tar.file(path, b"evil"),
                1 => tar.dir(path),
                2 => tar.symlink(path, target),
                3 => tar.link(path, target),
                4 => tar.raw(path, Tar::header(EntryType::Fifo, 0), "", b""),
                _ => tar.pax(&[("path", path.as_bytes()), ("linkpath", target.as_bytes())]).link("x", "y"),
            };
        }
        let _outcome = place.unpack(&tar.bytes());
        place.assert_untouched();
    }

    /// Damaged tars: an error or not, but no panic, and nothing outside.
    #[test]
    fn prop_damaged_tars_do_no_harm(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let place = Place::new();
        let mut tar = Tar::new().dir("d").file("d/f", b"x").symlink("d/s", "../../outside").link("h", "d/f")
            .pax(&[("path", b"p")]).file("q", b"y").bytes();
        for (at, byte) in &flips {
            let at = at.index(tar.len());
            tar[at] = *byte;
        }
        let _outcome = place.unpack(&tar);
        place.assert_untouched();
    }
}
