//! The order of the checks, and how each is shown.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::report::Outcome;
use crate::workspace::Workspace;
use crate::{documents, layers, licences, size, tests_run, tidy};

/// More findings than a person reads at once; the count is shown all the same.
const FINDINGS_SHOWN_MAX: usize = 40;

/// Every check runs, whatever the ones before it found; the tests run last. Ends with the line
/// `N passed, N failed, N skipped`, in which each check counts as one.
pub fn run(workspace: &Workspace, quick: bool) -> bool {
    let start = Instant::now();
    let checks = [
        run_command("format", &["fmt", "--all", "--check"]),
        run_check("layers", || layers::check(workspace)),
        run_check("size", || size::check(workspace)),
        run_check("tidy", || tidy::check(workspace)),
        run_check("licences", || licences::check(workspace)),
        run_check("docs", || documents::check(workspace)),
        run_command(
            "lints",
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--locked",
                "--keep-going",
                "--",
                "-D",
                "warnings",
            ],
        ),
        run_check("reference", || documents::check_reference(workspace)),
    ];
    let checks_failed = checks.iter().filter(|good| !**good).count();
    let mut counts = tests_run::Counts::default();
    if !quick {
        counts = tests_run::run(workspace);
    }
    counts.passed += checks.len() - checks_failed;
    counts.failed += checks_failed;
    println!("ci: {} in {} s", verdict(counts.failed == 0), start.elapsed().as_secs());
    println!("{counts}");
    counts.failed == 0
}

pub fn run_check(name: &str, check: impl FnOnce() -> anyhow::Result<Outcome>) -> bool {
    let start = Instant::now();
    match check() {
        Ok(outcome) => {
            let good = outcome.findings.is_empty();
            show(name, good, start, &outcome.summary);
            for finding in outcome.findings.iter().take(FINDINGS_SHOWN_MAX) {
                println!("       {finding}");
            }
            let hidden = outcome.findings.len().saturating_sub(FINDINGS_SHOWN_MAX);
            if hidden > 0 {
                println!("       and {hidden} more");
            }
            good
        }
        Err(error) => {
            show(name, false, start, &format!("{error:#}"));
            false
        }
    }
}

/// A check that is a cargo command: what it prints is its findings.
pub fn run_command(name: &str, arguments: &[&str]) -> bool {
    let start = Instant::now();
    let status = cargo(arguments).stdin(Stdio::null()).status();
    let good = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    let summary = match status {
        Ok(_) => format!("cargo {}", arguments.join(" ")),
        Err(error) => format!("cannot run cargo: {error}"),
    };
    show(name, good, start, &summary);
    good
}

pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    // `cargo xtask` tells its child about the package xtask; a nested cargo takes no notice, but a
    // build script that asks would build anew.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

fn show(name: &str, good: bool, start: Instant, summary: &str) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{:6} {name:9} {seconds:6.1} s  {summary}", verdict(good));
}

fn verdict(good: bool) -> &'static str {
    if good { "ok" } else { "FAILED" }
}
