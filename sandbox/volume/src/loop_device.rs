//! A block device on the pool's file.
//!
//! Two devices on one file would be two file systems that overwrite each other, so a device that
//! an earlier process left is found and used again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use crate::error::{PoolError, at};
use crate::{image_file, sys};

/// Between "this device is free" and taking it another process may be faster.
const ATTACH_ATTEMPTS_MAX: u32 = 64;

pub struct LoopDevice {
    path: PathBuf,
    device: File,
}

impl LoopDevice {
    /// The device that carries `file` already, or a new one.
    pub fn on(file: &File, file_path: &Path) -> Result<Self, PoolError> {
        let identity = image_file::identity(file).map_err(at("examine", file_path))?;
        match Self::find(identity) {
            Some(found) => Ok(found),
            None => Self::attach(file),
        }
    }

    fn find(identity: (u64, u64)) -> Option<Self> {
        let devices = fs::read_dir("/sys/block").ok()?;
        devices.flatten().find_map(|entry| {
            let name = entry.file_name();
            let is_attached = entry.path().join("loop").is_dir();
            if !is_attached || !name.to_string_lossy().starts_with("loop") {
                return None;
            }
            let path = Path::new("/dev").join(&name);
            let device = OpenOptions::new().read(true).write(true).open(&path).ok()?;
            let backing = sys::loop_backing(device.as_fd()).ok()?;
            (backing == identity).then_some(Self { path, device })
        })
    }

    fn attach(file: &File) -> Result<Self, PoolError> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(PoolError::NoLoop)?;
        for _ in 0..ATTACH_ATTEMPTS_MAX {
            let number = sys::loop_get_free(control.as_fd()).map_err(PoolError::NoLoop)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device =
                OpenOptions::new().read(true).write(true).open(&path).map_err(PoolError::NoLoop)?;
            let flags = sys::LOOP_DIRECT_IO | sys::LOOP_AUTOCLEAR;
            match sys::loop_configure(device.as_fd(), file.as_raw_fd(), flags) {
                Ok(()) => return Ok(Self { path, device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(PoolError::NoLoop(error)),
            }
        }
        Err(PoolError::NoLoop(io::Error::from_raw_os_error(libc::EBUSY)))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn grow(&self) -> Result<(), PoolError> {
        sys::loop_set_capacity(self.device.as_fd()).map_err(at("grow", &self.path))
    }

    /// Gives the device back. One that is still mounted somewhere goes with that mount.
    pub fn detach(self) -> Result<(), PoolError> {
        match sys::loop_clear(self.device.as_fd()) {
            Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
                Err(at("detach", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}
