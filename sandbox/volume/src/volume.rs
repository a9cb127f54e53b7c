//! The volume contract: create, snapshot, fork, destroy, usage, list, set quota.
//!
//! A volume appears under its name only when it is whole (made under another name, then renamed),
//! and both `create` and `destroy` may be repeated. What of a new volume does not depend on whose
//! it will be may be made ahead, as a [`Blank`].

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base_types::{ByteSize, PartId, VolumeId};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{VolumeError, on};
use crate::pool::Pool;
use crate::qgroup::ALL_GUESTS;
use crate::sys::{self, Access};

/// A name is part of a file name.
const SNAPSHOT_NAME_MAX: usize = 64;

/// A guest at its quota leaves no room for what mounting the volume again writes.
const START_ROOM_BYTES: u64 = 4 << 20;

/// A label is read whole; it names an owner.
const LABEL_BYTES_MAX: u64 = 4096;

const LABEL_FILE: &str = "label";

/// One volume's place. All ids in it are canonical: owner 0 is the sandbox's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub id: VolumeId,
    path: PathBuf,
}

/// An empty volume that is nobody's yet, under a name of its own that nothing lists. It becomes one
/// volume, once, or is removed with this value; one that a crash left goes when the pool is opened.
#[derive(Debug)]
pub struct Blank {
    unfinished: Arc<File>,
    name: CString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeUse {
    /// As of the last commit; [`Pool::sync`] makes it current.
    pub used_bytes: u64,
    pub quota_bytes: u64,
}

/// Lower-case letters, digits and dashes, 1 to 64 of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

// === impl SnapshotName ===

impl SnapshotName {
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = (1..=SNAPSHOT_NAME_MAX).contains(&text.len());
        (fits && text.bytes().all(allowed)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Volume ===

impl Volume {
    /// The directory that holds the three below.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Overlay upper: everything the guest changed.
    pub fn upper(&self) -> PathBuf {
        self.path.join("u")
    }

    /// Overlay work: the kernel's own.
    pub fn work(&self) -> PathBuf {
        self.path.join("w")
    }

    /// Spooled tool output.
    pub fn output(&self) -> PathBuf {
        self.path.join("o")
    }

    /// What its maker wrote about it: whose it is. Out of the guest's reach.
    pub fn label(&self) -> io::Result<String> {
        let mut label = String::new();
        File::open(self.path.join(LABEL_FILE))?.take(LABEL_BYTES_MAX).read_to_string(&mut label)?;
        Ok(label)
    }
}

// === impl Blank ===

impl Blank {
    fn under(unfinished: &Arc<File>) -> io::Result<Self> {
        let name = CString::new(PartId::generate().into_string())?;
        Ok(Self { unfinished: unfinished.clone(), name })
    }

    fn open(&self) -> io::Result<OwnedFd> {
        open_subvolume(&self.unfinished, &self.name)
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        // What became a volume is not here any more.
        let removed = sys::subvolume_destroy(self.unfinished.as_fd(), &self.name);
        if let Err(error) = ignore_missing(removed) {
            tracing::warn!(name = ?self.name, %error, "an unfinished volume stays for now");
        }
    }
}

// === impl Pool ===

impl Pool {
    /// Makes a volume, or finds it; either way it has this quota afterwards. `label` is kept with
    /// a new one.
    pub fn create(
        &self,
        id: &VolumeId,
        label: &str,
        quota: ByteSize,
    ) -> Result<Volume, VolumeError> {
        if self.open_volume(id).is_ok() {
            self.set_quota(id, quota)?;
            return self.volume(id);
        }
        let blank = self.blank().map_err(on(id, "create"))?;
        self.finish(blank, id, label, quota)
    }

    /// Makes what every new volume needs, ahead of the one that will.
    pub fn blank(&self) -> io::Result<Blank> {
        let blank = Blank::under(&self.unfinished)?;
        sys::subvolume_create(self.unfinished.as_fd(), &blank.name, ALL_GUESTS)?;
        let subvolume = blank.open()?;
        for (directory, mode) in [("u", 0o755), ("w", 0o700), ("o", 0o755)] {
            rustix::fs::mkdirat(&subvolume, directory, Mode::from_raw_mode(0o700))?;
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::chmodat(&subvolume, directory, mode, AtFlags::empty())?;
        }
        Ok(blank)
    }

    /// Finds a volume.
    pub fn volume(&self, id: &VolumeId) -> Result<Volume, VolumeError> {
        self.open_volume(id)?;
        let path = self.mount_point.join("volumes").join(id.as_str());
        Ok(Volume { id: id.clone(), path })
    }

    /// A read-only picture of the volume: every write that returned before this call is in it.
    pub fn snapshot(&self, id: &VolumeId, name: &SnapshotName) -> Result<(), VolumeError> {
        let source = self.open_volume(id)?;
        let target = snapshot_file_name(id, name)?;
        let directory = self.snapshots.as_fd();
        sys::snapshot_create(source.as_fd(), directory, &target, Access::ReadOnly, ALL_GUESTS)
            .map_err(on(id, "snapshot"))
    }

    /// Where the snapshot's three directories can be read.
    pub fn snapshot_path(
        &self,
        id: &VolumeId,
        name: &SnapshotName,
    ) -> Result<PathBuf, VolumeError> {
        let file_name = format!("{id}.{}", name.as_str());
        let path = self.mount_point.join("snapshots").join(file_name);
        match path.is_dir() {
            true => Ok(path),
            false => Err(no_snapshot(id, name)),
        }
    }

    pub fn destroy_snapshot(&self, id: &VolumeId, name: &SnapshotName) -> Result<(), VolumeError> {
        let file_name = snapshot_file_name(id, name)?;
        ignore_missing(sys::subvolume_destroy(self.snapshots.as_fd(), &file_name))
            .map_err(on(id, "remove snapshot"))
    }

    /// A new volume with the content of `source`: of its snapshot `at`, or of this moment.
    pub fn fork(
        &self,
        source: &VolumeId,
        at: Option<&SnapshotName>,
        id: &VolumeId,
        label: &str,
        quota: ByteSize,
    ) -> Result<Volume, VolumeError> {
        if self.open_volume(id).is_ok() {
            return Err(VolumeError::Exists(id.clone()));
        }
        let from = match at {
            None => self.open_volume(source)?,
            Some(name) => open_subvolume(&self.snapshots, &snapshot_file_name(source, name)?)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => no_snapshot(source, name),
                    _ => on(source, "open snapshot")(error),
                })?,
        };
        let copy = || {
            let copy = Blank::under(&self.unfinished)?;
            let (from, to) = (from.as_fd(), self.unfinished.as_fd());
            sys::snapshot_create(from, to, &copy.name, Access::ReadWrite, ALL_GUESTS)?;
            Ok(copy)
        };
        self.finish(copy().map_err(on(id, "fork"))?, id, label, quota)
    }

