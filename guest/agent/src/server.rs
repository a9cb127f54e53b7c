//! The event loop: one `poll` over everything the agent listens to, then one handler for each
//! descriptor that is ready.
//!
//! [`Agent`] owns all state. Requests are answered in [`crate::requests`]; how a call begins is in
//! [`crate::starting`], how it ends in [`crate::ending`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use guest_protocol::boot::BootArgs;
use guest_protocol::{CallId, Exit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::call::{Acked, Call, End, Flow, Phase, Tap, Work};
use crate::connection::{self, Connection};
use crate::entrypoint::Entrypoint;
use crate::kept::Kept;
use crate::process::{Identity, Prepared};
use crate::requests::Waiter;
use crate::shell::{Pipes, Shell};
use crate::spool::Spool;
use crate::supervisor::Supervisor;
use crate::terminals::{Part, Terminals};

/// Connections at once; `serve` needs one, and its successor one more while the old one lingers.
const CONNECTIONS_MAX: usize = 16;
/// Requests of one connection handled before others have their turn.
const TURN_REQUESTS: usize = 32;

pub struct Agent {
    pub(crate) boot: BootArgs,
    pub(crate) identity: Identity,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) outputs: Rc<OwnedFd>,
    listener: OwnedFd,
    signals: nix::sys::signalfd::SignalFd,
    pub(crate) connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    pub(crate) calls: HashMap<CallId, Call>,
    pub(crate) acked: Acked,
    pub(crate) kept: Kept,
    pub(crate) entrypoint: Option<Entrypoint>,
    pub(crate) shell: Option<Shell>,
    /// A shell has died since the last command was answered.
    pub(crate) shell_lost: bool,
    /// A call that waits for the old shell's end, and the command it then runs.
    pub(crate) restart: Option<(CallId, Option<String>)>,
    pub(crate) pipes: Pipes,
    /// Output of background jobs whose calls are acknowledged.
    pub(crate) lingering: VecDeque<Lingering>,
    /// Supervisors whose calls have ended and that still have something below them.
    pub(crate) leftovers: Vec<Supervisor>,
    /// Those of `leftovers` whose shell was interrupted: below them are jobs that it left.
    pub(crate) interrupted: Vec<Pid>,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) terminals: Terminals,
    pub(crate) started: Instant,
    pub(crate) shutting_down: bool,
}

pub struct Lingering {
    pub id: CallId,
    pub spool: Spool,
    pub tap: Tap,
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Tap(CallId),
    Lingering(CallId),
    Control(CallId),
    Input(CallId),
    ShellControl,
    ShellStatus,
    ShellOut,
    Leftover(Pid),
    EntrypointControl,
    EntrypointOut,
    Terminal(u64, Part),
}

// === impl Agent ===

impl Agent {
    pub fn new(boot: BootArgs, prepared: Prepared) -> Self {
        let outputs = Rc::new(prepared.output_dir);
        let (identity, env) = (prepared.identity, prepared.env);
        Self {
            entrypoint: Entrypoint::start(&boot, &identity, &env, &outputs),
            identity,
            env,
            listener: prepared.listener,
            signals: prepared.signals,
            connections: BTreeMap::new(),
            next_connection: 0,
            calls: HashMap::new(),
            acked: Acked::default(),
            kept: Kept::load(outputs.clone()),
            shell: None,
            shell_lost: false,
            restart: None,
            pipes: Pipes::new(&outputs, &boot.output_path),
            lingering: VecDeque::new(),
            leftovers: Vec::new(),
            interrupted: Vec::new(),
            waiters: Vec::new(),
            terminals: Terminals::default(),
            started: Instant::now(),
            shutting_down: false,
            outputs,
            boot,
        }
    }

    pub fn run(mut self) -> io::Result<()> {
        while !self.shutting_down {
            let ready = self.poll()?;
            for (source, events) in ready {
                self.handle(source, events);
            }
            self.serve_waiting();
            self.check_deadlines(Instant::now());
            self.answer_waiters(Instant::now());
            self.check_terminals(Instant::now());
            self.answer_terminal_waiters(Instant::now());
            self.connections.retain(|_, connection| connection.flush() && !connection.is_over());
        }
        self.say_goodbye();
        Ok(())
    }

