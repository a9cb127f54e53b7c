//! /proc of the container: fresh, of its own pid namespace, with what leaks masked.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Step;
use crate::mounts::{self, NOTHING_SPECIAL};

/// Facts about the host or its hardware, or ways to disturb it. They read as empty.
const MASKED_FILES: &[&CStr] = &[
    c"kcore",
    c"keys",
    c"key-users",
    c"kmsg",
    c"kallsyms",
    c"cmdline",
    c"config.gz",
    c"diskstats",
    c"interrupts",
    c"iomem",
    c"ioports",
    c"latency_stats",
    c"mdstat",
    c"modules",
    c"partitions",
    c"sched_debug",
    c"slabinfo",
    c"softirqs",
    c"swaps",
    c"sysrq-trigger",
    c"timer_list",
    c"timer_stats",
    c"vmallocinfo",
    c"zoneinfo",
];
const MASKED_DIRECTORIES: &[&CStr] =
    &[c"acpi", c"asound", c"bus", c"driver", c"dynamic_debug", c"fs", c"irq", c"scsi"];
/// Readable, because tools look there; their owner is host root, so this is the second lock.
const READ_ONLY: &[&CStr] = &[c"sys"];

/// Limits of the sandbox's own user namespace: no namespace inside it, whatever gets past the
/// system-call filter. `max_user_namespaces` among them would count the sandbox's own.
const NAMESPACE_LIMITS: &[&CStr] = &[
    c"max_cgroup_namespaces",
    c"max_ipc_namespaces",
    c"max_mnt_namespaces",
    c"max_net_namespaces",
    c"max_pid_namespaces",
    c"max_time_namespaces",
    c"max_user_namespaces",
    c"max_uts_namespaces",
];

/// Mounts /proc on `target` and returns the directory of the namespace limits, which stays
/// writable through this descriptor only.
pub fn mount(target: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> Result<OwnedFd, (Step, Errno)> {
    let proc = mounts::filesystem(c"proc", &[], NOTHING_SPECIAL).map_err(|e| (Step::Proc, e))?;
    mounts::attach(proc.as_fd(), target).map_err(|e| (Step::Proc, e))?;
    let proc = proc.as_fd();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let limits =
        rustix::fs::openat(proc, c"sys/user", flags, Mode::empty()).map_err(|e| (Step::Proc, e))?;
    mask(proc, empty).map_err(|e| (Step::ProcMasks, e))?;
    Ok(limits)
}

fn mask(proc: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in MASKED_FILES {
        if let Some(target) = if_there(proc, name)? {
            mounts::attach(mounts::host_path(c"/dev/null")?.as_fd(), target.as_fd())?;
        }
    }
    for name in MASKED_DIRECTORIES {
        if let Some(target) = if_there(proc, name)? {
            mounts::attach(mounts::copy_of(empty, c"empty")?.as_fd(), target.as_fd())?;
        }
    }
    READ_ONLY.iter().try_for_each(|name| mounts::make_read_only(proc, name))
}

fn if_there(proc: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match mounts::reference(proc, name) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// To be called inside the user namespace, with all its capabilities. Guest root could write
/// these files only with CAP_SYS_RESOURCE, which it does not get.
pub fn forbid_namespaces(limits: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in NAMESPACE_LIMITS {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(limits, *name, flags, Mode::empty()) {
            Ok(file) => rustix::io::write(&file, b"0").map(drop)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
