//! How a call begins: looked up first, then a supervisor or a child for it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use guest_protocol::wire::{self, ErrorCode};
use guest_protocol::{
    Block, CallId, CallSpec, CallState, ExecSpec, Exit, FileSpec, Malformed, Note, PtySize, RunAs,
    ShellSpec, Work as Wanted,
};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;

use crate::call::{Call, End, Input, Phase, Running, Tap, Work, now_ms, now_ticks};
use crate::files;
use crate::payload::{Plan, c_string, c_strings, candidates};
use crate::process::{close_others, fork_into, nonblocking, set_var};
use crate::requests::{Refusal, refuse};
use crate::server::Agent;
use crate::shell::{Shell, ShellStart};
use crate::spool::Spool;
use crate::supervisor::{Supervisor, packet_pair, put_report};

/// Calls that run or wait for their ack. A driver runs one at a time and acks each.
const CALLS_MAX: usize = 64;
/// What a program under a terminal is told of it, unless the caller says otherwise.
const PTY_TERM: &str = "xterm-256color";

/// Why a call could not be started; becomes its outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0}")]
    Plan(#[from] crate::payload::PlanError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Os(#[from] rustix::io::Errno),
    #[error("{0}")]
    Shell(#[from] crate::shell::ShellError),
}

impl Agent {
    /// Idempotent: a call that is known is not started again.
    pub(crate) fn start(&mut self, start: wire::Start) -> Result<CallState, Refusal> {
        let bad =
            |error: Malformed| Refusal { code: ErrorCode::BadRequest, text: error.to_string() };
        let id = guest_protocol::call_id(&start.call_id).map_err(bad)?;
        if let Some(call) = self.calls.get(&id) {
            return Ok(call.state());
        }
        if self.acked.contains(&id) {
            return refuse(ErrorCode::AlreadyAcked, format!("call {id} has run and is forgotten"));
        }
        if self.calls.len() >= CALLS_MAX {
            return refuse(
                ErrorCode::TooManyCalls,
                format!("{CALLS_MAX} calls run or wait for ack"),
            );
        }
        let spec = CallSpec::try_from(start).map_err(bad)?;
        if matches!(spec.work, Wanted::Shell(_)) && self.shell_is_busy() {
            return refuse(ErrorCode::ShellBusy, "the shell runs another call");
        }
        self.begin(id.clone(), spec);
        Ok(self.state_of(&id))
    }

    fn shell_is_busy(&self) -> bool {
        let current = self.shell.as_ref().is_some_and(|shell| shell.current.is_some());
        current || self.restart.is_some()
    }

    fn begin(&mut self, id: CallId, spec: CallSpec) {
        let CallSpec { timeout, limits, work } = spec;
        let mut call = Call {
            spool: Spool::new(self.outputs.clone(), id.clone(), limits),
            tap: None,
            started_at_ms: now_ms(),
            phase: Phase::Running(Running {
                work: Work::Shell,
                deadline: Instant::now() + timeout,
                started_ticks: now_ticks(),
                end: End::ByItself,
                notes: Vec::new(),
            }),
        };
        let started = match work {
            Wanted::Shell(spec) => {
                self.calls.insert(id.clone(), call);
                self.begin_shell(&id, spec);
                return;
            }
            Wanted::Exec(spec) => self.begin_exec(&spec),
            Wanted::File(spec) => self.begin_file(spec),
        };
        match started {
            Ok((work, tap)) => {
                call.tap = Some(tap);
                if let Some(running) = call.running() {
                    running.work = work;
                }
                self.calls.insert(id, call);
            }
            Err(error) => {
                self.calls.insert(id.clone(), call);
                self.finish(&id, Exit::FailedToStart(error.to_string()), Block::Text);
            }
        }
    }

    // === shell ===

    fn begin_shell(&mut self, id: &CallId, spec: ShellSpec) {
        match spec {
            ShellSpec::Command(command) => match self.shell.as_ref() {
                // It dies at this moment; its successor takes the command.
                Some(shell) if shell.ending || shell.exit.is_some() => {
                    self.restart = Some((id.clone(), Some(command)));
                }
                _ => self.run_in_shell(id, &command),
            },
            ShellSpec::Restart(command) => {
                self.restart = Some((id.clone(), command));
                self.kill_jobs_of_interrupted();
                match &mut self.shell {
                    Some(shell) => shell.kill(now_ticks()),
                    None => self.continue_restart(),
                }
            }
        }
    }

    /// The old shell is gone, if there was one.
    pub(crate) fn continue_restart(&mut self) {
        let Some((id, command)) = self.restart.take() else { return };
        let Some(running) = self.calls.get_mut(&id).and_then(Call::running) else { return };
        if let End::Tree { cause, .. } | End::Foreground { cause, .. } = running.end.clone() {
            // It was killed, or its time was over, while it waited.
            return self.finish(&id, cause, Block::Text);
        }
        match command {
            Some(command) => self.run_in_shell(&id, &command),
            None => {
                self.shell_lost = false;
                self.finish(&id, Exit::Code(0), Block::Text);
            }
        }
    }

    fn run_in_shell(&mut self, id: &CallId, command: &str) {
        if let Err(error) = self.try_in_shell(id, command) {
            if let Some(shell) = &mut self.shell {
                shell.current = None;
            }
            self.finish(id, Exit::FailedToStart(error.to_string()), Block::Text);
        }
    }

    fn try_in_shell(&mut self, id: &CallId, command: &str) -> Result<(), StartError> {
        if self.shell.is_none() {
            self.shell = Some(Shell::start(ShellStart {
                identity: &self.identity,
                env: &self.env,
                workdir: &self.boot.workdir,
            })?);
            if std::mem::take(&mut self.shell_lost)
                && let Some(running) = self.calls.get_mut(id).and_then(Call::running)
            {
                running.notes.push(Note::ShellRestarted);
            }
        }
        let fifo = self.pipes.take(&self.identity);
        let path = fifo.as_ref().map(|(fifo, _)| self.pipes.path(fifo));
        if let Some(call) = self.calls.get_mut(id) {
            call.tap = fifo.map(|(fifo, reader)| Tap::new(reader, Some(fifo)));
        }
        if let Some(shell) = &mut self.shell {
            shell.run(id, command, path.as_deref())?;
        }
        Ok(())
    }

    // === exec ===

    pub(crate) fn begin_exec(&self, spec: &ExecSpec) -> Result<(Work, Tap), StartError> {
        let mut env = self.env.clone();
        if spec.pty.is_some() {
            set_var(&mut env, "TERM".to_owned(), PTY_TERM.to_owned());
        }
        for (name, value) in &spec.env {
            set_var(&mut env, name.clone(), value.clone());
        }
        let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path);
        let programs = candidates(spec.argv.first().map_or("", String::as_str), path)?;
        let directory = spec.cwd.as_deref().unwrap_or(&self.boot.workdir);
        let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let (descriptors, tap, input) = match spec.pty {
            Some(size) => self.make_terminal(size, spec.run_as)?,
            None => open_pipes(spec.stdin)?,
        };
        let plan = Plan {
            programs,
            argv: c_strings("argument", spec.argv.iter().map(String::as_str))?,
            env: c_strings("environment", env.iter().map(String::as_str))?,
            directories: vec![c_string("directory", directory)?],
            as_root: spec.run_as == RunAs::Root,
            descriptors,
            terminal: spec.pty.is_some(),
        };
        let supervisor = Supervisor::start(&self.identity, plan)?;
        Ok((Work::Exec { supervisor, input }, tap))
    }

    fn make_terminal(&self, size: PtySize, run_as: RunAs) -> Result<Streams, StartError> {
        let ours = open_multiplexer()?;
        rustix::pty::unlockpt(&ours)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
        // That of root stays root's: the tool's user must not read or type there.
        if !self.identity.root && run_as == RunAs::Tool {
            let uid = Some(rustix::fs::Uid::from_raw(self.identity.uid));
            // The group stays that of terminals; programs that check find what they expect.
            rustix::fs::fchown(&theirs, uid, None)?;
        }
        set_size(&ours, size)?;
        let ours = nonblocking(ours)?;
        let input = Input::new(ours.try_clone()?, true);
        let descriptors = vec![(theirs.try_clone()?, 0), (theirs.try_clone()?, 1), (theirs, 2)];
        Ok((descriptors, Tap::new(ours, None), Some(input)))
    }

    // === file tools ===

    fn begin_file(&self, mut spec: FileSpec) -> Result<(Work, Tap), StartError> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (control, theirs) = packet_pair()?;
        let mut keep = vec![writer.as_raw_fd(), theirs.as_raw_fd()];
        keep.extend(self.identity.payload_procs_fd());
        let pid = fork_into(|| {
            close_others(&keep);
            if self.identity.become_payload(false).is_err() {
                return 126;
            }
            if spec.in_workdir {
                files::add_workdir(&mut spec, &self.boot.workdir);
            }
            let report = files::run(&spec, std::io::PipeWriter::from(writer));
            put_report(&theirs, &report);
            0
        })?;
        Ok((Work::File { pid, control }, Tap::new(nonblocking(reader)?, None)))
    }
}

/// What the program has, and what the agent has of it.
type Streams = (Vec<(OwnedFd, i32)>, Tap, Option<Input>);

fn open_pipes(stdin: bool) -> Result<Streams, StartError> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (theirs, input) = if stdin {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let input = Input::new(nonblocking(ours)?, false);
        (theirs, Some(input))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let descriptors = vec![(theirs, 0), (writer.try_clone()?, 1), (writer, 2)];
    Ok((descriptors, Tap::new(nonblocking(reader)?, None), input))
}

/// Root of the sandbox can put anything in the place of `/dev/ptmx`, a file whose opening waits
/// among it, but not in the place of what it links to.
fn open_multiplexer() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
}

pub fn set_size(terminal: &OwnedFd, size: PtySize) -> rustix::io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size)
}
