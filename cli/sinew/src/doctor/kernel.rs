//! What the kernel can. Where it can be tried without leaving anything behind, it is tried.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::Check;

/// Id-mapped overlays over btrfs need this.
const KERNEL_MIN: (u32, u32) = (5, 19);

pub fn examine() -> Vec<Check> {
    vec![
        kernel_version(),
        user_namespaces(),
        fresh_proc(),
        overlay(),
        idmapped_mounts(),
        file_system("btrfs", "volumes are subvolumes of one btrfs pool", "modprobe btrfs"),
        seccomp(),
        landlock(),
        pidfd(),
        openat2(),
    ]
}

fn version() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel_version() -> Check {
    let (major, minor) = KERNEL_MIN;
    let fix = format!("run a kernel of {major}.{minor} or later (Debian 12 has 6.1)");
    match version() {
        Some(found) if found >= KERNEL_MIN => {
            Check::ok("kernel", format!("Linux {}.{}", found.0, found.1))
        }
        Some(found) => {
            Check::fail("kernel", format!("Linux {}.{} is too old", found.0, found.1), fix)
        }
        None => Check::warn("kernel", "its version cannot be read", fix),
    }
}

fn user_namespaces() -> Check {
    let name = "user-namespaces";
    match try_unshare(&["--user", "--map-root-user", "true"]) {
        Ok(()) => Check::ok(name, "can be made"),
        Err(why) => Check::fail(
            name,
            format!("cannot be made, and every sandbox lives in one: {why}"),
            "set sysctl user.max_user_namespaces to 10000 or more; in a container, allow them",
        ),
    }
}

/// Most containers forbid it, because parts of their own /proc are masked.
fn fresh_proc() -> Check {
    let name = "fresh-proc";
    match try_unshare(&["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"]) {
        Ok(()) => Check::ok(name, "can be mounted in a sandbox"),
        Err(why) => Check::fail(
            name,
            format!("cannot be mounted in a sandbox: {why}"),
            "run on the host or in a virtual machine; in a container, run it privileged",
        ),
    }
}

fn try_unshare(args: &[&str]) -> Result<(), String> {
    let ran = Command::new("unshare").args(args).stdin(Stdio::null()).output();
    let output = ran.map_err(|error| format!("unshare of util-linux does not start ({error})"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.lines().next().unwrap_or("it ended without a word").to_owned())
}

fn overlay() -> Check {
    file_system("overlay", "a sandbox's root is an overlay over its image", "modprobe overlay")
}

/// A file system may be a module that is not loaded yet.
fn file_system(kind: &'static str, why: &str, fix: &str) -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().next_back() == Some(kind)) {
        return Check::ok(kind, "the kernel has it");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    let listed = fs::read_to_string(modules).unwrap_or_default();
    if listed
        .lines()
        .any(|line| line.split(':').next().is_some_and(|m| m.contains(&format!("/{kind}.ko"))))
    {
        return Check::warn(kind, "a module that is not loaded", fix);
    }
    Check::fail(kind, format!("the kernel does not have it: {why}"), fix)
}

/// Known by the version: to try it takes a mount.
fn idmapped_mounts() -> Check {
    match version() {
        Some(found) if found >= (5, 12) => {
            Check::ok("idmapped-mounts", "the kernel has mount_setattr")
        }
        _ => Check::fail(
            "idmapped-mounts",
            "the kernel has no mount_setattr: volumes could not change their owner's range",
            "run a kernel of 5.19 or later",
        ),
    }
}

fn seccomp() -> Check {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let has = |action: &str| actions.split_whitespace().any(|found| found == action);
    if has("errno") && has("kill_process") {
        return Check::ok("seccomp", "filters with errno and kill_process");
    }
    Check::fail(
        "seccomp",
        "no filters: sandboxes could call everything the kernel has",
        "run a kernel with CONFIG_SECCOMP_FILTER",
    )
}

/// For the record: nothing of this version stands or falls with it.
fn landlock() -> Check {
    let found = match fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(modules) if modules.trim().split(',').any(|module| module == "landlock") => "enabled",
        Ok(_) => "not enabled; this version does not need it",
        Err(_) => "cannot be told without securityfs; this version does not need it",
    };
    Check::ok("landlock", found)
}

fn pidfd() -> Check {
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => Check::ok("pidfd", "processes can be watched"),
        Err(errno) => Check::fail(
            "pidfd",
            format!("pidfd_open: {errno}; the launcher watches sandboxes by it"),
            "run a kernel of 5.19 or later, and a container runtime whose filter allows pidfd_open",
        ),
    }
}

fn openat2() -> Check {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let root = fs::File::open("/");
    let tried = root.map_err(|error| error.to_string()).and_then(|root| {
        let opened = rustix::fs::openat2(&root, "proc", flags, Mode::empty(), resolve);
        opened.map(drop).map_err(|errno| errno.to_string())
    });
    match tried {
        Ok(()) => Check::ok("openat2", "paths can be confined"),
        Err(why) => Check::fail(
            "openat2",
            format!("openat2: {why}; file tools confine their paths by it"),
            "run a kernel of 5.19 or later, and a container runtime whose filter allows openat2",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_a_version_and_every_check_an_answer() {
        assert!(version().is_some());
        for check in examine() {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(
                check.fix.is_none(),
                check.verdict == super::super::Verdict::Ok,
                "{check:?}"
            );
        }
    }

    #[test]
    fn a_file_system_that_nobody_has_fails_with_its_fix() {
        let check = file_system("sinewfs", "a test wants it", "modprobe sinewfs");
        assert_eq!(check.verdict, super::super::Verdict::Fail);
        assert_eq!(check.fix.as_deref(), Some("modprobe sinewfs"));
    }
}
