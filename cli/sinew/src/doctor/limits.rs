//! Whether the kernel can limit a sandbox, and whether we have room for many.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Resource, getrlimit};

use super::Check;

/// Without one of these a sandbox has no bound of its own.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// A sandbox costs `serve` and the launcher a handful of descriptors each.
const OPEN_FILES_WANTED: u64 = 4_096;

pub fn examine() -> Vec<Check> {
    vec![cgroups(), open_files()]
}

fn cgroups() -> Check {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (unified, split) = controllers(&mounts);
    let missing = |found: &BTreeSet<String>| {
        let missing: Vec<_> =
            CONTROLLERS.iter().filter(|c| !found.contains(**c)).copied().collect();
        missing.join(", ")
    };
    if missing(&unified).is_empty() {
        return Check::ok("cgroups", "v2 with memory, cpu and pids");
    }
    if missing(&split).is_empty() {
        return Check::ok("cgroups", "v1 with memory, cpu and pids");
    }
    let lacks = missing(if split.is_empty() { &unified } else { &split });
    Check::fail(
        "cgroups",
        format!("no controller for {lacks}: sandboxes could not be limited"),
        "mount cgroup2 with all controllers on /sys/fs/cgroup, as systemd does by default",
    )
}

/// The controllers of the unified hierarchy and of the split ones, from mountinfo.
fn controllers(mounts: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut unified, mut split) = (BTreeSet::new(), BTreeSet::new());
    for line in mounts.lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next().unwrap_or(""), tail.nth(1).unwrap_or(""));
        match kind {
            "cgroup2" => {
                let point = head.split(' ').nth(4).unwrap_or("");
                let listed = fs::read_to_string(format!("{point}/cgroup.controllers"));
                unified.extend(listed.unwrap_or_default().split_whitespace().map(str::to_owned));
            }
            "cgroup" => split.extend(options.split(',').map(str::to_owned)),
            _ => {}
        }
    }
    (unified, split)
}

fn open_files() -> Check {
    let hard = getrlimit(Resource::Nofile).maximum;
    match hard {
        Some(limit) if limit < OPEN_FILES_WANTED => Check::warn(
            "open-files",
            format!("at most {limit}: enough for some {} sandboxes", limit / 16),
            "raise the hard limit of open files (LimitNOFILE= of a unit, /etc/security/limits.conf)",
        ),
        Some(limit) => Check::ok("open-files", format!("up to {limit}")),
        None => Check::ok("open-files", "unlimited"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_controllers_are_read_from_their_mounts() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      nonsense\n";
        let (unified, split) = controllers(mounts);
        assert!(unified.is_empty());
        assert!(["memory", "cpu", "cpuacct"].iter().all(|c| split.contains(*c)), "{split:?}");
        assert!(!split.contains("pids"));
    }
}
