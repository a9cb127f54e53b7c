//! `glob` and `grep`: names and lines below a directory.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::content::{On, open_file};
use super::roots::{Found, Roots, open_name};
use super::walk::{ENTRIES_MAX, End, Entry, Next, Visitor, Walk};
use super::{Answer, Refused, refused};
use crate::payload::describe;

/// Paths in one answer of `glob`.
const GLOB_PATHS_MAX: usize = 200;
/// Text in one answer of `grep`.
const GREP_BYTES_MAX: usize = 102_400;
/// Of one matching line; a minified file is one line.
const LINE_BYTES_MAX: usize = 2000;
/// Failures listed one by one.
const FAILURES_MAX: usize = 10;
/// Buffer for one line of a searched file.
const SEARCH_HEAP_BYTES: usize = 16 << 20;
/// What nobody looks for and everything is full of.
const SKIPPED: [&str; 2] = [".git", "node_modules"];

/// A directory to search, and its path as text.
struct Start {
    directory: OwnedFd,
    path: OsString,
}

fn open_start(roots: &Roots, on: On<'_>) -> Result<Option<Start>, Refused> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (opened, path) = match on.find(roots)? {
        Found::Root { directory, place } => {
            (rustix::fs::openat(&*directory, ".", flags, Mode::empty()), place.path)
        }
        Found::Entry { directory, name, stat, place } => {
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(None);
            }
            (open_name(&directory, &name, flags, Mode::empty()), place.path)
        }
        Found::Missing { .. } => return on.os(Errno::NOENT),
    };
    let directory = opened.or_else(|error| on.os(error))?;
    Ok(Some(Start { directory, path }))
}

// === glob ===

pub fn glob(roots: &Roots, pattern: &str, path: Option<&str>) -> Result<Answer, Refused> {
    if pattern.starts_with('/') {
        return refused(
            "glob: absolute pattern not permitted; pass a relative pattern (and optionally path)",
        );
    }
    if pattern.split('/').any(|name| name == "..") {
        return refused("glob: '..' is not permitted in the pattern");
    }
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    let built = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
    let matcher = match built {
        Ok(glob) => glob.compile_matcher(),
        Err(error) => return refused(format!("glob: invalid pattern: {}", error.kind())),
    };
    let on = On { operation: "glob", path: path.unwrap_or(".") };
    let Some(start) = open_start(roots, on)? else { return on.refuse("not a directory") };
    // Braces may hold slashes; then the depth is not known from the text.
    let deep = pattern.contains("**") || pattern.contains('{');
    let depth_max = if deep { usize::MAX } else { pattern.split('/').count() };
    let mut names = Names { matcher, depth_max, found: Vec::new() };
    let end = Walk::run(start.directory, &mut names);
    Ok(Answer::Text(names.text(&start.path, end)))
}

struct Names {
    matcher: GlobMatcher,
    depth_max: usize,
    /// Newest first: seconds and nanoseconds since 1970, then the path.
    found: Vec<((i64, i64), PathBuf)>,
}

impl Visitor for Names {
    fn visit(&mut self, entry: &Entry<'_>) -> Next {
        if self.matcher.is_match(entry.relative) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            if let Ok(stat) = rustix::fs::statat(entry.directory, entry.name, flags) {
                let time = (stat.st_mtime, stat.st_mtime_nsec as i64);
                self.found.push((time, entry.relative.to_owned()));
            }
        }
        if entry.relative.components().count() < self.depth_max { Next::Enter } else { Next::Skip }
    }

    /// What the tool's user cannot list has no names for it.
    fn failed(&mut self, _: &Path, _: Errno) {}
}

impl Names {
    fn text(mut self, base: &OsString, end: End) -> Vec<u8> {
        self.found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut text = Vec::new();
        for (_, relative) in self.found.iter().take(GLOB_PATHS_MAX) {
            text.extend_from_slice(Path::new(base).join(relative).as_os_str().as_bytes());
            text.push(b'\n');
        }
        if self.found.is_empty() {
            text.extend_from_slice(b"no matches\n");
        }
        if self.found.len() > GLOB_PATHS_MAX {
            let more = self.found.len() - GLOB_PATHS_MAX;
            text.extend_from_slice(format!("[{more} more paths not shown]\n").as_bytes());
        }
        if end == End::TooManyEntries {
            text.extend_from_slice(stopped().as_bytes());
        }
        text.pop();
        text
    }
}

fn stopped() -> String {
    format!("[search stopped after {ENTRIES_MAX} entries; pass a narrower path]\n")
}

// === grep ===

