//! Where in the tree an entry goes.
//!
//! The invariant: a directory is opened by a path without links, below the root, at a depth and
//! length that everyone who walks the tree later can bear. Links that the image holds are followed
//! here, by hand, and lead round inside the root as they will in the sandbox.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::unpack::error::UnpackError;
use crate::unpack::limits::{LINKS_FOLLOWED_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};

const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An entry's path: its components, without `.`, `..` and empty ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPath(Vec<Vec<u8>>);

/// What to do about a directory on the way that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Make,
    /// Then there is no such place.
    Leave,
}

/// The root, and the directory that was asked for last: entries come in the order of a walk.
pub struct Places {
    root: OwnedFd,
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
    pub made: u64,
}

// === impl EntryPath ===

impl EntryPath {
    /// A leading `/` or `./` means the root, as archivers write it. `..` is refused wherever it is:
    /// no honest archiver writes it, and readers disagree about it.
    pub fn parse(path: &[u8]) -> Result<Self, UnpackError> {
        let refuse = |reason: &str| UnpackError::entry(path, reason);
        let mut components = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(refuse("its path holds `..` and could leave the root")),
                name if name.len() > NAME_BYTES_MAX => {
                    return Err(refuse("a name in its path is longer than 255 bytes"));
                }
                name => components.push(name.to_vec()),
            }
        }
        check_size(&components).map_err(|reason| refuse(&reason))?;
        Ok(Self(components))
    }

    /// The components of the directory, and the name in it.
    pub fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        let (name, parent) = self.0.split_last()?;
        Some((parent, name))
    }

    pub fn components(&self) -> &[Vec<u8>] {
        &self.0
    }
}

// === impl Places ===

impl Places {
    pub fn new(root: OwnedFd) -> Self {
        Self { root, last: None, made: 0 }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Must be called when a directory or a link is removed: the last place may be gone.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// The directory with these components, through links where there are some.
    pub fn directory(
        &mut self,
        components: &[Vec<u8>],
        missing: Missing,
    ) -> Result<Option<BorrowedFd<'_>>, UnpackError> {
        let is_last = matches!(&self.last, Some((last, _)) if last == components);
        if !is_last {
            let found = match self.open(components) {
                Ok(opened) => Some(opened),
                Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => {
                    self.walk(components, missing)?
                }
                Err(errno) => return Err(self.failed(components)(errno)),
            };
            let Some(directory) = found else { return Ok(None) };
            self.last = Some((components.to_vec(), directory));
        }
        Ok(self.last.as_ref().map(|(_, directory)| directory.as_fd()))
    }

    fn failed(&self, components: &[Vec<u8>]) -> impl FnOnce(Errno) -> UnpackError + use<> {
        let path = joined(components);
        UnpackError::system(format!("open the directory `{}`", super::error::shown(&path)))
    }

    fn open(&self, components: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match joined(components) {
            path if path.is_empty() => rustix::fs::openat(&self.root, c".", flags, Mode::empty()),
            path => rustix::fs::openat2(&self.root, path, flags, Mode::empty(), BELOW),
        }
    }

    /// One component after the other, where the short way met a link or nothing.
    fn walk(
        &mut self,
        wanted: &[Vec<u8>],
        missing: Missing,
    ) -> Result<Option<OwnedFd>, UnpackError> {
        let refuse = |reason: &str| UnpackError::entry(&joined(wanted), reason);
        let mut pending: VecDeque<Vec<u8>> = wanted.iter().cloned().collect();
        let mut reached: Vec<Vec<u8>> = Vec::new();
        let mut followed = 0;
        while let Some(next) = pending.pop_front() {
            match next.as_slice() {
                b"" | b"." => continue,
                // The root's parent is the root.
                b".." => {
                    reached.pop();
                    continue;
                }
                _ => {}
            }
            let parent = self.open(&reached).map_err(self.failed(&reached))?;
            let name = OsStr::from_bytes(&next);
            let kind = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) if missing == Missing::Leave => return Ok(None),
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(0o755);
                    rustix::fs::mkdirat(&parent, name, mode).map_err(self.failed(wanted))?;
                    self.made += 1;
                    FileType::Directory
                }
                Err(errno) => return Err(self.failed(wanted)(errno)),
            };
            match kind {
                FileType::Directory => reached.push(next),
                FileType::Symlink => {
                    followed += 1;
                    if followed > LINKS_FOLLOWED_MAX {
                        return Err(refuse("the links in its path lead round in a circle"));
                    }
                    let target = rustix::fs::readlinkat(&parent, name, Vec::new())
                        .map_err(self.failed(wanted))?;
                    if target.as_bytes().starts_with(b"/") {
                        reached.clear();
                    }
                    for component in target.as_bytes().split(|byte| *byte == b'/').rev() {
                        pending.push_front(component.to_vec());
                    }
                }
                _ if missing == Missing::Leave => return Ok(None),
                _ => return Err(refuse("its path leads through a file that is no directory")),
            }
            check_size(&reached).map_err(|reason| refuse(&reason))?;
        }
        self.open(&reached).map(Some).map_err(self.failed(&reached))
    }
}

