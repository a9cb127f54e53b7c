//! What the hands ask of a brain, and what it may answer. `brain/http` is the only crate that
//! knows the wire format; everything else sees these types.
//!
//! **Invariant:** a credential never crosses this contract as a printable type.

#![forbid(unsafe_code)]

mod error;
mod event;
mod work;

use async_trait::async_trait;
use base_types::{EnvironmentId, SessionId, WorkId};
use futures::stream::BoxStream;

pub use error::{BrainError, BrainErrorKind};
pub use event::{
    Block, Confirmation, Event, EventKind, Page, Permission, SessionInfo, SessionStatus,
    StopReason, StreamItem, ToolResult, ToolResultKind, ToolUse, ToolUseKind,
};
pub use work::{ExpectedBeat, Heartbeat, ItemToken, WorkItem, WorkState};

/// One environment's side of the brain: its queue, and the sessions that it hands out.
///
/// The environment key is inside the implementation. `token` is the item's own credential and
/// is used instead of the key wherever the protocol prefers it.
#[async_trait]
pub trait Brain: Send + Sync + 'static {
    fn environment(&self) -> &EnvironmentId;

    /// Asks for one item; `Ok(None)` is an empty queue. The request may be held for about a
    /// second by the brain.
    async fn poll(&self) -> Result<Option<WorkItem>, BrainError>;

    async fn ack(&self, work: &WorkId) -> Result<(), BrainError>;

    /// One beat. `expected` is the string of the beat before, byte for byte.
    async fn heartbeat(
        &self,
        work: &WorkId,
        token: Option<&ItemToken>,
        expected: &ExpectedBeat,
    ) -> Result<Heartbeat, BrainError>;

    /// Ends the item at once (`force`). "Already stopped" is success.
    async fn stop(&self, work: &WorkId, token: Option<&ItemToken>) -> Result<(), BrainError>;

    /// The same calls for one session, with the credential of the item that serves it.
    fn session(&self, session: &SessionId, token: Option<ItemToken>) -> Box<dyn BrainSession>;
}

/// One session at the brain.
#[async_trait]
pub trait BrainSession: Send + Sync + 'static {
    async fn retrieve(&self) -> Result<SessionInfo, BrainError>;

    /// One page of the history, oldest first. `page` is the cursor of the page before.
    async fn events(&self, page: Option<&str>) -> Result<Page, BrainError>;

    /// Opens the live stream: what happens from now on, without replay. The outer error is the
    /// refusal to open; an error item ends the stream.
    async fn stream(
        &self,
    ) -> Result<BoxStream<'static, Result<StreamItem, BrainError>>, BrainError>;

    /// The request body that posts this result. The journal keeps it, so that a repeated send is
    /// byte-identical.
    fn encode(&self, result: &ToolResult) -> Vec<u8>;

    /// Sends a body made by [`Self::encode`], once: no retry below this call, whatever happens.
    /// On [`BrainErrorKind::Ambiguous`] the brain may have it: read the history before repeating.
    async fn send(&self, body: &[u8], credential: SendCredential) -> Result<(), BrainError>;
}

/// Which credential a send uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendCredential {
    /// The item's token where there is one, else the environment key.
    Item,
    /// The environment key: tried once after the token was refused.
    EnvironmentKey,
}
