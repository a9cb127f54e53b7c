//! The cache and the builds, on a real Debian. The tests that build need root and a package
//! source; they use one cache between runs, which `SINEW_IMAGES` names.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base_types::ImageId;
use sandbox_image::{
    AGENT_UID, BuildImageError, BuildOptions, GetImageError, Image, ImageStore, MINIMAL_IMAGE,
    Manifest, OpenStoreError, Recipe, RemoveImageError, Stage, TreeDigest, VerifyImageError,
};

fn shared_cache() -> PathBuf {
    std::env::var_os("SINEW_IMAGES").map_or_else(|| "/var/cache/sinew/images".into(), PathBuf::from)
}

fn can_build(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP {test}: needs root");
        return false;
    }
    let found = |tool: &str| ["/usr/bin", "/bin"].iter().any(|d| Path::new(d).join(tool).exists());
    if !found("mmdebstrap") {
        eprintln!("SKIP {test}: mmdebstrap is not installed");
        return false;
    }
    true
}

/// An image made by hand: the store asks for no more than the layout.
fn put(store: &ImageStore, name: &str, built_at: i64, content: &str) -> Image {
    let staging = tempfile::tempdir_in(store.dir()).unwrap().keep();
    let rootfs = staging.join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    fs::write(rootfs.join("file"), content).unwrap();
    let digest = TreeDigest::of(&rootfs).unwrap();
    let id = ImageId::new(&digest.hex[..32]);
    let manifest = serde_json::json!({
        "format": 1, "id": id, "name": name, "recipe": "by hand",
        "checksum": format!("blake3:{}", digest.hex), "size_bytes": digest.size_bytes,
        "entries": digest.entries, "built_at": built_at, "packages": [],
    });
    fs::write(staging.join("manifest.json"), manifest.to_string()).unwrap();
    fs::rename(&staging, store.dir().join(id.as_str())).unwrap();
    store.get(id.as_str()).unwrap()
}

#[test]
fn the_newest_of_a_name_is_found_and_each_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    assert!(store.list().unwrap().is_empty());
    let old = put(&store, "debian", 1, "old");
    let new = put(&store, "debian", 2, "new");
    put(&store, "other", 3, "other");
    assert_eq!(store.get("debian").unwrap().id(), new.id());
    assert_eq!(store.get(old.id().as_str()).unwrap().manifest, old.manifest);
    assert_eq!(store.list().unwrap().len(), 3);
    let error = store.get("../../etc").unwrap_err();
    assert!(matches!(error, GetImageError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("sinew image build"), "{error}");
}

#[test]
fn half_built_and_damaged_images_are_never_returned() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let good = put(&store, "debian", 1, "good");
    let damage: [(&str, &[u8]); 4] =
        [("0", b"not json"), ("1", b"{}"), ("2", br#"{"format": 99}"#), ("3", b"\xff\xfe\x00")];
    for (digit, manifest) in damage {
        let bad = store.dir().join(digit.repeat(32));
        fs::create_dir_all(bad.join("rootfs")).unwrap();
        fs::write(bad.join("manifest.json"), manifest).unwrap();
        let error = store.get(&digit.repeat(32)).unwrap_err();
        assert!(matches!(error, GetImageError::Damaged { .. }), "{digit}: {error}");
    }
    // Complete in itself, but under another image's id, and one whose tree is gone.
    let moved = store.dir().join("4".repeat(32));
    fs::create_dir_all(moved.join("rootfs")).unwrap();
    fs::copy(good.dir().join("manifest.json"), moved.join("manifest.json")).unwrap();
    assert!(store.get(&"4".repeat(32)).is_err());
    fs::create_dir_all(store.dir().join(".building-1-2/rootfs")).unwrap();
    fs::create_dir_all(store.dir().join("5".repeat(32)).join("rootfs")).unwrap();
    let ids: Vec<_> = store.list().unwrap().iter().map(|image| image.id().clone()).collect();
    assert_eq!(ids, [good.id().clone()]);
    fs::remove_dir_all(good.rootfs()).unwrap();
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_changed_tree_fails_the_check_and_a_used_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let image = put(&store, "debian", 1, "content");
    store.verify(image.id()).unwrap();
    let used = store.lock_for_use(image.id()).unwrap();
    let also = store.lock_for_use(image.id()).unwrap();
    for lock in [used, also] {
        let error = store.remove(image.id().as_str()).unwrap_err();
        assert!(matches!(error, RemoveImageError::InUse { .. }), "{error}");
        let me = format!("by process {}", std::process::id());
        assert!(error.to_string().contains(&me), "{error}");
        drop(lock);
    }
    fs::write(image.rootfs().join("file"), "CONTENT").unwrap();
    let error = store.verify(image.id()).unwrap_err();
    assert!(matches!(error, VerifyImageError::Differs { .. }), "{error}");
    assert_eq!(store.users(image.id()).unwrap(), None);
    store.remove(image.id().as_str()).unwrap();
    assert!(store.list().unwrap().is_empty());
    let left: Vec<_> =
        fs::read_dir(store.dir()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["build.lock"]);
}

#[test]
fn a_cache_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("images");
    ImageStore::open(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let error = ImageStore::open(&path).unwrap_err();
    assert!(matches!(error, OpenStoreError::Writable { .. }), "{error}");
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = ImageStore::open(&path).unwrap_err();
        assert!(matches!(error, OpenStoreError::Owner { owner: 12345, .. }), "{error}");
    } else {
        eprintln!("SKIP a_cache_that_others_can_write_is_refused (owner): needs root");
    }
    let error = ImageStore::open(Path::new("/proc/version/images")).unwrap_err();
    assert!(matches!(error, OpenStoreError::Open { .. }), "{error}");
}

