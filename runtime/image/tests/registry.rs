//! Pulls from a real registry (Debian's `docker-registry`) on loopback, and mounts of what was pulled.
//! Mounting needs root; without it these tests fail and say so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "an integration test"
)]

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::json;
use skiff_image::{
    Digest, ImageConfig, ImageStore, PullAuth, PullErrorClass, RetryPolicy, StoreError,
    UnpackLimits, resolve_user,
};
use tempfile::TempDir;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// bcrypt's own test vector: the hash of `U*U`.
const HTPASSWD: &str = "user:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n";

/// A registry process with its storage.
struct Registry {
    child: Child,
    port: u16,
    dir: TempDir,
    auth: RegistryAuth,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What was pushed.
struct Pushed {
    manifest: Digest,
    id: Digest,
    blobs: Vec<Digest>,
    diff_ids: Vec<Digest>,
    body: String,
}

impl Registry {
    fn start(with_auth: bool) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
        let auth = if with_auth {
            format!(
                "auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n",
                dir.path().display()
            )
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n{auth}",
            dir.path().display()
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(File::create(dir.path().join("log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry (Debian package docker-registry) is installed");
        let auth = if with_auth {
            RegistryAuth::Basic("user".to_owned(), "U*U".to_owned())
        } else {
            RegistryAuth::Anonymous
        };
        let registry = Registry {
            child,
            port,
            dir,
            auth,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "docker-registry does not listen on port {port}"
            );
            std::thread::yield_now();
        }
        registry
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.host())
    }

    async fn client(&self) -> Client {
        let _previous = rustls_provider();
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        };
        let client = Client::new(config);
        client.store_auth_if_needed(&self.host(), &self.auth).await;
        client
    }

    async fn push_blob(&self, image: &str, blob: &[u8]) -> Digest {
        let reference: Reference = self.name(image).parse().unwrap();
        let digest = Digest::of(blob);
        self.client()
            .await
            .push_blob(&reference, blob.to_vec(), digest.as_str())
            .await
            .unwrap();
        digest
    }

    async fn push_manifest(&self, image: &str, media_type: &'static str, body: &str) -> Digest {
        let reference: Reference = self.name(image).parse().unwrap();
        let media_type = http::HeaderValue::from_static(media_type);
        let client = self.client().await;
        client
            .push_manifest_raw(&reference, body.as_bytes().to_vec(), media_type)
            .await
            .unwrap();
        Digest::of(body.as_bytes())
    }

    /// Pushes an image of these (plain) layers; the configuration may claim other diff ids.
    async fn push(&self, image: &str, layers: &[Vec<u8>], claimed: Option<Vec<Digest>>) -> Pushed {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let mut blobs = Vec::new();
        let mut descriptors = Vec::new();
        for layer in layers {
            let gzip = gzip(layer);
            let digest = self.push_blob(image, &gzip).await;
            descriptors.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest, "size": gzip.len(),
            }));
            blobs.push(digest);
        }
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["A=b"], "User": "app",
                       "ExposedPorts": {"80/tcp": {}}, "WorkingDir": "/srv"},
            "rootfs": {"type": "layers", "diff_ids": claimed.unwrap_or_else(|| diff_ids.clone())},
        })
        .to_string();
        let id = self.push_blob(image, config.as_bytes()).await;
        let body = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()},
            "layers": descriptors,
        })
        .to_string();
        let manifest = self.push_manifest(image, MANIFEST, &body).await;
        Pushed {
            manifest,
            id,
            blobs,
            diff_ids,
            body,
        }
    }

    fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// How often the registry was asked for a path that contains `part`.
    fn gets(&self, part: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines()
            .filter(|line| line.contains("\"GET ") && line.contains(part))
            .count()
    }
}

fn rustls_provider() -> Result<(), Arc<rustls::crypto::CryptoProvider>> {
    rustls::crypto::ring::default_provider().install_default()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer of files (`name`, content; a name that ends in a slash is a directory of mode 1777).
fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_600_000_000);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o1777);
            header.set_uid(7);
        } else {
            header.set_mode(0o644);
        }
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

fn base() -> Vec<u8> {
    layer(&[
        ("etc/passwd", "root:x:0:0::/root:\napp:x:1000:1000::/srv:\n"),
        ("etc/group", "root:x:0:\nextra:x:44:app\n"),
        ("gone", "hidden by the next layer"),
        ("dir/old", "hidden by the next layer"),
        ("tmp/", ""),
    ])
}

