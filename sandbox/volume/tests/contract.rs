//! The volume contract on a real pool: real loop device, real btrfs, real quotas.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base_types::{ByteSize, VolumeId};
use sandbox_volume::{Growth, Pool, PoolConfig, PoolError, SnapshotName, VolumeError};

const MIB: u64 = 1 << 20;
const CONFIG: PoolConfig = PoolConfig {
    initial_bytes: 384 * MIB,
    step_bytes: 128 * MIB,
    max_bytes: 640 * MIB,
    reserve_bytes: 96 * MIB,
};

/// A pool in a directory of its own, both gone at the end whatever the test did.
struct Fixture {
    dir: tempfile::TempDir,
    pool: Option<Pool>,
}

impl Fixture {
    fn new(test: &str) -> Option<Self> {
        Self::with(test, CONFIG)
    }

    fn with(test: &str, config: PoolConfig) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP {test}: needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        match Pool::open(&dir.path().join("pool"), config) {
            Ok(pool) => Some(Self { dir, pool: Some(pool) }),
            Err(error @ (PoolError::NoBtrfs | PoolError::NoMkfs(_) | PoolError::NoLoop(_))) => {
                eprintln!("SKIP {test}: {error}");
                None
            }
            Err(error) => panic!("{}", base_types::Chain(&error)),
        }
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    fn reopen(&mut self) {
        self.pool = None;
        self.pool = Some(Pool::open(&self.path(), CONFIG).unwrap());
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take()
            && let Err(error) = pool.close()
            && !std::thread::panicking()
        {
            panic!("{}", base_types::Chain(&error));
        }
    }
}

/// Writes until it fails or `limit` is reached; the bytes written and the error.
fn fill(path: &Path, limit: u64) -> (u64, Option<io::Error>) {
    let mut file = match File::create(path) {
        Ok(file) => file,
        Err(error) => return (0, Some(error)),
    };
    let block = incompressible(MIB as usize);
    let mut written = 0;
    while written < limit {
        if let Err(error) = file.write_all(&block) {
            return (written, Some(error));
        }
        written += MIB;
    }
    (written, file.sync_all().err())
}

fn incompressible(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(next).collect()
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_quota(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EDQUOT)
}

fn name(text: &str) -> SnapshotName {
    SnapshotName::parse(text).unwrap()
}

#[test]
fn a_volume_holds_three_directories_and_can_be_made_twice() {
    let Some(fixture) = Fixture::new("a_volume_holds_three_directories") else { return };
    let pool = fixture.pool();
    let id = VolumeId::generate();
    let volume = pool.create(&id, "owner", ByteSize::mib(50)).unwrap();
    for (path, mode) in [(volume.upper(), 0o755), (volume.work(), 0o700), (volume.output(), 0o755)]
    {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{}", path.display());
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
    }
    fs::write(volume.upper().join("kept"), "kept").unwrap();
    let again = pool.create(&id, "owner", ByteSize::mib(60)).unwrap();
    assert_eq!(again, volume);
    assert_eq!(fs::read_to_string(volume.upper().join("kept")).unwrap(), "kept");
    assert_eq!(pool.volume_usage(&id).unwrap().quota_bytes, 60 * MIB);
    assert_eq!(again.label().unwrap(), "owner");
    assert_eq!(pool.list().unwrap(), std::slice::from_ref(&id));

    pool.destroy(&id).unwrap();
    pool.destroy(&id).unwrap();
    assert!(matches!(pool.volume(&id), Err(VolumeError::NotFound(_))));
    assert_eq!(pool.list().unwrap(), []);
}

#[test]
fn an_id_that_is_a_path_is_not_a_volume() {
    let Some(fixture) = Fixture::new("an_id_that_is_a_path") else { return };
    for text in ["", "..", "../snapshots", "/etc", "vol_x/../../../etc"] {
        let id = VolumeId::new(text);
        assert!(matches!(
            fixture.pool().create(&id, "owner", ByteSize::mib(1)),
            Err(VolumeError::NotFound(_))
        ));
        assert!(matches!(fixture.pool().destroy(&id), Err(VolumeError::NotFound(_))));
    }
}

