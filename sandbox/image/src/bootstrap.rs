//! Running mmdebstrap, in a jail of its own: private mounts, and a process tree that dies with us.
//!
//! It mounts /proc, /sys and device nodes into the new tree. In a mount namespace of its own they
//! vanish with its last process, so that a build killed at any moment leaves plain files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::build::BuildImageError;
use crate::progress::{LineReader, Progress};
use crate::recipe::{Recipe, SUITE};
use crate::sources::host_proxies;

/// What an error shows of the output: apt's own message is in its last lines.
const TAIL_LINES: usize = 12;
/// A line longer than this is not one that a person reads.
const LINE_BYTES_MAX: usize = 4096;

/// What an image of programs is better without. The licences stay.
const DPKG_OPTIONS: &[&str] = &[
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*/LC_MESSAGES/*.mo",
    "path-exclude=/usr/share/man/*/*",
];

pub(crate) struct Bootstrap<'a> {
    pub recipe: &'a Recipe,
    pub target: &'a Path,
    /// One-line entries; empty means the bootstrap's own default.
    pub sources: &'a [String],
    /// Given to the child as its standard input, so that the lock is held until its last
    /// descendant is gone, even if this process is killed.
    pub lock: &'a File,
}

impl Bootstrap<'_> {
    pub(crate) fn run(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), BuildImageError> {
        let mut reader = LineReader::new(self.recipe.lines_expected());
        progress(reader.start());
        let (read_end, write_end) = io::pipe().map_err(BuildImageError::Spawn)?;
        let mut command = self.command();
        command
            .stdin(Stdio::from(self.lock.try_clone().map_err(BuildImageError::Spawn)?))
            .stdout(Stdio::from(write_end.try_clone().map_err(BuildImageError::Spawn)?))
            .stderr(Stdio::from(write_end));
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BuildImageError::NoTool { tool: "setpriv" },
            _ => BuildImageError::Spawn(source),
        })?;
        // The command holds the pipe's write ends: without this the reader would wait for itself.
        drop(command);
        let tail = follow(BufReader::new(read_end), |line| {
            if let Some(step) = reader.read(line) {
                progress(step);
            }
        });
        let status = child.wait().map_err(BuildImageError::Spawn)?;
        if status.success() { Ok(()) } else { Err(failure(status, tail)) }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args(["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"])
            .arg("--verbose")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("LANGUAGE")
            .env("DEBIAN_FRONTEND", "noninteractive");
        if !self.recipe.packages.is_empty() {
            command.arg(format!("--include={}", self.recipe.packages.join(",")));
        }
        for proxy in host_proxies() {
            command.arg(format!("--aptopt={proxy}"));
        }
        for option in DPKG_OPTIONS {
            command.arg(format!("--dpkgopt={option}"));
        }
        command.arg(SUITE).arg(self.target).args(self.sources);
        command
    }
}

/// Reads to the end, whatever the bytes are, and keeps the last lines.
fn follow(mut reader: impl BufRead, mut line: impl FnMut(&str)) -> VecDeque<String> {
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return tail,
            Ok(_) => {}
        }
        bytes.truncate(LINE_BYTES_MAX);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        line(text);
        if text.is_empty() {
            continue;
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.to_owned());
    }
}

/// Signs in apt's output that the package sources could not be reached.
const NETWORK_SIGNS: &[&str] = &[
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Failed to fetch",
    "Unable to connect",
    "Connection failed",
    "apt-get update failed",
    "does not have a Release file",
];

fn failure(status: ExitStatus, tail: VecDeque<String>) -> BuildImageError {
    let has = |signs: &[&str]| tail.iter().any(|l| signs.iter().any(|sign| l.contains(sign)));
    let output = Vec::from(tail.clone()).join("\n");
    if has(&["failed to execute mmdebstrap"]) {
        BuildImageError::NoTool { tool: "mmdebstrap" }
    } else if has(&["failed to execute unshare"]) {
        BuildImageError::NoTool { tool: "unshare" }
    } else if has(&["unshare failed"]) {
        BuildImageError::NoNamespaces { output }
    } else if has(NETWORK_SIGNS) {
        BuildImageError::NoSources { output }
    } else if has(&["No space left on device"]) {
        BuildImageError::DiskFull { output }
    } else {
        BuildImageError::Bootstrap { status, output }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[track_caller]
    fn failure_of(output: &str) -> BuildImageError {
        failure(ExitStatus::from_raw(256), follow(output.as_bytes(), |_| {}))
    }

    #[test]
    fn each_cause_has_its_own_error() {
        let missing = failure_of("unshare: failed to execute mmdebstrap: No such file\n");
        assert!(matches!(missing, BuildImageError::NoTool { tool: "mmdebstrap" }), "{missing}");
        let network = failure_of("x\nW: Failed to fetch http://m/InRelease\nE: failed\n");
        assert!(network.to_string().contains("Failed to fetch"), "{network}");
        assert!(matches!(network, BuildImageError::NoSources { .. }), "{network}");
        let full = failure_of("dpkg: error: No space left on device\n");
        assert!(matches!(full, BuildImageError::DiskFull { .. }), "{full}");
        assert!(matches!(failure_of("\n"), BuildImageError::Bootstrap { .. }));
    }

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let long = format!("{}\nlast \u{fffd}\n", "y".repeat(1 << 20)).repeat(40);
        let tail = follow(long.as_bytes(), |_| {});
        assert_eq!(tail.len(), TAIL_LINES);
        assert!(tail.iter().all(|line| line.len() <= LINE_BYTES_MAX));
    }
}
