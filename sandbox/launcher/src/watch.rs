//! Sees sandboxes end and run out of memory.
//!
//! One thread waits on a pidfd and an out-of-memory descriptor for each running sandbox. It only
//! reports; the work is done elsewhere, so that a slow clean-up hides nobody else's end. A pidfd
//! works for sandboxes that an earlier launcher started, whose parent this process is not.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use base_types::{Epoch, SandboxId};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::lock;
use crate::parts::{OomReady, OomWatch};

/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Ended { sandbox: SandboxId, epoch: Epoch },
    OutOfMemory { sandbox: SandboxId, epoch: Epoch },
}

/// Adds and removes sandboxes; cheap to clone.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: Epoll,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    next: u64,
    by_number: HashMap<u64, Watch>,
}

struct Watch {
    sandbox: SandboxId,
    epoch: Epoch,
    pidfd: Arc<OwnedFd>,
    oom: Option<Arc<OomWatch>>,
}

/// Names a watch so that it can be removed.
#[derive(Clone, Copy, Debug)]
pub struct WatchNumber(u64);

// A watch has two descriptors in the kernel's set: the lowest bit of what the kernel hands back
// says which of them is ready.
const PROCESS: u64 = 0;
const MEMORY: u64 = 1;

// === impl Watcher ===

impl Watcher {
    /// Starts the thread; it lives as long as the process.
    pub fn start(report: impl Fn(Seen) + Send + 'static) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let shared = Arc::new(Shared { epoll, watched: Mutex::default() });
        let watcher = Watcher { shared };
        let thread = watcher.clone();
        std::thread::Builder::new().name("watch".into()).spawn(move || thread.run(report))?;
        Ok(watcher)
    }

    pub fn add(
        &self,
        sandbox: &SandboxId,
        epoch: Epoch,
        pidfd: Arc<OwnedFd>,
        oom: Option<Arc<OomWatch>>,
    ) -> io::Result<WatchNumber> {
        let watch =
            Watch { sandbox: sandbox.clone(), epoch, pidfd: pidfd.clone(), oom: oom.clone() };
        let number = {
            let mut watched = lock(&self.shared.watched);
            watched.next += 1;
            let number = watched.next;
            watched.by_number.insert(number, watch);
            number
        };
        let added = self.shared.add(number, &pidfd, oom.as_deref());
        if added.is_err() {
            self.remove(WatchNumber(number));
        }
        added.map(|()| WatchNumber(number))
    }

    pub fn remove(&self, number: WatchNumber) {
        if let Some(watch) = lock(&self.shared.watched).by_number.remove(&number.0) {
            self.shared.forget(&watch);
        }
    }

    fn run(&self, report: impl Fn(Seen)) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            match self.shared.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => {
                    for event in events.iter().take(count) {
                        if let Some(seen) = self.shared.seen(event.data()) {
                            report(seen);
                        }
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => {
                    // Only a closed or foreign descriptor makes this call fail.
                    tracing::error!(%error, "the watch over sandboxes has ended");
                    return;
                }
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    fn add(&self, number: u64, pidfd: &OwnedFd, oom: Option<&OomWatch>) -> io::Result<()> {
        let event = |flags, which| EpollEvent::new(flags, number << 1 | which);
        self.epoll.add(pidfd, event(EpollFlags::EPOLLIN, PROCESS))?;
        if let Some(oom) = oom {
            let flags = match oom.how {
                OomReady::Readable => EpollFlags::EPOLLIN,
                // Stays ready until it is read, so report the change and not the state.
                OomReady::Priority => EpollFlags::EPOLLPRI | EpollFlags::EPOLLET,
            };
            self.epoll.add(&oom.ready, event(flags, MEMORY))?;
        }
        Ok(())
    }

    /// What a ready descriptor means; each end and each shortage is reported once.
    fn seen(&self, data: u64) -> Option<Seen> {
        let watched = lock(&self.watched);
        let watch = watched.by_number.get(&(data >> 1))?;
        let (sandbox, epoch) = (watch.sandbox.clone(), watch.epoch);
        if data & 1 == PROCESS {
            let _ = self.epoll.delete(watch.pidfd.as_fd());
            return Some(Seen::Ended { sandbox, epoch });
        }
        let oom = watch.oom.as_ref()?;
        if !(oom.happened)(&oom.ready) {
            return None;
        }
        let _ = self.epoll.delete(&oom.ready);
        Some(Seen::OutOfMemory { sandbox, epoch })
    }

    fn forget(&self, watch: &Watch) {
        // Either may have been taken out already, when it was reported.
        let _ = self.epoll.delete(watch.pidfd.as_fd());
        if let Some(oom) = &watch.oom {
            let _ = self.epoll.delete(&oom.ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn pidfd(pid: u32) -> Arc<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        Arc::new(rustix::process::pidfd_open(pid, flags).unwrap())
    }

    #[test]
    fn an_end_and_a_shortage_are_each_reported_once() {
        let (sender, seen) = mpsc::channel();
        let watcher = Watcher::start(move |seen| sender.send(seen).unwrap()).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (shortage, mut announce) = io::pipe().unwrap();
        let oom = OomWatch {
            ready: File::from(OwnedFd::from(shortage)),
            how: OomReady::Readable,
            happened: Box::new(|mut ready| {
                let mut byte = [0];
                ready.read_exact(&mut byte).unwrap();
                byte == *b"!"
            }),
        };
        let sandbox = SandboxId::generate();
        let number =
            watcher.add(&sandbox, Epoch(3), pidfd(child.id()), Some(Arc::new(oom))).unwrap();

        announce.write_all(b"?!").unwrap();
        let expected = Seen::OutOfMemory { sandbox: sandbox.clone(), epoch: Epoch(3) };
        assert_eq!(seen.recv_timeout(LONG).unwrap(), expected);

        child.kill().unwrap();
        let expected = Seen::Ended { sandbox, epoch: Epoch(3) };
        assert_eq!(seen.recv_timeout(LONG).unwrap(), expected);
        child.wait().unwrap();
        watcher.remove(number);
        assert!(seen.try_recv().is_err());
    }
}