#[test]
fn the_quota_holds_and_can_be_raised() {
    let Some(fixture) = Fixture::new("the_quota_holds") else { return };
    let pool = fixture.pool();
    let id = VolumeId::generate();
    let neighbour = pool.create(&VolumeId::generate(), "owner", ByteSize::mib(50)).unwrap();
    let volume = pool.create(&id, "owner", ByteSize::mib(20)).unwrap();

    let (written, error) = fill(&volume.upper().join("big"), 100 * MIB);
    let error = error.expect("the quota stops the writer");
    assert!(is_quota(&error), "{error}");
    assert!((10 * MIB..=20 * MIB).contains(&written), "{written}");
    // The spool of outputs counts against the same quota.
    let (more, error) = fill(&volume.output().join("o"), 100 * MIB);
    assert!(more < 10 * MIB && error.is_some(), "{more}");
    fs::write(neighbour.upper().join("fine"), vec![7; MIB as usize]).unwrap();

    pool.set_quota(&id, ByteSize::mib(40)).unwrap();
    let (written, error) = fill(&volume.upper().join("big"), 25 * MIB);
    assert!(error.is_none(), "{written} {error:?}");
    pool.sync().unwrap();
    let used = pool.volume_usage(&id).unwrap();
    assert!(used.used_bytes > 25 * MIB && used.used_bytes <= used.quota_bytes, "{used:?}");
}

#[test]
fn snapshots_and_forks_do_not_see_each_other() {
    let Some(fixture) = Fixture::new("snapshots_and_forks") else { return };
    let pool = fixture.pool();
    let (source, copy, late) = (VolumeId::generate(), VolumeId::generate(), VolumeId::generate());
    let volume = pool.create(&source, "owner", ByteSize::mib(40)).unwrap();
    let file = volume.upper().join("file");
    fs::write(&file, "one").unwrap();
    pool.snapshot(&source, &name("gen-1")).unwrap();
    fs::write(&file, "two").unwrap();

    let forked =
        pool.fork(&source, Some(&name("gen-1")), &copy, "owner", ByteSize::mib(40)).unwrap();
    let forked_late = pool.fork(&source, None, &late, "owner", ByteSize::mib(40)).unwrap();
    assert_eq!(fs::read_to_string(forked.upper().join("file")).unwrap(), "one");
    assert_eq!(fs::read_to_string(forked_late.upper().join("file")).unwrap(), "two");
    fs::write(forked.upper().join("file"), "three").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "two");

    let snapshot = pool.snapshot_path(&source, &name("gen-1")).unwrap().join("u/file");
    assert_eq!(fs::read_to_string(&snapshot).unwrap(), "one");
    let refused = fs::write(&snapshot, "no").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));

    // What a fork inherited counts against its quota.
    let (written, error) = fill(&forked.upper().join("big"), 100 * MIB);
    assert!(error.is_some() && written <= 40 * MIB);
    assert!(matches!(
        pool.fork(&source, None, &copy, "owner", ByteSize::mib(1)),
        Err(VolumeError::Exists(_))
    ));
    assert!(matches!(
        pool.fork(&source, Some(&name("none")), &VolumeId::generate(), "owner", ByteSize::mib(1)),
        Err(VolumeError::NoSnapshot { .. })
    ));

    // The snapshot outlives its volume.
    pool.destroy(&source).unwrap();
    assert_eq!(fs::read_to_string(&snapshot).unwrap(), "one");
    assert_eq!(pool.snapshots(&source).unwrap(), [name("gen-1")]);
    pool.destroy_snapshot(&source, &name("gen-1")).unwrap();
    pool.destroy_snapshot(&source, &name("gen-1")).unwrap();
    assert_eq!(pool.snapshots(&source).unwrap(), []);
}

#[test]
fn guests_cannot_use_the_reserve_and_a_full_pool_says_so() {
    let Some(fixture) = Fixture::new("guests_cannot_use_the_reserve") else { return };
    let pool = fixture.pool();
    // More quota than the pool has: two volumes that may each fill it.
    let ids = [VolumeId::generate(), VolumeId::generate()];
    let volumes = ids.each_ref().map(|id| pool.create(id, "owner", ByteSize::gib(1)).unwrap());
    let (first, error) = fill(&volumes[0].upper().join("big"), 150 * MIB);
    assert!(error.is_none(), "{first} {error:?}");
    let (second, error) = fill(&volumes[1].upper().join("big"), 1024 * MIB);
    assert!(is_quota(&error.unwrap()));
    let limit = pool.usage().unwrap().guests_limit_bytes;
    assert_eq!(limit, 288 * MIB);
    assert!(first + second <= limit, "{first} {second}");

    let refused = pool.create(&VolumeId::generate(), "owner", ByteSize::mib(1));
    assert!(matches!(refused, Err(VolumeError::PoolFull(_))), "{refused:?}");
    // What we keep for ourselves still works, and nothing half made stays.
    pool.snapshot(&ids[0], &name("full")).unwrap();
    assert_eq!(fs::read_dir(fixture.path().join("mnt/unfinished")).unwrap().count(), 0);

    // Growing gives room at once.
    assert_eq!(pool.grow().unwrap(), Growth::Grown { to: ByteSize::mib(512) });
    let (more, error) = fill(&volumes[1].upper().join("more"), 50 * MIB);
    assert!(error.is_none(), "{more} {error:?}");
    pool.create(&VolumeId::generate(), "owner", ByteSize::mib(1)).unwrap();
    assert_eq!(pool.grow().unwrap(), Growth::Grown { to: ByteSize::mib(640) });
    assert!(matches!(pool.grow(), Err(PoolError::AtMaximum(_))));

    // Destroying gives the space back.
    pool.destroy(&ids[0]).unwrap();
    pool.destroy_snapshot(&ids[0], &name("full")).unwrap();
    wait_for("the return of space", || {
        pool.sync().unwrap();
        pool.usage().unwrap().guests_bytes < 150 * MIB + second
    });
}

