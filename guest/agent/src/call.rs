//! The agent's record of one call, and the pipe its output comes through.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use guest_protocol::{Block, CallId, CallState, Exit, Note, Outcome};
use nix::unistd::Pid;
use rustix::io::Errno;

use crate::shell::Fifo;
use crate::spool::Spool;
use crate::supervisor::Supervisor;

/// Ids of acknowledged calls that are remembered, so that a late `Start` is refused and not run.
const ACKED_MAX: usize = 4096;
/// Read from one pipe before others have their turn.
const TURN_READS: usize = 4;
/// Asked of the kernel in one read; the size of a pipe.
const READ_BYTES: usize = 64 << 10;
/// Inputs that wait for a program to read.
const INPUTS_MAX: usize = 64;
/// Bytes of them; the host sends the next piece when the last was taken.
const INPUT_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub struct Call {
    pub spool: Spool,
    pub tap: Option<Tap>,
    pub started_at_ms: u64,
    pub phase: Phase,
}

#[derive(Debug)]
pub enum Phase {
    Running(Running),
    Finished(Box<Outcome>),
}

#[derive(Debug)]
pub struct Running {
    pub work: Work,
    pub deadline: Instant,
    /// By the clock of `/proc`: what is older than the call was there before it.
    pub started_ticks: u64,
    pub end: End,
    pub notes: Vec<Note>,
}

#[derive(Debug)]
pub enum Work {
    /// In the agent's one shell.
    Shell,
    Exec {
        supervisor: Supervisor,
        input: Option<Input>,
    },
    File {
        pid: Pid,
        control: OwnedFd,
    },
}

/// Whether, and why, the call is being ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    ByItself,
    /// The shell with what the call began, and not the jobs of earlier calls; the whole tree when
    /// the time is over.
    Foreground {
        cause: Exit,
        until: Instant,
    },
    /// The tree; given up when the time is over.
    Tree {
        cause: Exit,
        until: Instant,
    },
}

#[derive(Debug)]
pub struct Input {
    pub fd: OwnedFd,
    /// A terminal has no end of input; a character says it.
    pub terminal: bool,
    /// The program runs. Before that a terminal is nobody's, and its interrupt character is lost.
    pub ready: bool,
    pub queue: VecDeque<PendingInput>,
}

/// One request of the host; answered when the program has taken all of it.
#[derive(Debug)]
pub struct PendingInput {
    pub connection: u64,
    pub request: u64,
    pub data: Vec<u8>,
    pub sent: usize,
    pub eof: bool,
}

// === impl Call ===

impl Call {
    pub fn state(&self) -> CallState {
        match &self.phase {
            Phase::Running(_) => CallState::Running {
                started_at_ms: self.started_at_ms,
                total_bytes: self.spool.total_bytes(),
            },
            Phase::Finished(outcome) => CallState::Finished(outcome.clone()),
        }
    }

    pub fn running(&mut self) -> Option<&mut Running> {
        match &mut self.phase {
            Phase::Running(running) => Some(running),
            Phase::Finished(_) => None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running(_))
    }

    /// Takes what the pipe holds at this moment, which is all that was written before the end of
    /// the call was known; what background jobs write later is not waited for.
    pub fn drain(&mut self) {
        if let Some(tap) = &mut self.tap {
            tap.drain(&mut self.spool);
        }
    }

    /// The outcome as it is now, with the pipe drained. Says so if a job still holds the pipe.
    pub fn outcome(&mut self, exit: Exit, block: Block, mut notes: Vec<Note>) -> Outcome {
        if self.tap.is_some() {
            self.spool.spill();
            notes.push(Note::BackgroundOutput);
        }
        notes.extend(self.spool.notes());
        let mut outcome = Outcome {
            exit,
            total_bytes: self.spool.total_bytes(),
            head: self.spool.head(),
            tail: self.spool.tail(),
            output_path: None,
            notes,
            block,
            started_at_ms: self.started_at_ms,
            ended_at_ms: now_ms(),
        };
        let worth_reading = outcome.truncated() || self.tap.is_some();
        if worth_reading && outcome.block == Block::Text && self.spool.has_file() {
            outcome.output_path = Some(String::new()); // The server knows the directory.
        }
        outcome
    }
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// The present by the clock that `/proc/*/stat` uses.
pub fn now_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    now.tv_sec as u64 * per_second + now.tv_nsec as u64 * per_second / 1_000_000_000
}

