//! Why the pool or one of its volumes refused.

use std::io;
use std::path::PathBuf;

use base_types::{ByteSize, VolumeId};

#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("this kernel has no btrfs: load it with `modprobe btrfs` or use a kernel that has it")]
    NoBtrfs,
    #[error("`mkfs.btrfs` is not installed: install the package btrfs-progs")]
    NoMkfs(#[source] io::Error),
    #[error("`mkfs.btrfs` failed on {path}: {stderr}")]
    Mkfs { path: PathBuf, stderr: String },
    #[error("no loop device can be had (is /dev/loop-control there?)")]
    NoLoop(#[source] io::Error),
    #[error("pool {dir} is in use by another process")]
    InUse { dir: PathBuf },
    #[error("the pool's sizes are wrong: {0}")]
    Config(String),
    #[error("the disk that holds {path} has no room for {wanted} more")]
    HostFull {
        path: PathBuf,
        wanted: ByteSize,
        #[source]
        source: io::Error,
    },
    #[error("the pool is at its maximum of {0}")]
    AtMaximum(ByteSize),
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("there is no volume {0}")]
    NotFound(VolumeId),
    #[error("there is no snapshot {name} of volume {volume}")]
    NoSnapshot { volume: VolumeId, name: String },
    #[error("volume {0} exists already")]
    Exists(VolumeId),
    #[error("the pool has no room for volume {0}: remove volumes or raise the pool's maximum")]
    PoolFull(VolumeId),
    #[error("volume {volume}: {what}")]
    Io {
        volume: VolumeId,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Attaches what was being done, and to which path, to an I/O error.
pub(crate) fn at(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> PoolError {
    let path = path.into();
    move |source| PoolError::Io { what, path, source }
}

/// Attaches what was being done to a volume; a full pool gets a variant of its own.
pub(crate) fn on(volume: &VolumeId, what: &'static str) -> impl FnOnce(io::Error) -> VolumeError {
    let volume = volume.clone();
    move |source| match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => VolumeError::PoolFull(volume),
        _ => VolumeError::Io { volume, what, source },
    }
}