#[test]
fn maintain_grows_only_when_room_is_short() {
    let config = PoolConfig { max_bytes: 2048 * MIB, ..CONFIG };
    let Some(fixture) = Fixture::with("maintain_grows", config) else { return };
    let pool = fixture.pool();
    let volume = pool.create(&VolumeId::generate(), "owner", ByteSize::gib(1)).unwrap();
    assert_eq!(pool.maintain().unwrap(), Growth::NotNeeded);
    // Slowly, by one step.
    let mut grown = Growth::NotNeeded;
    for piece in 0..25 {
        let (_, error) = fill(&volume.upper().join(piece.to_string()), 10 * MIB);
        assert!(error.is_none(), "{error:?}");
        grown = pool.maintain().unwrap();
        if grown != Growth::NotNeeded {
            break;
        }
    }
    assert_eq!(grown, Growth::Grown { to: ByteSize::mib(512) });
    assert_eq!(pool.maintain().unwrap(), Growth::NotNeeded);
    // The file is allocated in full: as many blocks as its size.
    let metadata = fs::metadata(fixture.path().join("pool.btrfs")).unwrap();
    assert_eq!(metadata.len(), 512 * MIB);
    assert!(metadata.blocks() * 512 >= metadata.len());
    // Fast, by more: as much again is written before the next look has led to anything.
    let (_, error) = fill(&volume.upper().join("big"), 100 * MIB);
    assert!(error.is_none(), "{error:?}");
    let grown = pool.maintain().unwrap();
    assert!(matches!(grown, Growth::Grown { to } if to >= ByteSize::mib(768)), "{grown:?}");
}

#[test]
fn reopening_finds_everything_and_removes_what_was_half_made() {
    let Some(mut fixture) = Fixture::new("reopening") else { return };
    let id = VolumeId::generate();
    let volume = fixture.pool().create(&id, "owner", ByteSize::mib(50)).unwrap();
    fs::write(volume.upper().join("file"), "here").unwrap();
    fixture.pool().grow().unwrap();
    let second = Pool::open(&fixture.path(), CONFIG);
    assert!(matches!(second, Err(PoolError::InUse { .. })));

    // As after a crash: still mounted, still attached, a volume half made.
    let half = fixture.path().join("mnt/unfinished").join(VolumeId::generate().as_str());
    let made = Command::new("btrfs").args(["subvolume", "create"]).arg(&half).output().unwrap();
    assert!(made.status.success());
    fixture.reopen();
    assert!(!half.exists());
    assert_eq!(fs::read_to_string(volume.upper().join("file")).unwrap(), "here");
    assert_eq!(fixture.pool().volume_usage(&id).unwrap().quota_bytes, 50 * MIB);

    // Cleanly closed and opened again.
    fixture.pool.take().unwrap().close().unwrap();
    assert_eq!(fs::read_dir(fixture.path().join("mnt")).unwrap().count(), 0);
    fixture.reopen();
    assert_eq!(fixture.pool().list().unwrap(), [id]);
    assert_eq!(fixture.pool().usage().unwrap().size_bytes, 512 * MIB);
}

