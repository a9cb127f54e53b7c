//! Running the tests, and counting what they skipped.
//!
//! A test that cannot run on this machine prints `SKIP name: reason` and returns. The runners
//! count such a test as passed; here it is counted as what it is.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::ci::cargo;
use crate::workspace::Workspace;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

pub fn run_and_report(workspace: &Workspace) -> bool {
    let counts = run(workspace);
    println!("{counts}");
    counts.failed == 0
}

/// Where images are kept unless `SINEW_IMAGES` says otherwise: outside the tree, so that a fresh
/// clone finds them.
const IMAGES: &str = "/var/cache/sinew/images";

fn images() -> OsString {
    std::env::var_os("SINEW_IMAGES").unwrap_or_else(|| IMAGES.into())
}

/// Builds what tests start as processes, makes the images they run from, then runs every test.
pub fn run(workspace: &Workspace) -> Counts {
    let start = Instant::now();
    let result = prepare(workspace).and_then(|()| run_tests(workspace, &[]));
    match result {
        Ok(counts) => {
            println!("tests: {counts} in {} s", start.elapsed().as_secs());
            counts
        }
        Err(error) => {
            println!("FAILED tests: {error:#}");
            Counts { failed: 1, ..Counts::default() }
        }
    }
}

pub fn prepare(workspace: &Workspace) -> anyhow::Result<()> {
    let must = |what: &str, arguments: &[&str]| {
        let start = Instant::now();
        let status = cargo(arguments).current_dir(&workspace.root).stdin(Stdio::null()).status();
        anyhow::ensure!(status.context("run cargo")?.success(), "{what} failed (output above)");
        println!("ok     {what}, {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    };
    must("build of the binary", &["build", "--quiet", "--locked", "-p", "sinew"])?;
    must("build of the tests", &["test", "--quiet", "--locked", "--workspace", "--no-run"])?;
    let image = ["run", "--quiet", "--locked", "-p", "sinew", "--", "image", "build", "--images"];
    let build = |more: &[&str]| {
        let mut command = cargo(&image);
        let status = command.arg(images()).args(more).current_dir(&workspace.root).status();
        anyhow::ensure!(status.context("run cargo")?.success(), "image build failed (above)");
        Ok(())
    };
    build(&["--minimal"])?;
    build(&[])
}

/// With these environment variables beside our own.
pub fn run_tests(workspace: &Workspace, variables: &[(&str, &str)]) -> anyhow::Result<Counts> {
    let log_path = workspace.root.join("target/tests.log");
    let nextest = cargo(&["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = if nextest {
        let output = ["--success-output", "final", "--failure-output", "final"];
        let mut command = cargo(&["nextest", "run", "--locked", "--workspace", "--color", "never"]);
        command.args(["--show-progress", "none", "--no-fail-fast"]).args(output);
        command
    } else {
        let mut command = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
        // One process runs a whole file of tests here: side by side, what one test has open would
        // look like a leak of another.
        command.args(["--", "--show-output", "--test-threads=1"]);
        command
    };
    command.current_dir(&workspace.root).stdin(Stdio::null()).envs(variables.iter().copied());
    // Just built: without this each test that starts it would ask cargo whether it is.
    command.env("SINEW_BIN", workspace.metadata.target_directory.join("debug/sinew"));
    command.env("SINEW_IMAGES", images());
    println!("tests: {}; whole output in target/tests.log", program(nextest));
    let mut log = Log::create(&log_path, if nextest { Runner::Nextest } else { Runner::Libtest })?;
    let good = stream(command, |line| log.line(line))?;
    let counts = log.finish();
    if !good && counts.failed == 0 {
        anyhow::bail!("the test run failed without a failed test: see target/tests.log");
    }
    if counts.passed + counts.skipped == 0 {
        anyhow::bail!("no test ran: see target/tests.log");
    }
    Ok(counts)
}

fn program(nextest: bool) -> &'static str {
    if nextest { "cargo nextest" } else { "cargo test (cargo-nextest is not installed)" }
}

/// Runs to the end with both outputs in one stream.
fn stream(mut command: Command, mut line: impl FnMut(&str)) -> anyhow::Result<bool> {
    let (read_end, write_end) = std::io::pipe().context("make a pipe")?;
    command.stdout(write_end.try_clone().context("copy a pipe")?).stderr(write_end);
    let mut child = command.spawn().context("run cargo")?;
    // The command holds the write ends: without this the loop would wait for itself.
    drop(command);
    let mut reader = BufReader::new(read_end);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).context("read the tests' output")? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    Ok(child.wait().context("wait for cargo")?.success())
}

/// Keeps everything in a file, shows what a person follows, and counts.
struct Log {
    file: File,
    reader: Reader,
}

impl Log {
    fn create(path: &Path, runner: Runner) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { file, reader: Reader::new(runner) })
    }

    fn line(&mut self, line: &str) {
        // The log is a help for the reader: a full disk must not fail the tests as well.
        let _ = writeln!(self.file, "{line}");
        if self.reader.read(line) {
            println!("{line}");
        }
    }

    fn finish(self) -> Counts {
        for skip in &self.reader.skips {
            println!("{skip}");
        }
        self.reader.counts()
    }
}

