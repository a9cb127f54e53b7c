//! The file as text and as tables, and where in it something stands.

use std::collections::BTreeSet;
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

/// How often lines are left out and the rest is read again. Each time the parser gets further;
/// one time is enough for most files.
const REPAIRS_MAX: usize = 16;

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

    /// The text without the lines that cannot be read, which are reported. Everything that is left
    /// stands where it stood, so that what else is wrong can be reported in the same go.
    pub fn readable(&self, report: &mut Report) -> String {
        let mut text = self.text.clone();
        for _ in 0..REPAIRS_MAX {
            let (_, errors) = DeTable::parse_recoverable(&text);
            let mut broken = BTreeSet::new();
            for error in &errors {
                let start = error.span().unwrap_or_default().start;
                broken.insert(text[..floor(&text, start)].matches('\n').count());
                self.report(error, report);
            }
            let repaired = without_lines(&text, &broken);
            if repaired == text {
                break;
            }
            text = repaired;
        }
        text
    }

    fn report(&self, error: &toml::de::Error, report: &mut Report) {
        let place = self.place(error.span().unwrap_or_default());
        // A message may quote what it stumbled over.
        let what = match credential::looks_like_one(error.message()) {
            true => "cannot be read",
            false => error.message(),
        };
        report.syntax(&place, what.replace('\n', "; "));
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

/// What can be read of a text.
pub(crate) fn tables(text: &str) -> Spanned<DeTable<'_>> {
    DeTable::parse_recoverable(text).0
}

/// The nearest character boundary at or before that byte.
fn floor(text: &str, byte: usize) -> usize {
    (0..=byte.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Blanks these lines, counted from 0, and what follows a blanked header up to the next one: it
/// would otherwise be read as part of the table before.
fn without_lines(text: &str, broken: &BTreeSet<usize>) -> String {
    let mut in_broken_table = false;
    let blank = |line: &str| line.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
    let lines = text.split_inclusive('\n').enumerate().map(|(number, line)| {
        let is_header = line.trim_start().starts_with('[');
        in_broken_table = match (is_header, broken.contains(&number)) {
            (true, is_broken) => is_broken,
            (false, _) => in_broken_table,
        };
        match in_broken_table || broken.contains(&number) {
            true => pad(blank(line), line.len()),
            false => line.to_owned(),
        }
    });
    lines.collect()
}

/// Characters of several bytes become as many spaces, so that nothing behind them moves.
fn pad(blank: String, bytes: usize) -> String {
    format!("{}{blank}", " ".repeat(bytes - blank.len()))
}

/// Whether only root can have written this file.
pub(crate) fn is_roots_own(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    Ok(metadata.uid() == 0 && metadata.mode() & 0o022 == 0)
}
