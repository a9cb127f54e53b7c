//! `/sessions/{id}/terminals`: shells that people open in a sandbox, leave, and come back to.
//!
//! The guest agent keeps them; this side keeps no more than who is attached. While somebody is, the
//! sandbox is kept awake; a shell that nobody watches goes on for as long as the sandbox runs.

mod viewing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Extension, FromRequest, Path, Request, State as Extract};
use axum::response::{IntoResponse, Response};
use base_tasks::TaskKind;
use base_types::{Chain, Epoch, SessionId, Timestamp};
use http::{StatusCode, header};
use sandbox_api::guest::terminal::{Terminal, TerminalId, TerminalName, TerminalSpec};
use sandbox_api::guest::wire::ErrorCode;
use sandbox_api::guest::{ClientError, PtySize, RunAs};
use store_api::{LogEvent, SandboxState, TerminalAction};

use self::viewing::Viewing;
use super::exec::{code_of, take_upgrade};
use super::input::Body;
use super::sessions::known;
use super::{Shared, State};
use crate::api::{
    FaultCode, TERMINAL_PROTOCOL, TerminalClosed, TerminalList, TerminalRequest, TerminalSize,
    TerminalView,
};
use crate::control::GuestHold;
use crate::fault::Refusal;
use crate::server::PeerUid;

/// Attached at once to one session; more is a script that goes wrong.
const VIEWERS_MAX: u32 = 32;
/// Of a client that does not know its size.
const SIZE_DEFAULT: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// Run by the image's `sh`, as the user of the terminal.
const LOGIN: &str = include_str!("login.sh");

pub(super) async fn list(
    Extract(shared): State,
    Path(session): Path<SessionId>,
) -> Result<Json<TerminalList>, Refusal> {
    let record = known(&shared, &session).await?;
    // A sandbox that does not run has none, and is not woken to say so.
    if record.sandbox.is_none_or(|sandbox| sandbox.state != SandboxState::Running) {
        return Ok(Json(TerminalList { terminals: Vec::new() }));
    }
    let hold = shared.control.guest(&session).await?;
    let terminals = hold.client.terminals().await.map_err(refusal)?;
    let view = |one: &Terminal| view_of(&shared, &session, hold.epoch, one);
    Ok(Json(TerminalList { terminals: shown(&terminals).map(view).collect() }))
}

/// One of each name: the living, else the one that ended last.
fn shown(terminals: &[Terminal]) -> impl Iterator<Item = &Terminal> {
    terminals.iter().enumerate().filter_map(|(at, one)| {
        let later = terminals.get(at + 1..).unwrap_or_default();
        let superseded = one.exit.is_some() && later.iter().any(|other| other.name == one.name);
        (!superseded).then_some(one)
    })
}

fn view_of(shared: &Shared, session: &SessionId, epoch: Epoch, one: &Terminal) -> TerminalView {
    TerminalView {
        name: one.name.to_string(),
        id: one.id.0,
        root: one.run_as == RunAs::Root,
        state: if one.exit.is_some() { "ended" } else { "running" }.to_owned(),
        exit_code: one.exit.as_ref().map(|exit| code_of(exit).0),
        started_at: timestamp(one.started_at_ms),
        rows: one.size.rows,
        columns: one.size.columns,
        output_bytes: one.total_bytes,
        viewers: shared.viewers.count(&(session.clone(), epoch, one.id)),
        epoch,
    }
}

/// A guest's clock may say anything.
fn timestamp(ms: u64) -> Timestamp {
    Timestamp(i64::try_from(ms).unwrap_or(i64::MAX))
}

