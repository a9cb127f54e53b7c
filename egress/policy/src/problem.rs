//! The text of a policy, and what is wrong with it: everything, each with its place.
//!
//! **Invariant:** no message quotes what may be a credential: the value of `value`, of a header or
//! of a query.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use base_config::{Place, Problem};

/// A policy as it was written, and the name it is known by in messages.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: PathBuf,
    pub text: String,
}

/// Why policies were refused: all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    /// At least one, in the order of their places.
    pub problems: Vec<Problem>,
}

impl Source {
    pub fn new(name: impl Into<PathBuf>, text: impl Into<String>) -> Source {
        Source { name: name.into(), text: text.into() }
    }

    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        place(&self.name, &self.text, span.start)
    }
}

fn place(file: &Path, text: &str, at: usize) -> Place {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let line_before = before.get(line_start..).unwrap_or_default();
    let column = 1 + String::from_utf8_lossy(line_before).chars().count();
    Place::At { file: file.to_owned(), line, column }
}

/// Collects problems while everything is read.
#[derive(Debug, Default)]
pub(crate) struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Lines that could not be read: nothing else is said about them.
    broken: BTreeSet<(PathBuf, usize)>,
}

impl Report {
    pub fn syntax(&mut self, place: &Place, what: impl Into<String>) {
        self.problem(place, what, "");
        if let Place::At { file, line, .. } = place {
            self.broken.insert((file.clone(), *line));
        }
    }

    pub fn problem(&mut self, place: &Place, what: impl Into<String>, fix: impl Into<String>) {
        let is_broken = matches!(place, Place::At { file, line, .. }
            if self.broken.contains(&(file.clone(), *line)));
        if !is_broken {
            self.problems.push(problem(place, what, fix));
        }
    }

    pub fn warning(&mut self, place: &Place, what: impl Into<String>, fix: impl Into<String>) {
        self.warnings.push(problem(place, what, fix));
    }

    pub fn has_syntax_errors(&self) -> bool {
        !self.broken.is_empty()
    }

    /// The value with the warnings, if nothing was wrong.
    pub fn into_result<T>(mut self, value: T) -> Result<(T, Vec<Problem>), PolicyErrors> {
        self.warnings.sort_by(|a, b| a.place.cmp(&b.place));
        if self.problems.is_empty() {
            return Ok((value, self.warnings));
        }
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        self.problems.dedup();
        Err(PolicyErrors { problems: self.problems })
    }
}

fn problem(place: &Place, what: impl Into<String>, fix: impl Into<String>) -> Problem {
    let fix = Some(fix.into()).filter(|fix| !fix.is_empty());
    Problem { place: place.clone(), what: what.into(), fix }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "the policy has a mistake")?,
            count => write!(f, "the policies have {count} mistakes")?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for PolicyErrors {}