pub fn joined(components: &[Vec<u8>]) -> Vec<u8> {
    components.join(&b'/')
}

fn check_size(components: &[Vec<u8>]) -> Result<(), String> {
    if components.len() > PATH_DEPTH_MAX {
        return Err(format!("it lies deeper than {PATH_DEPTH_MAX} directories"));
    }
    let bytes: usize = components.iter().map(|component| component.len() + 1).sum();
    if bytes > PATH_BYTES_MAX {
        return Err(format!("its path is longer than {PATH_BYTES_MAX} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components(path: &str) -> Vec<Vec<u8>> {
        EntryPath::parse(path.as_bytes()).unwrap().components().to_vec()
    }

    #[test]
    fn a_path_is_below_the_root_or_refused() {
        assert_eq!(components("./usr//bin/./env/"), components("/usr/bin/env"));
        assert!(EntryPath::parse(b"./").unwrap().components().is_empty());
        assert!(EntryPath::parse(b"").unwrap().components().is_empty());
        for bad in ["..", "a/../b", "/..", "a/..", "../../etc/passwd"] {
            EntryPath::parse(bad.as_bytes()).unwrap_err();
        }
        EntryPath::parse(b"..a/b../...").unwrap();
        EntryPath::parse("x".repeat(256).as_bytes()).unwrap_err();
        EntryPath::parse("d/".repeat(PATH_DEPTH_MAX + 1).as_bytes()).unwrap_err();
        EntryPath::parse("dddddddddddddddddddd/".repeat(200).as_bytes()).unwrap_err();
    }

    fn places(dir: &std::path::Path) -> Places {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Places::new(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn links_lead_round_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::fs::create_dir_all(dir.path().join("outside")).unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        };
        link("usr/lib", "lib");
        link("../outside", "up");
        link("/usr", "absolute");
        link("b", "a");
        link("a", "b");
        let mut places = places(&root);
        let mut make = |path: &str| {
            let made = places.directory(&components(path), Missing::Make);
            made.map(|fd| {
                let name = "made-here";
                rustix::fs::mkdirat(fd.unwrap(), name, Mode::from_raw_mode(0o755)).unwrap();
            })
        };
        make("lib").unwrap();
        make("up/deeper").unwrap();
        make("absolute/share").unwrap();
        assert!(root.join("usr/lib/made-here").is_dir());
        assert!(root.join("outside/deeper/made-here").is_dir());
        assert!(root.join("usr/share/made-here").is_dir());
        let error = make("a/x").unwrap_err();
        assert!(error.to_string().contains("circle"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
        std::fs::write(root.join("file"), "").unwrap();
        assert!(make("file/x").unwrap_err().to_string().contains("no directory"));
        let none = places.directory(&components("nowhere/x"), Missing::Leave).unwrap();
        assert!(none.is_none() && !root.join("nowhere").exists());
    }

    #[test]
    fn links_cannot_make_a_tree_deeper_than_a_path_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let half = "d/".repeat(PATH_DEPTH_MAX / 2 + 2);
        let mut places = places(dir.path());
        places.directory(&components(&half), Missing::Make).unwrap();
        std::os::unix::fs::symlink(&half, dir.path().join("s")).unwrap();
        let error = places.directory(&components(&format!("s/{half}")), Missing::Make).err();
        assert!(error.unwrap().to_string().contains("deeper"));
    }
}