    /// The last answers are on their way; with PID 1 everything in the sandbox ends.
    fn say_goodbye(&mut self) {
        self.kill_everything();
        for connection in self.connections.values_mut() {
            connection.flush();
        }
    }

    fn poll(&self) -> io::Result<Vec<(Source, i16)>> {
        let mut set = PollSet::default();
        self.add_sources(&mut set);
        let deadline = self.next_deadline();
        let mut timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if self.connections.values().any(Connection::has_request) {
            timeout = Some(Duration::ZERO);
        }
        set.wait(timeout)
    }

    fn add_sources(&self, set: &mut PollSet) {
        if self.connections.len() < CONNECTIONS_MAX {
            set.add(Source::Listener, &self.listener, libc::POLLIN);
        }
        set.add(Source::Signals, &self.signals, libc::POLLIN);
        for (id, connection) in &self.connections {
            let read = if connection.wants_read() { libc::POLLIN } else { 0 };
            let write = if connection.wants_write() { libc::POLLOUT } else { 0 };
            set.add(Source::Connection(*id), connection.stream(), read | write);
        }
        for (id, call) in &self.calls {
            if let Some(tap) = call.tap.as_ref().filter(|tap| !tap.silent) {
                set.add(Source::Tap(id.clone()), &tap.fd, libc::POLLIN);
            }
            let Phase::Running(running) = &call.phase else { continue };
            let Work::Exec { supervisor, input } = &running.work else { continue };
            set.add(Source::Control(id.clone()), &supervisor.control, libc::POLLIN);
            if let Some(input) =
                input.as_ref().filter(|input| input.ready && !input.queue.is_empty())
            {
                set.add(Source::Input(id.clone()), &input.fd, libc::POLLOUT);
            }
        }
        for lingering in &self.lingering {
            let source = Source::Lingering(lingering.id.clone());
            set.add(source, &lingering.tap.fd, libc::POLLIN);
        }
        if let Some(shell) = &self.shell {
            set.add(Source::ShellControl, &shell.supervisor.control, libc::POLLIN);
            if shell.exit.is_none() && !shell.channel_closed {
                set.add(Source::ShellStatus, shell.channel(), libc::POLLIN);
            }
            if shell.exit.is_none() && !shell.out_closed {
                set.add(Source::ShellOut, &shell.out, libc::POLLIN);
            }
        }
        if let Some(entrypoint) = &self.entrypoint {
            if let Some(supervisor) = &entrypoint.supervisor {
                set.add(Source::EntrypointControl, &supervisor.control, libc::POLLIN);
            }
            if let Some(output) = &entrypoint.output {
                set.add(Source::EntrypointOut, output, libc::POLLIN);
            }
        }
        for supervisor in &self.leftovers {
            set.add(Source::Leftover(supervisor.pid), &supervisor.control, libc::POLLIN);
        }
        self.terminals.for_polled(|id, part, fd, events| {
            set.add(Source::Terminal(id, part), fd, events);
        });
    }

