//! What the API asks of whoever drives the sessions.

use async_trait::async_trait;
use base_types::{Epoch, NodeId, SessionId};
use sandbox_api::guest::GuestClient;
use store_api::LogEvent;

use crate::api::EnvironmentView;

/// The live side of this node's sessions. What is only read comes from the journal instead.
#[async_trait]
pub trait SessionControl: Send + Sync + 'static {
    fn environments(&self) -> Vec<EnvironmentView>;

    /// Sessions with a live driver.
    fn serving(&self) -> Vec<SessionId>;

    /// A connection into the session's sandbox, woken if it sleeps. While the hold lives the
    /// sandbox is not put to sleep.
    async fn guest(&self, session: &SessionId) -> Result<GuestHold, ControlError>;

    /// Kills what runs and stops the work item; `forget` also removes sandbox and volume and ends
    /// the session here.
    async fn stop(&self, session: &SessionId, forget: bool) -> Result<(), ControlError>;

    /// Adds a line to the session's log.
    async fn note(&self, session: &SessionId, event: LogEvent) -> Result<(), ControlError>;
}

/// A connection to a guest agent, and what keeps its sandbox awake.
pub struct GuestHold {
    pub client: GuestClient,
    pub epoch: Epoch,
    /// Dropped to let the sandbox sleep again.
    pub lease: Box<dyn Send + Sync>,
}

/// Texts are complete: causes included, nothing secret.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no session {0}")]
    NoSuchSession(SessionId),
    #[error("session {session} is over: {why}")]
    Ended { session: SessionId, why: String },
    #[error("session {0} has no sandbox yet")]
    NoSandbox(SessionId),
    #[error("session {session} is served by node {node}, not by this one")]
    Elsewhere { session: SessionId, node: NodeId },
    #[error("the sandbox of session {session} cannot be used: {why}")]
    Unavailable { session: SessionId, why: String },
    #[error("stop session {session}: {why}")]
    Stop { session: SessionId, why: String },
    #[error("write to the log of session {session}: {why}")]
    Note { session: SessionId, why: String },
}
