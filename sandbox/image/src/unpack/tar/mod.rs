//! Reads tar archives: POSIX, GNU and old ones, long names, sparse files of all four kinds.
//!
//! Ours rather than a library's, because every length in an archive is a claim of its author's:
//! here each has a limit before anything is allocated, and whatever two readers might understand
//! differently (a global header that renames, a name with a NUL) is refused.

mod header;
mod pax;

use std::io::{self, Read};

use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::{BUFFER_BYTES, PAX_BYTES_MAX, PREFIX_HEADERS_MAX, SPARSE_PIECES_MAX};

pub use header::Piece;
use header::{BLOCK, Header};
use pax::{Extended, digits};

/// What an archive's errors call it.
const WHAT: &str = "the archive";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    SymbolicLink,
    HardLink,
    Device,
    Fifo,
}

#[derive(Clone, Debug)]
pub struct Entry {
    /// As written; nothing of it is checked but that it holds no NUL.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    /// What the file holds when it is unpacked, holes included.
    pub length: u64,
    /// Where the content goes; `None`: one piece.
    pub pieces: Option<Vec<Piece>>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists that came with it.
    pub lists: u64,
}

/// Whether an archive may end without the block of zeros that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Marked,
    /// A digest says that nothing is missing.
    Any,
}

pub struct Archive<R> {
    input: R,
    end: End,
    /// Content and padding of the present entry that nobody has read.
    content: u64,
    padding: u64,
    position: u64,
    is_over: bool,
}

// === impl Archive ===

impl<R: Read> Archive<R> {
    pub fn new(input: R, end: End) -> Self {
        Self { input, end, content: 0, padding: 0, position: 0, is_over: false }
    }

    /// Where the present entry's content begins in the input.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The present entry's content, as it is stored.
    pub fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    /// The next entry; what was left of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        if self.is_over {
            return Ok(None);
        }
        self.skip()?;
        let mut extended = Extended::default();
        for _ in 0..PREFIX_HEADERS_MAX {
            let Some(block) = self.block()? else {
                self.is_over = true;
                return Ok(None);
            };
            let header = Header(&block);
            header.check()?;
            match header.type_flag() {
                b'x' => extended.take(&self.body(&header)?)?,
                b'g' => pax::check_global(&self.body(&header)?)?,
                b'L' => extended.path = Some(name_of(self.body(&header)?)),
                b'K' => extended.link = Some(name_of(self.body(&header)?)),
                // A label for people, and an old program's list of a directory's names.
                b'V' => self.pass_over(header.size()?)?,
                _ => return self.entry(&header, extended).map(Some),
            }
        }
        Err(damaged("too many headers in front of one entry"))
    }

    fn entry(&mut self, header: &Header<'_>, extended: Extended) -> Result<Entry, UnpackError> {
        let (kind, is_old_sparse) = kind_of(header)?;
        let size = match kind {
            Kind::File => extended.size.map_or_else(|| header.size(), Ok)?,
            // Whatever size is written there, no content follows.
            _ => 0,
        };
        self.begin_content(size)?;
        let sparse = extended.sparse;
        let mut entry = Entry {
            path: sparse.name.or(extended.path).unwrap_or_else(|| header.path()),
            kind,
            link: extended.link.unwrap_or_else(|| header.link()),
            mode: header.mode()?,
            uid: extended.uid.map_or_else(|| header.uid(), Ok)?,
            gid: extended.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: extended.mtime.unwrap_or_else(|| header.mtime()),
            length: size,
            pieces: None,
            xattrs: extended.xattrs,
            lists: extended.lists,
        };
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(UnpackError::entry(&entry.path, "its name holds a NUL"));
        }
        // Old archives write a directory as a file whose name ends so.
        if entry.kind == Kind::File && entry.path.ends_with(b"/") {
            entry.kind = Kind::Directory;
        }
        if is_old_sparse {
            let (mut pieces, mut more, length) = header.old_sparse()?;
            while more {
                let block = self.block()?.ok_or_else(truncated)?;
                more = Header(&block).more_sparse(&mut pieces)?;
                if pieces.len() > SPARSE_PIECES_MAX {
                    return Err(damaged("a sparse file has too many pieces"));
                }
            }
            self.sparse(&mut entry, pieces, length)?;
        } else if sparse.is_marked && kind == Kind::File {
            let length = sparse.length.ok_or_else(|| damaged("a sparse file has no length"))?;
            let pieces = if sparse.map_in_content { self.map()? } else { sparse.pieces };
            self.sparse(&mut entry, pieces, length)?;
        }
        Ok(entry)
    }

    /// In order, without overlap, within the length, and adding up to what is stored.
    fn sparse(
        &mut self,
        entry: &mut Entry,
        mut pieces: Vec<Piece>,
        length: u64,
    ) -> Result<(), UnpackError> {
        pieces.retain(|(_, size)| *size != 0);
        let mut reached = 0_u64;
        let mut stored = 0_u64;
        for (offset, size) in &pieces {
            let end = offset.checked_add(*size).filter(|end| *end <= length);
            if *offset < reached || end.is_none() {
                return Err(UnpackError::entry(&entry.path, "its map of holes contradicts itself"));
            }
            reached = end.unwrap_or(reached);
            stored = stored.saturating_add(*size);
        }
        if stored != self.content {
            return Err(UnpackError::entry(&entry.path, "its map of holes does not fit its size"));
        }
        entry.length = length;
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// The map that stands in front of the content: numbers, one a line, in whole blocks.
    fn map(&mut self) -> Result<Vec<Piece>, UnpackError> {
        let mut lines = MapLines { archive: self, block: Vec::new(), at: 0 };
        let count = lines.number()?;
        let count = usize::try_from(count).ok().filter(|count| *count <= SPARSE_PIECES_MAX);
        let count = count.ok_or_else(|| damaged("a sparse file has too many pieces"))?;
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((lines.number()?, lines.number()?));
        }
        Ok(pieces)
    }

    fn begin_content(&mut self, size: u64) -> Result<(), UnpackError> {
        if size > i64::MAX as u64 {
            return Err(damaged("an entry is larger than any file can be"));
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// What belongs to a header that describes another one.
    fn body(&mut self, header: &Header<'_>) -> Result<Vec<u8>, UnpackError> {
        let size = header.size()?;
        if size > PAX_BYTES_MAX {
            return Err(damaged(&format!("an extended header of {size} bytes")));
        }
        self.begin_content(size)?;
        let mut body = Vec::new();
        self.content().read_to_end(&mut body).map_err(UnpackError::reading(WHAT))?;
        self.skip()?;
        Ok(body)
    }

    fn pass_over(&mut self, size: u64) -> Result<(), UnpackError> {
        self.begin_content(size)?;
        self.skip()
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let mut buffer = vec![
            0;
            BUFFER_BYTES.min(
                usize::try_from(self.content + self.padding).unwrap_or(BUFFER_BYTES)
            )
        ];
        while self.content + self.padding > 0 {
            let count = if self.content > 0 {
                self.content().read(&mut buffer).map_err(UnpackError::reading(WHAT))?
            } else {
                let wanted = buffer.len().min(usize::try_from(self.padding).unwrap_or(BLOCK));
                let part = buffer.get_mut(..wanted).unwrap_or_default();
                let count = read_some(&mut self.input, part).map_err(UnpackError::reading(WHAT))?;
                self.padding -= count as u64;
                self.position += count as u64;
                count
            };
            if count == 0 {
                return Err(truncated());
            }
        }
        Ok(())
    }

    /// The next header; `None` at the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let rest = block.get_mut(filled..).unwrap_or_default();
            match read_some(&mut self.input, rest).map_err(UnpackError::reading(WHAT))? {
                0 if filled == 0 && self.end == End::Any => return Ok(None),
                0 => return Err(truncated()),
                count => filled += count,
            }
        }
        self.position += BLOCK as u64;
        Ok((!Header(&block).is_zero()).then_some(block))
    }
}

