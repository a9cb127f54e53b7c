//! What the host asks, and the answers that wait for something.

use std::time::{Duration, Instant};

use guest_protocol::wire::{self, ErrorCode, RequestBody, ResponseBody};
use guest_protocol::{AgentInfo, CallId, CallState, Epoch, KillScope, PtySize, call_id};

use crate::call::{PendingInput, Phase, Work};
use crate::entrypoint::Entrypoint;
use crate::report::Order;
use crate::server::{Agent, Lingering};
use crate::shell::PIPES_MAX;

/// Requests that wait; a host that leaks them is told.
const WAITERS_MAX: usize = 1024;
/// Longest wait, after which the host asks again.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// A request to be answered when the call has ended, has more output, or the time is over.
pub struct Waiter {
    pub connection: u64,
    pub request: u64,
    pub call: CallId,
    pub until: Instant,
    pub wants: Wants,
}

pub enum Wants {
    State,
    Output { offset: u64, max_bytes: u64 },
}

/// Why a request is refused, for the host.
pub struct Refusal {
    pub code: ErrorCode,
    pub text: String,
}

pub fn refuse<T>(code: ErrorCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, text: text.into() })
}

/// `None`: the answer comes later.
pub(crate) type Answered = Result<Option<ResponseBody>, Refusal>;

fn state(state: CallState) -> Answered {
    Ok(Some(ResponseBody::State(state.into())))
}

pub(crate) fn done() -> Answered {
    Ok(Some(ResponseBody::Done(wire::Empty {})))
}

fn parse_id(text: &str) -> Result<CallId, Refusal> {
    call_id(text).map_err(|_| Refusal {
        code: ErrorCode::BadRequest,
        text: format!("no call id: {text:.64}"),
    })
}

impl Agent {
    pub(crate) fn answer(&mut self, connection: u64, request: wire::Request) {
        let id = request.id;
        let answered = match request.body {
            Some(body) => self.dispatch(connection, id, body),
            None => refuse(ErrorCode::BadRequest, "this agent does not know the request"),
        };
        match answered {
            Ok(Some(body)) => self.send(connection, id, body),
            Ok(None) => {}
            Err(refusal) => {
                let error = wire::Error { code: refusal.code.into(), text: refusal.text };
                self.send(connection, id, ResponseBody::Error(error));
            }
        }
    }