    fn handle(&mut self, source: Source, events: i16) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.reap(),
            Source::Connection(id) => self.serve_connection(id, events),
            Source::Tap(id) => self.take_output(&id),
            Source::Lingering(id) => self.take_lingering(&id),
            Source::Control(id) => self.exec_reports(&id),
            Source::Input(id) => self.pump_input(&id),
            Source::ShellControl => self.shell_reports(),
            Source::ShellStatus => {
                self.shell_status();
                if let Some(shell) = self.shell.as_mut().filter(|_| events & libc::POLLHUP != 0) {
                    shell.channel_closed = true;
                }
            }
            Source::ShellOut => {
                self.shell_out();
                if let Some(shell) = self.shell.as_mut().filter(|_| events & libc::POLLHUP != 0) {
                    shell.out_closed = true;
                }
            }
            Source::Leftover(pid) => self.leftover_reports(pid),
            Source::EntrypointControl => self.entrypoint_reports(),
            Source::EntrypointOut => self.entrypoint_output(),
            Source::Terminal(id, part) => self.handle_terminal(id, part),
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < CONNECTIONS_MAX {
            match connection::accept(&self.listener) {
                Ok(Some(stream)) => {
                    self.next_connection += 1;
                    self.connections.insert(self.next_connection, Connection::new(stream));
                }
                Ok(None) => return,
                Err(error) => {
                    crate::process::log(&format!("accept: {error}"));
                    return;
                }
            }
        }
    }

    /// Requests that came in one piece with others give no event of their own.
    fn serve_waiting(&mut self) {
        let waiting = self.connections.iter().filter(|(_, connection)| connection.has_request());
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.serve_connection(id, 0);
        }
    }

    fn serve_connection(&mut self, id: u64, events: i16) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let readable = events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0;
        let alive = !readable || !connection.wants_read() || connection.receive();
        for _ in 0..TURN_REQUESTS {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let Some(request) = connection.next_request(crate::BUILD, self.boot.epoch) else {
                break;
            };
            self.answer(id, request);
        }
        if !alive {
            self.connections.remove(&id);
            self.waiters.retain(|waiter| waiter.connection != id);
        }
    }

    /// Collects every child that has ended: supervisors and file tools, and as PID 1 whatever was
    /// orphaned.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            self.file_ended(pid, exit);
        }
    }

    fn take_output(&mut self, id: &CallId) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let Some(tap) = &mut call.tap else { return };
        let flow = tap.take(&mut call.spool);
        // While the call runs, a FIFO without a writer is one that bash has not opened yet.
        if flow == Flow::Ended && !call.is_running() {
            let tap = call.tap.take();
            self.release(tap);
        }
    }

    fn take_lingering(&mut self, id: &CallId) {
        let Some(at) = self.lingering.iter().position(|lingering| lingering.id == *id) else {
            return;
        };
        let Lingering { spool, tap, .. } = &mut self.lingering[at];
        if tap.take(spool) == Flow::Ended
            && let Some(ended) = self.lingering.remove(at)
        {
            self.end_lingering(ended);
        }
    }

    /// The job has closed its output, or is cut off; what it wrote stays for the guest to read.
    pub(crate) fn end_lingering(&mut self, ended: Lingering) {
        let Lingering { id, spool, tap } = ended;
        self.release(Some(tap));
        if spool.has_file() {
            self.kept.add(id, spool.file_bytes());
        }
    }

    pub(crate) fn release(&mut self, tap: Option<Tap>) {
        if let Some(fifo) = tap.and_then(|tap| tap.fifo) {
            self.pipes.give_back(fifo);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let calls = self.calls.values().filter_map(|call| match &call.phase {
            Phase::Running(running) => Some(match &running.end {
                End::ByItself => running.deadline,
                End::Foreground { until, .. } | End::Tree { until, .. } => *until,
            }),
            Phase::Finished(_) => None,
        });
        let waits = self.waiters.iter().map(|waiter| waiter.until);
        calls.chain(waits).chain(self.terminals.deadlines()).min()
    }
}

// === the poll set ===

#[derive(Default)]
struct PollSet {
    sources: Vec<Source>,
    polled: Vec<libc::pollfd>,
}

impl PollSet {
    fn add(&mut self, source: Source, fd: &impl AsRawFd, events: i16) {
        let fd: RawFd = fd.as_raw_fd();
        self.sources.push(source);
        self.polled.push(libc::pollfd { fd, events, revents: 0 });
    }

    fn wait(mut self, timeout: Option<Duration>) -> io::Result<Vec<(Source, i16)>> {
        // Rounded up, so that a deadline has passed when the wait for it is over.
        let timeout = timeout
            .map_or(-1, |time| time.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX));
        let count = self.polled.len() as libc::nfds_t;
        // SAFETY: the pointer and the count describe the vector, which outlives the call.
        let ready = unsafe { libc::poll(self.polled.as_mut_ptr(), count, timeout) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(Vec::new()),
                _ => Err(error),
            };
        }
        let polled = self.polled.iter().map(|polled| polled.revents);
        let ready = self.sources.into_iter().zip(polled);
        Ok(ready.filter(|(_, events)| *events != 0).collect())
    }
}
