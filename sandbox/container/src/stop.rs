//! Ends containers, and finds those that a launcher before us left.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use base_types::SandboxId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::error::StopError;
use crate::start::Containers;

/// SIGKILL is answered when the kernel gets to it; a process in an uninterruptible wait for a
/// slow disk may take long, and is reported rather than waited for.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Between two sweeps of a group whose members were killed but are not gone.
const SWEEP_PAUSE: Duration = Duration::from_millis(2);

impl Containers {
    /// Ends every process of the sandbox and removes its cgroups. May be repeated, and needs no
    /// `pidfd` where none is left.
    pub fn kill(
        &self,
        sandbox: &SandboxId,
        pidfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), StopError> {
        let io = |what, source| StopError::Io { what, sandbox: sandbox.clone(), source };
        if let Some(pidfd) = pidfd {
            // The kernel ends the whole pid namespace with its first process.
            match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(io("kill the agent", errno.into())),
            }
        }
        let end = Instant::now() + END_WITHIN;
        loop {
            self.cgroups.kill(sandbox).map_err(|e| io("kill processes", e))?;
            // Last, because a frozen v1 task sees its SIGKILL only then; a group that does not
            // exist any more has nothing to thaw.
            let _ = self.cgroups.thaw(sandbox);
            if let Some(pidfd) = pidfd {
                wait_and_reap(pidfd, end);
            }
            if self.cgroups.members(sandbox).map_err(|e| io("list processes", e))?.is_empty() {
                break;
            }
            if Instant::now() >= end {
                let seconds = END_WITHIN.as_secs();
                return Err(StopError::Stuck { sandbox: sandbox.clone(), seconds });
            }
            std::thread::sleep(SWEEP_PAUSE);
        }
        self.cgroups.remove(sandbox).map_err(|e| io("remove cgroups", e))
    }

    /// Ends everything of this installation that is not in `keep`, and says what that was. Removes
    /// what was prepared, too: nobody else may be preparing.
    pub fn sweep(&self, keep: &BTreeSet<SandboxId>) -> Result<Vec<SandboxId>, StopError> {
        let io =
            |what| move |source| StopError::Io { what, sandbox: SandboxId::new("(all)"), source };
        let listed = self.cgroups.list().map_err(io("list cgroups"))?;
        let orphans: Vec<_> = listed.into_iter().filter(|id| !keep.contains(id)).collect();
        orphans.iter().try_for_each(|sandbox| self.kill(sandbox, None))?;
        let parts = self.cgroups.parts();
        let swept = parts.and_then(|parts| parts.iter().try_for_each(|p| self.cgroups.discard(p)));
        swept.map_err(io("remove cgroups that were made ahead"))?;
        Ok(orphans)
    }

    /// The process that an earlier launcher recorded, if it still is that one.
    pub fn adopt(&self, init: Pid, start_time: u64) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).ok()?;
        // In this order: the pid cannot pass to another process while the pidfd answers for it.
        let is_same = start_time_of(init) == Some(start_time);
        is_same.then_some(pidfd)
    }
}

/// Waits for the end, and reaps if the process is a child of ours.
fn wait_and_reap(pidfd: BorrowedFd<'_>, end: Instant) {
    let left = end.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).ok();
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let _ = poll(&mut fds, timeout.as_ref());
    reap(pidfd);
}

pub(crate) fn reap(pidfd: BorrowedFd<'_>) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options);
}

/// Field 22 of `/proc/PID/stat`. The second field may hold anything, so count from its end.
pub(crate) fn start_time_of(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}