#[test]
fn a_blank_becomes_one_volume_or_nothing() {
    let Some(fixture) = Fixture::new("a_blank") else { return };
    let unfinished = fixture.path().join("mnt/unfinished");
    let blanks = || fs::read_dir(&unfinished).unwrap().count();
    let pool = fixture.pool();
    let (one, other, unused) =
        (pool.blank().unwrap(), pool.blank().unwrap(), pool.blank().unwrap());
    assert_eq!((blanks(), pool.list().unwrap()), (3, vec![]), "they are no volumes");

    let id = VolumeId::generate();
    let volume = pool.finish(one, &id, "mine", ByteSize::mib(20)).unwrap();
    assert_eq!((volume.label().unwrap().as_str(), blanks()), ("mine", 2));
    assert_eq!(pool.volume_usage(&id).unwrap().quota_bytes, 20 * MIB);
    let (written, error) = fill(&volume.upper().join("file"), 40 * MIB);
    assert!(written <= 20 * MIB && error.is_some_and(|error| is_quota(&error)), "{written}");

    // What exists is not replaced, and the blank that would have is gone.
    pool.finish(other, &id, "theirs", ByteSize::mib(20)).unwrap_err();
    assert_eq!((volume.label().unwrap().as_str(), blanks()), ("mine", 1));
    drop(unused);
    assert_eq!((blanks(), pool.list().unwrap()), (0, vec![id]));
}

#[test]
fn closing_leaves_no_mount_and_no_loop_device() {
    let Some(mut fixture) = Fixture::new("closing") else { return };
    let path = fixture.path();
    let attached = || {
        fs::read_dir("/sys/block").unwrap().flatten().any(|entry| {
            fs::read_to_string(entry.path().join("loop/backing_file"))
                .is_ok_and(|file| file.trim().starts_with(path.to_str().unwrap()))
        })
    };
    let mounted = || fs::read_to_string("/proc/mounts").unwrap().contains(path.to_str().unwrap());
    assert!(attached() && mounted());
    fixture.pool.take().unwrap().close().unwrap();
    assert!(!mounted());
    wait_for("the end of the loop device", || !attached());
}

/// The pool lies on a small host file system that something else fills to the last byte.
#[test]
fn a_full_host_disk_gives_no_volume_an_error() {
    const TEST: &str = "a_full_host_disk";
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP {TEST}: needs root");
        return;
    }
    let Some(host) = SmallHost::mount(TEST, 600 * MIB) else { return };
    let pool = Pool::open(&host.dir().join("pool"), CONFIG).unwrap();
    let id = VolumeId::generate();
    let volume = pool.create(&id, "owner", ByteSize::mib(150)).unwrap();
    let (_, error) = fill(&host.dir().join("hog"), 2048 * MIB);
    assert_eq!(error.unwrap().raw_os_error(), Some(libc::ENOSPC));

    let grown = pool.grow();
    assert!(matches!(grown, Err(PoolError::HostFull { .. })), "{grown:?}");
    let (written, error) = fill(&volume.upper().join("big"), 120 * MIB);
    assert!(error.is_none(), "{written} {error:?}");
    // Overwriting and deleting, too: a copy-on-write file system writes for both.
    let (_, error) = fill(&volume.upper().join("big"), 100 * MIB);
    assert!(error.is_none(), "{error:?}");
    fs::remove_file(volume.upper().join("big")).unwrap();
    pool.sync().unwrap();
    fs::write(volume.upper().join("after"), "fine").unwrap();
    pool.create(&VolumeId::generate(), "owner", ByteSize::mib(1)).unwrap();
    // And the pool has not given any block back to the host that it may miss later.
    let metadata = fs::metadata(host.dir().join("pool/pool.btrfs")).unwrap();
    assert!(metadata.blocks() * 512 >= metadata.len());
    pool.close().unwrap();
}

/// A little ext4 file system in a file, mounted.
struct SmallHost {
    _outer: tempfile::TempDir,
    mount: PathBuf,
}

impl SmallHost {
    fn mount(test: &str, bytes: u64) -> Option<Self> {
        let outer = tempfile::tempdir().unwrap();
        let (image, mount) = (outer.path().join("host.ext4"), outer.path().join("host"));
        fs::create_dir(&mount).unwrap();
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIP {test}: no mkfs.ext4");
            return None;
        }
        let mounted =
            Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).output().unwrap();
        if !mounted.status.success() {
            eprintln!("SKIP {test}: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { _outer: outer, mount })
    }

    fn dir(&self) -> &Path {
        &self.mount
    }
}

impl Drop for SmallHost {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).output();
    }
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for config in [
        PoolConfig { initial_bytes: MIB, ..CONFIG },
        PoolConfig { max_bytes: 300 * MIB, ..CONFIG },
        PoolConfig { step_bytes: 0, ..CONFIG },
        PoolConfig { reserve_bytes: 380 * MIB, ..CONFIG },
    ] {
        assert!(matches!(Pool::open(dir.path(), config), Err(PoolError::Config(_))), "{config:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