#[test]
fn the_minimal_image_is_complete_and_checks() {
    if !can_build("the_minimal_image_is_complete_and_checks") {
        return;
    }
    let store = ImageStore::open(&shared_cache()).unwrap();
    let image = store.build_minimal().unwrap();
    assert_eq!(image.manifest.name, MINIMAL_IMAGE);
    store.verify(image.id()).unwrap();
    // A second build finds the first.
    assert_eq!(store.build_minimal().unwrap().id(), image.id());

    let root = image.rootfs();
    assert!(root.join("bin/bash").exists());
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(passwd.contains("agent:x:1000:1000:"), "{passwd}");
    for owned in ["home/agent", "workspace", "home/agent/.npmrc"] {
        assert_eq!(fs::metadata(root.join(owned)).unwrap().uid(), AGENT_UID, "{owned}");
    }
    assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "sandbox\n");
    assert_eq!(fs::read_to_string(root.join("etc/resolv.conf")).unwrap(), "");
    assert_eq!(fs::read_dir(root.join("dev")).unwrap().count(), 0);
    assert!(image.manifest.packages.iter().any(|package| package.name == "bash"));
    // Nobody but root walks into the tree; everybody reads the manifest.
    assert_eq!(fs::metadata(image.dir()).unwrap().mode() & 0o777, 0o700);
    let public = store.dir().join(format!("{}.json", image.id()));
    let manifest: Manifest = serde_json::from_slice(&fs::read(&public).unwrap()).unwrap();
    assert_eq!(manifest, image.manifest);
    assert_eq!(fs::metadata(&public).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn a_failed_build_leaves_nothing_and_says_what_to_do() {
    if !can_build("a_failed_build_leaves_nothing_and_says_what_to_do") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    // What a killed build leaves is removed by the next one, which itself fails here: nobody
    // listens on that port.
    fs::create_dir_all(store.dir().join(".building-1-2/rootfs/etc")).unwrap();
    let mut stages = Vec::new();
    let error = store
        .build(&Recipe::minimal(), &no_source(), &mut |progress| stages.push(progress.stage))
        .unwrap_err();
    assert!(matches!(error, BuildImageError::NoSources { .. }), "{error}");
    assert!(error.to_string().contains("check the network"), "{error}");
    assert!(!stages.contains(&Stage::Done));
    let left: Vec<_> =
        fs::read_dir(store.dir()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["build.lock"]);
}

/// Nobody listens there, so that a build ends soon and in a known way.
fn no_source() -> BuildOptions {
    let mirror = "deb [trusted=yes] http://127.0.0.1:9/debian bookworm main".to_owned();
    BuildOptions { force: false, mirror: Some(mirror) }
}

#[test]
fn builds_of_one_cache_take_turns() {
    if !can_build("builds_of_one_cache_take_turns") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let other = fs::File::create(store.dir().join("build.lock")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (sender, stages) = std::sync::mpsc::channel();
    let build = std::thread::spawn(move || {
        let mut tell = |progress: sandbox_image::Progress| sender.send(progress.stage).unwrap();
        store.build(&Recipe::minimal(), &no_source(), &mut tell).unwrap_err()
    });
    assert_eq!(stages.recv().unwrap(), Stage::Waiting);
    assert!(stages.try_recv().is_err(), "it did not wait");
    drop(other);
    assert_eq!(stages.recv().unwrap(), Stage::Downloading);
    assert!(matches!(build.join().unwrap(), BuildImageError::NoSources { .. }));
}

/// Set for the process that this test kills: the cache it builds in.
const BUILD_IN: &str = "SINEW_TEST_BUILD_IN";

#[test]
fn a_killed_build_leaves_no_image_no_mount_and_no_process() {
    if let Some(dir) = std::env::var_os(BUILD_IN) {
        ImageStore::open(Path::new(&dir)).unwrap().build_minimal().unwrap();
        return;
    }
    let test = "a_killed_build_leaves_no_image_no_mount_and_no_process";
    if !can_build(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(BUILD_IN, store.dir())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let staging = || {
        let entries = fs::read_dir(store.dir()).unwrap().flatten();
        entries.map(|e| e.path()).find(|path| path.join("rootfs/usr/bin/dpkg").exists())
    };
    wait_for("packages to be unpacked", || {
        assert!(child.try_wait().unwrap().is_none(), "the build ended before it could be killed");
        staging().is_some()
    });
    let tree = staging().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // Every descendant holds the lock, so that a free lock means that none is left.
    let lock = fs::File::open(store.dir().join("build.lock")).unwrap();
    wait_for("the last process of the build to end", || {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    drop(lock);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*tree.to_string_lossy()), "{mounts}");
    assert!(store.list().unwrap().is_empty());
    store.build(&Recipe::minimal(), &no_source(), &mut |_| {}).unwrap_err();
    assert!(!tree.exists());
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < std::time::Duration::from_secs(120),
            "waited too long for {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
