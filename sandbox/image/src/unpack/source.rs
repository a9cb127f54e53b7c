//! Where blobs come from: members of an archive, or files of a directory that only the process
//! outside the jail can open.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::{BUFFER_BYTES, DOCUMENT_BYTES_MAX, ImportLimits, MEMBERS_MAX};
use crate::unpack::place::EntryPath;
use crate::unpack::stream::{Compression, MAGIC_BYTES, Unpacked};
use crate::unpack::tar::{Archive, End, Kind};
use crate::unpack::{Host, Watch};

/// What an archive's errors call it.
pub const ARCHIVE: &str = "the archive";
/// An archive in an archive is unlinked at once, and never part of the tree.
const SPOOL_NAME: &str = ".unpacking";

/// One blob, from its beginning.
pub struct Blob {
    pub file: Rc<File>,
    pub start: u64,
    pub length: u64,
}

/// Reads a blob without moving a position that others share.
pub struct BlobReader {
    file: Rc<File>,
    at: u64,
    end: u64,
    watch: Watch,
}

/// What was given to import.
pub enum Source {
    /// A root filesystem, from the archive's beginning.
    Rootfs(Blob),
    /// A layout, by the names of its members.
    Members { file: Rc<File>, members: HashMap<Vec<u8>, Member> },
    /// A layout in a directory.
    Directory(Rc<RefCell<Host>>),
}

pub enum Member {
    Data {
        start: u64,
        length: u64,
    },
    /// Another member's name. Old docker archives name a layer that two images share so.
    Link(Vec<u8>),
}

// === impl Blob ===

impl Blob {
    pub fn reader(&self, watch: &Watch) -> BlobReader {
        let end = self.start.saturating_add(self.length);
        BlobReader { file: Rc::clone(&self.file), at: self.start, end, watch: watch.clone() }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        self.watch.read(count as u64)?;
        Ok(count)
    }
}

// === impl Source ===

impl Source {
    /// Looks at an archive's beginning, and for a layout at all its members' names.
    pub fn open(
        file: File,
        root: &OwnedFd,
        limits: &ImportLimits,
        watch: &Watch,
    ) -> Result<Self, UnpackError> {
        let mut blob = whole(seekable(file, root, limits, watch)?)?;
        if blob.length == 0 {
            return Err(UnpackError::UnknownKind { reason: "it is empty".to_owned() });
        }
        let mut start = [0; MAGIC_BYTES];
        let count = blob.file.read_at(&mut start, 0).map_err(UnpackError::reading(ARCHIVE))?;
        let is_packed =
            Compression::of(start.get(..count).unwrap_or_default()) != Compression::None;
        if !is_layout(&blob, limits, watch)? {
            return Ok(Source::Rootfs(blob));
        }
        if is_packed {
            let mut unpacked = unpacked(&blob, limits, watch)?;
            let mut spool = spool(root)?;
            copy(&mut unpacked, &mut spool, limits)?;
            blob = whole(spool)?;
        }
        let members = members(&blob, watch)?;
        Ok(Source::Members { file: blob.file, members })
    }

    /// `None`: there is no such member.
    pub fn blob(&self, name: &str) -> Result<Option<Blob>, UnpackError> {
        match self {
            Source::Rootfs(_) => Ok(None),
            Source::Members { file, members } => Ok(member(file, members, name)),
            Source::Directory(host) => {
                let file = host.borrow_mut().open(name)?;
                file.map(whole).transpose()
            }
        }
    }

    /// A whole document, which must not be large.
    pub fn document(&self, name: &str, watch: &Watch) -> Result<Option<Vec<u8>>, UnpackError> {
        let Some(blob) = self.blob(name)? else { return Ok(None) };
        if blob.length > DOCUMENT_BYTES_MAX {
            let reason = format!("it has {} bytes", blob.length);
            return Err(UnpackError::document(name, reason));
        }
        let mut bytes = Vec::new();
        blob.reader(watch).read_to_end(&mut bytes).map_err(UnpackError::reading(name))?;
        if bytes.len() as u64 != blob.length {
            return Err(UnpackError::Truncated { what: shown(name.as_bytes()) });
        }
        Ok(Some(bytes))
    }
}

/// A member, or the one that it is a link to. Links do not chain.
fn member(file: &Rc<File>, members: &HashMap<Vec<u8>, Member>, name: &str) -> Option<Blob> {
    let found = match members.get(name.as_bytes())? {
        Member::Link(other) => members.get(other)?,
        found => found,
    };
    match found {
        Member::Data { start, length } => {
            Some(Blob { file: Rc::clone(file), start: *start, length: *length })
        }
        Member::Link(_) => None,
    }
}

fn whole(file: File) -> Result<Blob, UnpackError> {
    let length = rustix::fs::fstat(&file).map_err(UnpackError::system("look at a file"))?.st_size;
    Ok(Blob { file: Rc::new(file), start: 0, length: u64::try_from(length).unwrap_or(0) })
}

