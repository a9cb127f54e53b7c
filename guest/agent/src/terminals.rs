//! Terminals: shells that people open, leave and come back to.
//!
//! Viewers read by absolute offset from what is kept ([`crate::scrollback`]), each at its own pace,
//! and nothing of them is state but the place up to which they have read. A viewer who keeps up is
//! waited for, so that the terminal loses nothing for it, as a real one does not; one that does not
//! read for [`PATIENCE`] is not waited for again until it reads. So no viewer stops the shell, and
//! the slowest one holds it up to no less than what is kept, once in each such time.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use guest_protocol::terminal::{
    OpenedTerminal, TERMINALS_ENDED_MAX, TERMINALS_MAX, Terminal as Shown, TerminalChunk,
    TerminalId, TerminalName, TerminalSpec,
};
use guest_protocol::wire::{self, ErrorCode, ResponseBody};
use guest_protocol::{ExecSpec, Exit, PtySize, RunAs};
use nix::sys::signal::Signal;
use rustix::io::Errno;

use crate::call::{Input, PendingInput, Work, now_ms, now_ticks};
use crate::ending::TREE_TIME;
use crate::report::{Order, Report};
use crate::requests::{Answered, Refusal, done, refuse, until};
use crate::scrollback::Scrollback;
use crate::server::Agent;
use crate::starting::set_size;
use crate::supervisor::{Supervisor, take_report};
use crate::tree;

/// How long a terminal that is full waits for the viewer who is behind.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a shell that was hung up on has for its farewell.
const HANGUP_TIME: Duration = Duration::from_secs(1);
/// Asked of the kernel in one read, and how many before others have their turn.
const READ_BYTES: usize = 16 << 10;
const TURN_READS: usize = 4;
/// Viewers of one terminal that are waited for: the latest.
const VIEWERS_MAX: usize = 64;
/// Reads that wait; each viewer has one.
const WAITERS_MAX: usize = 512;

#[derive(Default)]
pub struct Terminals {
    last_id: u64,
    /// In the order in which they were opened.
    all: BTreeMap<u64, Terminal>,
    waiters: Vec<Waiter>,
}

struct Terminal {
    name: TerminalName,
    run_as: RunAs,
    size: PtySize,
    started_at_ms: u64,
    scrollback: Scrollback,
    viewers: Vec<Viewer>,
    /// Since when nothing is read because a viewer is behind.
    stalled_since: Option<Instant>,
    state: State,
}

enum State {
    Alive(Box<Alive>),
    Ended(Exit),
}

struct Alive {
    supervisor: Supervisor,
    input: Input,
    output: OwnedFd,
    /// Nobody in the sandbox has the other end at this moment; a hangup is an event without end.
    silent: bool,
    ending: Ending,
}

#[derive(Clone, Copy)]
enum Ending {
    No,
    HungUp { until: Instant },
    Killed { until: Instant },
}

struct Viewer {
    connection: u64,
    viewer: u64,
    /// It has everything before.
    offset: u64,
}

struct Waiter {
    connection: u64,
    request: u64,
    terminal: u64,
    offset: u64,
    max_bytes: u64,
    until: Instant,
}

/// What of a terminal has something to do.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Output,
    Control,
    Input,
}

// === impl Terminals ===

impl Terminals {
    pub fn for_polled(&self, mut add: impl FnMut(u64, Part, &OwnedFd, i16)) {
        for (id, terminal) in &self.all {
            let State::Alive(alive) = &terminal.state else { continue };
            add(*id, Part::Control, &alive.supervisor.control, libc::POLLIN);
            if !alive.silent && !terminal.is_full() {
                add(*id, Part::Output, &alive.output, libc::POLLIN);
            }
            if alive.input.ready && !alive.input.queue.is_empty() {
                add(*id, Part::Input, &alive.input.fd, libc::POLLOUT);
            }
        }
    }

