//! The overlay's `volatile` mark.
//!
//! A volatile overlay answers a guest's `fsync` without going to the disk, because a storm of
//! real ones slows every neighbour. The kernel leaves a mark in the work directory and refuses to
//! mount such an upper layer again, since after a crash of the *machine* it may lack writes that
//! were acknowledged. After a mere end of processes nothing is lost: the writes are in the page
//! cache of the machine that still runs. So the volume remembers in which boot it was mounted.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::error::{StartError, at};

/// Beside the three directories, out of the guest's reach.
const BOOT_FILE: &str = "boot";
const MARK: &str = "w/work/incompat/volatile";

/// Makes the volume mountable again if that is safe, and notes that this boot mounts it.
pub fn prepare(volume: &Path) -> Result<(), StartError> {
    let boot_path = volume.join(BOOT_FILE);
    let this_boot = boot_id().map_err(at("read", "/proc/sys/kernel/random/boot_id"))?;
    let mounted_in = match fs::read_to_string(&boot_path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at("read", &boot_path)(error)),
    };
    let same_boot = mounted_in.as_deref() == Some(this_boot.as_str());
    if volume.join(MARK).exists() {
        if !same_boot {
            return Err(StartError::NotSynced(volume.into()));
        }
        clear(volume)?;
    }
    if !same_boot {
        fs::write(&boot_path, this_boot).map_err(at("write", &boot_path))?;
    }
    Ok(())
}

/// Brings a stopped container's volume to the disk, after which it survives a power cut. The
/// container must have ended.
pub fn settle(volume: &Path) -> Result<(), StartError> {
    let directory = File::open(volume).map_err(at("open", volume))?;
    rustix::fs::syncfs(&directory).map_err(|errno| at("sync", volume)(errno.into()))?;
    clear(volume)
}

/// The mark is a directory with a file in it, and both are the kernel's: the guest never sees the
/// work directory.
fn clear(volume: &Path) -> Result<(), StartError> {
    let mark = volume.join(MARK);
    let removed = fs::remove_file(mark.join("dirty"));
    missing_is_fine(removed).map_err(at("clear", &mark))?;
    for directory in [mark.as_path(), &volume.join("w/work/incompat")] {
        missing_is_fine(fs::remove_dir(directory)).map_err(at("remove", directory))?;
    }
    Ok(())
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}