/// A pipe is written to a file first: a layout is read out of order.
fn seekable(
    mut file: File,
    root: &OwnedFd,
    limits: &ImportLimits,
    watch: &Watch,
) -> Result<File, UnpackError> {
    if file.seek(SeekFrom::Start(0)).is_ok() {
        return Ok(file);
    }
    let mut spool = spool(root)?;
    copy(&mut Watched { inner: file, watch }, &mut spool, limits)?;
    Ok(spool)
}

struct Watched<'a> {
    inner: File,
    watch: &'a Watch,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.watch.read(0)?;
        Ok(count)
    }
}

fn spool(root: &OwnedFd) -> Result<File, UnpackError> {
    let failed = || UnpackError::system("make room for the archive");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = rustix::fs::openat(root, SPOOL_NAME, flags, mode).map_err(failed())?;
    rustix::fs::unlinkat(root, SPOOL_NAME, AtFlags::empty()).map_err(failed())?;
    Ok(File::from(file))
}

fn copy(from: &mut dyn Read, to: &mut File, limits: &ImportLimits) -> Result<(), UnpackError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0_u64;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::reading(ARCHIVE)(error)),
        };
        copied += count as u64;
        if copied > limits.bytes {
            return Err(UnpackError::TooLarge { limit: limits.bytes });
        }
        let part = buffer.get(..count).unwrap_or_default();
        to.write_all(part).map_err(UnpackError::reading("the copy of the archive"))?;
    }
}

pub fn unpacked(
    blob: &Blob,
    limits: &ImportLimits,
    watch: &Watch,
) -> Result<Unpacked<'static>, UnpackError> {
    Unpacked::new(Box::new(blob.reader(watch)), ARCHIVE, *limits)
}

/// By its members' names. A root filesystem's first entries tell it apart, so that only odd ones
/// are read to their end for this.
fn is_layout(blob: &Blob, limits: &ImportLimits, watch: &Watch) -> Result<bool, UnpackError> {
    let mut archive = Archive::new(unpacked(blob, limits, watch)?, End::Any);
    let mut found = Vec::new();
    for number in 0..=MEMBERS_MAX {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) if number == 0 => return Err(UnpackError::Empty),
            Ok(None) => break,
            Err(UnpackError::Damaged { reason, .. }) if number == 0 => {
                return Err(UnpackError::UnknownKind { reason });
            }
            Err(error) => return Err(error),
        };
        let Ok(path) = EntryPath::parse(&entry.path) else { return Ok(false) };
        match path.components() {
            [] => {}
            [top, ..] if ROOT_DIRECTORIES.contains(&top.as_slice()) => return Ok(false),
            [name] if entry.kind == Kind::File => {
                found.extend(DOCUMENTS.iter().filter(|it| it == &name))
            }
            _ => {}
        }
        if number == MEMBERS_MAX {
            return Ok(false);
        }
    }
    let has = |name: &[u8]| found.contains(&&name);
    Ok(has(b"manifest.json") || (has(b"index.json") && has(b"oci-layout")))
}

const DOCUMENTS: [&[u8]; 3] = [b"manifest.json", b"index.json", b"oci-layout"];
/// What no layout has at its top.
const ROOT_DIRECTORIES: [&[u8]; 16] = [
    b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"lib64", b"opt", b"proc", b"root", b"run",
    b"sbin", b"sys", b"tmp", b"usr", b"var",
];

fn members(blob: &Blob, watch: &Watch) -> Result<HashMap<Vec<u8>, Member>, UnpackError> {
    let mut archive = Archive::new(blob.reader(watch), End::Any);
    let mut members = HashMap::new();
    while let Some(entry) = archive.next()? {
        let path = EntryPath::parse(&entry.path)?;
        let Some((parent, _)) = path.split() else { continue };
        let member = match entry.kind {
            Kind::File if entry.pieces.is_none() => {
                Member::Data { start: archive.position(), length: entry.length }
            }
            Kind::HardLink => Member::Link(joined(&EntryPath::parse(&entry.link)?)),
            Kind::SymbolicLink => match sideways(parent, &entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        if members.len() >= MEMBERS_MAX {
            return Err(UnpackError::unsupported("a layout of that many files"));
        }
        members.insert(joined(&path), member);
    }
    Ok(members)
}

fn joined(path: &EntryPath) -> Vec<u8> {
    super::place::joined(path.components())
}

/// Where a link in `parent` leads, as `../other/layer.tar`; nowhere else.
fn sideways(parent: &[Vec<u8>], target: &[u8]) -> Option<Vec<u8>> {
    let mut components = parent.to_vec();
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()?),
            name => components.push(name.to_vec()),
        }
    }
    Some(super::place::joined(&components))
}
