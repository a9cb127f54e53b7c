//! Environment keys: where one is read from, and what must not be one.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use base_types::Secret;

/// Keys have some hundred bytes; a file far longer is not a key.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// Why a key cannot be used. Never its value. Reads as the end of a sentence about its place.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot be read ({0})")]
    Unreadable(io::Error),
    #[error("is not a file")]
    NotAFile,
    #[error("may be read by others (mode {0:04o})")]
    Open(u32),
    #[error("is empty")]
    Empty,
    #[error("does not hold a key: it is longer than {KEY_BYTES_MAX} bytes")]
    TooLong,
    #[error(
        "does not hold a key: it has a space, a line break or another character that no key has"
    )]
    NotAKey,
    #[error("does not hold a password: it has more than one line, or a control character")]
    NotOneLine,
}

/// How the brain's keys begin.
pub(crate) const PREFIX: &str = "sk-ant-";

/// A text with one of the brain's keys in it, whatever it was written for.
pub(crate) fn looks_like_one(text: &str) -> bool {
    text.contains(PREFIX)
}

/// A name from the file as a message may show it.
pub(crate) fn shown(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    match looks_like_one(name) {
        true => "(hidden)".to_owned(),
        false => name.escape_debug().take(SHOWN_CHARS_MAX).collect(),
    }
}

/// Reads the key of a `key_file` again: a new one may have been put there.
pub fn read_key_file(path: &Path) -> Result<Secret, KeyError> {
    read_file(path)
}

pub(crate) fn read_file(path: &Path) -> Result<Secret, KeyError> {
    parse(read_text(path)?.expose())
}

/// A password may hold what a key does not: spaces, and letters of any language.
pub(crate) fn read_password(path: &Path) -> Result<Secret, KeyError> {
    parse_password(read_text(path)?.expose())
}

fn read_text(path: &Path) -> Result<Secret, KeyError> {
    // Asked before it is opened, so that a pipe does not block and a device is not touched; asked
    // again of what was opened.
    let check = |metadata| check(&metadata, is_given_by_systemd(path));
    check(std::fs::metadata(path).map_err(KeyError::Unreadable)?)?;
    let file = File::open(path).map_err(KeyError::Unreadable)?;
    check(file.metadata().map_err(KeyError::Unreadable)?)?;
    let mut text = String::new();
    file.take(KEY_BYTES_MAX + 1).read_to_string(&mut text).map_err(KeyError::Unreadable)?;
    let text = Secret::new(text);
    match text.expose().len() as u64 > KEY_BYTES_MAX {
        true => Err(KeyError::TooLong),
        false => Ok(text),
    }
}

/// Where systemd puts what `LoadCredential=` names, in a directory that the service alone may enter.
const CREDENTIALS: &str = "/run/credentials";

fn is_given_by_systemd(path: &Path) -> bool {
    path.starts_with(CREDENTIALS) && path.components().all(|part| part.as_os_str() != "..")
}

fn check(metadata: &Metadata, from_systemd: bool) -> Result<(), KeyError> {
    match metadata.is_file() && is_private(metadata.mode(), from_systemd) {
        true => Ok(()),
        false if !metadata.is_file() => Err(KeyError::NotAFile),
        false => Err(KeyError::Open(metadata.permissions().mode() & 0o7777)),
    }
}

/// systemd gives its service the right to read by an access control list, whose mask stands where
/// the rights of the group do.
fn is_private(mode: u32, from_systemd: bool) -> bool {
    let allowed = if from_systemd { 0o040 } else { 0 };
    mode & 0o077 & !allowed == 0
}

/// One line, without the line break that an editor puts at its end.
pub(crate) fn parse_password(text: &str) -> Result<Secret, KeyError> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text {
        "" => Err(KeyError::Empty),
        text if text.chars().any(char::is_control) => Err(KeyError::NotOneLine),
        text => Ok(Secret::new(text)),
    }
}

/// A key travels in a header: visible ASCII only.
pub(crate) fn parse(text: &str) -> Result<Secret, KeyError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Secret::new(text)),
        false => Err(KeyError::NotAKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_its_owners_or_a_credential_of_systemds() {
        assert!(is_private(0o100_600, false) && is_private(0o100_400, true));
        assert!(is_private(0o100_440, true) && !is_private(0o100_440, false));
        for mode in [0o100_460, 0o100_444, 0o100_404, 0o100_640 | 0o010] {
            assert!(!is_private(mode, true), "{mode:o}");
        }
        assert!(is_given_by_systemd(Path::new("/run/credentials/sinew.service/key")));
        assert!(!is_given_by_systemd(Path::new("/run/credentials/../../etc/key")));
        assert!(!is_given_by_systemd(Path::new("/etc/sinew/keys/key")));
    }
}
