//! What must be done now and then: room is made before guests need it, and an end that could not
//! be cleaned up is tried again.

use std::io;
use std::sync::Weak;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Live, Sandboxes};

/// A fast disk writes some hundred megabytes meanwhile, which is below a step of the pool.
const EVERY: Duration = Duration::from_millis(250);

/// What takes a look at everything is done at every so many of those.
const THOROUGH_EVERY: u32 = 240;

/// Starts the thread that does it, for as long as there are sandboxes to tend.
pub(super) fn start(sandboxes: Weak<Sandboxes>) -> io::Result<()> {
    let run = move || {
        let mut round = 0_u32;
        let mut ails = false;
        loop {
            std::thread::sleep(EVERY);
            let Some(sandboxes) = sandboxes.upgrade() else { return };
            round = round.wrapping_add(1);
            let is_thorough = round.is_multiple_of(THOROUGH_EVERY);
            ails = sandboxes.tend_volumes(is_thorough, ails);
            if is_thorough {
                sandboxes.retry_ends();
            }
        }
    };
    std::thread::Builder::new().name("tend".into()).spawn(run)?;
    Ok(())
}

impl Sandboxes {
    /// Says once when it begins to fail, and not at every attempt.
    fn tend_volumes(&self, is_thorough: bool, failed_before: bool) -> bool {
        match self.parts.volumes.tend(is_thorough) {
            Ok(()) => false,
            Err(error) => {
                if !failed_before {
                    tracing::warn!(%error, "room for volumes cannot be made");
                }
                true
            }
        }
    }

    /// Cleans up after sandboxes whose first process is gone and which are still held as running.
    fn retry_ends(&self) {
        for sandbox in self.all() {
            let ended = self.with_existing(&sandbox, |slot, mut work| {
                if work.live.as_ref().is_some_and(Live::has_ended) {
                    self.end_in(slot, &mut work, super::end::AGENT_EXITED)?;
                }
                Ok::<_, crate::wire::Refusal>(())
            });
            if let Some(Err(refusal)) = ended {
                tracing::error!(%sandbox, %refusal, "an ended sandbox still cannot be cleaned up");
            }
        }
    }
}

// === impl Live ===

impl Live {
    fn has_ended(&self) -> bool {
        let mut process = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut process, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