    pub fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let ends = self.all.values().filter_map(|terminal| match &terminal.state {
            State::Alive(alive) => match alive.ending {
                Ending::No => None,
                Ending::HungUp { until } | Ending::Killed { until } => Some(until),
            },
            State::Ended(_) => None,
        });
        let stalls = self.all.values().filter_map(|terminal| terminal.stalled_since);
        let waits = self.waiters.iter().map(|waiter| waiter.until);
        ends.chain(stalls.map(|since| since + PATIENCE)).chain(waits)
    }

    pub fn supervisors(&self) -> impl Iterator<Item = i32> {
        self.alive().map(|(_, alive)| alive.supervisor.pid.as_raw())
    }

    fn alive(&self) -> impl Iterator<Item = (&Terminal, &Alive)> {
        self.all.values().filter_map(|terminal| match &terminal.state {
            State::Alive(alive) => Some((terminal, &**alive)),
            State::Ended(_) => None,
        })
    }

    fn alive_mut(&mut self, id: u64) -> Option<(&mut Alive, &mut Scrollback)> {
        let terminal = self.all.get_mut(&id)?;
        match &mut terminal.state {
            State::Alive(alive) => Some((alive, &mut terminal.scrollback)),
            State::Ended(_) => None,
        }
    }

    fn shown(id: u64, terminal: &Terminal) -> Shown {
        Shown {
            id: TerminalId(id),
            name: terminal.name.clone(),
            run_as: terminal.run_as,
            size: terminal.size,
            started_at_ms: terminal.started_at_ms,
            total_bytes: terminal.scrollback.total_bytes(),
            exit: match &terminal.state {
                State::Alive(_) => None,
                State::Ended(exit) => Some(exit.clone()),
            },
        }
    }

    /// The ended ones beyond what is told of; the oldest go first.
    fn forget_ended(&mut self) {
        let ended = self.all.iter().filter(|(_, one)| matches!(one.state, State::Ended(_)));
        let ended: Vec<u64> = ended.map(|(id, _)| *id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(TERMINALS_ENDED_MAX)) {
            self.all.remove(id);
        }
    }
}

// === impl Terminal ===

impl Terminal {
    /// Whether reading more would take something from a viewer who is waited for.
    fn is_full(&self) -> bool {
        self.viewers.iter().any(|viewer| self.is_behind(viewer))
    }

    fn is_behind(&self, viewer: &Viewer) -> bool {
        self.scrollback.would_lose(viewer.offset, READ_BYTES)
    }

    fn note_viewer(&mut self, connection: u64, viewer: u64, offset: u64) {
        let known = |known: &&mut Viewer| known.connection == connection && known.viewer == viewer;
        if let Some(known) = self.viewers.iter_mut().find(known) {
            known.offset = offset;
            return;
        }
        if self.viewers.len() >= VIEWERS_MAX {
            self.viewers.remove(0); // Most likely one that has gone.
        }
        self.viewers.push(Viewer { connection, viewer, offset });
    }

    /// Starts, ends or gives up waiting for who is behind.
    fn check_stall(&mut self, now: Instant) {
        if !self.is_full() {
            self.stalled_since = None;
            return;
        }
        let since = *self.stalled_since.get_or_insert(now);
        if now >= since + PATIENCE {
            let scrollback = &self.scrollback;
            self.viewers.retain(|viewer| !scrollback.would_lose(viewer.offset, READ_BYTES));
            self.stalled_since = None;
        }
    }

    fn chunk(&self, offset: u64, max_bytes: u64) -> TerminalChunk {
        let mut chunk = self.scrollback.read(offset, max_bytes);
        let last = chunk.offset + chunk.data.len() as u64 >= chunk.total_bytes;
        if let State::Ended(exit) = &self.state
            && last
        {
            chunk.exit = Some(exit.clone());
        }
        chunk
    }
}

// === impl Alive ===

