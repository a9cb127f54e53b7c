//! The actor without a work item: operators who borrow the sandbox or stop the session, and sleep.

use std::sync::Arc;
use std::time::Duration;

use base_types::SessionId;
use store_api::{Phase, SandboxState};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ending::End;
use super::{Actor, Slot};
use crate::hub::{GuestError, GuestLease, StopSessionError};
use crate::keeper;
use crate::message::line;

/// A sandbox that does not stop is tried again after this.
const STOP_AGAIN_WAIT: Duration = Duration::from_secs(30);

impl Actor {
    pub(super) fn lend(&mut self, reply: oneshot::Sender<Result<GuestLease, GuestError>>) {
        if self.identity.is_none() || self.shape.is_none() {
            let _ = reply.send(Err(GuestError::NotPrepared(self.session.clone())));
            return;
        }
        self.guests_waiting.push(reply);
        self.lend_to_waiting();
    }

    pub(super) fn lend_to_waiting(&mut self) {
        let Slot::Ready(live) = &self.sandbox else { return };
        for reply in self.guests_waiting.drain(..) {
            let lease = GuestLease {
                client: live.client.clone(),
                epoch: live.epoch,
                _awake: self.awake.clone(),
            };
            let _ = reply.send(Ok(lease));
        }
        if self.serving.is_none() {
            self.sleep_at = Some(Instant::now() + self.keep_running());
        }
    }

    pub(super) fn refuse_guests(&mut self, why: &str) {
        for reply in self.guests_waiting.drain(..) {
            let (session, why) = (self.session.clone(), why.to_owned());
            let _ = reply.send(Err(GuestError::NoSandbox { session, why }));
        }
    }

    pub(super) async fn stop(&mut self, forget: bool) -> Result<(), StopSessionError> {
        let failed = |session: &SessionId, why: String| StopSessionError::Failed {
            session: session.clone(),
            why,
        };
        if self.serving.is_some() {
            self.end_item(End::Operator).await;
        }
        let stopped = if forget {
            self.settle_open_calls().await;
            self.destroy_sandbox().await
        } else {
            self.stop_sandbox("an operator stopped the session").await
        };
        stopped.map_err(|why| failed(&self.session, why))?;
        let phase = match forget {
            true => Phase::Ended { reason: "stopped and forgotten by an operator".to_owned() },
            false => Phase::Sleeping,
        };
        self.sleep_at = None;
        self.enter(phase).await.map_err(|error| failed(&self.session, line(&error)))
    }

    /// A restart left processes, or a sleep has outlasted its retention.
    pub(super) async fn tend(&mut self) {
        if self.serving.is_some() {
            return;
        }
        let Some(record) = &self.record else { return };
        match record.state {
            SandboxState::Creating | SandboxState::Running => {
                let slept = match self.shared.store.session(&self.session).await {
                    Ok(Some(session)) => self.shared.clock.now().since(session.phase_at),
                    _ => Duration::ZERO,
                };
                let left = self.keep_running().saturating_sub(slept);
                self.sleep_at = Some(Instant::now() + left);
            }
            SandboxState::Stopped => self.expire().await,
            SandboxState::Gone => {}
        }
    }

    pub(super) async fn expire(&mut self) {
        let past = match self.shared.store.session(&self.session).await {
            Ok(Some(session)) => keeper::is_past_retention(&self.shared, &session).await,
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match past {
            Ok(true) => {
                tracing::info!(session = %self.session, "the session's files are past retention");
                if let Err(why) = self.destroy_sandbox().await {
                    tracing::warn!(session = %self.session, %why, "could not remove its sandbox");
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(error = %line(&error), "read the journal"),
        }
    }

    pub(super) async fn advance_sleep(&mut self) {
        let due = self.serving.is_none() && self.sleep_at.is_some_and(|at| at <= Instant::now());
        if !due {
            return;
        }
        if Arc::strong_count(&self.awake) > 1 {
            self.sleep_at = Some(Instant::now() + self.keep_running());
            return;
        }
        self.sleep_at = None;
        if let Err(why) = self.stop_sandbox("the session slept").await {
            tracing::warn!(session = %self.session, %why, "could not stop its sandbox");
            self.sleep_at = Some(Instant::now() + STOP_AGAIN_WAIT);
        }
    }

    pub(super) fn keep_running(&self) -> Duration {
        self.shape.as_ref().map_or(Duration::ZERO, |shape| shape.keep_running)
    }
}
