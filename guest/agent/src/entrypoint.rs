//! The program that a profile wants beside the tools: a service, say. It is started once, when the
//! agent is, and never again; how it ended is remembered for as long as the agent lives.
//!
//! To the kernel it is payload like any other: the tool's user, the payload's control group, a
//! supervisor that adopts what it orphans. It has no time-out, belongs to no call, and ends with
//! the sandbox. What it writes goes to a log of bounded size in the directory of outputs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use guest_protocol::boot::BootArgs;
use guest_protocol::{
    ENTRYPOINT_LOG, ENTRYPOINT_TAIL_BYTES_MAX, EntrypointEnd, EntrypointInfo, Exit,
};
use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::call::now_ms;
use crate::payload::{Plan, PlanError, c_strings, candidates};
use crate::process::{Identity, nonblocking};
use crate::report::Report;
use crate::server::Agent;
use crate::supervisor::{Supervisor, take_report};

/// The log before the present one; it begins when that is full.
const LOG_BEFORE: &str = "entrypoint.log.1";
/// Of one log: two of them are the most that an entrypoint takes of the sandbox's disk.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// Read from the pipe before others have their turn.
const TURN_READS: usize = 4;
/// Asked of the kernel in one read; the size of a pipe.
const READ_BYTES: usize = 64 << 10;
/// Of the command line as it is shown.
const COMMAND_CHARS_MAX: usize = 200;

#[derive(Debug)]
pub struct Entrypoint {
    command: String,
    started_at_ms: u64,
    end: Option<EntrypointEnd>,
    /// For as long as something of it is there, which may be longer than the program itself.
    pub supervisor: Option<Supervisor>,
    /// `None`: nobody holds the writing end any more.
    pub output: Option<OwnedFd>,
    log: Log,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Os(#[from] Errno),
}

// === impl Entrypoint ===

impl Entrypoint {
    /// `None` where nothing was asked for. What does not start is remembered like what ended.
    pub fn start(
        boot: &BootArgs,
        identity: &Identity,
        env: &[(String, String)],
        outputs: &Rc<OwnedFd>,
    ) -> Option<Self> {
        let words = boot.entrypoint.as_deref()?;
        let mut entrypoint = Self {
            command: words.join(" ").chars().take(COMMAND_CHARS_MAX).collect(),
            started_at_ms: now_ms(),
            end: None,
            supervisor: None,
            output: None,
            log: Log::new(outputs.clone()),
        };
        let started = match words {
            [] => Err("the image names no entrypoint and no command".to_owned()),
            words => run(words, boot, identity, env).map_err(|error| error.to_string()),
        };
        match started {
            Ok((supervisor, output)) => {
                entrypoint.supervisor = Some(supervisor);
                entrypoint.output = Some(output);
            }
            Err(reason) => entrypoint.ended(Exit::FailedToStart(reason)),
        }
        Some(entrypoint)
    }

    pub fn info(&self) -> EntrypointInfo {
        EntrypointInfo {
            command: self.command.clone(),
            started_at_ms: self.started_at_ms,
            end: self.end.clone(),
            output_bytes: self.log.total_bytes,
            tail: self.log.tail.iter().copied().collect(),
        }
    }

    fn ended(&mut self, exit: Exit) {
        // The first end is the program's own; what follows is about what it left behind.
        if self.end.is_none() {
            self.end = Some(EntrypointEnd { exit, at_ms: now_ms() });
        }
    }

    fn take_output(&mut self) {
        let Some(output) = &self.output else { return };
        let mut buffer = [0; READ_BYTES];
        for _ in 0..TURN_READS {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(length) => self.log.push(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.output = None;
                    return;
                }
            }
        }
    }
}

fn run(
    words: &[String],
    boot: &BootArgs,
    identity: &Identity,
    env: &[(String, String)],
) -> Result<(Supervisor, OwnedFd), StartError> {
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path);
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let nothing: OwnedFd = File::open("/dev/null")?.into();
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let plan = Plan {
        programs: candidates(words.first().map_or("", String::as_str), path)?,
        argv: c_strings("entrypoint", words.iter().map(String::as_str))?,
        env: c_strings("environment", env.iter().map(String::as_str))?,
        directories: c_strings("directory", [boot.workdir.as_str(), "/"])?,
        as_root: false,
        descriptors: vec![(nothing, 0), (writer.try_clone()?, 1), (writer, 2)],
        terminal: false,
    };
    let supervisor = Supervisor::start(identity, plan)?;
    Ok((supervisor, nonblocking(reader)?))
}

// === in the event loop ===

impl Agent {
    pub(crate) fn entrypoint_output(&mut self) {
        if let Some(entrypoint) = &mut self.entrypoint {
            entrypoint.take_output();
        }
    }

