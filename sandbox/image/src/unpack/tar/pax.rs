//! Extended headers: records of `LENGTH KEY=VALUE\n` in front of an entry.

use super::header::Piece;
use crate::unpack::error::{UnpackError, shown};
use crate::unpack::limits::{SPARSE_PIECES_MAX, XATTR_BYTES_MAX, XATTRS_MAX};

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What the extended headers in front of one entry say.
#[derive(Debug, Default)]
pub struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<i64>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists in a form of their own, which are not carried over.
    pub lists: u64,
    pub sparse: Sparse,
}

/// A sparse file in one of the three ways that an extended header has for it.
#[derive(Debug, Default)]
pub struct Sparse {
    pub name: Option<Vec<u8>>,
    pub length: Option<u64>,
    pub pieces: Vec<Piece>,
    pub is_marked: bool,
    /// Version 1.0: the pieces stand in front of the content.
    pub map_in_content: bool,
}

/// The records of a header for all entries that follow. Only what has no effect is taken.
pub fn check_global(bytes: &[u8]) -> Result<(), UnpackError> {
    for record in records(bytes) {
        let (key, _) = record?;
        let harmless = key == b"comment" || key.starts_with(b"hdrcharset");
        if !harmless && !matches!(key, b"atime" | b"ctime" | b"mtime") {
            return Err(UnpackError::unsupported(format!(
                "an archive whose global header sets `{}`",
                shown(key)
            )));
        }
    }
    Ok(())
}

// === impl Extended ===

impl Extended {
    /// Takes the records of one more header in front of the same entry.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        for record in records(bytes) {
            let (key, value) = record?;
            self.record(key, value)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(key, value)?),
            b"uid" => self.uid = Some(decimal(key, value)?),
            b"gid" => self.gid = Some(decimal(key, value)?),
            b"mtime" => self.mtime = Some(whole_seconds(value)),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse.record(key, value)?,
            _ if key.starts_with(b"SCHILY.acl.") => self.lists += 1,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.attribute(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        self.xattrs.retain(|(known, _)| known != name);
        let together: usize = self.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        if self.xattrs.len() >= XATTRS_MAX || together + name.len() + value.len() > XATTR_BYTES_MAX
        {
            return Err(broken("an entry has too many extended attributes"));
        }
        if name.is_empty() || name.contains(&0) {
            return Err(broken("an extended attribute has no name"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

// === impl Sparse ===

impl Sparse {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        self.is_marked = true;
        match key {
            b"GNU.sparse.name" => self.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.length = Some(decimal(key, value)?),
            b"GNU.sparse.offset" => self.piece(decimal(key, value)?, None)?,
            b"GNU.sparse.numbytes" => match self.pieces.last_mut() {
                Some((_, length)) => *length = decimal(key, value)?,
                None => return Err(broken("a sparse file's map is out of order")),
            },
            b"GNU.sparse.map" => self.map(value)?,
            b"GNU.sparse.major" => self.map_in_content = decimal(key, value)? == 1,
            _ => {}
        }
        Ok(())
    }

    fn map(&mut self, value: &[u8]) -> Result<(), UnpackError> {
        let mut numbers = value.split(|byte| *byte == b',');
        while let Some(offset) = numbers.next() {
            let length = numbers.next().ok_or_else(|| broken("a sparse file's map is cut off"))?;
            let key = b"GNU.sparse.map";
            self.piece(decimal(key, offset)?, Some(decimal(key, length)?))?;
        }
        Ok(())
    }

    pub fn piece(&mut self, offset: u64, length: Option<u64>) -> Result<(), UnpackError> {
        if self.pieces.len() >= SPARSE_PIECES_MAX {
            return Err(broken("a sparse file has too many pieces"));
        }
        self.pieces.push((offset, length.unwrap_or(0)));
        Ok(())
    }
}

fn records(mut bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), UnpackError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() || bytes.iter().all(|byte| *byte == 0) {
            return None;
        }
        let Some((key, value, rest)) = record(bytes) else {
            bytes = &[];
            return Some(Err(broken("an extended header cannot be read")));
        };
        bytes = rest;
        Some(Ok((key, value)))
    })
}

/// The first record, and what comes after it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(digits(bytes.get(..blank)?)?).ok()?;
    let body = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((body.get(..equals)?, body.get(equals + 1..)?, bytes.get(length..)?))
}

pub fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(key: &[u8], value: &[u8]) -> Result<u64, UnpackError> {
    digits(value)
        .ok_or_else(|| broken(&format!("`{}` of an extended header is no number", shown(key))))
}

fn whole_seconds(value: &[u8]) -> i64 {
    let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
    digits(whole).and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0)
}

fn broken(reason: &str) -> UnpackError {
    UnpackError::Damaged { what: "the archive".to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<Extended, UnpackError> {
        let mut extended = Extended::default();
        extended.take(bytes)?;
        Ok(extended)
    }

    #[test]
    fn records_are_read_with_any_bytes_in_them() {
        let extended = of(b"12 path=a/b\n16 mtime=12.345\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extended.mtime, Some(12));
        let xattr = of(b"29 SCHILY.xattr.user.k=\0=\n\xff\xfe\n").unwrap().xattrs;
        assert_eq!(xattr, [(b"user.k".to_vec(), b"\0=\n\xff\xfe".to_vec())]);
    }

    #[test]
    fn lying_lengths_are_errors() {
        for bad in [
            &b"99 path=a\n"[..],
            b"0 path=a\n",
            b"3 path=a\n",
            b"x path=a\n",
            b" path=a\n",
            b"18446744073709551616 path=a\n",
            b"11 path=a/b",
            b"10 pathaab\n",
            b"11 size=-12\n",
        ] {
            assert!(of(bad).is_err(), "{}", shown(bad));
        }
    }

    #[test]
    fn a_global_header_cannot_rename_what_follows() {
        check_global(b"13 comment=x\n").unwrap();
        check_global(b"11 path=a/b\n").unwrap_err();
    }
}