pub(super) async fn close(
    Extract(shared): State,
    Path((session, name)): Path<(SessionId, String)>,
    Extension(PeerUid(uid)): Extension<PeerUid>,
) -> Result<Json<TerminalClosed>, Refusal> {
    let name = name_of(&name)?;
    known(&shared, &session).await?;
    let hold = shared.control.guest(&session).await?;
    let terminals = hold.client.terminals().await.map_err(refusal)?;
    let living = terminals.iter().find(|one| one.name == name && one.exit.is_none());
    let Some(terminal) = living else {
        let message = format!("session {session} has no terminal {name}");
        return Err(Refusal::new(FaultCode::NoSuchTerminal, message));
    };
    hold.client.end_terminal(terminal.id).await.map_err(refusal)?;
    let root = terminal.run_as == RunAs::Root;
    let action = TerminalAction::Closed;
    note(&shared, &session, event(&name, uid, root, action)).await;
    Ok(Json(TerminalClosed { name: name.to_string(), id: terminal.id.0, closed: true }))
}

pub(super) async fn attach(
    Extract(shared): State,
    Path((session, name)): Path<(SessionId, String)>,
    Extension(PeerUid(uid)): Extension<PeerUid>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let name = name_of(&name)?;
    let upgrade = take_upgrade(&mut request, TERMINAL_PROTOCOL);
    let Body(wanted) = Body::<TerminalRequest>::from_request(request, &()).await?;
    check(&wanted)?;
    known(&shared, &session).await?;
    let Some(upgrade) = upgrade else {
        let message = format!("a terminal needs the connection upgraded to {TERMINAL_PROTOCOL}");
        return Err(Refusal::new(FaultCode::UpgradeRequired, message));
    };
    let size = sensible(wanted.size);
    let GuestHold { client, epoch, lease } = shared.control.guest(&session).await?;
    let opened = client.open_terminal(&spec_of(name, wanted, size)).await.map_err(refusal)?;
    let (terminal, created) = (opened.terminal, opened.created);
    let key = (session.clone(), epoch, terminal.id);
    let seat = shared.viewers.sit(key).ok_or_else(|| {
        let message = format!("{VIEWERS_MAX} people are attached to terminals of {session}");
        Refusal::new(FaultCode::TerminalRefused, message)
    })?;
    let viewing = Viewing {
        shared,
        session,
        guest: client,
        epoch,
        terminal,
        created,
        uid,
        size: Mutex::new(size),
        seat,
        _lease: lease,
    };
    viewing.note_begin().await;
    base_tasks::spawn(TaskKind::ApiConnection, viewing.serve(upgrade));
    let headers = [(header::UPGRADE, TERMINAL_PROTOCOL), (header::CONNECTION, "upgrade")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn name_of(text: &str) -> Result<TerminalName, Refusal> {
    let name = text.parse::<TerminalName>();
    name.map_err(|error| Refusal::new(FaultCode::BadRequest, error.to_string()))
}

fn check(wanted: &TerminalRequest) -> Result<(), Refusal> {
    let refuse = |what: &str| Err(Refusal::new(FaultCode::BadRequest, what));
    let texts = wanted.env.iter().flat_map(|(name, value)| [name, value]).chain(&wanted.command);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return refuse("command and env must not contain a NUL byte");
    }
    if wanted.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return refuse("a name in env must not be empty or contain `=`");
    }
    Ok(())
}

fn sensible(size: TerminalSize) -> TerminalSize {
    if size.rows == 0 || size.columns == 0 { SIZE_DEFAULT } else { size }
}

fn pty_size(size: TerminalSize) -> PtySize {
    PtySize { rows: size.rows, columns: size.columns }
}

fn spec_of(name: TerminalName, wanted: TerminalRequest, size: TerminalSize) -> TerminalSpec {
    let words = ["/bin/sh", "-c", LOGIN, "sinew-shell"].map(str::to_owned);
    TerminalSpec {
        name,
        argv: words.into_iter().chain(wanted.command).collect(),
        env: wanted.env,
        cwd: None,
        run_as: if wanted.root { RunAs::Root } else { RunAs::Tool },
        size: pty_size(size),
    }
}

fn refusal(error: ClientError) -> Refusal {
    let code = match (&error, error.refusal()) {
        (ClientError::AgentTooOld { .. }, _) => FaultCode::AgentTooOld,
        (_, Some(ErrorCode::UnknownCall)) => FaultCode::NoSuchTerminal,
        (_, Some(_)) => FaultCode::TerminalRefused,
        _ => FaultCode::SandboxUnavailable,
    };
    Refusal::new(code, Chain(&error).to_string())
}

