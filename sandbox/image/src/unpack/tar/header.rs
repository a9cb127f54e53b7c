//! One 512-byte header block: numbers, names, checksum.

use crate::unpack::error::{UnpackError, shown};

pub const BLOCK: usize = 512;
/// Four pieces in the header itself, 21 in each block after it.
const OLD_SPARSE_IN_HEADER: usize = 4;
const OLD_SPARSE_IN_BLOCK: usize = 21;
const OLD_SPARSE_PIECE: usize = 24;

pub struct Header<'a>(pub &'a [u8; BLOCK]);

/// A piece of a sparse file: where it goes, and how much.
pub type Piece = (u64, u64);

// === impl Header ===

impl<'a> Header<'a> {
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    fn field(&self, start: usize, length: usize) -> &'a [u8] {
        self.0.get(start..start + length).unwrap_or_default()
    }

    fn text(&self, start: usize, length: usize) -> &'a [u8] {
        until_nul(self.field(start, length))
    }

    /// The sum of all bytes with the sum's own field as blanks; old programs summed signed bytes.
    pub fn check(&self) -> Result<(), UnpackError> {
        let stored = octal(self.field(148, 8));
        let bytes = || {
            self.0.iter().enumerate().map(|(i, b)| if matches!(i, 148..156) { b' ' } else { *b })
        };
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        match stored {
            Some(sum) if sum == unsigned || i64::try_from(sum) == Ok(signed) => Ok(()),
            _ => Err(self.damaged("a header's checksum is wrong")),
        }
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // Only POSIX archives have a prefix there; GNU's hold times.
        let prefix = if self.field(257, 6) == b"ustar\0" { self.text(345, 155) } else { &[] };
        match prefix {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    pub fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub fn mode(&self) -> Result<u32, UnpackError> {
        let mode = self.number(100, 8, "mode")?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or(0))
    }

    pub fn uid(&self) -> Result<u64, UnpackError> {
        self.number(108, 8, "owner")
    }

    pub fn gid(&self) -> Result<u64, UnpackError> {
        self.number(116, 8, "group")
    }

    pub fn size(&self) -> Result<u64, UnpackError> {
        self.number(124, 12, "size")
    }

    /// Seconds; a time before 1970 or beyond reason is 1970.
    pub fn mtime(&self) -> i64 {
        self.number(136, 12, "time").ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0)
    }

    /// The first pieces of an old GNU sparse file, whether more blocks follow, and its length.
    pub fn old_sparse(&self) -> Result<(Vec<Piece>, bool, u64), UnpackError> {
        let mut pieces = Vec::new();
        self.pieces(386, OLD_SPARSE_IN_HEADER, &mut pieces)?;
        Ok((pieces, self.0[482] != 0, self.number(483, 12, "length")?))
    }

    /// This block as one of those that follow; whether another does.
    pub fn more_sparse(&self, pieces: &mut Vec<Piece>) -> Result<bool, UnpackError> {
        self.pieces(0, OLD_SPARSE_IN_BLOCK, pieces)?;
        Ok(self.0[504] != 0)
    }

    fn pieces(&self, start: usize, count: usize, out: &mut Vec<Piece>) -> Result<(), UnpackError> {
        for index in 0..count {
            let at = start + index * OLD_SPARSE_PIECE;
            if self.0[at] == 0 {
                break;
            }
            out.push((self.number(at, 12, "offset")?, self.number(at + 12, 12, "size")?));
        }
        Ok(())
    }

    fn number(&self, start: usize, length: usize, what: &str) -> Result<u64, UnpackError> {
        let field = self.field(start, length);
        number(field).ok_or_else(|| self.damaged(&format!("{what} is no number")))
    }

    fn damaged(&self, reason: &str) -> UnpackError {
        let name = shown(self.text(0, 100));
        UnpackError::Damaged {
            what: "the archive".to_owned(),
            reason: format!("{reason} (near `{name}`)"),
        }
    }
}

pub fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or_default()
}

/// Octal digits, or where the first bit is set a binary number. Negative ones are none.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    if first & 0x7f != 0 {
        // The sign, or a number that 64 bits do not hold.
        return None;
    }
    let (high, low) = rest.split_at(rest.len().saturating_sub(8));
    if high.iter().any(|byte| *byte != 0) {
        return None;
    }
    Some(low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = until_nul(field);
    let text = text.trim_ascii();
    text.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_never_negative() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0 "), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"0008\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0x80, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]), Some(2 << 56));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(b"77777777777777777777777777"), None);
    }
}
