//! Limits and usage, by subvolume and for all guests together.
//!
//! Figures are read from sysfs: they are the kernel's own, current as of the last commit.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use crate::sys;

/// Every volume and snapshot is a member of this qgroup, and of its own one of level 0.
pub const ALL_GUESTS: u64 = (1 << 48) | 1;

/// Subvolume ids below are the file system's own trees.
const FIRST_SUBVOLUME: u64 = 256;

pub struct Figures {
    pub referenced_bytes: u64,
    pub limit_bytes: u64,
}

/// The sysfs directory of one mounted file system's qgroups.
pub struct Qgroups {
    directory: PathBuf,
}

impl Qgroups {
    pub fn of(root: BorrowedFd<'_>) -> io::Result<Self> {
        let fsid = uuid_text(sys::fsid(root)?);
        Ok(Self { directory: PathBuf::from(format!("/sys/fs/btrfs/{fsid}/qgroups")) })
    }

    pub fn figures(&self, qgroupid: u64) -> io::Result<Figures> {
        let name = format!("{}_{}", qgroupid >> 48, qgroupid & ((1 << 48) - 1));
        let number = |file: &str| {
            let text = fs::read_to_string(self.directory.join(&name).join(file))?;
            text.trim().parse::<u64>().map_err(io::Error::other)
        };
        Ok(Figures {
            referenced_bytes: number("referenced")?,
            limit_bytes: number("max_referenced")?,
        })
    }

    /// Ids of the qgroups of subvolumes, those of removed ones included: older kernels keep them.
    pub fn of_subvolumes(&self) -> io::Result<Vec<u64>> {
        let entries = fs::read_dir(&self.directory)?.flatten();
        let ids = entries.filter_map(|entry| {
            let name = entry.file_name();
            let id: u64 = name.to_str()?.strip_prefix("0_")?.parse().ok()?;
            (id >= FIRST_SUBVOLUME).then_some(id)
        });
        Ok(ids.collect())
    }
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
