//! Mistakes, each with its place and what to do about it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// Where something was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Lines and columns count from 1; columns are characters.
    At {
        file: PathBuf,
        line: usize,
        column: usize,
    },
    File(PathBuf),
    Variable(String),
    Flag(&'static str),
    /// Built in, or missing.
    Nowhere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub what: String,
    /// What to do, where that does not follow from what is wrong.
    pub fix: Option<String>,
}

/// Why a configuration was refused: all of it.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one, in the order of their places.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::At { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Place::File(file) => write!(f, "{}", file.display()),
            Place::Variable(name) => f.write_str(name),
            Place::Flag(name) => f.write_str(name),
            Place::Nowhere => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        match &self.fix {
            Some(fix) => write!(f, ": {fix}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "the configuration has a mistake")?,
            count => write!(f, "the configuration has {count} mistakes")?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects problems while everything is read.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Lines that could not be read.
    broken: BTreeSet<usize>,
}

impl Report {
    /// A mistake that leaves it open what its line says; nothing else is said about that line.
    pub fn syntax(&mut self, place: &Place, what: impl Into<String>) {
        self.problem(place, what, "");
        if let Place::At { line, .. } = place {
            self.broken.insert(*line);
        }
    }

    pub fn has_syntax_errors(&self) -> bool {
        !self.broken.is_empty()
    }

    pub fn problem(&mut self, place: &Place, what: impl Into<String>, fix: impl Into<String>) {
        if !matches!(place, Place::At { line, .. } if self.broken.contains(line)) {
            self.problems.push(problem(place, what, fix));
        }
    }

    pub fn warning(&mut self, place: &Place, what: impl Into<String>, fix: impl Into<String>) {
        self.warnings.push(problem(place, what, fix));
    }

    /// The value, if nothing was wrong.
    pub fn into_result<T>(mut self, value: T) -> Result<(T, Vec<Problem>), ConfigErrors> {
        if self.problems.is_empty() {
            return Ok((value, self.warnings));
        }
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        self.problems.dedup();
        Err(ConfigErrors { problems: self.problems })
    }
}

fn problem(place: &Place, what: impl Into<String>, fix: impl Into<String>) -> Problem {
    let fix = Some(fix.into()).filter(|fix| !fix.is_empty());
    Problem { place: place.clone(), what: what.into(), fix }
}
