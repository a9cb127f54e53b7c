//! The disks of sandboxes: one btrfs pool per installation, one subvolume per volume.
//!
//! The pool is a file that is **allocated in full** behind a loop device with direct I/O, in a
//! directory that only root may enter. A sparse file would turn a full host disk into I/O errors
//! for every sandbox at once; an allocated one cannot. It grows online, in allocated steps.
//!
//! Each volume holds three directories (see [`Volume`]): the upper and work directory of the
//! sandbox's overlay and the spool of its tool output, all of them with canonical ids (0–65,535),
//! so that the volume fits whatever id range the next epoch gets. One qgroup limit covers the
//! three. A second limit, over all volumes together, keeps [`PoolConfig::reserve_bytes`] of the
//! pool out of reach of any guest, so that the pool can always be administered.
//!
//! Everything here blocks: callers run it off their event loop.

mod error;
mod image_file;
mod loop_device;
mod pool;
mod qgroup;
mod sys;
mod volume;

pub use error::{PoolError, VolumeError};
pub use pool::{Growth, Pool, PoolConfig, PoolUse};
pub use volume::{Blank, SnapshotName, Volume, VolumeUse};
