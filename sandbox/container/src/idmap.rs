//! Image and volume as id-mapped mounts, not yet attached anywhere.
//!
//! Stored ids are canonical; through these mounts they appear in the sandbox's range. A map is
//! given to the kernel as a user namespace, so a process is started for a moment, in a new one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitIdOptions};

use crate::error::{StartError, at, system};
use crate::spec::ID_RANGE;
use crate::sys::{self, Cloned};

/// The maps of the two layers of an overlay.
pub struct Maps {
    image: OwnedFd,
    volume: OwnedFd,
}

impl Maps {
    pub fn of(id_base: u32) -> Result<Self, StartError> {
        let range = format!("0 {id_base} {ID_RANGE}\n");
        Ok(Self {
            image: map(&range)?,
            // The overlay creates its own files in the upper layer as the one who mounted it, host
            // root. Without an id for that one it comes up silently read-only.
            volume: map(&format!("{range}{ID_RANGE} 0 1\n"))?,
        })
    }
}

/// The two layers of an overlay.
pub struct Layers {
    pub image: OwnedFd,
    pub volume: OwnedFd,
}

impl Layers {
    pub fn open(image_root: &Path, volume: &Path, maps: &Maps) -> Result<Self, StartError> {
        Ok(Self {
            image: mapped_tree(image_root, maps.image.as_fd(), sys::ATTR_RDONLY)?,
            volume: mapped_tree(volume, maps.volume.as_fd(), 0)?,
        })
    }
}

/// A mount of `directory`, attached nowhere, in which ids appear as user namespace `map` has them:
/// its root writes there as id 0.
pub fn map_ids(directory: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(directory, c"", flags)?;
    let attributes = sys::ATTR_IDMAP | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), attributes, Some(map))?;
    Ok(tree)
}

fn mapped_tree(path: &Path, map: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd, StartError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(|errno| at("open", path)(errno.into()))?;
    sys::mount_setattr(tree.as_fd(), attributes | sys::ATTR_IDMAP, Some(map))
        .map_err(|errno| at("map the ids of", path)(errno.into()))?;
    Ok(tree)
}

/// A user namespace with this map for users and groups, and no process in it.
fn map(extents: &str) -> Result<OwnedFd, StartError> {
    let holder = Holder::start()?;
    let open = || File::open(format!("/proc/{}/ns/user", holder.pid.as_raw_nonzero()));
    let opened = write_maps(holder.pid, extents).and_then(|()| open());
    opened.map(OwnedFd::from).map_err(system("write the id map of a mount"))
}

/// A process in a user namespace of its own, for as long as this value lives.
struct Holder {
    pid: Pid,
    pidfd: OwnedFd,
    /// Closed by our end, whatever that is, and with it the process ends.
    _ends_with_us: OwnedFd,
}

impl Holder {
    fn start() -> Result<Self, StartError> {
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| system("make a pipe")(e.into()))?;
        // SAFETY: the child makes system calls only, and exits.
        let cloned = unsafe { sys::clone_into(libc::CLONE_NEWUSER as u64, None) };
        match cloned.map_err(|errno| system("make a user namespace")(errno.into()))? {
            Cloned::Child => {
                // With copies of ours it would hold our locks after us, and the pipe of another
                // holder, which holds this one's: both would wait for ever.
                let kept = read.as_raw_fd();
                let closed = sys::close_between(0, kept - 1)
                    .and_then(|()| sys::close_between(kept + 1, i32::MAX));
                if closed.is_ok() {
                    let _ = rustix::io::read(&read, &mut [0_u8]);
                }
                sys::exit_now(0);
            }
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd, _ends_with_us: write }),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(id, WaitIdOptions::EXITED);
    }
}

/// Gives the user namespace that `pid` is in its ids.
pub fn write_maps(pid: Pid, extents: &str) -> io::Result<()> {
    let pid = pid.as_raw_nonzero();
    fs::write(format!("/proc/{pid}/uid_map"), extents)?;
    fs::write(format!("/proc/{pid}/gid_map"), extents)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A launcher that is killed must not leave its lock with such a process.
    #[test]
    fn the_process_behind_a_map_keeps_nothing_of_ours() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP the_process_behind_a_map_keeps_nothing_of_ours: not root");
            return;
        }
        let holders = [Holder::start().unwrap(), Holder::start().unwrap()];
        let end = Instant::now() + Duration::from_secs(10);
        for holder in &holders {
            let held = format!("/proc/{}/fd", holder.pid.as_raw_nonzero());
            let count = || fs::read_dir(&held).unwrap().count();
            while count() != 1 {
                assert!(Instant::now() < end, "{} descriptors", count());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
