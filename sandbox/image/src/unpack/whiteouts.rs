//! Names with which a layer takes away what lies below it.

use crate::unpack::error::UnpackError;
use crate::unpack::limits::WHITEOUT_BYTES_MAX;
use crate::unpack::place::{EntryPath, joined};
use crate::unpack::tar::Entry;

const WHITEOUT: &[u8] = b".wh.";
/// Marks of layers themselves, of which only one means something to us.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a layer takes away from those below it. Applied before anything of the layer is unpacked:
/// a whiteout never touches what its own layer brings.
#[derive(Debug, Default)]
pub struct Whiteouts {
    list: Vec<(EntryPath, Hides)>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hides {
    Entry,
    Content,
}

/// What a name in a layer means.
pub enum Meaning {
    Entry(EntryPath),
    Whiteout(EntryPath, Hides),
    Nothing,
}

// === impl Whiteouts ===

impl Whiteouts {
    pub fn iter(&self) -> impl Iterator<Item = &(EntryPath, Hides)> {
        self.list.iter()
    }

    pub fn collect(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if let Meaning::Whiteout(path, hides) = meaning(&entry.path)? {
            self.bytes += entry.path.len() + size_of::<EntryPath>();
            if self.bytes > WHITEOUT_BYTES_MAX {
                return Err(UnpackError::entry(&entry.path, "the layer removes too many files"));
            }
            self.list.push((path, hides));
        }
        Ok(())
    }
}

pub fn meaning(path: &[u8]) -> Result<Meaning, UnpackError> {
    let parsed = EntryPath::parse(path)?;
    let Some((parent, name)) = parsed.split() else { return Ok(Meaning::Entry(parsed)) };
    if parent.iter().any(|component| component.starts_with(WHITEOUT_META)) {
        return Ok(Meaning::Nothing);
    }
    if parent.iter().any(|component| component.starts_with(WHITEOUT)) {
        return Err(UnpackError::entry(path, "it lies below a whiteout"));
    }
    if name == OPAQUE {
        let parent = EntryPath::parse(&joined(parent))?;
        return Ok(Meaning::Whiteout(parent, Hides::Content));
    }
    if name.starts_with(WHITEOUT_META) {
        return Ok(Meaning::Nothing);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Meaning::Entry(parsed)),
        Some(b"" | b"." | b"..") => Err(UnpackError::entry(path, "a whiteout of no file")),
        Some(hidden) => {
            let path = [&joined(parent)[..], b"/", hidden].concat();
            Ok(Meaning::Whiteout(EntryPath::parse(&path)?, Hides::Entry))
        }
    }
}
