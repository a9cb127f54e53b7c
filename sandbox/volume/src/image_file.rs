//! The file that carries the pool: every block of it is allocated before the pool may use it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use base_types::ByteSize;
use rustix::fs::{FallocateFlags, FlockOperation, IFlags};

use crate::error::{PoolError, at};

const BTRFS_SUPER_MAGIC: i64 = 0x9123_683E;
/// `mkfs.btrfs` says little; a broken one must not fill our memory.
const STDERR_BYTES_MAX: usize = 2_000;

/// Opens the file, making it first if it is not there. A crash in the middle leaves a file of
/// another name, which the next attempt replaces: what has the final name is a whole pool.
pub fn open_or_create(path: &Path, initial_bytes: u64) -> Result<File, PoolError> {
    match open(path) {
        Ok(file) => return Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at("open", path)(error)),
    }
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove", &unfinished)(error));
        }
        _ => {}
    }
    let made = make(&unfinished, initial_bytes);
    if let Err(error) = made {
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    fs::rename(&unfinished, path).map_err(at("rename", &unfinished))?;
    open(path).map_err(at("open", path))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn make(path: &Path, bytes: u64) -> Result<(), PoolError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(at("create", path))?;
    forbid_copy_on_write(&file);
    allocate(&file, path, bytes)?;
    mkfs(path)
}

/// On a copy-on-write host file system an allocated block is no promise for the next write to it,
/// unless the file opts out while it is still empty. Best effort: others have no such flag.
fn forbid_copy_on_write(file: &File) {
    let is_btrfs = rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == BTRFS_SUPER_MAGIC);
    if is_btrfs && let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

/// Grows the file to `bytes`, with all its blocks. On failure it is as large as before.
pub fn allocate(file: &File, path: &Path, bytes: u64) -> Result<(), PoolError> {
    let now = file.metadata().map_err(at("examine", path))?.len();
    if bytes <= now {
        return Ok(());
    }
    let allocated = rustix::fs::fallocate(file, FallocateFlags::empty(), now, bytes - now);
    allocated.map_err(|errno| {
        // A partial allocation would hold space that the host is short of.
        let _ = file.set_len(now);
        let source = io::Error::from(errno);
        match errno {
            rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => {
                PoolError::HostFull { path: path.into(), wanted: ByteSize(bytes - now), source }
            }
            _ => PoolError::Io { what: "allocate", path: path.into(), source },
        }
    })
}

fn mkfs(path: &Path) -> Result<(), PoolError> {
    let output = Command::new("mkfs.btrfs")
        .args(["--quiet", "--nodiscard", "--metadata", "single", "--data", "single"])
        .args(["--label", "sinew-pool", "--"])
        .arg(path)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PoolError::NoMkfs(error),
            _ => at("run mkfs.btrfs on", path)(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = stderr.trim().chars().take(STDERR_BYTES_MAX).collect();
    Err(PoolError::Mkfs { path: path.into(), stderr })
}

/// What [`crate::sys::loop_backing`] says of a device on this file.
pub fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// One process per pool. The lock goes with the returned file.
pub fn lock(dir: &Path) -> Result<File, PoolError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PoolError::InUse { dir: dir.into() }),
        Err(errno) => Err(at("lock", &path)(errno.into())),
    }
}