impl Alive {
    /// One read; `false` when there is nothing more at this moment.
    fn take(&mut self, scrollback: &mut Scrollback) -> bool {
        let mut buffer = [0; READ_BYTES];
        match rustix::io::read(&self.output, &mut buffer) {
            Ok(length @ 1..) => {
                scrollback.push(&buffer[..length]);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // EIO: nobody has the other end.
            Ok(0) | Err(_) => {
                self.silent = true;
                false
            }
        }
    }
}

// === requests ===

impl Agent {
    pub(crate) fn open_terminal(&mut self, open: wire::OpenTerminal) -> Answered {
        let bad = |error: guest_protocol::Malformed| Refusal {
            code: ErrorCode::BadRequest,
            text: error.to_string(),
        };
        let spec = TerminalSpec::try_from(open).map_err(bad)?;
        let living = self.terminals.all.iter().find(|(_, terminal)| {
            terminal.name == spec.name && matches!(terminal.state, State::Alive(_))
        });
        if let Some((id, terminal)) = living {
            let terminal = Terminals::shown(*id, terminal);
            return opened(OpenedTerminal { terminal, created: false });
        }
        if self.terminals.alive().count() >= TERMINALS_MAX {
            let text = format!("{TERMINALS_MAX} terminals are open in this sandbox");
            return refuse(ErrorCode::TooManyCalls, text);
        }
        self.terminals.last_id += 1;
        let id = self.terminals.last_id;
        let terminal = self.begin_terminal(spec);
        let shown = Terminals::shown(id, &terminal);
        self.terminals.all.insert(id, terminal);
        opened(OpenedTerminal { terminal: shown, created: true })
    }

    /// One that cannot start has ended, and says why.
    fn begin_terminal(&self, spec: TerminalSpec) -> Terminal {
        let TerminalSpec { name, argv, env, cwd, run_as, size } = spec;
        let exec = ExecSpec { argv, env, cwd, run_as, stdin: true, pty: Some(size) };
        let state = match self.begin_exec(&exec) {
            Ok((Work::Exec { supervisor, input: Some(input) }, tap)) => {
                State::Alive(Box::new(Alive {
                    supervisor,
                    input,
                    output: tap.fd,
                    silent: false,
                    ending: Ending::No,
                }))
            }
            Ok(_) => State::Ended(Exit::FailedToStart("it got no terminal".to_owned())),
            Err(error) => State::Ended(Exit::FailedToStart(error.to_string())),
        };
        Terminal {
            name,
            run_as,
            size,
            started_at_ms: now_ms(),
            scrollback: Scrollback::default(),
            viewers: Vec::new(),
            stalled_since: None,
            state,
        }
    }

    pub(crate) fn list_terminals(&self) -> Answered {
        let all = self.terminals.all.iter();
        let terminals = all.map(|(id, terminal)| Terminals::shown(*id, terminal).into()).collect();
        Ok(Some(ResponseBody::Terminals(wire::TerminalList { terminals })))
    }

    pub(crate) fn read_terminal(
        &mut self,
        connection: u64,
        request: u64,
        read: wire::ReadTerminal,
    ) -> Answered {
        let Some(terminal) = self.terminals.all.get_mut(&read.terminal) else {
            return unknown(read.terminal);
        };
        terminal.note_viewer(connection, read.viewer, read.offset);
        if let State::Alive(alive) = &mut terminal.state {
            alive.silent = false;
        }
        let waiter = Waiter {
            connection,
            request,
            terminal: read.terminal,
            offset: read.offset,
            max_bytes: read.max_bytes,
            until: until(read.wait_ms),
        };
        if let Some(answer) = self.terminal_waited(&waiter, Instant::now())? {
            return Ok(Some(answer));
        }
        if self.terminals.waiters.len() >= WAITERS_MAX {
            return refuse(ErrorCode::TooManyCalls, "too many requests wait");
        }
        self.terminals.waiters.push(waiter);
        Ok(None)
    }

