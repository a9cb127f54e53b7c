//! Delivers one session's results, in the order they were finished, until the brain has each.
//!
//! A send is never repeated blindly: after any failure that may have reached the brain, the
//! history is read first. The window that remains lies between that reading and the next post,
//! and is closed by the brain taking an identical result twice as one.

use std::sync::Arc;
use std::time::Duration;

use base_types::{CallId, ToolUseId};
use brain_api::{BrainError, BrainErrorKind, BrainSession, EventKind, SendCredential};
use rand::Rng;
use tokio::sync::mpsc;

use crate::feed::Pages;
use crate::message::{Inside, Outbox, SendEnd, Stopped, line};

/// Results that wait for delivery. A session has at most as many as the model asked for in the
/// turns since the brain was last reached.
pub const QUEUE_MAX: usize = 1_024;
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// One finished result.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub call: CallId,
    pub tool_use: ToolUseId,
    pub body: Vec<u8>,
}

pub struct Sender {
    pub session: Arc<dyn BrainSession>,
    pub outbox: Outbox,
}

impl Sender {
    /// Delivers until the queue is closed or the scope stops.
    pub async fn run(self, mut queue: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = self.next(&mut queue).await {
            let Ok(end) = self.deliver(&delivery).await else { return };
            let sent = Inside::Sent { call: delivery.call, end };
            if self.outbox.tell(sent).await.is_err() {
                return;
            }
        }
    }

    async fn next(&self, queue: &mut mpsc::Receiver<Delivery>) -> Option<Delivery> {
        tokio::select! {
            delivery = queue.recv() => delivery,
            () = self.outbox.stopping().cancelled() => None,
        }
    }

    async fn deliver(&self, delivery: &Delivery) -> Result<SendEnd, Stopped> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match self.post(&delivery.body, SendCredential::Item).await? {
                Ok(()) => return Ok(SendEnd::Delivered),
                Err(error) => error,
            };
            match error.kind {
                BrainErrorKind::TooLarge => return Ok(SendEnd::TooLarge),
                BrainErrorKind::NotFound => return Ok(SendEnd::Refused { status: 404 }),
                BrainErrorKind::Fatal { status } => return Ok(SendEnd::Refused { status }),
                BrainErrorKind::Unauthorized { .. } => return self.with_key(delivery).await,
                BrainErrorKind::LeaseLost => return Ok(SendEnd::Refused { status: 412 }),
                BrainErrorKind::Transient { .. } | BrainErrorKind::Ambiguous => {}
            }
            tracing::debug!(call = %delivery.call, error = %line(&error), "send failed");
            let wait = error.retry_after().unwrap_or_else(|| jittered(backoff));
            self.outbox.pause(wait).await?;
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if self.brain_has(&delivery.tool_use).await? {
                return Ok(SendEnd::Delivered);
            }
        }
    }

    /// The item's token was refused: the environment key is tried once.
    async fn with_key(&self, delivery: &Delivery) -> Result<SendEnd, Stopped> {
        let posted = self.post(&delivery.body, SendCredential::EnvironmentKey).await?;
        Ok(match posted {
            Ok(()) => SendEnd::Delivered,
            Err(error) => match error.kind {
                BrainErrorKind::TooLarge => SendEnd::TooLarge,
                BrainErrorKind::NotFound => SendEnd::Refused { status: 404 },
                BrainErrorKind::Fatal { status: 400 } => SendEnd::Refused { status: 400 },
                _ => SendEnd::Kept { why: line(&error) },
            },
        })
    }

    async fn post(
        &self,
        body: &[u8],
        credential: SendCredential,
    ) -> Result<Result<(), BrainError>, Stopped> {
        tokio::select! {
            posted = self.session.send(body, credential) => Ok(posted),
            () = self.outbox.stopping().cancelled() => Err(Stopped),
        }
    }

    /// Whether the history holds an answer to this call; waits until the history can be read.
    async fn brain_has(&self, tool_use: &ToolUseId) -> Result<bool, Stopped> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let listed = tokio::select! {
                listed = answered_in(&*self.session, tool_use) => listed,
                () = self.outbox.stopping().cancelled() => return Err(Stopped),
            };
            match listed {
                Ok(answered) => return Ok(answered),
                // A history that is refused for good says nothing; the send itself will be told.
                Err(error) if !error.is_transient() => return Ok(false),
                Err(error) => {
                    let wait = error.retry_after().unwrap_or_else(|| jittered(backoff));
                    self.outbox.pause(wait).await?;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }
}

async fn answered_in(session: &dyn BrainSession, call: &ToolUseId) -> Result<bool, BrainError> {
    let mut pages = Pages::of(session);
    while let Some(page) = pages.next().await? {
        let is_it = |kind: &EventKind| matches!(kind, EventKind::Answered(of) if of == call);
        if page.events.iter().any(|event| is_it(&event.kind)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Between half of it and all of it, so that sessions that failed together do not return together.
fn jittered(backoff: Duration) -> Duration {
    rand::rng().random_range(backoff / 2..=backoff)
}