fn event(name: &TerminalName, uid: u32, root: bool, action: TerminalAction) -> LogEvent {
    LogEvent::OperatorTerminal { name: name.to_string(), uid, root, action }
}

async fn note(shared: &Shared, session: &SessionId, event: LogEvent) {
    if let Err(error) = shared.control.note(session, event).await {
        tracing::warn!(%session, %error, "what an operator did with a terminal is not in the log");
    }
}

// === who is attached ===

type Key = (SessionId, Epoch, TerminalId);

/// Who is attached to which terminal, by way of this process.
#[derive(Default)]
pub(crate) struct Viewers {
    seated: Mutex<HashMap<Key, u32>>,
    last: AtomicU64,
}

/// One viewer's place, given back when it is dropped.
struct Seat {
    viewers: Arc<Viewers>,
    key: Key,
    /// Tells the viewers of one agent apart.
    number: u64,
}

impl Viewers {
    fn sit(self: &Arc<Self>, key: Key) -> Option<Seat> {
        let mut seated = self.seated.lock().unwrap_or_else(PoisonError::into_inner);
        let of_session = seated.iter().filter(|((session, ..), _)| *session == key.0);
        if of_session.map(|(_, count)| count).sum::<u32>() >= VIEWERS_MAX {
            return None;
        }
        *seated.entry(key.clone()).or_default() += 1;
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        Some(Seat { viewers: self.clone(), key, number })
    }

    fn count(&self, key: &Key) -> u32 {
        let seated = self.seated.lock().unwrap_or_else(PoisonError::into_inner);
        seated.get(key).copied().unwrap_or(0)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seated = self.viewers.seated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = seated.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                seated.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(session: &str, terminal: u64) -> Key {
        (session.into(), Epoch(1), TerminalId(terminal))
    }

    #[test]
    fn the_viewers_of_one_session_are_limited_and_counted() {
        let viewers = Arc::new(Viewers::default());
        let mut seats: Vec<Seat> =
            (0..VIEWERS_MAX).map(|n| viewers.sit(key("a", n.into()))).map(Option::unwrap).collect();
        assert!(viewers.sit(key("a", 0)).is_none());
        let other = viewers.sit(key("b", 0)).unwrap();
        assert_eq!(viewers.count(&key("b", 0)), 1);
        seats.pop();
        assert!(viewers.sit(key("a", 0)).is_some());
        drop((other, seats));
        assert!(viewers.seated.lock().unwrap().is_empty());
    }

    #[test]
    fn of_each_name_the_living_one_is_listed() {
        let one = |id, name: &str, exit| Terminal {
            id: TerminalId(id),
            name: name.parse().unwrap(),
            run_as: RunAs::Tool,
            size: pty_size(SIZE_DEFAULT),
            started_at_ms: 0,
            total_bytes: 0,
            exit,
        };
        let ended = Some(sandbox_api::guest::Exit::Code(0));
        let all = [
            one(1, "main", ended.clone()),
            one(2, "other", ended.clone()),
            one(3, "main", ended.clone()),
            one(4, "main", None),
        ];
        let ids: Vec<u64> = shown(&all).map(|one| one.id.0).collect();
        assert_eq!(ids, [2, 4]);
    }

    #[test]
    fn the_login_shell_runs_the_command_with_a_terminal_that_is_known() {
        let run = |command: &str, term: &str| {
            let output = std::process::Command::new("/bin/sh")
                .args(["-c", LOGIN, "sinew-shell", command])
                .env("TERM", term)
                .env("LANG", "C.UTF-8")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
        };
        assert_eq!(run("echo $TERM", "no-such-terminal"), "xterm-256color");
        assert_eq!(run("echo \"$1|$LANG\"; exit", "dumb"), "|C.UTF-8");
        assert!(std::path::Path::new(&run("echo $SHELL", "dumb")).exists());
    }
}
