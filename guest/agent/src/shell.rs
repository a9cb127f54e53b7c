//! The persistent shell: a bash that is handed one command after another and keeps its directory,
//! variables, functions and jobs between them.
//!
//! Bash reads its script from a socket, and for each command the agent sends one fixed line:
//! read the command's text from an in-memory file, `eval` it with the call's own pipe as output,
//! report the status on a descriptor that the command does not have. So the text of a command is
//! data, never script: unbalanced quotes are a syntax error of that `eval`, `break` has no loop to
//! leave, and what a command prints is never parsed. The pipe of a call is a FIFO that bash opens
//! by its path, so that a background job keeps writing to the call that started it and never into
//! the next one's output.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use guest_protocol::CallId;
use rustix::fs::{AtFlags, FileType, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::payload::{Plan, PlanError, c_strings};
use crate::process::{Identity, nonblocking, set_var};
use crate::report::{Order, Report};
use crate::supervisor::Supervisor;

/// The descriptors of the shell that its commands do not have.
const COMMAND_FD: i32 = 60;
const STATUS_FD: i32 = 61;
/// A status line is two numbers; anything longer is no status.
const STATUS_BYTES_MAX: usize = 256;
/// Where the FIFOs are, in the directory of outputs.
const PIPES: &str = ".pipes";
/// FIFOs that background jobs may hold; beyond it the oldest job's output is cut off.
pub const PIPES_MAX: usize = 32;

/// Where images have it.
const BASH: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];

#[derive(Debug)]
pub struct Shell {
    pub supervisor: Supervisor,
    /// Commands and statuses.
    channel: OwnedFd,
    command: File,
    /// What bash itself writes, outside of any call's pipe.
    pub out: OwnedFd,
    serial: u64,
    inbox: Vec<u8>,
    pub current: Option<CallId>,
    /// Bash has lost its own output, its channel: they are not listened to any more, because a
    /// hangup is an event without end.
    pub out_closed: bool,
    pub channel_closed: bool,
    /// How bash ended, when it has.
    pub exit: Option<Report>,
    /// Everything below is being killed; no command may be sent.
    pub ending: bool,
    /// It is being killed with its current command, without the jobs of earlier ones.
    pub interrupted: bool,
    /// Jobs of earlier calls that were killed at its end.
    pub jobs_killed: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("prepare the shell: {0}")]
    Io(#[from] std::io::Error),
    #[error("command contains a NUL byte")]
    Nul,
}

impl From<Errno> for ShellError {
    fn from(error: Errno) -> Self {
        ShellError::Io(error.into())
    }
}

/// What a shell is started with.
pub struct ShellStart<'a> {
    pub identity: &'a Identity,
    pub env: &'a [(String, String)],
    pub workdir: &'a str,
}

// === impl Shell ===

