//! One process per program: it adopts whatever the program's descendants orphan, so that "the
//! tree of this call" is exactly what is below it.
//!
//! It is a fork of the agent, keeps the agent's user (so that the tool's user can neither kill
//! nor trace it), opens nothing and reads only orders. It ends when nothing is below it any more.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::payload::{Plan, Unstarted};
use crate::process::{self, Identity, close_others, fork_into};
use crate::report::{Order, PACKET_BYTES_MAX, Report};
use crate::tree;

/// How long one order to kill may take; a fork bomb of a full process table needs tens of
/// milliseconds.
const KILL_TIME: Duration = Duration::from_secs(4);

/// The agent's end.
#[derive(Debug)]
pub struct Supervisor {
    pub pid: Pid,
    pub control: OwnedFd,
}

// === impl Supervisor ===

impl Supervisor {
    /// Starts `plan` under a new supervisor. What becomes of it is reported on `control`.
    pub fn start(identity: &Identity, plan: Plan) -> io::Result<Self> {
        let (control, theirs) = packet_pair()?;
        let mut keep = plan.raw_descriptors();
        keep.push(theirs.as_raw_fd());
        keep.extend(identity.payload_procs_fd());
        let pid = fork_into(move || {
            close_others(&keep);
            supervise(&theirs, identity, plan);
            0
        })?;
        Ok(Self { pid, control: process::nonblocking(control)? })
    }

    /// A supervisor that is gone has no tree left to act on; its end is reported elsewhere.
    pub fn order(&self, order: Order) {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let _ = send(self.control.as_raw_fd(), &order.encode(), flags);
    }
}

/// Two ends that keep packets apart. Ours for the agent, theirs for the child.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok(pair)
}

/// The next report, if one is there; `Err` when the child has closed its end.
pub fn take_report(control: &OwnedFd) -> Result<Option<Report>, Closed> {
    let mut packet = [0; PACKET_BYTES_MAX];
    match recv(control.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => Err(Closed),
        Ok(length) => Ok(Report::decode(&packet[..length])),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(_) => Err(Closed),
    }
}

pub struct Closed;

pub fn put_report(control: &OwnedFd, report: &Report) {
    // If the agent is gone, so is the sandbox.
    let _ = send(control.as_raw_fd(), &report.encode(), MsgFlags::MSG_NOSIGNAL);
}

// === in the child ===

fn supervise(control: &OwnedFd, identity: &Identity, plan: Plan) {
    let main = match start_program(identity, plan) {
        Ok(main) => main,
        Err(Unstarted { reason, missing }) => {
            return put_report(control, &Report::FailedToStart { reason, missing });
        }
    };
    put_report(control, &Report::Started { pid: main.as_raw() });
    let signals = match process::child_signals() {
        Ok(signals) => signals,
        Err(_) => return,
    };
    let mut watched = Watched { main, main_alive: true };
    loop {
        let mut polled = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        if !watched.reap(control) {
            return;
        }
        if polled[1].any().unwrap_or(true) && !watched.obey(control) {
            return;
        }
    }
}

/// How a failure begins on its way from the program's process.
const MISSING: char = '?';
const FAILED: char = '!';

/// Forks the program and answers when `exec` has succeeded.
fn start_program(identity: &Identity, plan: Plan) -> Result<Pid, Unstarted> {
    let subreaper = nix::sys::prctl::set_child_subreaper(true);
    subreaper.map_err(|e| format!("become subreaper: {e}"))?;
    nix::unistd::setsid().map_err(|e| format!("new session: {e}"))?;
    let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
    let (failure, failure_writer) = pipe.map_err(|e| format!("make a pipe: {e}"))?;
    let main = fork_into(|| {
        let Unstarted { reason, missing } = plan.execute(identity);
        let mark = if missing { MISSING } else { FAILED };
        let _ = rustix::io::write(&failure_writer, format!("{mark}{reason}").as_bytes());
        127
    });
    let main = main.map_err(|e| format!("start a process: {e}"))?;
    drop(failure_writer);
    drop(plan);
    let mut reason = String::new();
    let mut failure = io::PipeReader::from(failure).take(PACKET_BYTES_MAX as u64);
    let _ = failure.read_to_string(&mut reason);
    if reason.is_empty() {
        return Ok(main);
    }
    let _ = waitpid(main, None);
    let missing = reason.starts_with(MISSING);
    Err(Unstarted { reason: reason.chars().skip(1).collect(), missing })
}

