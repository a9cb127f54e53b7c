//! Puts entries into the tree: one layer after the other, as an overlay would show them.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::config::LeftOut;
use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::{BUFFER_BYTES, ImportLimits, LINK_BYTES_MAX};
use crate::unpack::place::{EntryPath, Missing, Places};
use crate::unpack::tar::{Archive, Entry, Kind};
use crate::unpack::whiteouts::{Hides, Meaning, Whiteouts, meaning};

/// The highest id of a sandbox.
const ID_MAX: u64 = 65_535;

pub struct Tree {
    places: Places,
    limits: ImportLimits,
    entries: u64,
    bytes: u64,
    pub left_out: LeftOut,
    buffer: Vec<u8>,
}

// === impl Tree ===

impl Tree {
    pub fn new(root: OwnedFd, limits: ImportLimits) -> Self {
        Self {
            places: Places::new(root),
            limits,
            entries: 0,
            bytes: 0,
            left_out: LeftOut::default(),
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.places.root()
    }

    pub fn entries(&self) -> u64 {
        self.entries
    }

    pub fn apply(&mut self, whiteouts: &Whiteouts) -> Result<(), UnpackError> {
        for (path, hides) in whiteouts.iter() {
            match hides {
                Hides::Entry => {
                    let Some((parent, name)) = path.split() else { continue };
                    let found = self.places.directory(parent, Missing::Leave)?;
                    let Some(parent) = found else { continue };
                    remove(parent, name).map_err(removing(name))?;
                }
                Hides::Content => {
                    let found = self.places.directory(path.components(), Missing::Leave)?;
                    let Some(directory) = found else { continue };
                    empty(directory).map_err(removing(b"an opaque directory"))?;
                }
            }
            self.places.forget();
        }
        Ok(())
    }

    /// A whole archive whose names mean nothing but themselves.
    pub fn unpack<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        while let Some(entry) = archive.next()? {
            let path = EntryPath::parse(&entry.path)?;
            self.put(&path, &entry, archive)?;
        }
        Ok(())
    }