impl Shell {
    pub fn start(start: ShellStart<'_>) -> Result<Self, ShellError> {
        let (channel, theirs) = stream_pair()?;
        let (out, out_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let command = rustix::fs::memfd_create("command", MemfdFlags::CLOEXEC)?;
        let mut env = start.env.to_vec();
        for (name, value) in [("PS1", ""), ("PS2", ""), ("TERM", "dumb")] {
            set_var(&mut env, name.to_owned(), value.to_owned());
        }
        let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let plan = Plan {
            programs: c_strings("program", BASH)?,
            argv: c_strings("argument", ["bash", "--noprofile", "--norc"])?,
            env: c_strings("environment", env.iter().map(String::as_str))?,
            // The agent may have removed its work directory; a shell is how it makes a new one.
            directories: c_strings("directory", [start.workdir, "/"])?,
            as_root: false,
            descriptors: vec![
                (theirs.try_clone()?, 0),
                (out_writer.try_clone()?, 1),
                (out_writer, 2),
                (command.try_clone()?, COMMAND_FD),
                (theirs, STATUS_FD),
            ],
            terminal: false,
        };
        let mut shell = Self {
            supervisor: Supervisor::start(start.identity, plan)?,
            channel: nonblocking(channel)?,
            command: command.into(),
            out: nonblocking(out)?,
            serial: 0,
            inbox: Vec::new(),
            current: None,
            out_closed: false,
            channel_closed: false,
            exit: None,
            ending: false,
            interrupted: false,
            jobs_killed: 0,
        };
        // From here on nothing that bash says about our own lines reaches an output.
        shell.send("exec 2>/dev/null\n");
        Ok(shell)
    }

    pub fn channel(&self) -> &OwnedFd {
        &self.channel
    }

    /// Hands `command` to bash; its output goes to `fifo`, or to [`Self::out`] without one.
    pub fn run(
        &mut self,
        id: &CallId,
        command: &str,
        fifo: Option<&str>,
    ) -> Result<(), ShellError> {
        if command.contains('\0') {
            return Err(ShellError::Nul);
        }
        // Bash shares the file's position, so the rewinding here is what makes it read the start.
        self.command.set_len(0)?;
        self.command.seek(SeekFrom::Start(0))?;
        self.command.write_all(command.as_bytes())?;
        self.command.write_all(&[0])?;
        self.command.seek(SeekFrom::Start(0))?;
        self.serial += 1;
        self.current = Some(id.clone());
        let out = fifo.map_or_else(String::new, |path| format!(">'{path}' "));
        let serial = self.serial;
        self.send(&format!(
            "IFS= builtin read -r -d '' -u {COMMAND_FD} __sinew_command\n\
             builtin eval \"$__sinew_command\" </dev/null {out}2>&1 {COMMAND_FD}<&- {STATUS_FD}>&-\n\
             builtin printf '%s %s\\n' {serial} \"$?\" >&{STATUS_FD}\n"
        ));
        Ok(())
    }

    /// The socket's buffer is empty when the shell is idle and holds many such lines; a shell that
    /// does not read them answers no command, and ends by the call's time-out.
    fn send(&mut self, line: &str) {
        let _ = rustix::io::write(&self.channel, line.as_bytes());
    }

    /// The status of the current command, if bash has reported one. Lines that are not about it
    /// are somebody's forgery or leftover, and are skipped.
    pub fn take_status(&mut self) -> Option<i32> {
        let mut buffer = [0; STATUS_BYTES_MAX];
        loop {
            match rustix::io::read(&self.channel, &mut buffer) {
                Ok(0) => break,
                Ok(length) => self.inbox.extend_from_slice(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
            if self.inbox.len() > STATUS_BYTES_MAX {
                break;
            }
        }
        let mut status = None;
        while let Some(end) = memchr::memchr(b'\n', &self.inbox) {
            let line: Vec<u8> = self.inbox.drain(..=end).collect();
            status = parse_status(&line, self.serial).or(status);
        }
        if self.inbox.len() > STATUS_BYTES_MAX {
            self.inbox.clear();
        }
        status.filter(|_| self.current.is_some())
    }

    /// Kills the shell and what began at `ticks` or later. Bash has no way to give up the rest of a
    /// list and live, unless a person sits at its terminal.
    pub fn interrupt(&mut self, ticks: u64) {
        self.interrupted = true;
        self.supervisor.order(Order::KillSince { ticks });
    }

    pub fn kill(&mut self, ticks: u64) {
        self.ending = true;
        self.supervisor.order(Order::KillTree { ticks });
    }
}

fn parse_status(line: &[u8], serial: u64) -> Option<i32> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let (of, status) = text.split_once(' ')?;
    if of.parse() != Ok(serial) {
        return None;
    }
    status.parse().ok().filter(|status| (0..=255).contains(status))
}

fn stream_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

// === impl Pipes ===

/// FIFOs in the directory of outputs, used again when nobody holds them, so that a full disk does
/// not keep a shell with a free one from running commands.
#[derive(Debug)]
pub struct Pipes {
    directory: Option<OwnedFd>,
    /// Where the guest sees them.
    path: String,
    free: Vec<Fifo>,
    made: u32,
}

/// One FIFO, by its number.
#[derive(Debug, PartialEq, Eq)]
pub struct Fifo(u32);

impl Pipes {
    /// Makes the directory afresh. Without it (no space, no permission) commands share one pipe.
    pub fn new(outputs: &Rc<OwnedFd>, guest_path: &str) -> Self {
        let path = format!("{guest_path}/{PIPES}");
        Self { directory: fresh_directory(outputs).ok(), path, free: Vec::new(), made: 0 }
    }

    /// A FIFO nobody holds, with its reading end.
    pub fn take(&mut self, identity: &Identity) -> Option<(Fifo, OwnedFd)> {
        let directory = self.directory.as_ref()?;
        let fifo = match self.free.pop() {
            Some(fifo) => fifo,
            None => {
                let fifo = Fifo(self.made);
                make_fifo(directory, &fifo.0.to_string(), identity).ok()?;
                self.made += 1;
                fifo
            }
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = fifo.0.to_string();
        let reader = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
        Some((fifo, reader))
    }

    pub fn give_back(&mut self, fifo: Fifo) {
        self.free.push(fifo);
    }

    pub fn path(&self, fifo: &Fifo) -> String {
        format!("{}/{}", self.path, fifo.0)
    }
}

fn fresh_directory(outputs: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    // Guests may enter but not list it: a `cat *` in the directory of outputs never meets a FIFO.
    let mode = Mode::from_raw_mode(0o711);
    match rustix::fs::mkdirat(outputs, PIPES, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(outputs, PIPES, flags, Mode::empty())?;
    rustix::fs::fchmod(&directory, mode)?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        if entry.file_type() == FileType::Fifo {
            rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(directory)
}

fn make_fifo(directory: &OwnedFd, name: &str, identity: &Identity) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(directory, name, FileType::Fifo, mode, 0)?;
    if !identity.root {
        let owner = Some(rustix::fs::Uid::from_raw(identity.uid));
        let group = Some(rustix::fs::Gid::from_raw(identity.gid));
        rustix::fs::chownat(directory, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_of_this_command_counts() {
        assert_eq!(parse_status(b"7 0\n", 7), Some(0));
        assert_eq!(parse_status(b"7 255\n", 7), Some(255));
        for other in [&b"6 0\n"[..], b"7 256\n", b"7 -1\n", b"7\n", b"\n", b"7 x\n", b"\xff 0\n"] {
            assert_eq!(parse_status(other, 7), None);
        }
    }
}
