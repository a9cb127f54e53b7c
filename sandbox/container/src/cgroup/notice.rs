//! Tells when a sandbox's payload ran out of memory.
//!
//! v1 kills one process and leaves the rest of the group in a state that nobody can know; the
//! launcher ends the whole sandbox when this notice comes. v2 kills the group by itself, and the
//! agent outlives it; the notice is the same.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use base_types::SandboxId;
use rustix::event::{EventfdFlags, eventfd};

use super::{Cgroups, named};

/// The kernel's table of memory events is some hundred bytes.
const EVENTS_BYTES_MAX: usize = 1024;

/// A descriptor to wait on, and how.
#[derive(Debug)]
pub struct MemoryNotice {
    pub ready: File,
    pub how: NoticeBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeBy {
    /// An event counter, readable when memory ran out.
    Counter,
    /// A kernel file that has urgent data when it changes.
    Change,
}

// === impl MemoryNotice ===

impl MemoryNotice {
    pub fn of(cgroups: &dyn Cgroups, sandbox: &SandboxId) -> io::Result<Self> {
        let group = cgroups.payload_memory(sandbox);
        if cgroups.version() == 2 {
            let path = group.join("memory.events");
            let ready = File::open(&path).map_err(named(&path))?;
            return Ok(Self { ready, how: NoticeBy::Change });
        }
        let ready = File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        register(&group, &ready)?;
        // It may have happened while nobody was told.
        if cgroups.usage(sandbox).oom_kills.is_some_and(|kills| kills > 0) {
            io::Write::write_all(&mut &ready, &1_u64.to_ne_bytes())?;
        }
        Ok(Self { ready, how: NoticeBy::Counter })
    }

    /// Whether memory really ran out; takes the notice, so that the next one is a new one.
    pub fn happened(ready: &File, how: NoticeBy) -> bool {
        match how {
            NoticeBy::Counter => {
                let mut count = [0; 8];
                io::Read::read(&mut &*ready, &mut count).is_ok_and(|length| length == 8)
            }
            NoticeBy::Change => {
                let mut text = [0; EVENTS_BYTES_MAX];
                let length = ready.read_at(&mut text, 0).unwrap_or(0);
                let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
                let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                kills.and_then(|kills| kills.trim().parse::<u64>().ok()).is_some_and(|n| n > 0)
            }
        }
    }
}

fn register(group: &Path, counter: &File) -> io::Result<()> {
    let path = group.join("memory.oom_control");
    let control = File::open(&path).map_err(named(&path))?;
    let request = format!("{} {}", counter.as_raw_fd(), control.as_raw_fd());
    let path = group.join("cgroup.event_control");
    fs::write(&path, request).map_err(named(&path))
}