fn top() -> Vec<u8> {
    layer(&[
        (".wh.gone", ""),
        ("dir/.wh..wh..opq", ""),
        ("dir/new", "new"),
        ("tmp/file", "without an entry for tmp/"),
    ])
}

struct Node {
    dir: TempDir,
}

impl Node {
    fn new() -> Node {
        Node {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self, registries: &str) -> ImageStore {
        let file = self.dir.path().join("registries.yaml");
        fs::write(&file, registries).unwrap();
        let config = ImageConfig {
            registries_file: Some(file),
            retry: RetryPolicy {
                attempts: 2,
                first_pause: Duration::from_millis(1),
            },
            limits: UnpackLimits::default(),
        };
        ImageStore::open(&self.dir.path().join("images"), config).unwrap()
    }

    fn entries(&self, sub: &str) -> usize {
        fs::read_dir(self.dir.path().join("images").join(sub))
            .unwrap()
            .count()
    }

    /// A failed pull leaves nothing behind.
    fn assert_empty(&self) {
        for sub in ["images", "layers", "ingest", "containers"] {
            assert_eq!(self.entries(sub), 0, "{sub}");
        }
    }
}

#[tokio::test]
async fn an_image_is_pulled_once_and_found_by_all_its_names() {
    let registry = Registry::start(false);
    let pushed = registry.push("team/app:v1", &[base(), top()], None).await;
    let node = Node::new();
    let store = node.store("");
    let reference = registry.name("team/app:v1");
    assert!(store.get(&reference).is_none());

    let bytes = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&bytes);
    let progress = Arc::new(move |p: skiff_image::PullProgress| {
        assert!(p.done_bytes <= p.total_bytes);
        seen.store(p.done_bytes, Ordering::Relaxed);
    });
    let auth = PullAuth::anonymous;
    let (first, second) = tokio::join!(
        store.pull(&reference, auth(), Some(progress)),
        store.pull(&reference, auth(), None)
    );
    let record = first.unwrap();
    assert_eq!(record, second.unwrap());
    for blob in &pushed.blobs {
        assert_eq!(registry.gets(&format!("blobs/{blob}")), 1);
    }
    assert_eq!(registry.gets("manifests/"), 1);
    assert!(bytes.load(Ordering::Relaxed) > 0);
    assert_eq!(record.id, pushed.id);
    assert_eq!(record.config.entrypoint, ["/bin/app"]);
    assert_eq!(record.config.user, "app");
    assert_eq!(
        record.repo_digests,
        [format!("{}@{}", registry.name("team/app"), pushed.manifest)]
    );
    for name in [&reference, &record.repo_digests[0], &record.id.to_string()] {
        assert_eq!(store.get(name).as_ref(), Some(&record), "{name}");
    }

    // By digest, and from a store that was opened again: no layer is fetched a second time.
    drop(store);
    let store = node.store("");
    assert_eq!(store.list(), std::slice::from_ref(&record));
    let again = store
        .pull(&record.repo_digests[0], auth(), None)
        .await
        .unwrap();
    assert_eq!(again.names, record.names);
    assert_eq!(registry.gets(&format!("blobs/{}", pushed.blobs[0])), 1);
}

#[tokio::test]
async fn a_moved_tag_leaves_the_old_image_without_a_name_until_it_is_collected() {
    let registry = Registry::start(false);
    let node = Node::new();
    let store = node.store("");
    let reference = registry.name("app:v1");
    registry
        .push("app:v1", &[base(), layer(&[("v", "1")])], None)
        .await;
    let old = store
        .pull(&reference, PullAuth::anonymous(), None)
        .await
        .unwrap();
    registry
        .push("app:v1", &[base(), layer(&[("v", "2")])], None)
        .await;
    let new = store
        .pull(&reference, PullAuth::anonymous(), None)
        .await
        .unwrap();
    assert_eq!(store.get(&reference).unwrap().id, new.id);
    assert!(store.get(old.id.as_str()).unwrap().names.is_empty());
    assert_eq!(node.entries("layers"), 3);

    let report = store.gc(&HashSet::from([new.id.clone()])).await.unwrap();
    assert_eq!(report.images, std::slice::from_ref(&old.id));
    assert_eq!(report.layers, [old.layers[1].clone()]);
    assert_eq!((node.entries("layers"), node.entries("ingest")), (2, 0));
    let report = store.remove(&new.id).await.unwrap();
    assert_eq!((report.images.len(), report.layers.len()), (1, 2));
    node.assert_empty();
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_reported_in_its_words() {
    let registry = Registry::start(false);
    registry.push("app:v1", &[base()], None).await;
    let node = Node::new();
    let store = node.store("");
    for (image, want) in [
        ("app:v9", "manifest unknown"),
        ("none:v1", "manifest unknown"),
    ] {
        let reference = registry.name(image);
        let error = store
            .pull(&reference, PullAuth::anonymous(), None)
            .await
            .unwrap_err();
        assert_eq!(error.class(), PullErrorClass::NotFound);
        assert_eq!(error.reason(), "ErrImagePull");
        let message = error.message();
        let head = format!(
            "failed to pull and unpack image \"{reference}\": failed to resolve reference \"{reference}\": http://{}: ",
            registry.host()
        );
        assert!(
            message.starts_with(&head) && message.contains(want),
            "{message}"
        );
    }
    let error = store
        .pull("Not A Name", PullAuth::anonymous(), None)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "InvalidImageName");
    node.assert_empty();
}