/// Whose lines are read. Under nextest the output of each test holds libtest's lines as well, and
/// counting both would count every test twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runner {
    Nextest,
    Libtest,
}

/// Understands the lines of both runners.
struct Reader {
    runner: Runner,
    passed: usize,
    failed: usize,
    skips: Vec<String>,
    /// Whether the output that follows belongs to a failed test.
    in_failure: bool,
}

const STATUS_GOOD: &[&str] = &["PASS", "LEAK"];
const STATUS_BAD: &[&str] =
    &["FAIL", "TIMEOUT", "SIGABRT", "SIGSEGV", "SIGKILL", "SIGTERM", "ABORT"];
const STATUS_OTHER: &[&str] =
    &["SLOW", "TERMINATING", "Summary", "Starting", "Compiling", "Blocking"];

impl Reader {
    fn new(runner: Runner) -> Self {
        Self { runner, passed: 0, failed: 0, skips: Vec::new(), in_failure: false }
    }

    /// Tells whether a person should see the line now.
    fn read(&mut self, line: &str) -> bool {
        let trimmed = line.trim_start();
        if let Some(skip) = trimmed.strip_prefix("SKIP ") {
            let skip = format!("SKIP {skip}");
            if !self.skips.contains(&skip) {
                self.skips.push(skip);
            }
            return false;
        }
        if self.runner == Runner::Nextest && trimmed.starts_with("Summary [") {
            self.passed += number_before(trimmed, " passed");
            for word in [" failed", " timed out", " exec failed"] {
                self.failed += number_before(trimmed, word);
            }
            return true;
        }
        if self.runner == Runner::Libtest && trimmed.starts_with("test result:") {
            self.passed += number_before(trimmed, " passed");
            self.failed += number_before(trimmed, " failed");
            return true;
        }
        let first = trimmed.split([' ', '-']).next().unwrap_or_default();
        if STATUS_GOOD.contains(&first) && trimmed.contains('[') {
            self.in_failure = false;
            return true;
        }
        if STATUS_BAD.contains(&first) && trimmed.contains('[') {
            self.in_failure = true;
            return true;
        }
        let libtest = self.runner == Runner::Libtest
            && trimmed.starts_with("test ")
            && trimmed.contains(" ... ");
        libtest
            || self.in_failure
            || STATUS_OTHER.contains(&first)
            || trimmed.starts_with("error")
            || trimmed.starts_with("thread '")
    }

    fn counts(&self) -> Counts {
        let skipped = self.skips.len();
        Counts { passed: self.passed.saturating_sub(skipped), failed: self.failed, skipped }
    }
}

fn number_before(line: &str, word: &str) -> usize {
    let Some((before, _)) = line.split_once(word) else { return 0 };
    before.rsplit([' ', '(']).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn counts_of(runner: Runner, lines: &[&str]) -> Counts {
        let mut reader = Reader::new(runner);
        for line in lines {
            reader.read(line);
        }
        reader.counts()
    }

    #[test]
    fn both_runners_are_counted_and_skips_are_no_passes() {
        let nextest = counts_of(
            Runner::Nextest,
            &[
                "    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 15 filtered out",
                "        PASS [   0.005s] ( 1/16) x tests::a",
                "  stderr ───",
                "    SKIP needs_kvm: no /dev/kvm",
                "    SKIP needs_kvm: no /dev/kvm",
                "     Summary [   7.521s] 16 tests run: 13 passed (1 slow), 2 failed, 1 timed out, 0 skipped",
            ],
        );
        assert_eq!(nextest, Counts { passed: 12, failed: 3, skipped: 1 });
        let libtest = counts_of(
            Runner::Libtest,
            &[
                "test tests::a ... ok",
                "SKIP needs_root: not root",
                "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
                "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
            ],
        );
        assert_eq!(libtest, Counts { passed: 3, failed: 2, skipped: 1 });
        assert_eq!(libtest.to_string(), "3 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn the_output_of_a_failure_is_shown_and_of_a_pass_is_not() {
        let mut reader = Reader::new(Runner::Nextest);
        assert!(reader.read("        FAIL [   0.1s] x a"));
        assert!(reader.read("    left: 1"));
        assert!(reader.read("        PASS [   0.1s] x b"));
        assert!(!reader.read("    noise"));
    }
}