struct Watched {
    main: Pid,
    /// Not yet waited for, so its number is still its own.
    main_alive: bool,
}

impl Watched {
    /// Collects the dead; `false` when nothing is left below.
    fn reap(&mut self, control: &OwnedFd) -> bool {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return false,
            };
            if status.pid() != Some(self.main) {
                continue;
            }
            let report = match status {
                WaitStatus::Exited(_, code) => Report::Exited { code },
                WaitStatus::Signaled(_, signal, _) => Report::Signaled { signal: signal as i32 },
                _ => continue,
            };
            self.main_alive = false;
            put_report(control, &report);
        }
    }

    /// Carries out one order; `false` when the agent is gone.
    fn obey(&mut self, control: &OwnedFd) -> bool {
        let mut packet = [0; PACKET_BYTES_MAX];
        let own = std::process::id() as i32;
        let length = match recv(control.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => {
                tree::kill_below(own, &[], KILL_TIME, || {
                    self.reap(control);
                });
                return false;
            }
            Ok(length) => length,
            Err(_) => return true,
        };
        match Order::decode(&packet[..length]) {
            Some(Order::KillTree { ticks }) => {
                let jobs = self.jobs_before(own, ticks);
                let left = tree::kill_below(own, &[], KILL_TIME, || {
                    self.reap(control);
                });
                put_report(control, &Report::Swept { left: left as u32, jobs });
            }
            Some(Order::KillSince { ticks }) => self.kill_since(control, own, ticks),
            Some(Order::Signal { signal }) => self.signal_main(signal),
            None => {}
        }
        true
    }

    /// How many processes began before `ticks` and are not the program itself.
    fn jobs_before(&self, own: i32, ticks: u64) -> u32 {
        let below = tree::descendants(own, &[], &tree::processes());
        let is_job = |process: &&tree::Process| {
            !process.zombie && process.pid != self.main.as_raw() && process.started_ticks < ticks
        };
        below.iter().filter(is_job).count() as u32
    }

    /// Kills the program, and what it began at `ticks` or later with all that is below it. It is
    /// stopped first, so that it cannot go on with the rest of a list. The jobs that were there
    /// before are left.
    fn kill_since(&mut self, control: &OwnedFd, own: i32, ticks: u64) {
        let until = Instant::now() + KILL_TIME;
        if self.main_alive {
            tree::signal(self.main.as_raw(), Signal::SIGSTOP);
        }
        loop {
            let begun = self.begun_since(own, ticks);
            for pid in &begun {
                tree::signal(*pid, Signal::SIGKILL);
            }
            // Last, because its end is what is reported.
            if begun.is_empty() && self.main_alive {
                tree::signal(self.main.as_raw(), Signal::SIGKILL);
            }
            self.reap(control);
            if (begun.is_empty() && !self.main_alive) || Instant::now() >= until {
                return;
            }
            std::thread::sleep(tree::KILL_PAUSE);
        }
    }

    fn begun_since(&self, own: i32, ticks: u64) -> Vec<i32> {
        let all = tree::processes();
        let main = self.main.as_raw();
        let began = all.iter().filter(|process| {
            (process.parent == main || process.parent == own)
                && process.pid != main
                && process.started_ticks >= ticks
        });
        let trees = began.flat_map(|process| {
            let mut tree = tree::descendants(process.pid, &[], &all);
            tree.push(*process);
            tree
        });
        trees.filter(|process| !process.zombie).map(|process| process.pid).collect()
    }

    /// To the program and its process group, as a terminal would.
    fn signal_main(&self, signal: i32) {
        let Ok(signal) = Signal::try_from(signal) else { return };
        if self.main_alive {
            let group = nix::sys::signal::killpg(self.main, signal);
            if group.is_err() {
                tree::signal(self.main.as_raw(), signal);
            }
        }
    }
}
