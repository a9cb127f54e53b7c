//! `read`, `write` and `edit`: the content of one file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use guest_protocol::Block;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::roots::{Found, Place, Roots, WalkError, open_name};
use super::{Answer, Refused, refused};
use crate::payload::describe;

/// Text that is read or edited at once; what a model can use in one answer.
const TEXT_BYTES_MAX: u64 = 262_144;
/// 5 MiB as base64, which is what an image block may have.
const IMAGE_BYTES_MAX: u64 = 3_932_160;
const PDF_BYTES_MAX: u64 = 20 << 20;
/// An edit that makes a file longer than this is a mistake.
const EDITED_BYTES_MAX: usize = 16 << 20;
/// Tries for a temporary name nobody has.
const TEMPORARY_TRIES: u32 = 16;

/// An operation on a path, for its messages: `read: a.txt: no such file or directory`.
#[derive(Clone, Copy)]
pub struct On<'a> {
    pub operation: &'a str,
    pub path: &'a str,
}

// === impl On ===

impl On<'_> {
    pub fn refuse<T>(self, reason: &str) -> Result<T, Refused> {
        refused(format!("{}: {}: {reason}", self.operation, self.path))
    }

    pub fn os<T>(self, error: Errno) -> Result<T, Refused> {
        self.refuse(&describe(nix::errno::Errno::from_raw(error.raw_os_error())))
    }

    fn io<T>(self, error: &io::Error) -> Result<T, Refused> {
        match Errno::from_io_error(error) {
            Some(errno) => self.os(errno),
            None => self.refuse(&error.to_string()),
        }
    }

    pub fn find(self, roots: &Roots) -> Result<Found, Refused> {
        let Self { operation, path } = self;
        roots.find(path).or_else(|error| match error {
            WalkError::Os(error) => self.os(error),
            WalkError::TooManyLinks => {
                refused(format!("{operation}: path '{path}': too many levels of symbolic links"))
            }
            WalkError::Outside => {
                let others = match roots.has_several() {
                    true => " and its other permitted directories",
                    false => "",
                };
                refused(format!(
                    "{operation}: path '{path}' is outside the session's working directory{others}"
                ))
            }
        })
    }
}

/// The regular file at the path, open for reading, and its size. A FIFO or a device is neither
/// waited for nor read.
pub fn open_file(roots: &Roots, on: On<'_>) -> Result<(File, u64, Target), Refused> {
    let (directory, name, place) = match on.find(roots)? {
        Found::Entry { directory, name, stat, place } => {
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return on.refuse("not a regular file");
            }
            (directory, name, place)
        }
        Found::Root { .. } => return on.refuse("not a regular file"),
        Found::Missing { .. } => return on.os(Errno::NOENT),
    };
    let (file, size) = open_regular(&directory, &name, on)?;
    Ok((file, size, Target { directory, name, place }))
}

pub struct Target {
    directory: Rc<OwnedFd>,
    name: OsString,
    place: Place,
}

impl Target {
    pub fn path(&self) -> &OsStr {
        &self.place.path
    }
}

