//! Opens, grows and closes the pool.
//!
//! Opening is the same after a clean end and after a crash: what is there already (the file, the
//! loop device, the mount) is taken over, what is missing is made, and volumes that were half
//! made are removed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base_types::ByteSize;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{PoolError, at};
use crate::loop_device::LoopDevice;
use crate::qgroup::{ALL_GUESTS, Qgroups};
use crate::{image_file, sys};

/// btrfs refuses much less than this, and places its chunks badly in little more.
const POOL_BYTES_MIN: u64 = 256 << 20;
/// What btrfs needs beside the guests' own data grows with the pool: csums, extents, free space.
const RESERVE_DIVISOR: u64 = 20;
/// Sizes are whole multiples of this: loop devices and btrfs both want more than a byte.
const ALIGNMENT: u64 = 4 << 20;

/// There is room for what guests write in the time of so many looks, at the pace of the last one:
/// growing takes a moment, and the next look comes after it.
const LOOKS_AHEAD: u64 = 4;

#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Size of a new pool.
    pub initial_bytes: u64,
    /// It grows by this much when less than that is left for guests, and by more while they write
    /// fast. What they wrote and the kernel has not yet placed is not counted, so it should be more
    /// than that may be.
    pub step_bytes: u64,
    pub max_bytes: u64,
    /// No guest can use this part; at least a twentieth of the pool is kept in any case.
    pub reserve_bytes: u64,
}

/// What [`Pool::maintain`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    NotNeeded,
    Grown { to: ByteSize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    pub size_bytes: u64,
    /// What all guests together reference, as of the last commit.
    pub guests_bytes: u64,
    /// What all guests together may reference.
    pub guests_limit_bytes: u64,
}

/// The mounted pool. Dropping it leaves it mounted, for the next process; [`Pool::close`] ends it.
pub struct Pool {
    pub(crate) mount_point: PathBuf,
    pub(crate) root: File,
    pub(crate) volumes: File,
    pub(crate) snapshots: File,
    pub(crate) unfinished: Arc<File>,
    pub(crate) qgroups: Qgroups,
    config: PoolConfig,
    file_path: PathBuf,
    file: File,
    /// Bytes that were free when growth was last considered; 0 before that.
    free_before: AtomicU64,
    /// Also serialises growth.
    device: Mutex<LoopDevice>,
    _lock: File,
}

// === impl PoolConfig ===

impl PoolConfig {
    fn check(&self) -> Result<(), PoolError> {
        let problem = if self.initial_bytes < POOL_BYTES_MIN {
            format!("a pool is at least {}", ByteSize(POOL_BYTES_MIN))
        } else if self.max_bytes < self.initial_bytes {
            "the maximum is below the initial size".to_owned()
        } else if self.step_bytes < ALIGNMENT {
            format!("the pool grows by at least {}", ByteSize(ALIGNMENT))
        } else if self.reserve_bytes.saturating_mul(2) > self.initial_bytes {
            "the reserve is more than half of the initial size".to_owned()
        } else {
            return Ok(());
        };
        Err(PoolError::Config(problem))
    }

    fn guests_limit(&self, size_bytes: u64) -> u64 {
        size_bytes - self.reserve_bytes.max(size_bytes / RESERVE_DIVISOR).min(size_bytes)
    }
}

// === impl Pool ===

impl Pool {
    /// Opens the pool in `dir`, which is made (0700) if it is not there.
    pub fn open(dir: &Path, config: PoolConfig) -> Result<Self, PoolError> {
        config.check()?;
        if !kernel_has_btrfs() {
            return Err(PoolError::NoBtrfs);
        }
        make_private_dir(dir)?;
        let dir = dir.canonicalize().map_err(at("resolve", dir))?;
        let lock = image_file::lock(&dir)?;
        let file_path = dir.join("pool.btrfs");
        let file = image_file::open_or_create(&file_path, align(config.initial_bytes))?;
        let device = LoopDevice::on(&file, &file_path)?;
        let mount_point = dir.join("mnt");
        let root = mounted(&device, &mount_point)?;

        let quota = at("enable quotas on", &mount_point);
        enable_quota(root.as_fd()).map_err(quota)?;
        let qgroups = Qgroups::of(root.as_fd()).map_err(at("examine", &mount_point))?;
        let [volumes, snapshots, unfinished] =
            ["volumes", "snapshots", "unfinished"].map(|name| open_dir(&mount_point.join(name)));
        let pool = Self {
            root,
            volumes: volumes?,
            snapshots: snapshots?,
            unfinished: Arc::new(unfinished?),
            qgroups,
            config,
            file_path,
            file,
            free_before: AtomicU64::new(0),
            device: Mutex::new(device),
            mount_point,
            _lock: lock,
        };
        // A crash between two steps of an earlier growth is mended by doing them again.
        pool.fill_device()?;
        pool.remove_unfinished()?;
        Ok(pool)
    }