    /// A layer, whose whiteouts have been applied.
    pub fn unpack_layer<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        while let Some(entry) = archive.next()? {
            match meaning(&entry.path)? {
                Meaning::Entry(path) => self.put(&path, &entry, archive)?,
                Meaning::Whiteout(..) | Meaning::Nothing => self.count()?,
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries + self.places.made > self.limits.entries {
            return Err(UnpackError::TooManyEntries { limit: self.limits.entries });
        }
        Ok(())
    }

    fn put<R: Read>(
        &mut self,
        path: &EntryPath,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        self.count()?;
        let owner = owner_of(entry)?;
        self.bytes = self.bytes.saturating_add(entry.length);
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge { limit: self.limits.bytes });
        }
        self.left_out.attributes += entry.lists;
        let Some((parent, name)) = path.split() else {
            return match entry.kind {
                Kind::Directory => self.root_itself(entry, owner),
                _ => Err(UnpackError::entry(&entry.path, "the root must be a directory")),
            };
        };
        match entry.kind {
            Kind::Directory => self.directory(parent, name, entry, owner),
            Kind::File => self.file(parent, name, entry, owner, archive),
            Kind::SymbolicLink => self.symbolic_link(parent, name, entry, owner),
            Kind::HardLink => self.hard_link(parent, name, entry),
            Kind::Fifo => self.fifo(parent, name, entry, owner),
            Kind::Device => {
                self.left_out.devices += 1;
                self.make_room(parent, name, entry).map(drop)
            }
        }
    }

    fn root_itself(&mut self, entry: &Entry, owner: Owner) -> Result<(), UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(self.places.root(), c".", flags, Mode::empty())
            .map_err(putting(entry))?;
        self.dress(root.as_fd(), entry, owner)
    }

    fn directory(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
        owner: Owner,
    ) -> Result<(), UnpackError> {
        let present = self.present(parent, name, entry)?;
        if !present.is_some_and(|stat| is_a(&stat, FileType::Directory)) {
            let parent = self.make_room(parent, name, entry)?;
            let mode = Mode::from_raw_mode(0o700);
            rustix::fs::mkdirat(parent, OsStr::from_bytes(name), mode).map_err(putting(entry))?;
        }
        let parent = self.parent(parent, entry)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::empty());
        let directory = opened.map_err(putting(entry))?;
        self.dress(directory.as_fd(), entry, owner)
    }

    fn file<R: Read>(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
        owner: Owner,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let parent = self.make_room(parent, name, entry)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, mode)
            .map_err(putting(entry))?;
        let whole = [(0, entry.length)];
        let pieces = entry.pieces.as_deref().unwrap_or(&whole);
        for (offset, length) in pieces {
            self.piece(&file, *offset, *length, entry, archive)?;
        }
        let reached = pieces.last().map_or(0, |(offset, length)| offset + length);
        if reached < entry.length {
            rustix::fs::ftruncate(&file, entry.length).map_err(putting(entry))?;
        }
        self.dress(file.as_fd(), entry, owner)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: entry.mtime, tv_nsec: 0 },
            last_modification: Timespec { tv_sec: entry.mtime, tv_nsec: 0 },
        };
        // A time that this file system cannot hold is no reason to refuse the file.
        let _ = rustix::fs::futimens(&file, &times);
        Ok(())
    }

    fn piece<R: Read>(
        &mut self,
        file: &OwnedFd,
        offset: u64,
        length: u64,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            let part = self.buffer.get_mut(..wanted).unwrap_or_default();
            let count =
                archive.content().read(part).map_err(UnpackError::reading("the archive"))?;
            if count == 0 {
                return Err(UnpackError::Truncated { what: "the archive".to_owned() });
            }
            let mut rest = part.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                let written = rustix::io::pwrite(file, rest, at).map_err(putting(entry))?;
                rest = rest.get(written..).unwrap_or_default();
                at += written as u64;
            }
        }
        Ok(())
    }

    fn symbolic_link(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
        owner: Owner,
    ) -> Result<(), UnpackError> {
        if entry.link.is_empty() || entry.link.len() > LINK_BYTES_MAX {
            return Err(UnpackError::entry(&entry.path, "its target is empty or too long"));
        }
        let parent = self.make_room(parent, name, entry)?;
        let name = OsStr::from_bytes(name);
        rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, name)
            .and_then(|()| give(parent, name, owner))
            .map_err(putting(entry))?;
        // What a link can carry is for access control systems that no sandbox has.
        self.left_out.attributes += entry.xattrs.len() as u64;
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let refuse = |reason: String| UnpackError::entry(&entry.path, reason);
        let shown_target = shown(&entry.link);
        let target = EntryPath::parse(&entry.link)
            .map_err(|_| refuse(format!("it links to `{shown_target}`, outside the root")))?;
        let nothing = || refuse(format!("it links to `{shown_target}`, which is not there"));
        let (target_parent, target_name) = target.split().ok_or_else(nothing)?;
        let target_name = OsStr::from_bytes(target_name);
        let found = self.places.directory(target_parent, Missing::Leave)?.ok_or_else(nothing)?;
        let target_parent = rustix::io::fcntl_dupfd_cloexec(found, 0).map_err(putting(entry))?;
        let stat = match rustix::fs::statat(&target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(nothing()),
            Err(errno) => return Err(putting(entry)(errno)),
        };
        if is_a(&stat, FileType::Directory) {
            return Err(refuse(format!("it links to `{shown_target}`, a directory")));
        }
        let present = self.present(parent, name, entry)?;
        if present.is_some_and(|it| (it.st_dev, it.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let parent = self.make_room(parent, name, entry)?;
        let name = OsStr::from_bytes(name);
        rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty())
            .map_err(putting(entry))
    }

    fn fifo(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
        owner: Owner,
    ) -> Result<(), UnpackError> {
        let parent = self.make_room(parent, name, entry)?;
        let name = OsStr::from_bytes(name);
        // The mask of this process is empty, and changing the owner keeps these bits.
        let mode = Mode::from_raw_mode(entry.mode & 0o1777);
        rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)
            .and_then(|()| give(parent, name, owner))
            .map_err(putting(entry))?;
        self.left_out.attributes += entry.xattrs.len() as u64;
        Ok(())
    }

    fn parent(&mut self, parent: &[Vec<u8>], entry: &Entry) -> Result<BorrowedFd<'_>, UnpackError> {
        let found = self.places.directory(parent, Missing::Make)?;
        found.ok_or_else(|| UnpackError::entry(&entry.path, "its directory cannot be made"))
    }

    fn present(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
    ) -> Result<Option<Stat>, UnpackError> {
        let parent = self.parent(parent, entry)?;
        match rustix::fs::statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(putting(entry)(errno)),
        }
    }

    /// Removes what has this name, whatever it is; a later entry replaces an earlier one.
    fn make_room(
        &mut self,
        parent: &[Vec<u8>],
        name: &[u8],
        entry: &Entry,
    ) -> Result<BorrowedFd<'_>, UnpackError> {
        if self.present(parent, name, entry)?.is_some() {
            let directory = self.parent(parent, entry)?;
            remove(directory, name).map_err(removing(name))?;
            self.places.forget();
        }
        self.parent(parent, entry)
    }

    /// Owner, mode, attributes, in this order: a new owner takes the set-user bit and capabilities.
    fn dress(
        &mut self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        owner: Owner,
    ) -> Result<(), UnpackError> {
        rustix::fs::fchown(file, Some(owner.uid), Some(owner.gid)).map_err(putting(entry))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode & 0o7777))
            .map_err(putting(entry))?;
        for (name, value) in &entry.xattrs {
            if !is_carried(name) {
                self.left_out.attributes += 1;
                continue;
            }
            let set =
                rustix::fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty());
            match set {
                Ok(()) => {}
                // Too large for this file system, of a form the kernel refuses, or not supported.
                Err(
                    Errno::NOSPC
                    | Errno::RANGE
                    | Errno::INVAL
                    | Errno::NOTSUP
                    | Errno::PERM
                    | Errno::TOOBIG,
                ) => {
                    self.left_out.attributes += 1;
                }
                Err(errno) => return Err(putting(entry)(errno)),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Owner {
    uid: Uid,
    gid: Gid,
}

fn owner_of(entry: &Entry) -> Result<Owner, UnpackError> {
    let id = |kind: &str, id: u64| {
        let checked = u32::try_from(id).ok().filter(|_| id <= ID_MAX);
        let (entry, kind) = (shown(&entry.path), kind.to_owned());
        checked.ok_or(UnpackError::Owner { entry, kind, id })
    };
    let (uid, gid) = (id("user", entry.uid)?, id("group", entry.gid)?);
    Ok(Owner { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
}

/// Attributes that a sandbox may honour. Those with which overlay file systems steer themselves
/// could show other files there than the image holds; the others belong to systems of the host's.
fn is_carried(name: &[u8]) -> bool {
    let steers = [&b"user.overlay."[..], b"user.fuseoverlayfs.", b"user.containers."];
    name == b"security.capability"
        || (name.starts_with(b"user.") && !steers.iter().any(|prefix| name.starts_with(prefix)))
}

fn is_a(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

fn give(parent: BorrowedFd<'_>, name: &OsStr, owner: Owner) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(owner.uid), Some(owner.gid), flags)
}

/// Removes a name and what is below it. The depth of the tree is limited, so is this recursion's.
fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let path = OsStr::from_bytes(name);
    match rustix::fs::unlinkat(parent, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, path, flags, Mode::empty())?;
    empty(directory.as_fd())?;
    rustix::fs::unlinkat(parent, path, AtFlags::REMOVEDIR)
}

fn empty(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(directory, c".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(listing)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    names.iter().try_for_each(|name| remove(directory, name))
}

fn putting(entry: &Entry) -> impl FnOnce(Errno) -> UnpackError + use<> {
    UnpackError::system(format!("unpack `{}`", shown(&entry.path)))
}

fn removing(name: &[u8]) -> impl FnOnce(Errno) -> UnpackError + use<> {
    UnpackError::system(format!("remove `{}`", shown(name)))
}

#[cfg(test)]
mod tests;