// === impl Tap ===

/// The reading end of a call's output.
#[derive(Debug)]
pub struct Tap {
    pub fd: OwnedFd,
    /// Handed back to the shell when nobody holds the writing end.
    pub fifo: Option<Fifo>,
    /// Nobody holds the writing end at this moment. With a FIFO, somebody may yet open it.
    pub silent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Open,
    /// No writer is left.
    Ended,
}

impl Tap {
    pub fn new(fd: OwnedFd, fifo: Option<Fifo>) -> Self {
        Self { fd, fifo, silent: false }
    }

    /// One turn of reading.
    pub fn take(&mut self, spool: &mut Spool) -> Flow {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..TURN_READS {
            match self.read(&mut buffer, spool) {
                Some(Flow::Ended) => return Flow::Ended,
                Some(Flow::Open) => {}
                None => break,
            }
        }
        Flow::Open
    }

    fn drain(&mut self, spool: &mut Spool) {
        let mut left = rustix::io::ioctl_fionread(&self.fd).unwrap_or(0) as usize;
        let mut buffer = [0; READ_BYTES];
        while left > 0 {
            let want = left.min(READ_BYTES);
            let before = spool.total_bytes();
            if self.read(&mut buffer[..want], spool) != Some(Flow::Open) {
                break;
            }
            left -= (spool.total_bytes() - before) as usize;
        }
    }

    /// Whether a writer is left, now that the pipe was drained. What it has just written is taken.
    pub fn probe(&mut self, spool: &mut Spool) -> Flow {
        let mut buffer = [0; READ_BYTES];
        self.read(&mut buffer, spool).unwrap_or(Flow::Open)
    }

    /// `None`: nothing to read at the moment.
    fn read(&mut self, buffer: &mut [u8], spool: &mut Spool) -> Option<Flow> {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => {
                self.silent = true;
                Some(Flow::Ended)
            }
            Ok(length) => {
                self.silent = false;
                spool.push(&buffer[..length]);
                Some(Flow::Open)
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            // A terminal whose other end is closed reads EIO.
            Err(_) => {
                self.silent = true;
                Some(Flow::Ended)
            }
        }
    }
}

// === impl Input ===

impl Input {
    pub fn new(fd: OwnedFd, terminal: bool) -> Self {
        Self { fd, terminal, ready: false, queue: VecDeque::new() }
    }

    /// Whether no more input is taken in now.
    pub fn is_full(&self) -> bool {
        let bytes: usize = self.queue.iter().map(|pending| pending.data.len()).sum();
        self.queue.len() >= INPUTS_MAX || bytes >= INPUT_BYTES_MAX
    }

    /// Writes what the program takes; answers the requests that are done.
    pub fn pump(&mut self) -> Vec<PendingInput> {
        let mut done = Vec::new();
        if !self.ready {
            return done;
        }
        while let Some(first) = self.queue.front_mut() {
            let data = if first.eof && self.terminal { &b"\x04"[..] } else { &first.data[..] };
            if first.sent < data.len() {
                match rustix::io::write(&self.fd, &data[first.sent..]) {
                    Ok(sent) => first.sent += sent,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    // The program has closed its input, which it may; the bytes are gone.
                    Err(_) => first.sent = data.len(),
                }
            } else if let Some(first) = self.queue.pop_front() {
                done.push(first);
            }
        }
        done
    }
}

// === impl Acked ===

/// What was acknowledged, in order, bounded.
#[derive(Debug, Default)]
pub struct Acked {
    order: VecDeque<CallId>,
    set: HashSet<CallId>,
}

impl Acked {
    pub fn insert(&mut self, id: CallId) {
        if self.set.insert(id.clone()) {
            self.order.push_back(id);
        }
        if self.order.len() > ACKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    pub fn contains(&self, id: &CallId) -> bool {
        self.set.contains(id)
    }
}
