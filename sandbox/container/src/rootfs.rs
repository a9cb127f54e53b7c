//! Puts the container's root together, in the child's own mount namespace, and enters it.
//!
//! The child is still host root here, and the volume's content was written by a hostile guest:
//! every target is opened component by component without following links, and mounts are
//! attached to descriptors, never to paths.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::child::Plan;
use crate::device_tree::{self, DeviceOptions};
use crate::error::Step;
use crate::mounts::{self, NOTHING_SPECIAL};
use crate::{caps, proc_tree, sys};

/// What the child keeps of the tree after it has entered it.
pub struct Entered {
    /// The output directory, writable through this descriptor only.
    pub output: OwnedFd,
    pub namespace_limits: OwnedFd,
}

pub fn enter(plan: &Plan<'_>) -> Result<Entered, (Step, Errno)> {
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", everything).map_err(|e| (Step::PrivateMounts, e))?;
    let scratch = scratch().map_err(|e| (Step::Scratch, e))?;
    let scratch = scratch.as_fd();
    let volume = layers(scratch, plan).map_err(|e| (Step::Layers, e))?;
    caps::drop_resource().map_err(|e| (Step::DropResource, e))?;
    let root = overlay(scratch)?;
    let root = root.as_fd();
    standard_directories(root, volume.as_fd(), plan).map_err(|e| (Step::Directories, e))?;
    etc_files(root, volume.as_fd(), plan).map_err(|e| (Step::EtcFiles, e))?;

    let place = |name| mounts::directory(root, name, 0o755).map(|made| made.directory);
    let proc = place(c"proc").map_err(|e| (Step::Proc, e))?;
    let namespace_limits = proc_tree::mount(proc.as_fd(), scratch)?;
    let dev = place(c"dev").map_err(|e| (Step::Dev, e))?;
    let options = DeviceOptions {
        root_id: &plan.root_id,
        tty_group: &plan.tty_group,
        shm_bytes: &plan.shm_bytes,
    };
    device_tree::mount(dev.as_fd(), &options)?;
    let run = place(c"run").map_err(|e| (Step::Run, e))?;
    let output = run_tree(run.as_fd(), volume.as_fd(), plan)?;
    // Last, because it may be in one of the mounts. What stands in its way (a link, a file, a full
    // disk) stays: the sandbox starts without it, and whoever uses it is told that it is missing.
    let _ = work_directory(root, plan);
    pivot(root).map_err(|e| (Step::PivotRoot, e))?;
    Ok(Entered { output, namespace_limits })
}

/// A place to attach layers that no one else sees, over a directory that every host has.
fn scratch() -> Result<OwnedFd, Errno> {
    let options = [(c"mode", Some(c"0700")), (c"size", Some(c"64k"))];
    let scratch = mounts::filesystem(c"tmpfs", &options, NOTHING_SPECIAL)?;
    mounts::attach(scratch.as_fd(), mounts::reference(CWD, c"/tmp")?.as_fd())?;
    for name in [c"image", c"volume", c"root", c"empty"] {
        rustix::fs::mkdirat(&scratch, name, Mode::from_raw_mode(0o755))?;
    }
    let empty = [(c"size", Some(c"4k")), (c"nr_inodes", Some(c"1"))];
    let read_only = NOTHING_SPECIAL | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let empty = mounts::filesystem(c"tmpfs", &empty, read_only)?;
    mounts::attach(empty.as_fd(), mounts::reference(scratch.as_fd(), c"empty")?.as_fd())?;
    Ok(scratch)
}

fn layers(scratch: BorrowedFd<'_>, plan: &Plan<'_>) -> Result<OwnedFd, Errno> {
    mounts::attach(plan.image, mounts::reference(scratch, c"image")?.as_fd())?;
    mounts::attach(plan.volume, mounts::reference(scratch, c"volume")?.as_fd())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(scratch, c"volume", flags, Mode::empty())
}

fn overlay(scratch: BorrowedFd<'_>) -> Result<OwnedFd, (Step, Errno)> {
    let mounted = || {
        // Relative paths, so that nothing of the host shows in the guest's /proc/mounts.
        rustix::process::fchdir(scratch)?;
        let overlay = mounts::filesystem(
            c"overlay",
            &[
                (c"source", Some(c"sandbox")),
                (c"lowerdir", Some(c"image")),
                (c"upperdir", Some(c"volume/u")),
                (c"workdir", Some(c"volume/w")),
                // Without it, renaming a directory of the image is EXDEV.
                (c"redirect_dir", Some(c"on")),
                (c"metacopy", Some(c"off")),
                (c"index", Some(c"off")),
                // Absorbs the guest's fsync; see `volatile`.
                (c"volatile", None),
            ],
            // Device nodes of the image stay dead.
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )?;
        mounts::attach(overlay.as_fd(), mounts::reference(scratch, c"root")?.as_fd())?;
        Ok(overlay)
    };
    let overlay = mounted().map_err(|e| (Step::Overlay, e))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(&overlay, c".", flags, Mode::empty()).map_err(|e| (Step::Overlay, e))?;
    // The kernel falls back to a read-only overlay without an error.
    let stat = rustix::fs::fstatvfs(&root).map_err(|e| (Step::Overlay, e))?;
    match stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        true => Err((Step::OverlayReadOnly, Errno::ROFS)),
        false => Ok(root),
    }
}