    /// Removes the volume; its snapshots stay. The space comes back a little later.
    pub fn destroy(&self, id: &VolumeId) -> Result<(), VolumeError> {
        let name = file_name(id)?;
        ignore_missing(sys::subvolume_destroy(self.volumes.as_fd(), &name))
            .map_err(on(id, "remove"))
    }

    pub fn volume_usage(&self, id: &VolumeId) -> Result<VolumeUse, VolumeError> {
        let subvolume = self.open_volume(id)?;
        let figures = sys::subvolume_id(subvolume.as_fd())
            .and_then(|subvolume| self.qgroups.figures(subvolume))
            .map_err(on(id, "read usage"))?;
        Ok(VolumeUse { used_bytes: figures.referenced_bytes, quota_bytes: figures.limit_bytes })
    }

    pub fn set_quota(&self, id: &VolumeId, quota: ByteSize) -> Result<(), VolumeError> {
        let subvolume = self.open_volume(id)?;
        sys::qgroup_limit(subvolume.as_fd(), 0, quota.bytes()).map_err(on(id, "set quota"))
    }

    /// Raises the limit of a volume that its guest has filled, so that it can be mounted again.
    /// [`Pool::set_quota`] afterwards brings it back: a volume over its quota takes no writes.
    pub fn make_room(&self, id: &VolumeId, quota: ByteSize) -> Result<Volume, VolumeError> {
        let used = self.volume_usage(id)?.used_bytes;
        let limit = quota.bytes().max(used.saturating_add(START_ROOM_BYTES));
        self.set_quota(id, ByteSize(limit))?;
        self.volume(id)
    }

    /// Every volume of the pool, in no order.
    pub fn list(&self) -> io::Result<Vec<VolumeId>> {
        let entries = fs::read_dir(self.mount_point.join("volumes"))?;
        let ids = entries.map(|entry| {
            let name = entry?.file_name();
            Ok(name.to_str().and_then(VolumeId::parse))
        });
        ids.filter_map(Result::transpose).collect()
    }

    pub fn snapshots(&self, id: &VolumeId) -> io::Result<Vec<SnapshotName>> {
        let prefix = format!("{id}.");
        let entries = fs::read_dir(self.mount_point.join("snapshots"))?;
        let names = entries.map(|entry| {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            Ok(name.and_then(SnapshotName::parse))
        });
        names.filter_map(Result::transpose).collect()
    }

    /// Makes it the volume `id`, which must not exist: limited, then under its own name.
    pub fn finish(
        &self,
        blank: Blank,
        id: &VolumeId,
        label: &str,
        quota: ByteSize,
    ) -> Result<Volume, VolumeError> {
        let name = file_name(id)?;
        let finished = || {
            let subvolume = blank.open()?;
            write_label(&subvolume, label)?;
            sys::qgroup_limit(subvolume.as_fd(), 0, quota.bytes())?;
            let (from, to) = (&*self.unfinished, &self.volumes);
            rustix::fs::renameat_with(from, &*blank.name, to, &*name, RenameFlags::NOREPLACE)?;
            Ok(())
        };
        finished().map_err(on(id, "create"))?;
        self.volume(id)
    }

    fn open_volume(&self, id: &VolumeId) -> Result<OwnedFd, VolumeError> {
        let name = file_name(id)?;
        open_subvolume(&self.volumes, &name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumeError::NotFound(id.clone()),
            _ => on(id, "open")(error),
        })
    }
}

fn write_label(subvolume: &OwnedFd, label: &str) -> io::Result<()> {
    let flags =
        OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(subvolume, LABEL_FILE, flags, Mode::from_raw_mode(0o600))?;
    io::Write::write_all(&mut File::from(file), label.as_bytes())
}

fn open_subvolume(directory: impl AsFd, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(io::Error::from)
}

/// An id becomes a file name only if this program made it.
fn file_name(id: &VolumeId) -> Result<CString, VolumeError> {
    VolumeId::parse(id.as_str())
        .and_then(|id| CString::new(id.into_string()).ok())
        .ok_or_else(|| VolumeError::NotFound(id.clone()))
}

fn snapshot_file_name(id: &VolumeId, name: &SnapshotName) -> Result<CString, VolumeError> {
    let id = file_name(id)?;
    let full = format!("{}.{}", id.to_string_lossy(), name.as_str());
    Ok(CString::new(full).unwrap_or(id))
}

fn no_snapshot(volume: &VolumeId, name: &SnapshotName) -> VolumeError {
    VolumeError::NoSnapshot { volume: volume.clone(), name: name.as_str().to_owned() }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other,
    }
}