    pub(crate) fn entrypoint_reports(&mut self) {
        loop {
            let Some(entrypoint) = &mut self.entrypoint else { return };
            let Some(supervisor) = &entrypoint.supervisor else { return };
            let pid = supervisor.pid;
            match take_report(&supervisor.control) {
                Ok(None) => return,
                Ok(Some(Report::FailedToStart { reason, .. })) => {
                    entrypoint.ended(Exit::FailedToStart(reason));
                }
                Ok(Some(Report::Exited { code })) => entrypoint.ended(Exit::Code(code)),
                Ok(Some(Report::Signaled { signal })) => entrypoint.ended(Exit::Signal(signal)),
                Ok(Some(_)) => {}
                Err(_) => {
                    let killed = entrypoint.end.is_none();
                    entrypoint.ended(Exit::Signal(Signal::SIGKILL as i32));
                    entrypoint.supervisor = None;
                    if killed {
                        // By guest root, and so is, now, whatever it had below it.
                        self.sweep_orphans(pid);
                    }
                    return;
                }
            }
        }
    }
}

// === the log ===

/// Two files of bounded size, the older of which gives way, and the end of all in memory. A file
/// that cannot be written is given up; the entrypoint goes on.
#[derive(Debug)]
struct Log {
    directory: Rc<OwnedFd>,
    total_bytes: u64,
    tail: VecDeque<u8>,
    file: Option<File>,
    file_bytes: u64,
    bytes_max: u64,
}

impl Log {
    /// What an earlier incarnation wrote becomes the log before.
    fn new(directory: Rc<OwnedFd>) -> Self {
        let mut log = Self {
            directory,
            total_bytes: 0,
            tail: VecDeque::new(),
            file: None,
            file_bytes: 0,
            bytes_max: LOG_BYTES_MAX,
        };
        log.begin_file();
        log
    }

    fn push(&mut self, data: &[u8]) {
        self.total_bytes += data.len() as u64;
        let kept = &data[data.len().saturating_sub(ENTRYPOINT_TAIL_BYTES_MAX)..];
        let surplus = (self.tail.len() + kept.len()).saturating_sub(ENTRYPOINT_TAIL_BYTES_MAX);
        self.tail.drain(..surplus);
        self.tail.extend(kept);
        self.write(data);
    }

    fn write(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.file_bytes >= self.bytes_max {
                self.begin_file();
            }
            let Some(file) = &mut self.file else { return };
            let room = (self.bytes_max - self.file_bytes) as usize;
            let piece = &data[..data.len().min(room)];
            match file.write(piece) {
                Ok(written @ 1..) => {
                    self.file_bytes += written as u64;
                    data = &data[written..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // A full disk may have room again by the time that a new file is due.
                Ok(0) | Err(_) => {
                    self.file_bytes += data.len() as u64;
                    return;
                }
            }
        }
    }

    fn begin_file(&mut self) {
        self.file_bytes = 0;
        // Where it cannot be moved it is written over, so that two files stay the most.
        let _ =
            rustix::fs::renameat(&*self.directory, ENTRYPOINT_LOG, &*self.directory, LOG_BEFORE);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        let opened =
            rustix::fs::openat(&*self.directory, ENTRYPOINT_LOG, flags | OFlags::CLOEXEC, mode);
        self.file = opened.ok().map(File::from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes_max: u64) -> (tempfile::TempDir, Log) {
        let directory = tempfile::tempdir().unwrap();
        let fd: OwnedFd = File::open(directory.path()).unwrap().into();
        let mut log = Log::new(Rc::new(fd));
        log.bytes_max = bytes_max;
        (directory, log)
    }

    #[test]
    fn the_log_stays_bounded_and_ends_with_what_came_last() {
        let (directory, mut log) = log(1000);
        let read = |name| std::fs::read(directory.path().join(name)).unwrap_or_default();
        let mut written = Vec::new();
        for n in 0..900 {
            let line = format!("line {n}\n");
            written.extend_from_slice(line.as_bytes());
            log.push(line.as_bytes());
        }
        let kept = [read(LOG_BEFORE), read(ENTRYPOINT_LOG)].concat();
        assert!(kept.len() <= 2000 && read(LOG_BEFORE).len() == 1000, "{}", kept.len());
        assert!(written.ends_with(&kept));
        let tail: Vec<u8> = log.tail.iter().copied().collect();
        assert_eq!(tail.len(), ENTRYPOINT_TAIL_BYTES_MAX);
        assert!(written.ends_with(&tail));
        assert_eq!(log.total_bytes, written.len() as u64);

        // One that is larger than all of it.
        log.push(&[b'x'; 5000]);
        assert_eq!(read(LOG_BEFORE), [b'x'; 1000]);
        assert!(read(ENTRYPOINT_LOG).len() <= 1000);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_new_incarnation_keeps_the_log_of_the_one_before() {
        let (directory, mut first) = log(1000);
        first.push(b"first");
        let fd: OwnedFd = File::open(directory.path()).unwrap().into();
        let mut second = Log::new(Rc::new(fd));
        second.push(b"second");
        let read = |name| std::fs::read(directory.path().join(name)).unwrap();
        assert_eq!((read(LOG_BEFORE), read(ENTRYPOINT_LOG)), (b"first".into(), b"second".into()));
    }

    #[test]
    fn a_full_disk_costs_the_file_and_not_the_entrypoint() {
        let (_directory, mut log) = log(1000);
        log.file = Some(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.push(b"0123456789");
        assert_eq!((log.total_bytes, log.file_bytes), (10, 10));
        assert_eq!(log.tail, *b"0123456789");
    }
}