    /// Grows the pool if need be, and forgets the accounts of removed volumes, which takes a look
    /// at every volume. To be called now and then.
    pub fn maintain(&self) -> Result<Growth, PoolError> {
        self.remove_stale_qgroups();
        self.grow_if_needed()
    }

    /// Grows the pool if guests may soon need it: by steps, as many as they would fill in the time
    /// of some calls of this. Cheap where they do not: to be called often, because guests fill what
    /// is left as fast as the disk writes.
    pub fn grow_if_needed(&self) -> Result<Growth, PoolError> {
        let stat = rustix::fs::fstatvfs(&self.root)
            .map_err(|errno| at("examine", &self.mount_point)(errno.into()))?;
        // Not `f_bfree`: it counts what is set aside for metadata, which no guest's data gets.
        let free = stat.f_bavail * stat.f_frsize;
        let written = self.free_before.swap(free, Ordering::Relaxed).saturating_sub(free);
        let size = self.size_bytes()?;
        let kept = size - self.config.guests_limit(size);
        let step = self.config.step_bytes;
        let lacking = (kept + step.max(written.saturating_mul(LOOKS_AHEAD))).saturating_sub(free);
        let wanted = size.saturating_add(lacking.div_ceil(step).saturating_mul(step));
        let next = align(wanted.min(self.config.max_bytes)).min(align_down(self.config.max_bytes));
        if lacking == 0 || next <= size {
            return Ok(Growth::NotNeeded);
        }
        self.grow_to(next)
    }

    /// Grows the pool by one step now.
    pub fn grow(&self) -> Result<Growth, PoolError> {
        let size = self.size_bytes()?;
        let next = align(size + self.config.step_bytes).min(align_down(self.config.max_bytes));
        if next <= size {
            return Err(PoolError::AtMaximum(ByteSize(self.config.max_bytes)));
        }
        self.grow_to(next)
    }

    pub fn usage(&self) -> Result<PoolUse, PoolError> {
        let size_bytes = self.size_bytes()?;
        let figures =
            self.qgroups.figures(ALL_GUESTS).map_err(at("read usage of", &self.mount_point))?;
        Ok(PoolUse {
            size_bytes,
            guests_bytes: figures.referenced_bytes,
            guests_limit_bytes: figures.limit_bytes,
        })
    }

    /// Commits what was written, so that usage figures are current.
    pub fn sync(&self) -> Result<(), PoolError> {
        sys::sync(self.root.as_fd()).map_err(at("sync", &self.mount_point))
    }

    /// Unmounts the pool and gives its loop device back. Fails while a sandbox uses it.
    pub fn close(self) -> Result<(), PoolError> {
        let Self { mount_point, root, volumes, snapshots, unfinished, device, .. } = self;
        drop((root, volumes, snapshots, unfinished));
        umount2(&mount_point, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| at("unmount", &mount_point)(errno.into()))?;
        device.into_inner().unwrap_or_else(PoisonError::into_inner).detach()
    }

    fn grow_to(&self, bytes: u64) -> Result<Growth, PoolError> {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        image_file::allocate(&self.file, &self.file_path, bytes)?;
        device.grow()?;
        drop(device);
        self.fill_device()?;
        tracing::info!(size = %ByteSize(bytes), "volume pool grown");
        Ok(Growth::Grown { to: ByteSize(bytes) })
    }

