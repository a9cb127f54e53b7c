//! The new mount API in the few shapes used here. Called in the child: system calls only.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::sys;

pub const NOTHING_SPECIAL: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// An option with a value, or a flag.
pub type MountOption<'a> = (&'a CStr, Option<&'a CStr>);

/// Makes a new file system, attached nowhere.
pub fn filesystem(
    kind: &CStr,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *name, *value)?,
            None => fsconfig_set_flag(&context, *name)?,
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches `tree` on what `target` refers to.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags)
}

/// A copy of the mount at `path`, attached nowhere.
pub fn copy_of(directory: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(directory, path, flags)
}

/// Binds `path`, which becomes unwritable, on itself.
pub fn make_read_only(directory: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let copy = copy_of(directory, path)?;
    let attributes = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    sys::mount_setattr(copy.as_fd(), attributes, None)?;
    attach(copy.as_fd(), reference(directory, path)?.as_fd())
}

/// A descriptor that names `path` and does not open it. The last component is not followed.
pub fn reference(directory: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, path, flags, Mode::empty())
}

pub struct MadeDirectory {
    pub directory: OwnedFd,
    pub is_new: bool,
}

/// Opens directory `name`, one component, and makes it if need be. Whatever else the guest of an
/// earlier epoch left under this name gives way: a link there must not lead the mounts astray.
pub fn directory(parent: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<MadeDirectory, Errno> {
    let make = || rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode));
    let is_new = match make() {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    match open() {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            make()?;
            Ok(MadeDirectory { directory: open()?, is_new: true })
        }
        opened => Ok(MadeDirectory { directory: opened?, is_new }),
    }
}

pub fn own(file: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    give(file, (id, id))
}

/// To a user and a group.
pub fn give(file: BorrowedFd<'_>, (user, group): (u32, u32)) -> Result<(), Errno> {
    rustix::fs::fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
}

/// A host path, for what is the same in every mount namespace: device nodes.
pub fn host_path(path: &CStr) -> Result<OwnedFd, Errno> {
    copy_of(CWD, path)
}
