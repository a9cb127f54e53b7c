//! Output files of calls that the host no longer asks about, and that the guest may still read:
//! bounded, the oldest goes first.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use guest_protocol::CallId;
use rustix::fs::{AtFlags, Dir};

use crate::spool::file_name;

/// Files kept; enough to look back over a long turn.
pub const KEPT_FILES_MAX: usize = 64;
/// Bytes kept, out of the guest's own quota.
pub const KEPT_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug)]
pub struct Kept {
    directory: Rc<OwnedFd>,
    files: VecDeque<(CallId, u64)>,
    bytes: u64,
}

// === impl Kept ===

impl Kept {
    /// Takes over what an earlier incarnation left, oldest first.
    pub fn load(directory: Rc<OwnedFd>) -> Self {
        let mut found = Vec::new();
        for entry in Dir::read_from(&*directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_str().unwrap_or_default();
            let Some(id) = name.strip_suffix(".out").and_then(CallId::parse) else { continue };
            let Ok(stat) = rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            found.push((stat.st_mtime, id, stat.st_size as u64));
        }
        found.sort();
        let mut kept = Self { directory, files: VecDeque::new(), bytes: 0 };
        for (_, id, bytes) in found {
            kept.add(id, bytes);
        }
        kept
    }

    pub fn add(&mut self, id: CallId, bytes: u64) {
        self.files.push_back((id, bytes));
        self.bytes += bytes;
        while self.files.len() > KEPT_FILES_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some((oldest, bytes)) = self.files.pop_front() else { break };
            self.bytes -= bytes;
            let _ = rustix::fs::unlinkat(&*self.directory, file_name(&oldest), AtFlags::empty());
        }
    }

    pub fn count(&self) -> usize {
        self.files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_there_are_too_many_or_too_much() {
        let directory = tempfile::tempdir().unwrap();
        let fd: OwnedFd = std::fs::File::open(directory.path()).unwrap().into();
        let mut kept = Kept::load(Rc::new(fd));
        let path = |id: &CallId| directory.path().join(file_name(id));
        let ids: Vec<CallId> = (0..=KEPT_FILES_MAX).map(|_| CallId::generate()).collect();
        for id in &ids {
            std::fs::write(path(id), b"x").unwrap();
            kept.add(id.clone(), 1);
        }
        assert!(!path(&ids[0]).exists());
        assert!(path(&ids[1]).exists());

        let again: OwnedFd = std::fs::File::open(directory.path()).unwrap().into();
        assert_eq!(Kept::load(Rc::new(again)).count(), KEPT_FILES_MAX);

        let big = CallId::generate();
        std::fs::write(path(&big), b"x").unwrap();
        kept.add(big.clone(), KEPT_BYTES_MAX);
        assert_eq!(kept.count(), 1);
        assert!(path(&big).exists());
    }
}