#[tokio::test]
async fn corrupt_and_false_images_are_refused_and_leave_nothing() {
    let registry = Registry::start(false);
    let node = Node::new();
    let store = node.store("");
    let refused = async |image: &str, want: &str| {
        let error = store
            .pull(&registry.name(image), PullAuth::anonymous(), None)
            .await
            .unwrap_err();
        assert_eq!(
            error.class(),
            PullErrorClass::Invalid,
            "{image}: {}",
            error.message()
        );
        assert!(
            error.message().contains(want),
            "{image}: {}",
            error.message()
        );
        node.assert_empty();
    };

    let pushed = registry
        .push("corrupt:v1", &[layer(&[("a", "corrupt")])], None)
        .await;
    let file = registry.blob_file(&pushed.blobs[0]);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 0xff;
    fs::write(&file, bytes).unwrap();
    refused("corrupt:v1", "blob has digest").await;

    let pushed = registry
        .push("short:v1", &[layer(&[("a", "short")])], None)
        .await;
    let file = registry.blob_file(&pushed.blobs[0]);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    refused("short:v1", "the manifest says").await;

    registry
        .push(
            "diff:v1",
            &[layer(&[("a", "b")])],
            Some(vec![Digest::of(b"other")]),
        )
        .await;
    refused("diff:v1", "the image says").await;
    registry
        .push("count:v1", &[layer(&[("a", "c")])], Some(vec![]))
        .await;
    refused("count:v1", "0 diff ids for 1 layers").await;

    // A manifest that the registry gives under another's digest.
    let pushed = registry
        .push("manifest:v1", &[layer(&[("a", "d")])], None)
        .await;
    fs::write(
        registry.blob_file(&pushed.manifest),
        pushed.body.replace("layers", "Layers"),
    )
    .unwrap();
    let by_digest = format!("manifest@{}", pushed.manifest);
    let error = store
        .pull(&registry.name(&by_digest), PullAuth::anonymous(), None)
        .await
        .unwrap_err();
    assert!(error.message().contains("igest"), "{}", error.message());
    node.assert_empty();

    let mut hostile = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..10].copy_from_slice(b"../escaped");
    header.set_size(0);
    header.set_cksum();
    hostile.append(&header, &b""[..]).unwrap();
    registry
        .push("hostile:v1", &[hostile.into_inner().unwrap()], None)
        .await;
    refused("hostile:v1", "path leaves its directory").await;
    assert_eq!(
        fs::read_dir(node.dir.path()).unwrap().count(),
        2,
        "images and registries.yaml"
    );
}