pub fn grep(roots: &Roots, pattern: &str, path: Option<&str>) -> Result<Answer, Refused> {
    let built = RegexMatcherBuilder::new().line_terminator(Some(b'\n')).build(pattern);
    let matcher = match built {
        Ok(matcher) => matcher,
        Err(error) => return refused(format!("grep: invalid regex: {error}")),
    };
    let on = On { operation: "grep", path: path.unwrap_or(".") };
    let searcher = SearcherBuilder::new()
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(SEARCH_HEAP_BYTES))
        .line_number(true)
        .build();
    let mut lines = Lines {
        matcher,
        searcher,
        base: PathBuf::new(),
        text: Vec::new(),
        full: false,
        failures: Vec::new(),
        failures_more: 0,
    };
    let end = match open_start(roots, on)? {
        Some(start) => {
            lines.base = PathBuf::from(start.path);
            Walk::run(start.directory, &mut lines)
        }
        None => {
            let (file, _, target) = open_file(roots, on)?;
            let shown = PathBuf::from(target.path());
            if lines.search(&file, &shown) {
                lines.fail(&shown, "binary file, not searched further".to_owned());
            }
            End::Complete
        }
    };
    Ok(Answer::Text(lines.text(end)))
}

struct Lines {
    matcher: RegexMatcher,
    searcher: Searcher,
    base: PathBuf,
    text: Vec<u8>,
    full: bool,
    failures: Vec<String>,
    failures_more: usize,
}

impl Visitor for Lines {
    fn visit(&mut self, entry: &Entry<'_>) -> Next {
        if SKIPPED.iter().any(|skipped| entry.name == *skipped) {
            return Next::Skip;
        }
        if entry.kind == FileType::RegularFile {
            let shown = self.base.join(entry.relative);
            // Not blocking, in case it has just become a FIFO.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            match open_name(entry.directory, entry.name, flags, Mode::empty()) {
                Ok(fd) => {
                    let file = std::fs::File::from(fd);
                    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                        self.search(&file, &shown);
                    }
                }
                Err(Errno::NOENT | Errno::LOOP) => {}
                Err(error) => self.fail_os(&shown, error),
            }
        }
        if self.full { Next::Stop } else { Next::Enter }
    }

    fn failed(&mut self, relative: &Path, error: Errno) {
        let shown = self.base.join(relative);
        self.fail_os(&shown, error);
    }
}

impl Lines {
    /// Adds the matching lines of one file; answers whether it turned out to be binary.
    fn search(&mut self, file: &std::fs::File, shown: &Path) -> bool {
        let mut sink =
            LineSink { text: &mut self.text, path: shown, full: &mut self.full, binary: false };
        let searched = self.searcher.search_file(&self.matcher, file, &mut sink);
        let binary = sink.binary;
        if let Err(error) = searched {
            self.fail(shown, error.to_string());
        }
        binary
    }

    fn fail_os(&mut self, shown: &Path, error: Errno) {
        self.fail(shown, describe(nix::errno::Errno::from_raw(error.raw_os_error())));
    }

    fn fail(&mut self, shown: &Path, reason: String) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(format!("grep: {}: {reason}\n", shown.display()));
        } else {
            self.failures_more += 1;
        }
    }

    fn text(mut self, end: End) -> Vec<u8> {
        if self.text.is_empty() {
            self.text.extend_from_slice(b"no matches\n");
        }
        if self.full {
            let cut = format!("[output truncated at {GREP_BYTES_MAX} bytes]\n");
            self.text.extend_from_slice(cut.as_bytes());
        }
        if end == End::TooManyEntries {
            self.text.extend_from_slice(stopped().as_bytes());
        }
        for failure in &self.failures {
            self.text.extend_from_slice(failure.as_bytes());
        }
        if self.failures_more > 0 {
            let more = format!("[{} more paths could not be searched]\n", self.failures_more);
            self.text.extend_from_slice(more.as_bytes());
        }
        self.text.pop();
        self.text
    }
}

struct LineSink<'a> {
    text: &'a mut Vec<u8>,
    path: &'a Path,
    full: &'a mut bool,
    binary: bool,
}

impl Sink for LineSink<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> io::Result<bool> {
        let line = found.bytes().strip_suffix(b"\n").unwrap_or(found.bytes());
        let number = found.line_number().unwrap_or(0);
        let before = self.text.len();
        self.text.extend_from_slice(self.path.as_os_str().as_bytes());
        self.text.extend_from_slice(format!(":{number}:").as_bytes());
        self.text.extend_from_slice(&line[..line.len().min(LINE_BYTES_MAX)]);
        if line.len() > LINE_BYTES_MAX {
            let cut = format!(" [line of {} bytes cut]", line.len());
            self.text.extend_from_slice(cut.as_bytes());
        }
        self.text.push(b'\n');
        if self.text.len() > GREP_BYTES_MAX {
            self.text.truncate(before);
            *self.full = true;
        }
        Ok(!*self.full)
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> io::Result<bool> {
        self.binary = true;
        Ok(false)
    }
}
