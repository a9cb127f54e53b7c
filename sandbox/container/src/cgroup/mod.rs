//! Limits, accounts and membership of a sandbox's processes, on cgroup v1 and v2.
//!
//! A sandbox has one group with the limits of everything in it, and two leaves below: the agent's
//! and the payload's. The payload's leaf holds the profile's memory and pids limits; the group
//! adds a little for the agent, so that a payload at its limit cannot starve the agent.

mod notice;
mod v1;
mod v2;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base_types::{PartId, SandboxId};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use sandbox_api::Limits;

pub use notice::{MemoryNotice, NoticeBy};

use crate::error::ContainerError;

pub(crate) const AGENT_LEAF: &str = "agent";
pub(crate) const PAYLOAD_LEAF: &str = "payload";

/// What the agent and its supervisors may use beside the payload's limits.
const AGENT_MEMORY_BYTES: u64 = 64 << 20;
const AGENT_PIDS: u64 = 64;
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses a smaller quota.
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// A group is removed once its last process is gone, which the kernel does a moment after the
/// process was reaped.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);
const REMOVE_RETRY: Duration = Duration::from_millis(1);

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What a sandbox uses; `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupUse {
    pub memory_bytes: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub cpu_usec: Option<u64>,
    /// Processes that the kernel killed because the payload was at its memory limit.
    pub oom_kills: Option<u64>,
}

/// How a new process gets into its groups.
///
/// To move another process, or one that may have several threads, the kernel waits until every
/// CPU has passed a point of rest: 5 to 20 ms. It waits for neither of these.
#[derive(Debug, Default)]
pub struct Entry {
    /// v2: the directory of the group to be born in.
    pub born_in: Option<OwnedFd>,
    /// v1, one for each hierarchy: a process with one thread that writes `0` to each has moved.
    pub tasks: Vec<OwnedFd>,
}

/// The two versions of the kernel's interface. Names of groups are sandbox ids.
pub trait Cgroups: Send + Sync {
    fn version(&self) -> u8;

    /// Makes groups that are no sandbox's yet. Without limits: nothing may run in them.
    fn prepare(&self, part: &PartId) -> io::Result<()>;

    /// Makes them this sandbox's, with its limits. What an earlier epoch left of its groups, which
    /// hold no process, gives way.
    fn adopt(&self, part: &PartId, sandbox: &SandboxId, limits: &Limits) -> io::Result<()>;

    /// Removes groups that became no sandbox's.
    fn discard(&self, part: &PartId) -> io::Result<()>;

    /// Every part whose groups are no sandbox's.
    fn parts(&self) -> io::Result<Vec<PartId>>;

    /// How the agent's process gets into its leaf.
    fn agent_entry(&self, sandbox: &SandboxId) -> io::Result<Entry>;

    /// Of the payload's leaf, open for writing: one, or one for each v1 hierarchy. A process with
    /// one thread that writes `0` to each of them has moved.
    fn payload_procs(&self, sandbox: &SandboxId) -> io::Result<Vec<OwnedFd>>;

    fn freeze(&self, sandbox: &SandboxId) -> io::Result<()>;

    fn thaw(&self, sandbox: &SandboxId) -> io::Result<()>;

    /// Every process of the sandbox, zombies not counted.
    fn members(&self, sandbox: &SandboxId) -> io::Result<BTreeSet<i32>>;

    /// Sends SIGKILL to every member.
    fn kill(&self, sandbox: &SandboxId) -> io::Result<()>;

    fn usage(&self, sandbox: &SandboxId) -> CgroupUse;

    /// The group that holds the payload's memory limit.
    fn payload_memory(&self, sandbox: &SandboxId) -> PathBuf;

    /// Removes the sandbox's groups; fails while a process is in one.
    fn remove(&self, sandbox: &SandboxId) -> io::Result<()>;

    /// Every sandbox that has a group.
    fn list(&self) -> io::Result<Vec<SandboxId>>;

    /// Removes this installation's own directories; fails while a sandbox has a group in one.
    fn close(&self) -> io::Result<()>;
}

/// Finds what this machine has. `prefix` is this installation's own: groups of another one are
/// never touched.
pub fn detect(prefix: &str) -> Result<Box<dyn Cgroups>, ContainerError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if prefix.is_empty() || !prefix.bytes().all(allowed) {
        return Err(ContainerError::BadPrefix(prefix.to_owned()));
    }
    match v2::V2::detect(prefix)? {
        Some(v2) => Ok(Box::new(v2)),
        None => Ok(Box::new(v1::V1::detect(prefix)?)),
    }
}

struct Figures {
    payload_memory: u64,
    total_memory: u64,
    payload_pids: u64,
    total_pids: u64,
    cpu_quota_us: u64,
}

impl Figures {
    fn of(limits: &Limits) -> Self {
        let payload_memory = limits.memory.bytes();
        let payload_pids = u64::from(limits.pids);
        Self {
            payload_memory,
            total_memory: payload_memory.saturating_add(AGENT_MEMORY_BYTES),
            payload_pids,
            total_pids: payload_pids + AGENT_PIDS,
            cpu_quota_us: (u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000)
                .max(CPU_QUOTA_US_MIN),
        }
    }
}

fn named(what: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", what.display()))
}

fn write(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = directory.join(file);
    fs::write(&path, value).map_err(named(&path))
}

fn open_to_write(directory: &Path, file: &str) -> io::Result<OwnedFd> {
    let path = directory.join(file);
    Ok(OpenOptions::new().write(true).open(&path).map_err(named(&path))?.into())
}

fn read_number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
fn read_keyed(directory: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(named(path)(error)),
        _ => Ok(()),
    }
}

fn pids_in(directory: &Path, members: &mut BTreeSet<i32>) -> io::Result<()> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(directory)(error)),
    }
    Ok(())
}

fn remove_directory(path: &Path) -> io::Result<()> {
    let end = Instant::now() + REMOVE_WITHIN;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                std::thread::sleep(REMOVE_RETRY);
            }
            Err(error) => return Err(named(path)(error)),
        }
    }
}

fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(named(directory)(error)),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Kills `pid` only if `marker` stands in its `/proc/PID/cgroup`: between reading a list of pids
/// and the signal, the number may have passed to a process that is not ours.
fn kill_member(pid: i32, marker: &str) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH | Errno::INVAL) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let path = PathBuf::from(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
    let is_ours = fs::read_to_string(path)
        .is_ok_and(|text| text.lines().any(|line| line.split('/').any(|part| part == marker)));
    if !is_ours {
        return Ok(());
    }
    match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(Errno::SRCH) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
