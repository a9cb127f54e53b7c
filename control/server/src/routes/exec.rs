//! `POST /sessions/{id}/exec`: a program in the sandbox, its streams over the upgraded connection.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequest;
use axum::extract::{Path, Request, State as Extract};
use axum::response::{IntoResponse, Response};
use base_tasks::TaskKind;
use base_types::{CallId, Chain, Epoch, SessionId};
use futures::StreamExt;
use http::{StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandbox_api::guest::call::{Exit, Note, Outcome, Work};
use sandbox_api::guest::{
    CallSpec, ClientError, ExecSpec, GuestClient, KillScope, OutputLimits, PtySize, RunAs,
    StdinData,
};
use store_api::LogEvent;
use tokio::io::{AsyncRead, AsyncWrite};

use super::input::Body;
use super::sessions::known;
use super::{Shared, State};
use crate::api::{
    ExecExit, ExecRequest, Fault, FaultCode, Frame, TerminalSize, UPGRADE_PROTOCOL, read_frame,
    write_frame,
};
use crate::fault::Refusal;

/// An operator's program that runs longer than this was forgotten.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Output kept in the sandbox while the client reads it; counts against the sandbox's disk.
const SPOOL_BYTES: u64 = 256 << 20;
/// How long a killed program may take to be gone before the client is told so anyway.
const KILL_WAIT: Duration = Duration::from_secs(10);

pub(super) async fn exec(
    Extract(shared): State,
    Path(session): Path<SessionId>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let upgrade = take_upgrade(&mut request, UPGRADE_PROTOCOL);
    let Body(exec) = Body::<ExecRequest>::from_request(request, &()).await?;
    check(&exec)?;
    known(&shared, &session).await?;
    let Some(upgrade) = upgrade else {
        let message = format!("exec needs the connection upgraded to {UPGRADE_PROTOCOL}");
        return Err(Refusal::new(FaultCode::UpgradeRequired, message));
    };
    let run = start(shared, session, exec).await?;
    // The program must be reaped and noted even if the client goes away, so it gets a task.
    base_tasks::spawn(TaskKind::ApiConnection, run.serve(upgrade));
    let headers = [(header::UPGRADE, UPGRADE_PROTOCOL), (header::CONNECTION, "upgrade")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// What becomes of the connection, if the client wants it to speak `protocol`.
pub(super) fn take_upgrade(request: &mut Request, protocol: &str) -> Option<OnUpgrade> {
    let wanted = request.headers().get(header::UPGRADE);
    let ours = wanted.is_some_and(|wanted| wanted.as_bytes() == protocol.as_bytes());
    request.extensions_mut().remove::<OnUpgrade>().filter(|_| ours)
}

fn check(exec: &ExecRequest) -> Result<(), Refusal> {
    let refuse = |what: &str| Err(Refusal::new(FaultCode::BadRequest, what));
    if exec.argv.first().is_none_or(String::is_empty) {
        return refuse("argv must name a program");
    }
    let texts = exec.argv.iter().chain(exec.env.iter().flat_map(|(k, v)| [k, v])).chain(&exec.cwd);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return refuse("argv, env and cwd must not contain a NUL byte");
    }
    if exec.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return refuse("a name in env must not be empty or contain `=`");
    }
    Ok(())
}

/// A program that has been started, before anybody listens to it.
struct Run {
    shared: Arc<Shared>,
    session: SessionId,
    argv: Vec<String>,
    call: CallId,
    guest: GuestClient,
    epoch: Epoch,
    /// Keeps the sandbox awake.
    _lease: Box<dyn Send + Sync>,
}

async fn start(shared: Arc<Shared>, session: SessionId, exec: ExecRequest) -> Result<Run, Refusal> {
    let hold = shared.control.guest(&session).await?;
    let call = CallId::generate();
    let argv = exec.argv.clone();
    let spec = spec_of(exec);
    hold.client.start(&call, &spec).await.map_err(|error| {
        let code = match error.refusal() {
            Some(_) => FaultCode::ExecRefused,
            None => FaultCode::SandboxUnavailable,
        };
        Refusal::new(code, Chain(&error).to_string())
    })?;
    Ok(Run {
        shared,
        session,
        argv,
        call,
        guest: hold.client,
        epoch: hold.epoch,
        _lease: hold.lease,
    })
}

fn spec_of(exec: ExecRequest) -> CallSpec {
    let timeout = exec.timeout_ms.map_or(TIMEOUT_MAX, Duration::from_millis).min(TIMEOUT_MAX);
    CallSpec {
        timeout,
        limits: OutputLimits { spool_bytes: SPOOL_BYTES, head_bytes: 0, tail_bytes: 0 },
        work: Work::Exec(ExecSpec {
            argv: exec.argv,
            env: exec.env,
            cwd: exec.cwd,
            run_as: if exec.root { RunAs::Root } else { RunAs::Tool },
            stdin: exec.stdin,
            pty: exec.tty.map(pty_size),
        }),
    }
}

fn pty_size(size: TerminalSize) -> PtySize {
    PtySize { rows: size.rows, columns: size.columns }
}

impl Run {
    async fn serve(self, upgrade: OnUpgrade) {
        let outcome = match upgrade.await {
            Ok(connection) => {
                let (reader, writer) = tokio::io::split(TokioIo::new(connection));
                self.attend(reader, writer).await
            }
            Err(error) => {
                tracing::debug!(%error, "an exec client went away before the upgrade");
                self.kill().await
            }
        };
        let exit_code = outcome.map(|outcome| exit_of(&outcome, self.epoch).code);
        let event = LogEvent::OperatorExec { argv: self.argv.clone(), exit_code };
        if let Err(error) = self.shared.control.note(&self.session, event).await {
            tracing::warn!(session = %self.session, %error, "an operator's exec is not in the log");
        }
        if let Err(error) = self.guest.ack(&self.call).await {
            tracing::debug!(error = %Chain(&error), "the agent was not told that its exec is over");
        }
    }

    /// Moves bytes until the program has ended or the client is gone.
    async fn attend<R, W>(&self, reader: R, mut writer: W) -> Option<Outcome>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let ended = tokio::select! {
            ended = self.pump_output(&mut writer) => ended,
            () = self.pump_input(reader) => Ended::ClientGone,
            () = self.shared.stop.cancelled() => Ended::Stopping,
        };
        let last = match ended {
            Ended::Program(outcome) => {
                let exit = Frame::Exit(exit_of(&outcome, self.epoch));
                let sent = write_frame(&mut writer, &exit).await;
                tracing::trace!(?sent, "exec ended");
                return Some(*outcome);
            }
            Ended::ClientGone => return self.kill().await,
            Ended::Stopping => {
                let killed = self.kill().await;
                let text = "`sinew serve` is stopping; the program was killed";
                let frame = Frame::Failed(Fault::new(FaultCode::SandboxUnavailable, text));
                (killed, frame)
            }
            Ended::Guest(error) => {
                let text = Chain(&error).to_string();
                (None, Frame::Failed(Fault::new(FaultCode::SandboxUnavailable, text)))
            }
        };
        // The client may be gone; then nobody needs the frame.
        let sent = write_frame(&mut writer, &last.1).await;
        tracing::trace!(?sent, "exec ended");
        last.0
    }

    async fn pump_output<W: AsyncWrite + Unpin>(&self, writer: &mut W) -> Ended {
        let mut output = std::pin::pin!(self.guest.attach(&self.call, 0));
        while let Some(chunk) = output.next().await {
            match chunk {
                Ok(chunk) => {
                    if write_frame(writer, &Frame::Output(chunk.data)).await.is_err() {
                        return Ended::ClientGone;
                    }
                }
                Err(error) => return Ended::Guest(error),
            }
        }
        match self.guest.wait(&self.call).await {
            Ok(outcome) => Ended::Program(Box::new(outcome)),
            Err(error) => Ended::Guest(error),
        }
    }

    /// Returns when the client has closed the connection or broken the framing.
    async fn pump_input<R: AsyncRead + Unpin>(&self, mut reader: R) {
        loop {
            let frame = match read_frame(&mut reader).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "an exec client broke the framing");
                    return;
                }
            };
            let done = match frame {
                Frame::Stdin(bytes) => self.guest.stdin(&self.call, StdinData::Bytes(bytes)).await,
                Frame::StdinEnd => self.guest.stdin(&self.call, StdinData::Eof).await,
                Frame::Resize(size) => self.guest.resize(&self.call, pty_size(size)).await,
                Frame::Signal(number) => self.guest.signal(&self.call, number).await,
                _ => {
                    tracing::debug!("an exec client sent a server's frame");
                    return;
                }
            };
            // A program that has closed its input refuses more of it: its own business.
            if let Err(error) = done {
                tracing::debug!(error = %Chain(&error), "the agent refused an exec client's input");
            }
        }
    }

    async fn kill(&self) -> Option<Outcome> {
        let killed = async {
            self.guest.kill(&self.call, KillScope::Tree).await?;
            self.guest.wait(&self.call).await
        };
        match tokio::time::timeout(KILL_WAIT, killed).await {
            Ok(Ok(outcome)) => Some(outcome),
            Ok(Err(error)) => {
                tracing::warn!(session = %self.session, error = %Chain(&error), "kill an exec");
                None
            }
            Err(_) => {
                tracing::warn!(session = %self.session, "a killed exec does not end");
                None
            }
        }
    }
}