fn open_regular(directory: &OwnedFd, name: &OsStr, on: On<'_>) -> Result<(File, u64), Refused> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = open_name(directory, name, flags, Mode::empty()).or_else(|error| on.os(error))?;
    // It may have been swapped since the walk saw it; what counts is what is open now.
    let stat = rustix::fs::fstat(&fd).or_else(|error| on.os(error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return on.refuse("not a regular file");
    }
    Ok((File::from(fd), stat.st_size as u64))
}

// === read ===

pub fn read(
    roots: &Roots,
    path: &str,
    lines: Option<(i64, i64)>,
    out: &mut impl Write,
) -> Result<Answer, Refused> {
    let on = On { operation: "read", path };
    let (file, size, _) = open_file(roots, on)?;
    if let Some((block, limit)) = media(path) {
        if lines.is_some() {
            return refused("read: view_range is not supported for image/PDF files");
        }
        if size > limit {
            return refused(format!(
                "read: {path} is {size} bytes, exceeds {limit}-byte limit for image/PDF files."
            ));
        }
        io::copy(&mut file.take(limit), out).or_else(|error| on.io(&error))?;
        return Ok(Answer::Written(block));
    }
    let bytes = match lines {
        None => read_text(file, size, on)?,
        Some((start, end)) => read_lines(file, (start, end), on)?,
    };
    match std::str::from_utf8(&bytes) {
        Ok(_) => Ok(Answer::Text(bytes)),
        Err(_) => not_text(on),
    }
}

fn not_text<T>(on: On<'_>) -> Result<T, Refused> {
    on.refuse("not valid UTF-8 text (binary files are only supported for image/PDF extensions)")
}

/// By the extension alone; the content is not looked at.
fn media(path: &str) -> Option<(Block, u64)> {
    let (_, extension) = path.rsplit_once('.')?;
    let image = |media_type: &str| {
        Some((Block::Image { media_type: media_type.to_owned() }, IMAGE_BYTES_MAX))
    };
    match extension.to_ascii_lowercase().as_str() {
        "png" => image("image/png"),
        "jpg" | "jpeg" => image("image/jpeg"),
        "gif" => image("image/gif"),
        "webp" => image("image/webp"),
        "pdf" => {
            Some((Block::Document { media_type: "application/pdf".to_owned() }, PDF_BYTES_MAX))
        }
        _ => None,
    }
}

fn read_text(file: File, size: u64, on: On<'_>) -> Result<Vec<u8>, Refused> {
    let path = on.path;
    let mut bytes = Vec::new();
    let mut limited = file.take(TEXT_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes).or_else(|error| on.io(&error))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        let size = size.max(bytes.len() as u64);
        return refused(format!(
            "{}: {path} is {size} bytes, exceeds {TEXT_BYTES_MAX}-byte limit. Use the view_range \
             parameter to read specific line ranges, e.g. view_range: [1, 500].",
            on.operation
        ));
    }
    Ok(bytes)
}

/// Lines `start` to `end`, 1-based, both included; what is before is passed over without being
/// kept, however long it is.
fn read_lines(file: File, (start, end): (i64, i64), on: On<'_>) -> Result<Vec<u8>, Refused> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let first = start.max(1);
    let mut kept = Vec::new();
    let mut number = 1;
    while end <= 0 || number <= end {
        let line_start = kept.len();
        loop {
            let buffer = reader.fill_buf().or_else(|error| on.io(&error))?;
            if buffer.is_empty() {
                return Ok(kept);
            }
            let newline = memchr::memchr(b'\n', buffer);
            let length = newline.map_or(buffer.len(), |at| at + 1);
            if number >= first {
                kept.extend_from_slice(&buffer[..length]);
            }
            reader.consume(length);
            if kept.len() as u64 > TEXT_BYTES_MAX {
                return too_long(on, (start, end), number, line_start == 0);
            }
            if newline.is_some() {
                break;
            }
        }
        number += 1;
    }
    Ok(kept)
}

fn too_long<T>(on: On<'_>, range: (i64, i64), number: i64, alone: bool) -> Result<T, Refused> {
    let (path, (start, end)) = (on.path, range);
    if alone {
        return refused(format!(
            "read: line {number} of {path} alone exceeds {TEXT_BYTES_MAX} bytes"
        ));
    }
    refused(format!(
        "read: view_range [{start}, {end}] of {path} exceeds {TEXT_BYTES_MAX} bytes. Narrow the \
         view_range; it was reached at line {number}."
    ))
}

// === write ===

pub fn write(roots: &Roots, path: &str, content: &[u8]) -> Result<Answer, Refused> {
    let on = On { operation: "write", path };
    let (target, mode) = match on.find(roots)? {
        Found::Root { .. } => return on.refuse("is a directory"),
        Found::Entry { directory, name, stat, place } => {
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {}
                FileType::Directory => return on.refuse("is a directory"),
                _ => return on.refuse("not a regular file"),
            }
            refuse_read_only(on, &place)?;
            (Target { directory, name, place }, Some(stat.st_mode))
        }
        Found::Missing { directory, name, rest, place } => {
            refuse_read_only(on, &place)?;
            if path.ends_with('/') {
                return on.refuse("is a directory");
            }
            let (directory, name) = make_parents(directory, name, rest, on)?;
            (Target { directory, name, place }, None)
        }
    };
    replace(&target, content, mode, on)?;
    Ok(Answer::Text(format!("wrote {} bytes to {path}", content.len()).into_bytes()))
}

fn refuse_read_only(on: On<'_>, place: &Place) -> Result<(), Refused> {
    match &place.read_only {
        None => Ok(()),
        Some(root) => {
            refused(format!("{}: {} is inside read-only directory {root}", on.operation, on.path))
        }
    }
}

