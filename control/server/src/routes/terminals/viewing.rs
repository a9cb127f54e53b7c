//! One viewer of one terminal: what was shown before, then what happens, until somebody leaves.
//!
//! Nothing here is kept for a slow viewer but the piece that is being sent to it: the next one is
//! asked of the agent when that has gone, and if too much has happened meanwhile, there is a gap.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base_types::{Chain, Epoch, SessionId};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandbox_api::guest::terminal::{Terminal, TerminalChunk, TerminalRead};
use sandbox_api::guest::{ClientError, Exit, GuestClient, RunAs};
use store_api::TerminalAction;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Seat, event, note, pty_size, timestamp};
use crate::api::{
    ExecExit, Fault, FaultCode, Frame, FrameError, OutputGap, TerminalAttached, TerminalSize,
    read_frame, write_frame,
};
use crate::routes::Shared;
use crate::routes::exec::code_of;

/// A viewer hears from us this often, so that one who has gone is noticed.
const IDLE_EVERY: Duration = Duration::from_secs(15);
/// How long a viewer may take to hear why it is over.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// An agent that answers without a reason, faster than that, is not asked again at once.
const ANSWER_MIN: Duration = Duration::from_millis(20);
/// Input that waits for the program to read, in pieces of at most a frame; beyond it the client's
/// waits.
const INPUT_QUEUE_MAX: usize = 16;
/// Programs put two changes of size together if they come at once, and then draw nothing.
const REDRAW_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Viewing {
    pub shared: Arc<Shared>,
    pub session: SessionId,
    pub guest: GuestClient,
    pub epoch: Epoch,
    pub terminal: Terminal,
    /// It was not there before.
    pub created: bool,
    /// Of the viewer's process.
    pub uid: u32,
    /// Of the viewer; the terminal has that of whoever attached or changed last.
    pub size: Mutex<TerminalSize>,
    pub seat: Seat,
    /// Keeps the sandbox awake.
    pub _lease: Box<dyn Send + Sync>,
}

enum Ended {
    Program(Exit),
    ClientGone,
    Stopping,
    Guest(ClientError),
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        tracing::debug!(error = %Chain(&error), "a terminal's viewer is gone");
        Ended::ClientGone
    }
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        Ended::Guest(error)
    }
}

impl Viewing {
    pub(super) async fn note_begin(&self) {
        let began = if self.created { TerminalAction::Opened } else { TerminalAction::Attached };
        self.note(began).await;
    }

    async fn note(&self, action: TerminalAction) {
        let root = self.terminal.run_as == RunAs::Root;
        let event = event(&self.terminal.name, self.uid, root, action);
        note(&self.shared, &self.session, event).await;
    }

    pub(super) async fn serve(self, upgrade: OnUpgrade) {
        let action = match upgrade.await {
            Ok(connection) => {
                let (reader, writer) = tokio::io::split(TokioIo::new(connection));
                self.attend(reader, writer).await
            }
            Err(error) => {
                tracing::debug!(%error, "a terminal's viewer went away before the upgrade");
                TerminalAction::Detached
            }
        };
        self.note(action).await;
    }

