//! /dev of the container: a small tmpfs with the harmless nodes of the host bound into it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::Step;
use crate::mounts;

const NODES: &[(&CStr, &CStr)] = &[
    (c"null", c"/dev/null"),
    (c"zero", c"/dev/zero"),
    (c"full", c"/dev/full"),
    (c"random", c"/dev/random"),
    (c"urandom", c"/dev/urandom"),
    (c"tty", c"/dev/tty"),
];
const LINKS: &[(&CStr, &CStr)] = &[
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// Mount options that name host ids, as text made before the child existed.
pub struct DeviceOptions<'a> {
    pub root_id: &'a CStr,
    /// Group 5 is `tty` in every distribution.
    pub tty_group: &'a CStr,
    pub shm_bytes: &'a CStr,
}

pub fn mount(target: BorrowedFd<'_>, options: &DeviceOptions<'_>) -> Result<(), (Step, Errno)> {
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = mounts::filesystem(
        c"tmpfs",
        &[
            (c"mode", Some(c"0755")),
            // Room for names, not for data.
            (c"size", Some(c"64k")),
            (c"nr_inodes", Some(c"64")),
            (c"uid", Some(options.root_id)),
            (c"gid", Some(options.root_id)),
        ],
        quiet,
    )
    .map_err(|e| (Step::Dev, e))?;
    mounts::attach(dev.as_fd(), target).map_err(|e| (Step::Dev, e))?;
    let dev = dev.as_fd();
    nodes(dev).map_err(|e| (Step::DevNodes, e))?;
    terminals(dev, options).and_then(|()| shared_memory(dev, options)).map_err(|e| (Step::Dev, e))
}

fn nodes(dev: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    for (name, host) in NODES {
        let place = rustix::fs::openat(dev, *name, flags, Mode::from_raw_mode(0o666))?;
        mounts::attach(mounts::host_path(host)?.as_fd(), place.as_fd())?;
    }
    LINKS.iter().try_for_each(|(name, target)| rustix::fs::symlinkat(*target, dev, *name))
}

fn terminals(dev: BorrowedFd<'_>, options: &DeviceOptions<'_>) -> Result<(), Errno> {
    let pts = mounts::filesystem(
        c"devpts",
        &[
            (c"newinstance", None),
            (c"ptmxmode", Some(c"0666")),
            (c"mode", Some(c"0620")),
            (c"gid", Some(options.tty_group)),
            // The host's total (4,096) is shared by all sandboxes.
            (c"max", Some(c"64")),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let place = mounts::directory(dev, c"pts", 0o755)?.directory;
    mounts::attach(pts.as_fd(), place.as_fd())
}

fn shared_memory(dev: BorrowedFd<'_>, options: &DeviceOptions<'_>) -> Result<(), Errno> {
    let shm = mounts::filesystem(
        c"tmpfs",
        &[(c"mode", Some(c"1777")), (c"size", Some(options.shm_bytes))],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let place = mounts::directory(dev, c"shm", 0o755)?.directory;
    mounts::attach(shm.as_fd(), place.as_fd())
}