    /// Makes the file system as large as the file, and gives guests their part of it.
    fn fill_device(&self) -> Result<(), PoolError> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).grow()?;
        sys::resize_to_device(self.root.as_fd()).map_err(at("resize", &self.mount_point))?;
        let limit = self.config.guests_limit(self.size_bytes()?);
        sys::qgroup_limit(self.root.as_fd(), ALL_GUESTS, limit)
            .map_err(at("limit guests on", &self.mount_point))
    }

    fn size_bytes(&self) -> Result<u64, PoolError> {
        self.file.metadata().map(|meta| meta.len()).map_err(at("examine", &self.file_path))
    }

    fn remove_unfinished(&self) -> Result<(), PoolError> {
        let path = self.mount_point.join("unfinished");
        for entry in fs::read_dir(&path).map_err(at("list", &path))?.flatten() {
            let name = CString::new(entry.file_name().as_bytes()).unwrap_or_default();
            sys::subvolume_destroy(self.unfinished.as_fd(), &name)
                .map_err(at("remove", entry.path()))?;
        }
        Ok(())
    }

    /// Kernels before 6.11 keep the qgroup of a removed subvolume. One whose subvolume is still
    /// being cleaned refuses (EBUSY) and goes at a later call, so failures are no news.
    fn remove_stale_qgroups(&self) {
        let Ok(known) = self.qgroups.of_subvolumes() else { return };
        let living: Vec<u64> = ["volumes", "snapshots", "unfinished"]
            .iter()
            .filter_map(|name| fs::read_dir(self.mount_point.join(name)).ok())
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| File::open(entry.path()).ok())
            .filter_map(|file| sys::subvolume_id(file.as_fd()).ok())
            .collect();
        for id in known.into_iter().filter(|id| !living.contains(id)) {
            let _ = sys::qgroup_remove(self.root.as_fd(), id);
        }
    }
}

fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

fn align_down(bytes: u64) -> u64 {
    bytes - bytes % ALIGNMENT
}

fn kernel_has_btrfs() -> bool {
    let listed = || {
        fs::read_to_string("/proc/filesystems").is_ok_and(|text| {
            text.lines().any(|line| line.split_whitespace().last() == Some("btrfs"))
        })
    };
    // Asking for a module that is built in, or not to be had, does no harm.
    listed() || {
        let _ = std::process::Command::new("modprobe").arg("btrfs").output();
        listed()
    }
}

fn make_private_dir(dir: &Path) -> Result<(), PoolError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(at("protect", dir))
}

fn open_dir(path: &Path) -> Result<File, PoolError> {
    make_private_dir(path)?;
    File::open(path).map_err(at("open", path))
}

/// Mounts the device unless it is mounted there, and opens the root.
fn mounted(device: &LoopDevice, mount_point: &Path) -> Result<File, PoolError> {
    make_private_dir(mount_point)?;
    match mount_source(mount_point)? {
        Some(source) if Path::new(&source) == device.path() => {}
        Some(source) => {
            let other = io::Error::other(format!("{source} is mounted there"));
            return Err(at("mount the pool on", mount_point)(other));
        }
        None => mount(
            Some(device.path()),
            mount_point,
            Some("btrfs"),
            MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
            // A discard would punch holes into the file, and the pool would no longer be
            // allocated in full. Kernels turn it on by themselves.
            // Any guest may ask for compression, which threads of the kernel then carry out beyond
            // every limit of the guest's. Without checksums btrfs does not compress; it has no
            // second copy to mend a block from anyway.
            Some("nodiscard,nodatasum"),
        )
        .map_err(|errno| at("mount the pool on", mount_point)(errno.into()))?,
    }
    File::open(mount_point).map_err(at("open", mount_point))
}

/// What is mounted on exactly this path, if anything is.
fn mount_source(mount_point: &Path) -> Result<Option<String>, PoolError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(at("read", path))?;
    let wanted = escaped(mount_point);
    let found = mounts.lines().rev().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let target = before.split(' ').nth(4)?;
        (target == wanted).then(|| after.split(' ').nth(1).unwrap_or_default().to_owned())
    });
    Ok(found)
}

/// A path as mountinfo prints it.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        match character {
            ' ' => text.push_str("\\040"),
            '\t' => text.push_str("\\011"),
            '\n' => text.push_str("\\012"),
            '\\' => text.push_str("\\134"),
            other => text.push(other),
        }
    }
    text
}

fn enable_quota(root: BorrowedFd<'_>) -> io::Result<()> {
    sys::quota_enable(root)?;
    match sys::qgroup_create(root, ALL_GUESTS) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}