    async fn attend<R, W>(&self, reader: R, writer: W) -> TerminalAction
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut out = FrameWriter { writer, whole: true };
        let ended = tokio::select! {
            Err(ended) = self.pump_output(&mut out) => ended,
            () = self.pump_input(reader) => Ended::ClientGone,
            () = self.shared.stop.cancelled() => Ended::Stopping,
        };
        let (last, action) = match ended {
            Ended::ClientGone => return TerminalAction::Detached,
            Ended::Program(exit) => {
                let (code, note) = code_of(&exit);
                let exit = Frame::Exit(ExecExit { code, note, epoch: self.epoch });
                (exit, TerminalAction::Ended { exit_code: code })
            }
            Ended::Stopping => {
                let text = "`sinew serve` is stopping; the shell goes on";
                let fault = Fault::new(FaultCode::ServeStopping, text);
                (Frame::Failed(fault), TerminalAction::Detached)
            }
            Ended::Guest(error) => {
                let fault = Fault::new(FaultCode::SandboxUnavailable, Chain(&error).to_string());
                (Frame::Failed(fault), TerminalAction::Detached)
            }
        };
        // After a part of a frame it would be read as the rest of that.
        if out.whole {
            // A viewer who does not read, or is gone, does not keep us from ending.
            let sent = tokio::time::timeout(LAST_WAIT, out.put(&last)).await;
            tracing::trace!(?sent, "a terminal's viewer leaves");
        }
        action
    }

    // === output ===

    async fn pump_output<W: AsyncWrite + Unpin>(
        &self,
        out: &mut FrameWriter<W>,
    ) -> Result<std::convert::Infallible, Ended> {
        out.put(&Frame::Attached(self.attached())).await?;
        if !self.created {
            self.resize().await;
        }
        let mut offset = 0;
        let mut shown_before = self.terminal.total_bytes;
        let mut live = false;
        let mut redraw = false;
        loop {
            if !live && offset >= shown_before {
                out.put(&Frame::Live).await?;
                live = true;
                redraw = !self.created;
            }
            if redraw && live {
                self.redraw().await;
                redraw = false;
            }
            let asked = Instant::now();
            let chunk = self.read(offset).await?;
            let missed = chunk.offset > offset;
            offset = show(out, offset, &chunk).await?;
            // Only when it has caught up: it would be overtaken again.
            redraw |= missed && live && offset >= chunk.total_bytes;
            if let Some(exit) = chunk.exit {
                return Err(Ended::Program(exit));
            }
            if chunk.data.is_empty() {
                // There is no more, whatever the agent counted.
                shown_before = 0;
                out.put(&Frame::Idle).await?;
                tokio::time::sleep_until(asked + ANSWER_MIN).await;
            }
        }
    }

    fn attached(&self) -> TerminalAttached {
        TerminalAttached {
            name: self.terminal.name.to_string(),
            id: self.terminal.id.0,
            root: self.terminal.run_as == RunAs::Root,
            created: self.created,
            started_at: timestamp(self.terminal.started_at_ms),
            viewers: self.shared.viewers.count(&self.seat.key),
            epoch: self.epoch,
        }
    }

    async fn read(&self, offset: u64) -> Result<TerminalChunk, ClientError> {
        let (terminal, viewer) = (self.terminal.id, self.seat.number);
        let read = TerminalRead { terminal, viewer, offset, wait: IDLE_EVERY };
        self.guest.read_terminal(read).await
    }

    /// A full-screen program draws itself anew when the size changes, and only then.
    async fn redraw(&self) {
        let TerminalSize { rows, columns } = self.size();
        let other = if rows > 1 { rows - 1 } else { rows + 1 };
        let other = pty_size(TerminalSize { rows: other, columns });
        if let Err(error) = self.guest.resize_terminal(self.terminal.id, other).await {
            tracing::debug!(error = %Chain(&error), "the agent refused a terminal's size");
        }
        tokio::time::sleep(REDRAW_PAUSE).await;
        self.resize().await;
    }

    fn size(&self) -> TerminalSize {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resize(&self) {
        let size = pty_size(self.size());
        if let Err(error) = self.guest.resize_terminal(self.terminal.id, size).await {
            tracing::debug!(error = %Chain(&error), "the agent refused a terminal's size");
        }
    }

    // === input ===

    /// Returns when the client has closed the connection or broken the framing.
    async fn pump_input<R: AsyncRead + Unpin>(&self, reader: R) {
        let (keys, typed) = mpsc::channel(INPUT_QUEUE_MAX);
        tokio::select! {
            () = self.take_input(reader, keys) => {}
            () = self.pass_keys(typed) => {}
        }
    }

    async fn take_input<R: AsyncRead + Unpin>(&self, mut reader: R, keys: mpsc::Sender<Vec<u8>>) {
        loop {
            match read_frame(&mut reader).await {
                Ok(Some(Frame::Stdin(bytes))) => {
                    if keys.send(bytes).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Frame::Resize(size))) => {
                    *self.size.lock().unwrap_or_else(PoisonError::into_inner) =
                        super::sensible(size);
                    self.resize().await;
                }
                Ok(Some(frame)) => {
                    tracing::debug!(?frame, "a terminal's viewer sent what it must not");
                    return;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "a terminal's viewer broke the framing");
                    return;
                }
            }
        }
    }

    /// One piece after the other; the agent answers when the program has read it.
    async fn pass_keys(&self, mut typed: mpsc::Receiver<Vec<u8>>) {
        while let Some(bytes) = typed.recv().await {
            // The shell may have ended: its viewers are told by the output.
            if let Err(error) = self.guest.type_terminal(self.terminal.id, bytes).await {
                tracing::debug!(error = %Chain(&error), "the agent refused keys");
            }
        }
        // The sender is gone with the reader, which ends both.
        std::future::pending::<()>().await;
    }
}

/// Answers up to where the viewer has everything that is kept.
async fn show<W: AsyncWrite + Unpin>(
    out: &mut FrameWriter<W>,
    offset: u64,
    chunk: &TerminalChunk,
) -> Result<u64, FrameError> {
    if chunk.offset > offset {
        let modes = chunk.modes.bits();
        out.put(&Frame::Gap(OutputGap { skipped_bytes: chunk.offset - offset, modes })).await?;
    }
    if !chunk.data.is_empty() {
        out.put(&Frame::Output(chunk.data.clone())).await?;
    }
    Ok(chunk.offset + chunk.data.len() as u64)
}

struct FrameWriter<W> {
    writer: W,
    /// The last frame was written to its end.
    whole: bool,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    async fn put(&mut self, frame: &Frame) -> Result<(), FrameError> {
        self.whole = false;
        write_frame(&mut self.writer, frame).await?;
        self.whole = true;
        Ok(())
    }
}
