//! Which sandbox has which range of 65,536 host ids, across all installations of a machine.
//!
//! A range is taken by making a file named after it in a directory that all installations share;
//! the file holds the path of the record it belongs to. It is free again when its holder removes
//! the file, or when the whole table that the record would be in is gone (an installation that was
//! deleted). The ranges outlive the launcher that took them, as its sandboxes do; a lock that ends
//! with the process would not.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::layout::missing_is_fine;
use crate::table::IdRange;

/// Shared by every installation of the machine, and empty after it restarts, as it should be.
pub const RANGES_DIR: &str = "/run/sinew/idmap";

/// The first range begins at id 0x2000_0000: above what distributions give to users (`subuid`).
pub const RANGE_FIRST: u32 = 0x2000;

/// 16,384 sandboxes at once on a machine; the last id is 0x5fff_ffff, below the sign bit.
pub const RANGE_COUNT: u32 = 0x4000;

#[derive(Debug)]
pub struct Ranges {
    dir: PathBuf,
    first: u32,
    count: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum TakeRangeError {
    #[error("all {0} ranges of user ids are in use")]
    Full(u32),
    #[error("keep the ranges of user ids in {path}")]
    Io { path: PathBuf, source: io::Error },
}

// === impl Ranges ===

impl Ranges {
    pub fn open(dir: &Path, first: u32, count: u32) -> io::Result<Self> {
        if let Some(parent) = dir.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned(), first, count })
    }

    /// Takes a range for the sandbox whose record is this file. `hint` spreads the search.
    pub fn take(&self, record: &Path, hint: u32) -> Result<IdRange, TakeRangeError> {
        let _one_at_a_time = self.lock().map_err(|source| self.error(source))?;
        for step in 0..self.count {
            let range = IdRange(self.first + (hint.wrapping_add(step)) % self.count);
            if self.claim(range, record).map_err(|source| self.error(source))? {
                return Ok(range);
            }
        }
        Err(TakeRangeError::Full(self.count))
    }

    /// Makes a range another's that is `from`'s now.
    pub fn give(&self, range: IdRange, from: &Path, to: &Path) -> io::Result<()> {
        let _one_at_a_time = self.lock()?;
        if self.holder(range)?.as_deref() != Some(from) {
            return Err(io::Error::other(format!("{:04x} is not held here", range.0)));
        }
        // Cut short by a crash it names no table, and is free.
        fs::write(self.path(range), to.as_os_str().as_bytes())
    }

    /// Gives a range back, if it is this record's.
    pub fn release(&self, range: IdRange, record: &Path) -> io::Result<()> {
        let _one_at_a_time = self.lock()?;
        match self.holder(range)? {
            Some(holder) if holder == record => missing_is_fine(fs::remove_file(self.path(range))),
            _ => Ok(()),
        }
    }

    /// Gives back what this table's records do not hold: a launcher was killed between taking a
    /// range and writing it down.
    pub fn sweep(&self, table: &Path, held: &[IdRange]) -> io::Result<usize> {
        let _one_at_a_time = self.lock()?;
        let mut freed = 0;
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| u32::from_str_radix(name, 16).ok());
            let Some(range) = number.map(IdRange) else { continue };
            let ours = self.holder(range)?.is_some_and(|holder| holder.parent() == Some(table));
            if ours && !held.contains(&range) {
                missing_is_fine(fs::remove_file(self.path(range)))?;
                freed += 1;
            }
        }
        Ok(freed)
    }

    fn claim(&self, range: IdRange, record: &Path) -> io::Result<bool> {
        let path = self.path(range);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                file.write_all(record.as_os_str().as_bytes())?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let holder = self.holder(range)?;
                let table = holder.as_deref().and_then(Path::parent);
                if table.is_some_and(Path::exists) {
                    return Ok(false);
                }
                fs::write(&path, record.as_os_str().as_bytes())?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn holder(&self, range: IdRange) -> io::Result<Option<PathBuf>> {
        match fs::read(self.path(range)) {
            Ok(text) => Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(text)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.dir.join("lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn path(&self, range: IdRange) -> PathBuf {
        self.dir.join(format!("{:04x}", range.0))
    }

    fn error(&self, source: io::Error) -> TakeRangeError {
        TakeRangeError::Io { path: self.dir.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_installations_never_share_a_range_and_a_deleted_one_frees_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let table = |name: &str| {
            let table = dir.path().join(name);
            fs::create_dir(&table).unwrap();
            table.join("sbx.json")
        };
        let (a, b, c) = (table("a"), table("b"), table("c"));
        let ours = Ranges::open(&dir.path().join("idmap"), 0x2000, 2).unwrap();
        let theirs = Ranges::open(&dir.path().join("idmap"), 0x2000, 2).unwrap();

        let first = ours.take(&a, 1).unwrap();
        let second = theirs.take(&b, 1).unwrap();
        assert_ne!(first, second);
        assert!(matches!(ours.take(&c, 0), Err(TakeRangeError::Full(2))));

        theirs.release(first, &b).unwrap();
        assert!(ours.take(&c, 0).is_err(), "only the holder gives a range back");

        fs::remove_dir(b.parent().unwrap()).unwrap();
        assert_eq!(ours.take(&c, 0).unwrap(), second);
        ours.release(first, &a).unwrap();
        assert_eq!(theirs.take(&a, 0).unwrap(), first);

        let d = a.with_file_name("other.json");
        ours.give(first, &c, &d).unwrap_err();
        ours.give(first, &a, &d).unwrap();
        ours.release(first, &a).unwrap();
        ours.give(first, &d, &a).expect("only its new holder could give it back");

        assert_eq!(ours.sweep(a.parent().unwrap(), &[]).unwrap(), 1);
        assert_eq!(ours.sweep(c.parent().unwrap(), &[second]).unwrap(), 0);
    }
}