    fn terminal_waited(&self, waiter: &Waiter, now: Instant) -> Answered {
        let Some(terminal) = self.terminals.all.get(&waiter.terminal) else {
            return unknown(waiter.terminal);
        };
        let more = terminal.scrollback.total_bytes() > waiter.offset;
        if !more && matches!(terminal.state, State::Alive(_)) && now < waiter.until {
            return Ok(None);
        }
        let chunk = terminal.chunk(waiter.offset, waiter.max_bytes);
        Ok(Some(ResponseBody::TerminalOutput(chunk.into())))
    }

    pub(crate) fn answer_terminal_waiters(&mut self, now: Instant) {
        for waiter in std::mem::take(&mut self.terminals.waiters) {
            match self.terminal_waited(&waiter, now) {
                Ok(None) => self.terminals.waiters.push(waiter),
                Ok(Some(body)) => self.send(waiter.connection, waiter.request, body),
                Err(refusal) => {
                    let error = wire::Error { code: refusal.code.into(), text: refusal.text };
                    self.send(waiter.connection, waiter.request, ResponseBody::Error(error));
                }
            }
        }
        // Now, because everybody who waited has been told.
        self.terminals.forget_ended();
    }

    pub(crate) fn type_terminal(
        &mut self,
        connection: u64,
        request: u64,
        typed: wire::TypeTerminal,
    ) -> Answered {
        let id = typed.terminal;
        let Some(terminal) = self.terminals.all.get_mut(&id) else { return unknown(id) };
        let State::Alive(alive) = &mut terminal.state else {
            return refuse(ErrorCode::NotInteractive, format!("terminal {id} has ended"));
        };
        if alive.input.is_full() {
            return refuse(ErrorCode::TooManyCalls, format!("terminal {id} has input waiting"));
        }
        let pending = PendingInput { connection, request, data: typed.data, sent: 0, eof: false };
        alive.input.queue.push_back(pending);
        alive.silent = false;
        self.pump_terminal(id);
        Ok(None)
    }

    fn pump_terminal(&mut self, id: u64) {
        let Some((alive, _)) = self.terminals.alive_mut(id) else { return };
        let taken = alive.input.pump();
        self.answer_typed(taken);
    }

    fn answer_typed(&mut self, taken: impl IntoIterator<Item = PendingInput>) {
        for pending in taken {
            let body = ResponseBody::Done(wire::Empty {});
            self.send(pending.connection, pending.request, body);
        }
    }

    pub(crate) fn resize_terminal(&mut self, resize: wire::ResizeTerminal) -> Answered {
        let Some(Ok(size)) = resize.size.map(PtySize::try_from) else {
            return refuse(ErrorCode::BadRequest, "no terminal size");
        };
        let Some(terminal) = self.terminals.all.get_mut(&resize.terminal) else {
            return unknown(resize.terminal);
        };
        terminal.size = size;
        if let State::Alive(alive) = &terminal.state {
            // The program may have closed its terminal; then there is nothing to resize.
            let _ = set_size(&alive.output, size);
        }
        done()
    }

    pub(crate) fn end_terminal(&mut self, end: wire::EndTerminal) -> Answered {
        if !self.terminals.all.contains_key(&end.terminal) {
            return unknown(end.terminal);
        }
        if let Some((alive, _)) = self.terminals.alive_mut(end.terminal)
            && matches!(alive.ending, Ending::No)
        {
            alive.supervisor.order(Order::Signal { signal: Signal::SIGHUP as i32 });
            alive.ending = Ending::HungUp { until: Instant::now() + HANGUP_TIME };
        }
        done()
    }

    // === events ===

    pub(crate) fn handle_terminal(&mut self, id: u64, part: Part) {
        match part {
            Part::Output => self.take_terminal_output(id),
            Part::Control => self.terminal_reports(id),
            Part::Input => self.pump_terminal(id),
        }
    }