#[tokio::test]
async fn the_manifest_of_this_platform_is_taken_from_an_index() {
    let registry = Registry::start(false);
    let node = Node::new();
    let store = node.store("");
    let pushed = registry.push("app:one", &[base()], None).await;
    let entry = |os: &str, architecture: &str, digest: &Digest, size: usize| json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": os, "architecture": architecture}});
    let ours = entry("linux", architecture(), &pushed.manifest, pushed.body.len());
    let other = entry(
        "windows",
        architecture(),
        &pushed.manifest,
        pushed.body.len(),
    );
    let index = |manifests: serde_json::Value| {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string()
    };
    let digest = registry
        .push_manifest("app:multi", INDEX, &index(json!([other, ours])))
        .await;
    registry
        .push_manifest("app:foreign", INDEX, &index(json!([other])))
        .await;

    let record = store
        .pull(&registry.name("app:multi"), PullAuth::anonymous(), None)
        .await
        .unwrap();
    assert_eq!(record.id, pushed.id);
    assert_eq!(
        record.repo_digests,
        [format!("{}@{digest}", registry.name("app"))]
    );
    let error = store
        .pull(&registry.name("app:foreign"), PullAuth::anonymous(), None)
        .await
        .unwrap_err();
    assert_eq!(error.class(), PullErrorClass::NotFound);
    let want = format!("no match for platform linux/{}", architecture());
    assert!(error.message().contains(&want), "{}", error.message());
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_file_is_read_again() {
    let registry = Registry::start(false);
    registry.push("mirror/redis:6.0.8", &[base()], None).await;
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let node = Node::new();
    let mirrors = |disable: bool| {
        format!(
            "mirrors:\n  mcr.microsoft.invalid:\n    endpoint: [\"http://{dead}\", \"http://{}\"]\n    rewrite: {{\"^oss/bitnami/(.*)$\": \"mirror/$1\"}}\n    disableDefaultEndpoint: {disable}\n",
            registry.host()
        )
    };
    let store = node.store("nonsense: 1\n");
    let reference = "mcr.microsoft.invalid/oss/bitnami/redis:6.0.8";
    let error = store
        .pull(reference, PullAuth::anonymous(), None)
        .await
        .unwrap_err();
    assert!(
        error.message().contains("registries.yaml") && error.message().contains("nonsense"),
        "{}",
        error.message()
    );

    fs::write(node.dir.path().join("registries.yaml"), mirrors(true)).unwrap();
    let record = store
        .pull(reference, PullAuth::anonymous(), None)
        .await
        .unwrap();
    assert_eq!(record.names, [reference]);
    let missing = "mcr.microsoft.invalid/oss/bitnami/redis:7";
    let error = store
        .pull(missing, PullAuth::anonymous(), None)
        .await
        .unwrap_err();
    let message = error.message();
    assert!(
        message.contains(&format!("http://{dead}: ")) && message.contains("manifest unknown"),
        "{message}"
    );
    assert!(!message.contains("https://"), "{message}");
    assert!(error.is_transient(), "the dead mirror may come back");
}

#[tokio::test]
async fn private_images_need_the_right_credentials() {
    let registry = Registry::start(true);
    registry.push("private:v1", &[base()], None).await;
    let node = Node::new();
    let store = node.store("");
    let reference = registry.name("private:v1");
    let secret = |password: &str| {
        let mut auth = PullAuth::anonymous();
        let json = json!({"auths": {registry.host(): {"username": "user", "password": password}}});
        auth.add_docker_config_json(json.to_string().as_bytes())
            .unwrap();
        auth
    };
    for auth in [PullAuth::anonymous(), secret("wrong")] {
        let error = store.pull(&reference, auth, None).await.unwrap_err();
        assert_eq!(
            error.class(),
            PullErrorClass::Unauthorized,
            "{}",
            error.message()
        );
        assert!(
            error.message().contains("unauthorized"),
            "{}",
            error.message()
        );
    }
    store.pull(&reference, secret("U*U"), None).await.unwrap();

    // The second secret is tried after the first was refused.
    let mut both = secret("wrong");
    let json = json!({registry.host(): {"username": "user", "password": "U*U"}});
    both.add_dockercfg(json.to_string().as_bytes()).unwrap();
    store.pull(&reference, both, None).await.unwrap();

    let node = Node::new();
    let store = node.store(&format!(
        "configs:\n  \"{}\": {{auth: {{username: user, password: \"U*U\"}}}}\n",
        registry.host()
    ));
    store
        .pull(&reference, PullAuth::anonymous(), None)
        .await
        .unwrap();
}

fn assert_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts overlay file systems and needs root"
    );
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Unmounts whatever a failed test leaves.
struct Cleanup(ImageStore);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for snapshot in self.0.snapshots().unwrap() {
            let rootfs = self
                .0
                .dir()
                .join("containers")
                .join(snapshot.key)
                .join("rootfs");
            // Not mounted any more is what a passed test leaves.
            let _unmounted = rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[tokio::test]
async fn a_container_sees_the_layers_as_one_and_writes_to_its_own() {
    assert_root();
    let registry = Registry::start(false);
    let node = Node::new();
    let store = node.store("");
    let cleanup = Cleanup(store.clone());
    registry.push("app:v1", &[base(), top()], None).await;
    let image = store
        .pull(&registry.name("app:v1"), PullAuth::anonymous(), None)
        .await
        .unwrap();
    let mount = store.prepare("c1", &image).await.unwrap();
    let read = |name: &str| fs::read_to_string(mount.rootfs.join(name));
    assert!(is_mounted(&mount.rootfs));
    assert!(read("gone").is_err());
    assert!(read("dir/old").is_err());
    assert_eq!(read("dir/new").unwrap(), "new");
    // The upper layer has no entry for tmp/: owner and mode are those of the layer below.
    let tmp = fs::metadata(mount.rootfs.join("tmp")).unwrap();
    assert_eq!((tmp.permissions().mode() & 0o7777, tmp.uid()), (0o1777, 7));
    assert!(read("tmp/file").is_ok());
    let user = resolve_user(&mount.rootfs, &image.config.user).unwrap();
    assert_eq!(
        (user.uid, user.gid, user.additional_gids.as_slice()),
        (1000, 1000, &[44][..])
    );

    let whiteout = store
        .dir()
        .join(format!("layers/sha256-{}/diff/gone", image.layers[1].hex()));
    assert!(
        fs::symlink_metadata(whiteout)
            .unwrap()
            .file_type()
            .is_char_device()
    );

    fs::write(mount.rootfs.join("etc/passwd"), "changed").unwrap();
    let other = store.prepare("c2", &image).await.unwrap();
    assert!(
        fs::read_to_string(other.rootfs.join("etc/passwd"))
            .unwrap()
            .starts_with("root:")
    );
    assert_eq!(
        fs::read_to_string(mount.upper.join("etc/passwd")).unwrap(),
        "changed"
    );
    assert!(matches!(
        store.remove(&image.id).await,
        Err(StoreError::InUse { .. })
    ));
    assert!(store.gc(&HashSet::new()).await.unwrap().images.is_empty());

    // A restarted daemon finds them, keeps what is mounted, and mounts again what is not.
    drop(store);
    let store = node.store("");
    let again = store.prepare("c1", &image).await.unwrap();
    assert_eq!(again, mount);
    rustix::mount::unmount(&mount.rootfs, rustix::mount::UnmountFlags::empty()).unwrap();
    let mounted: BTreeMap<String, bool> = store
        .snapshots()
        .unwrap()
        .into_iter()
        .map(|s| (s.key, s.mounted))
        .collect();
    assert_eq!(
        mounted,
        BTreeMap::from([("c1".to_owned(), false), ("c2".to_owned(), true)])
    );
    store.prepare("c1", &image).await.unwrap();
    assert_eq!(read("etc/passwd").unwrap(), "changed");

    assert_eq!(
        store
            .sweep_snapshots(&HashSet::from(["c1".to_owned()]))
            .await
            .unwrap(),
        ["c2"]
    );
    assert!(!is_mounted(&other.rootfs) && !other.rootfs.exists());
    store.release("c1").await.unwrap();
    store.release("c1").await.unwrap();
    assert!(!is_mounted(&mount.rootfs));
    assert_eq!(node.entries("containers"), 0);
    assert_eq!(
        store.gc(&HashSet::new()).await.unwrap().images,
        std::slice::from_ref(&image.id)
    );
    node.assert_empty();
    drop(cleanup);
}

#[tokio::test]
async fn images_of_no_one_and_very_many_layers_can_be_mounted() {
    assert_root();
    let registry = Registry::start(false);
    let node = Node::new();
    let store = node.store("");
    let cleanup = Cleanup(store.clone());
    let many: Vec<Vec<u8>> = (0..120)
        .map(|i| layer(&[(&format!("f{i}"), "x")]))
        .collect();
    let repeated = vec![base(), top(), base()];
    for (name, layers, want) in [
        ("none", vec![], 0),
        ("one", vec![base()], 4),
        ("repeated", repeated, 4),
        ("many", many, 120),
    ] {
        let image = format!("{name}:v1");
        let pushed = registry.push(&image, &layers, None).await;
        assert_eq!(pushed.diff_ids.len(), layers.len());
        let record = store
            .pull(&registry.name(&image), PullAuth::anonymous(), None)
            .await
            .unwrap();
        let mount = store.prepare(name, &record).await.unwrap();
        assert_eq!(fs::read_dir(&mount.rootfs).unwrap().count(), want, "{name}");
        fs::write(mount.rootfs.join("writable"), "").unwrap();
        store.release(name).await.unwrap();
    }
    drop(cleanup);
}
