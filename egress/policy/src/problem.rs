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
    name: PathBuf,
    text: String,
    /// Where each line begins: places are asked for by the thousand.
    lines: Vec<usize>,
}

/// Why policies were refused: all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    /// At least one, in the order of their places.
    pub problems: Vec<Problem>,
}

impl Source {
    pub fn new(name: impl Into<PathBuf>, text: impl Into<String>) -> Source {
        let text = text.into();
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Source { name: name.into(), text, lines }
    }

    pub fn name(&self) -> &Path {
        &self.name
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        let line = self.lines.partition_point(|begin| *begin <= span.start).max(1);
        let begin = self.lines.get(line - 1).copied().unwrap_or_default();
        let before = self.text.as_bytes().get(begin..span.start).unwrap_or_default();
        let column = 1 + String::from_utf8_lossy(before).chars().count();
        Place::At { file: self.name.clone(), line, column }
    }
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
