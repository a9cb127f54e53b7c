//! Everything below a directory, by descriptors: a directory that is swapped for a link while the
//! walk is on its way is not entered.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::roots::open_name;

/// Entries looked at in one search.
pub const ENTRIES_MAX: usize = 50_000;
/// Levels below the start; each holds one open descriptor.
const DEPTH_MAX: usize = 128;

/// One entry, in the directory it is in.
pub struct Entry<'a> {
    pub directory: &'a OwnedFd,
    pub name: &'a OsStr,
    /// From where the walk started.
    pub relative: &'a Path,
    pub kind: FileType,
}

pub enum Next {
    /// Go into it, if it is a directory.
    Enter,
    Skip,
    Stop,
}

/// What happens on the way.
pub trait Visitor {
    fn visit(&mut self, entry: &Entry<'_>) -> Next;
    /// A directory could not be read.
    fn failed(&mut self, relative: &Path, error: Errno);
}

pub struct Walk {
    left: usize,
    relative: PathBuf,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Complete,
    Stopped,
    TooManyEntries,
}

// === impl Walk ===

impl Walk {
    /// Visits what is below `directory`, each directory's entries by name.
    pub fn run(directory: OwnedFd, visitor: &mut impl Visitor) -> End {
        let mut walk = Self { left: ENTRIES_MAX, relative: PathBuf::new() };
        match walk.descend(directory, 0, visitor) {
            ControlFlow::Continue(()) => End::Complete,
            ControlFlow::Break(end) => end,
        }
    }

    fn descend(
        &mut self,
        directory: OwnedFd,
        depth: usize,
        visitor: &mut impl Visitor,
    ) -> ControlFlow<End> {
        let (names, cut) = match self.names(&directory) {
            Ok(names) => names,
            Err(error) => {
                visitor.failed(&self.relative, error);
                return ControlFlow::Continue(());
            }
        };
        for (name, kind) in names {
            self.relative.push(&name);
            let flow = self.visit(&directory, &name, kind, depth, visitor);
            self.relative.pop();
            flow?;
        }
        if cut { ControlFlow::Break(End::TooManyEntries) } else { ControlFlow::Continue(()) }
    }

    fn visit(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        kind: FileType,
        depth: usize,
        visitor: &mut impl Visitor,
    ) -> ControlFlow<End> {
        let entry = Entry { directory, name, relative: &self.relative, kind };
        match visitor.visit(&entry) {
            Next::Stop => return ControlFlow::Break(End::Stopped),
            Next::Skip => return ControlFlow::Continue(()),
            Next::Enter if kind != FileType::Directory => return ControlFlow::Continue(()),
            Next::Enter => {}
        }
        if depth >= DEPTH_MAX {
            visitor.failed(&self.relative, Errno::NAMETOOLONG);
            return ControlFlow::Continue(());
        }
        match open_name(directory, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Ok(below) => self.descend(below, depth + 1, visitor)?,
            // Gone, or no directory any more.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => visitor.failed(&self.relative, error),
        }
        ControlFlow::Continue(())
    }

    /// The names in a directory, sorted, and whether the bound cut them.
    fn names(&mut self, directory: &OwnedFd) -> Result<(Vec<(OsString, FileType)>, bool), Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if self.left == 0 {
                names.sort_by(|a: &(OsString, FileType), b| a.0.cmp(&b.0));
                return Ok((names, true));
            }
            self.left -= 1;
            names.push((name.to_owned(), kind_of(directory, name, entry.file_type())));
        }
        names.sort_by(|a: &(OsString, FileType), b| a.0.cmp(&b.0));
        Ok((names, false))
    }
}

fn kind_of(directory: &OwnedFd, name: &OsStr, told: FileType) -> FileType {
    if told != FileType::Unknown {
        return told;
    }
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(_) => FileType::Unknown,
    }
}
