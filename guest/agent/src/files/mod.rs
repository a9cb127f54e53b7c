//! The file tools: `read`, `write`, `edit`, `glob`, `grep`.
//!
//! Each runs in a child of the agent with the ids of the tool's user, so it can do nothing that
//! the guest could not do itself; the roots are a guard rail for the model on top of that. Every
//! path is walked by [`roots`], and what the walk opened is what is used: no path is checked first
//! and opened later.

mod content;
mod roots;
mod search;
mod walk;

use std::io::{PipeWriter, Write};

use guest_protocol::{Block, FileOp, FileSpec, Root};

use crate::report::Report;
use roots::Roots;

/// What a tool answers: the output and what it is.
pub enum Answer {
    Text(Vec<u8>),
    /// Streamed by the tool itself, because it is large.
    Written(Block),
}

/// What a tool refuses with; the text is complete and meant for the model.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub String);

pub fn refused<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(text.into()))
}

/// Makes the work directory the first root, by what it is where it is a link.
pub fn add_workdir(spec: &mut FileSpec, workdir: &str) {
    let real = std::fs::canonicalize(workdir).ok();
    let real = real.and_then(|path| path.into_os_string().into_string().ok());
    let path = real.unwrap_or_else(|| workdir.to_owned());
    spec.roots.retain(|root| root.path != path);
    spec.roots.insert(0, Root { path, writable: true });
}

/// Runs one tool in the calling child.
pub fn run(spec: &FileSpec, mut out: PipeWriter) -> Report {
    let (failed, text, block) = match operate(spec, &mut out) {
        Ok(Answer::Text(text)) => (false, text, Block::Text),
        Ok(Answer::Written(block)) => (false, Vec::new(), block),
        Err(Refused(text)) => (true, text.into_bytes(), Block::Text),
    };
    // The agent reads until the end; if it does not, nobody is left to be told.
    let _ = out.write_all(&text);
    Report::FileDone { failed, block }
}

fn operate(spec: &FileSpec, out: &mut impl Write) -> Result<Answer, Refused> {
    let roots = Roots::open(&spec.roots);
    match &spec.op {
        FileOp::Read { path, lines } => content::read(&roots, path, *lines, out),
        FileOp::Write { path, content } => content::write(&roots, path, content),
        FileOp::Edit { path, old, new, replace_all } => {
            let change = content::Change { old, new, replace_all: *replace_all };
            content::edit(&roots, path, &change)
        }
        FileOp::Glob { pattern, path } => search::glob(&roots, pattern, path.as_deref()),
        FileOp::Grep { pattern, path } => search::grep(&roots, pattern, path.as_deref()),
    }
}