    /// A connection that is gone needs no answer.
    pub(crate) fn send(&mut self, connection: u64, id: u64, body: ResponseBody) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.send(id, body);
        }
    }

    fn dispatch(&mut self, connection: u64, request: u64, body: RequestBody) -> Answered {
        match body {
            RequestBody::Hello(_) => refuse(ErrorCode::BadRequest, "hello was said before"),
            RequestBody::Start(start) => state(self.start(start)?),
            RequestBody::Query(call) => {
                let id = parse_id(&call.call_id)?;
                state(self.state_of(&id))
            }
            RequestBody::Wait(wait) => {
                let call = parse_id(&wait.call_id)?;
                let until = until(wait.wait_ms);
                self.wait(Waiter { connection, request, call, until, wants: Wants::State })
            }
            RequestBody::Output(read) => {
                let call = parse_id(&read.call_id)?;
                let wants = Wants::Output { offset: read.offset, max_bytes: read.max_bytes };
                let until = until(read.wait_ms);
                self.wait(Waiter { connection, request, call, until, wants })
            }
            RequestBody::Kill(kill) => {
                let id = parse_id(&kill.call_id)?;
                let scope = wire::KillScope::try_from(kill.scope);
                self.kill(&id, scope.map_or(KillScope::Tree, Into::into));
                state(self.state_of(&id))
            }
            RequestBody::Ack(call) => self.ack(parse_id(&call.call_id)?),
            RequestBody::Stdin(stdin) => self.stdin(connection, request, stdin),
            RequestBody::Resize(resize) => self.resize(resize),
            RequestBody::Signal(signal) => self.signal(&signal),
            RequestBody::Ping(_) => done(),
            RequestBody::Info(_) => Ok(Some(ResponseBody::Info(self.info().into()))),
            RequestBody::Shutdown(_) => {
                self.shutting_down = true;
                done()
            }
            RequestBody::OpenTerminal(open) => self.open_terminal(open),
            RequestBody::Terminals(_) => self.list_terminals(),
            RequestBody::ReadTerminal(read) => self.read_terminal(connection, request, read),
            RequestBody::TypeTerminal(typed) => self.type_terminal(connection, request, typed),
            RequestBody::ResizeTerminal(resize) => self.resize_terminal(resize),
            RequestBody::EndTerminal(end) => self.end_terminal(end),
        }
    }

    pub(crate) fn state_of(&self, id: &CallId) -> CallState {
        self.calls.get(id).map_or(CallState::Unknown, |call| call.state())
    }

    // === waiting ===

    fn wait(&mut self, waiter: Waiter) -> Answered {
        if let Some(answer) = self.waited(&waiter, Instant::now())? {
            return Ok(Some(answer));
        }
        if self.waiters.len() >= WAITERS_MAX {
            return refuse(ErrorCode::TooManyCalls, "too many requests wait");
        }
        self.waiters.push(waiter);
        Ok(None)
    }

    fn waited(&self, waiter: &Waiter, now: Instant) -> Answered {
        let over = now >= waiter.until;
        let Some(call) = self.calls.get(&waiter.call) else {
            return match waiter.wants {
                Wants::State => state(CallState::Unknown),
                Wants::Output { .. } => {
                    refuse(ErrorCode::UnknownCall, format!("call {} is not known", waiter.call))
                }
            };
        };
        match waiter.wants {
            Wants::State if over || !call.is_running() => state(call.state()),
            Wants::State => Ok(None),
            Wants::Output { offset, max_bytes } => {
                let more = call.spool.spooled_bytes() > offset;
                if !(over || more || !call.is_running()) {
                    return Ok(None);
                }
                let chunk = call.spool.read(offset, max_bytes, !call.is_running());
                Ok(Some(ResponseBody::Output(wire::Output {
                    offset: chunk.offset,
                    data: chunk.data,
                    spooled_bytes: chunk.spooled_bytes,
                    finished: chunk.finished,
                })))
            }
        }
    }

    pub(crate) fn answer_waiters(&mut self, now: Instant) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            match self.waited(&waiter, now) {
                Ok(None) => self.waiters.push(waiter),
                Ok(Some(body)) => self.send(waiter.connection, waiter.request, body),
                Err(refusal) => {
                    let error = wire::Error { code: refusal.code.into(), text: refusal.text };
                    self.send(waiter.connection, waiter.request, ResponseBody::Error(error));
                }
            }
        }
    }

    // === acknowledging ===

    fn ack(&mut self, id: CallId) -> Answered {
        match self.calls.get(&id) {
            None => return done(),
            Some(call) if call.is_running() => {
                return refuse(ErrorCode::BadRequest, format!("call {id} still runs"));
            }
            Some(_) => {}
        }
        let Some(call) = self.calls.remove(&id) else { return done() };
        self.acked.insert(id.clone());
        let Phase::Finished(outcome) = call.phase else { return done() };
        if let Some(tap) = call.tap {
            self.lingering.push_back(Lingering { id, spool: call.spool, tap });
            if self.lingering.len() > PIPES_MAX
                && let Some(oldest) = self.lingering.pop_front()
            {
                self.end_lingering(oldest);
            }
        } else if outcome.output_path.is_some() {
            self.kept.add(id, call.spool.file_bytes());
        } else {
            call.spool.remove_file();
        }
        done()
    }

    // === input ===

    fn stdin(&mut self, connection: u64, request: u64, stdin: wire::Stdin) -> Answered {
        let id = parse_id(&stdin.call_id)?;
        let input = match self.calls.get_mut(&id).map(|call| call.running()) {
            None => return refuse(ErrorCode::UnknownCall, format!("call {id} is not known")),
            Some(Some(running)) => match &mut running.work {
                Work::Exec { input: Some(input), .. } => input,
                _ => return refuse(ErrorCode::NotInteractive, format!("call {id} takes no input")),
            },
            Some(None) => {
                return refuse(ErrorCode::NotInteractive, format!("call {id} has ended"));
            }
        };
        if input.is_full() {
            return refuse(ErrorCode::TooManyCalls, format!("call {id} has input waiting"));
        }
        let (data, eof) = (stdin.data, stdin.eof);
        input.queue.push_back(PendingInput { connection, request, data, sent: 0, eof });
        self.pump_input(&id);
        Ok(None)
    }

    pub(crate) fn pump_input(&mut self, id: &CallId) {
        let Some(running) = self.calls.get_mut(id).and_then(|call| call.running()) else { return };
        let Work::Exec { input: slot, .. } = &mut running.work else { return };
        let Some(input) = slot else { return };
        let done = input.pump();
        let closed = !input.terminal && done.iter().any(|pending| pending.eof);
        let unsent = if closed {
            slot.take().map(|input| input.queue).unwrap_or_default()
        } else {
            Default::default()
        };
        for pending in done.into_iter().chain(unsent) {
            let body = ResponseBody::Done(wire::Empty {});
            self.send(pending.connection, pending.request, body);
        }
    }

    fn resize(&mut self, resize: wire::Resize) -> Answered {
        let id = parse_id(&resize.call_id)?;
        let size = resize.size.map(PtySize::try_from);
        let Some(Ok(size)) = size else {
            return refuse(ErrorCode::BadRequest, "no terminal size");
        };
        let running = self.calls.get_mut(&id).and_then(|call| call.running());
        match running.map(|running| &running.work) {
            Some(Work::Exec { input: Some(input), .. }) if input.terminal => {
                // The program may have closed its terminal; then there is nothing to resize.
                let _ = crate::starting::set_size(&input.fd, size);
                done()
            }
            _ => refuse(ErrorCode::NotInteractive, format!("call {id} has no terminal")),
        }
    }

    fn signal(&mut self, signal: &wire::Signal) -> Answered {
        let id = parse_id(&signal.call_id)?;
        let running = self.calls.get_mut(&id).and_then(|call| call.running());
        match running.map(|running| &running.work) {
            Some(Work::Exec { supervisor, .. }) => {
                supervisor.order(Order::Signal { signal: signal.signal });
                done()
            }
            _ => refuse(ErrorCode::NotInteractive, format!("call {id} runs no program")),
        }
    }

    fn info(&self) -> AgentInfo {
        let running = self.calls.iter().filter(|(_, call)| call.is_running());
        let running: Vec<CallId> = running.map(|(id, _)| id.clone()).collect();
        AgentInfo {
            epoch: Epoch(self.boot.epoch),
            build: crate::BUILD.to_owned(),
            shell_alive: self.shell.as_ref().is_some_and(|shell| shell.exit.is_none()),
            finished: (self.calls.len() - running.len()) as u64,
            running,
            uptime: self.started.elapsed(),
            kept_outputs: self.kept.count() as u64,
            entrypoint: self.entrypoint.as_ref().map(Entrypoint::info),
        }
    }
}

pub(crate) fn until(wait_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(wait_ms).min(WAIT_MAX)
}