/// Reads the content of an archive's present entry, and nothing beyond it.
pub struct Content<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.0.content).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        let count = read_some(&mut self.0.input, part)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.content -= count as u64;
        self.0.position += count as u64;
        Ok(count)
    }
}

/// The numbers at the start of a sparse file's content.
struct MapLines<'a, R> {
    archive: &'a mut Archive<R>,
    block: Vec<u8>,
    at: usize,
}

impl<R: Read> MapLines<'_, R> {
    fn number(&mut self) -> Result<u64, UnpackError> {
        let mut line = Vec::new();
        loop {
            if self.at == self.block.len() {
                self.block = vec![0; BLOCK];
                self.at = 0;
                let read = self.archive.content().read_exact(&mut self.block);
                read.map_err(UnpackError::reading(WHAT))?;
            }
            let byte = self.block.get(self.at).copied().unwrap_or(b'\n');
            self.at += 1;
            match byte {
                b'\n' => break,
                _ if line.len() < 20 => line.push(byte),
                _ => return Err(damaged("a sparse file's map cannot be read")),
            }
        }
        digits(&line).ok_or_else(|| damaged("a sparse file's map cannot be read"))
    }
}

fn kind_of(header: &Header<'_>) -> Result<(Kind, bool), UnpackError> {
    Ok(match header.type_flag() {
        0 | b'0' | b'7' => (Kind::File, false),
        b'S' => (Kind::File, true),
        b'1' => (Kind::HardLink, false),
        b'2' => (Kind::SymbolicLink, false),
        b'3' | b'4' => (Kind::Device, false),
        b'5' => (Kind::Directory, false),
        b'6' => (Kind::Fifo, false),
        other => {
            let reason = format!("its type is `{}`, which is not supported", shown(&[other]));
            return Err(UnpackError::entry(&header.path(), reason));
        }
    })
}

fn name_of(mut body: Vec<u8>) -> Vec<u8> {
    body.truncate(header::until_nul(&body).len());
    body
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn truncated() -> UnpackError {
    UnpackError::Truncated { what: WHAT.to_owned() }
}

fn damaged(reason: &str) -> UnpackError {
    UnpackError::Damaged { what: WHAT.to_owned(), reason: reason.to_owned() }
}
