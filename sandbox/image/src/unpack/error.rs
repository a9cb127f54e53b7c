//! Why an archive was not imported. It crosses from the jailed unpacker to whoever started it, so
//! that it carries texts and numbers only; every text from the archive goes through [`shown`].

use std::io;

use serde::{Deserialize, Serialize};

/// What an error shows of a name: enough to find the entry, not enough to flood a terminal.
const SHOWN_CHARS_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum UnpackError {
    #[error(
        "it is neither a tar archive (plain, gzip, zstd or xz), nor an OCI layout, nor a docker \
         archive: {reason}"
    )]
    UnknownKind { reason: String },
    #[error("{what} ends too early: the file was cut off, get it again")]
    Truncated { what: String },
    #[error("{what} is damaged: {reason}")]
    Damaged { what: String, reason: String },
    #[error("entry `{entry}` is refused: {reason}")]
    Entry { entry: String, reason: String },
    #[error(
        "entry `{entry}` belongs to {kind} {id}, and a sandbox has the ids 0 to 65535: give it \
         another owner in the image"
    )]
    Owner { entry: String, kind: String, id: u64 },
    #[error("it holds more than {limit} entries: allow more with `--max-entries`")]
    TooManyEntries { limit: u64 },
    #[error("unpacked it takes more than {limit} bytes: allow more with `--max-size`")]
    TooLarge { limit: u64 },
    #[error("the file system of the image cache has no room for it: {limit} bytes are free")]
    NoRoom { limit: u64 },
    #[error(
        "{what} unpacks to more than {ratio} times its size, as an archive of nothing but zeros \
         does: it was stopped after {bytes} bytes"
    )]
    Bomb { what: String, ratio: u64, bytes: u64 },
    #[error("{what} is not what its digest says: it is {found}, expected {expected}")]
    Digest { what: String, expected: String, found: String },
    #[error("{what} has {found} bytes, and the manifest says {expected}")]
    Size { what: String, expected: u64, found: u64 },
    #[error("the image is for {found}, and this machine runs {wanted}")]
    Foreign { found: String, wanted: String },
    #[error("it holds several images, choose one with `--ref`: {references}")]
    Several { references: String },
    #[error("it holds no image `{wanted}`; it has: {references}")]
    NoSuchImage { wanted: String, references: String },
    #[error("{document} cannot be used: {reason}")]
    Document { document: String, reason: String },
    #[error("{what} is missing in it")]
    Missing { what: String },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("the image runs as `{user}`, and its own files know no such {kind}")]
    NoUser { user: String, kind: String },
    #[error("it holds no files")]
    Empty,
    #[error("the disk is full")]
    DiskFull,
    #[error("{what}: {error}")]
    System { what: String, error: String },
    #[error("the unpacker gave up: {message}")]
    Internal { message: String },
}

// === impl UnpackError ===

impl UnpackError {
    pub(crate) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        UnpackError::Entry { entry: shown(name), reason: reason.into() }
    }

    pub(crate) fn document(document: &str, reason: impl ToString) -> Self {
        let reason = shown(reason.to_string().as_bytes());
        UnpackError::Document { document: shown(document.as_bytes()), reason }
    }

    pub(crate) fn unsupported(what: impl AsRef<str>) -> Self {
        UnpackError::Unsupported { what: shown(what.as_ref().as_bytes()) }
    }

    /// A failed call of the kernel's.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let what = what.into();
        move |errno| match errno {
            rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => UnpackError::DiskFull,
            errno => UnpackError::System { what, error: io::Error::from(errno).to_string() },
        }
    }

    /// A failed read of `what`. One of our own errors may have travelled through a reader.
    pub(crate) fn reading(what: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| {
            if let Some(ours) = error.get_ref().and_then(|e| e.downcast_ref::<UnpackError>()) {
                return ours.clone();
            }
            let what = shown(what.as_bytes());
            match error.kind() {
                io::ErrorKind::UnexpectedEof => UnpackError::Truncated { what },
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => UnpackError::DiskFull,
                _ => UnpackError::Damaged { what, reason: shown(error.to_string().as_bytes()) },
            }
        }
    }
}

/// So that it can travel through a reader; [`UnpackError::reading`] takes it out again.
impl From<UnpackError> for io::Error {
    fn from(error: UnpackError) -> Self {
        io::Error::other(error)
    }
}

/// Bytes of an archive as a person may see them: one line, no control characters, not long.
pub fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out: String = text
        .chars()
        .take(SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() || is_invisible(c) { '·' } else { c })
        .collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

/// What turns the direction of a line around, or takes no place in it.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_a_terminal_or_flood_it() {
        assert_eq!(shown(b"a\x1b[2J\n\xff"), "a·[2J·\u{fffd}");
        assert_eq!(shown("evil\u{202e}txt".as_bytes()), "evil·txt");
        assert_eq!(shown(&[b'x'; 9000]).chars().count(), SHOWN_CHARS_MAX + 1);
    }

    #[test]
    fn an_error_survives_a_reader() {
        let error = UnpackError::TooLarge { limit: 7 };
        assert_eq!(UnpackError::reading("layer")(io::Error::from(error.clone())), error);
        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(matches!(UnpackError::reading("layer")(cut), UnpackError::Truncated { .. }));
    }
}