fn standard_directories(
    root: BorrowedFd<'_>,
    volume: BorrowedFd<'_>,
    plan: &Plan<'_>,
) -> Result<(), Errno> {
    for (name, mode) in [
        (c"proc", 0o555),
        (c"sys", 0o555),
        (c"dev", 0o755),
        (c"run", 0o755),
        (c"etc", 0o755),
        (c"home", 0o755),
        (c"tmp", 0o1777),
    ] {
        let made = mounts::directory(root, name, mode)?;
        if made.is_new {
            mounts::own(made.directory.as_fd(), plan.id_base)?;
        }
    }
    let home = mounts::directory(root, c"home", 0o755)?.directory;
    for (parent, name, upper) in
        [(root, c"workspace", c"u/workspace"), (home.as_fd(), c"agent", c"u/home/agent")]
    {
        let is_first = !is_in_upper(volume, upper);
        let made = mounts::directory(parent, name, 0o755)?;
        if made.is_new || is_first {
            mounts::give(made.directory.as_fd(), plan.tool_owner)?;
        }
    }
    Ok(())
}

/// Makes what is missing of the work directory. A link on the way ends it: as host root it is
/// never followed, and what it leads to is the guest's business.
fn work_directory(root: BorrowedFd<'_>, plan: &Plan<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(root, c".", flags, Mode::empty())?;
    for (index, name) in plan.workdir.iter().enumerate() {
        let is_new = match rustix::fs::mkdirat(&at, name.as_c_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
        at = rustix::fs::openat(&at, name.as_c_str(), flags, Mode::empty())?;
        if is_new {
            let is_last = index + 1 == plan.workdir.len();
            let owner = if is_last { plan.tool_owner } else { (plan.id_base, plan.id_base) };
            mounts::give(at.as_fd(), owner)?;
        }
    }
    Ok(())
}

/// The image's own files were copied from the machine that built it. What the guest wrote, or
/// removed, in an earlier epoch stands.
fn etc_files(root: BorrowedFd<'_>, volume: BorrowedFd<'_>, plan: &Plan<'_>) -> Result<(), Errno> {
    let etc = mounts::directory(root, c"etc", 0o755)?.directory;
    for file in &plan.etc_files {
        if is_in_upper(volume, file.in_upper) {
            continue;
        }
        match rustix::fs::unlinkat(&etc, file.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // An image that has a directory there means something by it.
            Err(Errno::ISDIR) => continue,
            Err(errno) => return Err(errno),
        }
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&etc, file.name, flags, Mode::from_raw_mode(0o644))?;
        rustix::io::write(&made, &file.content)?;
        mounts::own(made.as_fd(), plan.id_base)?;
    }
    Ok(())
}

/// Whatever is not plainly missing counts as there.
fn is_in_upper(volume: BorrowedFd<'_>, path: &CStr) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(volume, path, flags, Mode::empty(), resolve);
    !matches!(found, Err(Errno::NOENT))
}

/// /run, with the outputs of tools in a directory that guest root can neither write nor move: it
/// is a mount in a mount of ours.
fn run_tree(
    target: BorrowedFd<'_>,
    volume: BorrowedFd<'_>,
    plan: &Plan<'_>,
) -> Result<OwnedFd, (Step, Errno)> {
    let output = output_alone(volume).map_err(|e| (Step::Output, e))?;
    let run = || {
        let run = mounts::filesystem(
            c"tmpfs",
            &[
                (c"mode", Some(c"0755")),
                (c"size", Some(c"16m")),
                (c"nr_inodes", Some(c"4096")),
                (c"uid", Some(&*plan.root_id)),
                (c"gid", Some(&*plan.root_id)),
            ],
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
        )?;
        mounts::attach(run.as_fd(), target)?;
        let lock = mounts::directory(run.as_fd(), c"lock", 0o1777)?.directory;
        mounts::own(lock.as_fd(), plan.id_base)?;
        Ok(mounts::directory(run.as_fd(), c"sinew", 0o755)?.directory)
    };
    let sinew = run().map_err(|e| (Step::Run, e))?;
    bind_output(sinew.as_fd(), volume).map_err(|e| (Step::Output, e))?;
    Ok(output)
}

/// The output directory as the root of a mount of its own: from a descriptor of it, `..` must not
/// lead to the rest of the volume.
fn output_alone(volume: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let tree = mounts::copy_of(volume, c"o")?;
    let attributes = sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), attributes, None)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&tree, c".", flags, Mode::empty())
}

fn bind_output(target: BorrowedFd<'_>, volume: BorrowedFd<'_>) -> Result<(), Errno> {
    let options = [(c"mode", Some(c"0755")), (c"size", Some(c"4k")), (c"nr_inodes", Some(c"8"))];
    let holder = mounts::filesystem(c"tmpfs", &options, NOTHING_SPECIAL)?;
    mounts::attach(holder.as_fd(), target)?;
    let place = mounts::directory(holder.as_fd(), c"output", 0o755)?.directory;
    let output = mounts::copy_of(volume, c"o")?;
    let attributes = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    sys::mount_setattr(output.as_fd(), attributes, None)?;
    mounts::attach(output.as_fd(), place.as_fd())
}

/// Makes `root` the root and lets go of the host's whole tree, the layers' mounts included.
fn pivot(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}
