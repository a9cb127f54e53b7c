//! The file as text and as tables, and where in it something stands.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

use crate::credential;
use crate::problem::{Place, Report};

/// A configuration has some kilobytes; this bounds what a wrong path can make us read.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Document {
    pub path: PathBuf,
    text: String,
}

impl Document {
    pub fn read(path: &Path) -> io::Result<Document> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))?;
        Ok(Document { path: std::path::absolute(path)?, text })
    }

    /// What can be read of it. Whatever else a line with a syntax error seems to say is ignored.
    pub fn parse(&self, report: &mut Report) -> Spanned<DeTable<'_>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        for error in errors {
            let place = self.place(error.span().unwrap_or_default());
            // A message may quote what it stumbled over.
            let what = match error.message().contains(credential::PREFIX) {
                true => "cannot be read",
                false => error.message(),
            };
            report.syntax(&place, what.replace('\n', "; "));
        }
        table
    }

    pub fn place(&self, span: Range<usize>) -> Place {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let column = 1 + String::from_utf8_lossy(&before[line_start..]).chars().count();
        Place::At { file: self.path.clone(), line, column }
    }

    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// Whether only root can have written this file.
pub(crate) fn is_roots_own(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    Ok(metadata.uid() == 0 && metadata.mode() & 0o022 == 0)
}
