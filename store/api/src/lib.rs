//! The journal: what this installation remembers about sessions, work items, tool calls and
//! sandboxes, and the contract that every store passes.
//!
//! Everything that happens to a session is a [`Change`]. A batch of changes is applied in one
//! durable transaction, and only by the session's present owner: each batch names the owner's
//! generation and fails with [`StoreError::NotOwner`] when it has moved on.
//!
//! **Invariant:** when a method returns `Ok`, what it wrote survives a power cut.
//! **Invariant:** times are the store's own; no caller passes one in.
//! **Invariant:** an id with a NUL character is refused ([`StoreError::Refused`]), and in a text
//! that somebody else chose it is replaced: not every database holds one.

#![forbid(unsafe_code)]

mod call;
mod change;
pub mod contract;
mod log;
mod node;
mod outage;
mod session;
mod work;

use std::time::Duration;

use async_trait::async_trait;
use base_types::{CallId, Generation, NodeId, SessionId, Timestamp, ToolUseId, WorkId};

pub use call::{CallEnd, CallRecord, CallState, NewCall, StartedAt};
pub use change::{Change, LOG_INPUT_CHARS_MAX};
pub use log::{LogEntry, LogEvent, TerminalAction};
pub use node::Owner;
pub use outage::Outage;
pub use session::{Identity, Phase, SandboxRecord, SandboxState, SessionRecord, Untold};
pub use work::{NewWork, Sealed, WorkEnd, WorkPhase, WorkRecord};

/// Pages of lists are at most this long, whatever is asked for.
pub const PAGE_MAX: u32 = 1_000;

/// Ids longer than this are refused: an index holds them, and everything that names them. Those of
/// the brain have some thirty bytes.
pub const ID_BYTES_MAX: usize = 1_000;

/// A page of calls or of the log ends with the row that brings it to this size: results may be
/// many megabytes each. So a page may be shorter than asked for; only an empty one is the end.
pub const PAGE_BYTES_MAX: usize = 32 << 20;

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Records that a work item is about to be acknowledged, before it is. Idempotent per work
    /// id: an item offered again replaces its token and starts over at [`WorkPhase::Claiming`].
    /// Creates the session's row if it is new; refuses a session known under another environment,
    /// an item known under another session, and a session that is [held
    /// elsewhere](StoreError::OwnedElsewhere). Open items that nodes which are gone had of the
    /// session end: nobody will.
    async fn claim_work(&self, work: &NewWork) -> Result<(), StoreError>;

    /// Makes `node` the owner of the session under a new generation. Whoever held the generation
    /// before cannot write any more. Refused while the session is [held
    /// elsewhere](StoreError::OwnedElsewhere).
    async fn take_session(
        &self,
        session: &SessionId,
        node: &NodeId,
    ) -> Result<Generation, StoreError>;

    /// Applies the changes in order, all or none.
    async fn apply(
        &self,
        session: &SessionId,
        generation: Generation,
        changes: &[Change],
    ) -> Result<(), StoreError>;

    /// This node is alive for `ttl` from now, by the store's clock, unless it says so again.
    async fn renew_node(&self, node: &NodeId, ttl: Duration) -> Result<(), StoreError>;

    /// Says that the node ended in order: it counts as gone at once.
    async fn retire_node(&self, node: &NodeId) -> Result<(), StoreError>;

    /// Who owns the session, and whether that node counts as alive now. `None`: nobody ever took
    /// it, or it is not known.
    async fn owner(&self, session: &SessionId) -> Result<Option<Owner>, StoreError>;

    async fn session(&self, session: &SessionId) -> Result<Option<SessionRecord>, StoreError>;

    /// Newest activity first; a heartbeat is not activity. This list and the other two over several
    /// sessions leave out what cannot be read: it is nobody else's trouble.
    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRecord>, StoreError>;

    /// The open sessions of a node by id, those after `after`: a walk page by page that misses none,
    /// whatever is written meanwhile.
    async fn owned_sessions(
        &self,
        node: &NodeId,
        after: Option<&SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError>;

    async fn work(&self, work: &WorkId) -> Result<Option<WorkRecord>, StoreError>;

    /// The items of `node` that have not ended: what a restart resumes.
    async fn open_work(&self, node: &NodeId) -> Result<Vec<WorkRecord>, StoreError>;

    async fn call(&self, call: &CallId) -> Result<Option<CallRecord>, StoreError>;

    /// The call that answers a tool use of this session, if it was ever received.
    async fn call_for(
        &self,
        session: &SessionId,
        tool_use: &ToolUseId,
    ) -> Result<Option<CallRecord>, StoreError>;

    /// In the order they were received, those after `after` (by [`CallRecord::seq`]). A page may
    /// be shorter than asked for ([`PAGE_BYTES_MAX`]); an empty one is the end.
    async fn calls(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<CallRecord>, StoreError>;

    /// The calls of a session that are not settled: received, started, or finished and unposted.
    async fn open_calls(&self, session: &SessionId) -> Result<Vec<CallRecord>, StoreError>;

    /// The session's log in order, the entries after `after`, in pages as [`Store::calls`].
    async fn log(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<LogEntry>, StoreError>;

    /// Forgets what is older than `before`: log entries, and sessions that are over with
    /// everything about them. A session with an open call, an open work item or a sandbox that is
    /// not [`SandboxState::Gone`] is not over. Calls of live sessions stay: they answer a repeated
    /// event. Returns how many sessions and log entries went.
    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError>;

    /// The store's clock.
    async fn now(&self) -> Result<Timestamp, StoreError>;
}

/// Which sessions to list.
#[derive(Clone, Debug)]
pub struct SessionFilter {
    /// Sessions that have not ended or failed, only.
    pub open_only: bool,
    /// Those this node owns, only.
    pub owner: Option<NodeId>,
    pub limit: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("session {session} is no longer owned under generation {generation}")]
    NotOwner { session: SessionId, generation: Generation },
    #[error("no session {0}")]
    NoSuchSession(SessionId),
    /// Another node that is alive holds the session: it has an open work item of it, or owns it
    /// with a sandbox that is not [`SandboxState::Gone`]. A node that has never said that it is
    /// alive counts as gone.
    #[error("session {session} is held by node {node}, which is alive")]
    OwnedElsewhere { session: SessionId, node: NodeId },
    #[error("session {session} belongs to environment {known}, not {offered}")]
    WrongEnvironment {
        session: SessionId,
        known: base_types::EnvironmentId,
        offered: base_types::EnvironmentId,
    },
    /// The tenant is fixed at the first claim.
    #[error("session {session} belongs to tenant {known}; it is now reported as {offered}")]
    TenantChanged { session: SessionId, known: base_types::TenantId, offered: base_types::TenantId },
    #[error("{change}: {why}")]
    Refused { change: &'static str, why: String },
    /// A row that this version cannot read: written by a later one, or damaged.
    #[error("{what} {id} cannot be read: {why}")]
    Unreadable { what: &'static str, id: String, why: String },
    /// The database cannot be used at the moment, and waiting as long as a store waits by itself
    /// did not help. Whether what was asked for happened is not known: what the journal says when
    /// it can be read again is what happened.
    #[error("{action}: {outage}")]
    Unavailable {
        action: &'static str,
        outage: Outage,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{action}")]
    Database {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