    fn take_terminal_output(&mut self, id: u64) {
        for _ in 0..TURN_READS {
            if self.terminals.all.get(&id).is_none_or(Terminal::is_full) {
                return;
            }
            let Some((alive, scrollback)) = self.terminals.alive_mut(id) else { return };
            if !alive.take(scrollback) {
                return;
            }
        }
    }

    fn terminal_reports(&mut self, id: u64) {
        loop {
            let Some((alive, _)) = self.terminals.alive_mut(id) else { return };
            let killed = matches!(alive.ending, Ending::Killed { .. });
            let pid = alive.supervisor.pid;
            match take_report(&alive.supervisor.control) {
                Ok(None) => return,
                Ok(Some(Report::Started { .. })) => {
                    alive.input.ready = true;
                    self.pump_terminal(id);
                }
                Ok(Some(Report::FailedToStart { reason, .. })) => {
                    self.finish_terminal(id, Exit::FailedToStart(reason));
                }
                Ok(Some(Report::Exited { code })) if !killed => {
                    self.finish_terminal(id, Exit::Code(code));
                }
                Ok(Some(Report::Signaled { signal })) if !killed => {
                    self.finish_terminal(id, Exit::Signal(signal));
                }
                Ok(Some(Report::Swept { .. })) => self.finish_terminal(id, Exit::Killed),
                Ok(Some(_)) => {}
                Err(_) => {
                    // Killed by guest root, and so is, now, whatever it had below it.
                    self.sweep_orphans(pid);
                    let by_guest = Exit::Signal(Signal::SIGKILL as i32);
                    self.finish_terminal(id, if killed { Exit::Killed } else { by_guest });
                }
            }
        }
    }

    /// The session of a terminal ends with its program, as a hangup for what is left in it.
    fn finish_terminal(&mut self, id: u64, exit: Exit) {
        let Some(terminal) = self.terminals.all.get_mut(&id) else { return };
        let before = std::mem::replace(&mut terminal.state, State::Ended(exit));
        let State::Alive(mut alive) = before else { return };
        // What the kernel still holds; somebody may write on, so no more than is kept.
        for _ in 0..guest_protocol::terminal::SCROLLBACK_BYTES / READ_BYTES {
            if !alive.take(&mut terminal.scrollback) {
                break;
            }
        }
        terminal.viewers.clear();
        terminal.stalled_since = None;
        let Alive { supervisor, input, .. } = *alive;
        self.leftovers.push(supervisor);
        self.answer_typed(input.queue);
    }

    pub(crate) fn check_terminals(&mut self, now: Instant) {
        let connections = &self.connections;
        let mut due = Vec::new();
        for (id, terminal) in &mut self.terminals.all {
            terminal.viewers.retain(|viewer| connections.contains_key(&viewer.connection));
            terminal.check_stall(now);
            let State::Alive(alive) = &mut terminal.state else { continue };
            match alive.ending {
                Ending::HungUp { until } if now >= until => {
                    alive.supervisor.order(Order::KillTree { ticks: now_ticks() });
                    alive.ending = Ending::Killed { until: now + TREE_TIME };
                }
                Ending::Killed { until } if now >= until => due.push((*id, alive.supervisor.pid)),
                _ => {}
            }
        }
        for (id, pid) in due {
            // The supervisor did not do it in time: guest root may have stopped it.
            tree::signal(pid.as_raw(), Signal::SIGKILL);
            self.sweep_orphans(pid);
            self.finish_terminal(id, Exit::Killed);
        }
    }
}

fn opened(opened: OpenedTerminal) -> Answered {
    Ok(Some(ResponseBody::OpenedTerminal(opened.into())))
}

fn unknown(id: u64) -> Answered {
    refuse(ErrorCode::UnknownCall, format!("terminal {id} is not known"))
}