/// Makes the directories from `name` to the last but one of `rest`; answers where the last goes.
fn make_parents(
    mut directory: Rc<OwnedFd>,
    mut name: OsString,
    rest: Vec<OsString>,
    on: On<'_>,
) -> Result<(Rc<OwnedFd>, OsString), Refused> {
    for next in rest {
        // Only a link's target can say this, and there is nothing yet that it could be relative to.
        if next == ".." || name == ".." {
            return on.os(Errno::NOENT);
        }
        match rustix::fs::mkdirat(&*directory, &*name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return on.os(error),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let made = open_name(&directory, &name, flags, Mode::empty());
        directory = Rc::new(made.or_else(|error| on.os(error))?);
        name = next;
    }
    if name == ".." {
        return on.os(Errno::NOENT);
    }
    Ok((directory, name))
}

/// Puts `content` in the place of the file in one step: whoever reads sees the old or the new.
/// A file that its user may not write is refused, although its directory would allow the step.
fn replace(
    target: &Target,
    content: &[u8],
    old_mode: Option<u32>,
    on: On<'_>,
) -> Result<(), Refused> {
    let directory = &*target.directory;
    if old_mode.is_some() {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = open_name(directory, &target.name, flags, Mode::empty());
        // Other errors are no reason: a running program can be replaced, and what has gone
        // meanwhile can be made.
        if let Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) = opened {
            return on.os(error);
        }
    }
    let (temporary, file) = match make_temporary(directory) {
        Ok(made) => made,
        // The file is ours to write and its directory is not: then not in one step.
        Err(Errno::ACCESS | Errno::PERM) if old_mode.is_some() => {
            return overwrite(target, content, on);
        }
        Err(error) => return on.os(error),
    };
    let put = put_content(file, content, old_mode)
        .and_then(|()| rustix::fs::renameat(directory, &*temporary, directory, &*target.name));
    put.or_else(|error| {
        let _ = rustix::fs::unlinkat(directory, &*temporary, AtFlags::empty());
        on.os(error)
    })
}

fn make_temporary(directory: &OwnedFd) -> Result<(String, OwnedFd), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mode = Mode::from_raw_mode(0o666);
    let mut last = Errno::EXIST;
    for attempt in 0..TEMPORARY_TRIES {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec;
        let name = format!(".sinew-{}-{now}-{attempt}", std::process::id());
        match open_name(directory, OsStr::new(&name), flags, mode) {
            Ok(file) => return Ok((name, file)),
            Err(Errno::EXIST) => last = Errno::EXIST,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn put_content(file: OwnedFd, content: &[u8], old_mode: Option<u32>) -> Result<(), Errno> {
    let mut file = File::from(file);
    let write = file.write_all(content);
    write.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    match old_mode {
        Some(mode) => rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777)),
        None => Ok(()),
    }
}

fn overwrite(target: &Target, content: &[u8], on: On<'_>) -> Result<(), Refused> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = open_name(&target.directory, &target.name, flags, Mode::empty());
    let mut file = File::from(opened.or_else(|error| on.os(error))?);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return on.refuse("not a regular file");
    }
    let written = file.set_len(0).and_then(|()| file.write_all(content));
    written.or_else(|error| on.io(&error))
}

// === edit ===

pub struct Change<'a> {
    pub old: &'a str,
    pub new: &'a str,
    pub replace_all: bool,
}

pub fn edit(roots: &Roots, path: &str, change: &Change<'_>) -> Result<Answer, Refused> {
    let on = On { operation: "edit", path };
    let (file, size, target) = open_file(roots, on)?;
    refuse_read_only(on, &target.place)?;
    let mode = file.metadata().or_else(|error| on.io(&error))?;
    let bytes = read_text(file, size, on)?;
    let Ok(text) = String::from_utf8(bytes) else { return not_text(on) };
    let count = text.matches(change.old).count();
    if count == 0 {
        return refused(format!("edit: old_string not found in {path}"));
    }
    if count > 1 && !change.replace_all {
        return refused(format!(
            "edit: old_string appears {count} times in {path} (must be unique)"
        ));
    }
    let growth = count.saturating_mul(change.new.len());
    if text.len().saturating_add(growth) > EDITED_BYTES_MAX {
        return on.refuse("the result would be too long");
    }
    let edited = text.replace(change.old, change.new);
    let mode = std::os::unix::fs::MetadataExt::mode(&mode);
    replace(&target, edited.as_bytes(), Some(mode), on)?;
    let word = if count == 1 { "replacement" } else { "replacements" };
    Ok(Answer::Text(format!("edited {path} ({count} {word})").into_bytes()))
}
