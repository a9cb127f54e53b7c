//! A fixed number of threads for work that blocks.
//!
//! The invariant: neither a flood of requests nor a panic in one of them takes the launcher down
//! or a thread away. Callers wait when the queue is full.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use crate::lock;

/// Enough to overlap the waits of container starts on a small machine.
const THREADS: usize = 8;

/// Requests that wait for a thread; beyond it their senders wait.
const QUEUE_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Clone)]
pub struct Jobs {
    queue: SyncSender<Job>,
}

// === impl Jobs ===

impl Jobs {
    pub fn start() -> io::Result<Self> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..THREADS {
            let jobs = jobs.clone();
            std::thread::Builder::new().name(format!("job-{number}")).spawn(move || work(&jobs))?;
        }
        Ok(Self { queue })
    }

    /// Waits while the queue is full. Must not be called from a job.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // Fails only when every thread has ended, which none does while this sender lives.
        let _ = self.queue.send(Box::new(job));
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting: one thread waits for the queue, the others for it.
        let Ok(job) = lock(jobs).recv() else { return };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job panicked: this is a defect of the launcher");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn panics_take_no_thread_away() {
        let jobs = Jobs::start().unwrap();
        for _ in 0..2 * THREADS {
            jobs.run(|| panic!("expected by this test"));
        }
        let (sender, done) = mpsc::channel();
        jobs.run(move || sender.send(()).unwrap());
        done.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