enum Ended {
    Program(Box<Outcome>),
    ClientGone,
    Stopping,
    Guest(ClientError),
}

/// The code a shell would show, and what a person should know beyond it.
pub(super) fn code_of(exit: &Exit) -> (i32, Option<String>) {
    match exit {
        Exit::Code(code) => (*code, None),
        Exit::Signal(signal) => (128 + signal, Some(format!("killed by signal {signal}"))),
        Exit::TimedOut => (124, Some("timed out; everything it started was killed".to_owned())),
        Exit::Killed => (137, Some("killed".to_owned())),
        Exit::ShellDied(why) => (137, Some(format!("the shell died: {why}"))),
        Exit::FailedToStart(why) => (127, Some(why.clone())),
    }
}

fn exit_of(outcome: &Outcome, epoch: Epoch) -> ExecExit {
    let (code, mut note) = code_of(&outcome.exit);
    for extra in &outcome.notes {
        let text = match extra {
            Note::SpoolLimit { kept_bytes } => {
                format!("output beyond {kept_bytes} bytes was dropped")
            }
            Note::SpoolError(why) => format!("output could not be kept: {why}"),
            Note::Unkillable { processes } => format!("{processes} processes could not be killed"),
            _ => continue,
        };
        note = Some(note.map_or(text.clone(), |note| format!("{note}; {text}")));
    }
    ExecExit { code, note, epoch }
}
