//! The work queue: items, leases and their credentials.

use std::time::Duration;

use base_types::{EnvironmentId, Secret, SessionId, WorkId};

/// An entry of the queue, as the poll gave it.
#[derive(Clone, Debug)]
pub struct WorkItem {
    pub id: WorkId,
    pub environment: EnvironmentId,
    /// What to serve. `None` when the item is not for a session (a health check, a later kind).
    pub session: Option<SessionId>,
    /// The item's `data.type`, for the log.
    pub data_type: String,
    /// The item's own credential, already taken out of its envelope.
    pub token: Option<ItemToken>,
}

/// A work item's sessions token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemToken(pub Secret);

/// What the brain should find as the last heartbeat: nothing, or the string it gave us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedBeat {
    None,
    Last(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The token of the next beat, opaque.
    pub last: String,
    pub extended: bool,
    pub state: WorkState,
    pub ttl: Option<Duration>,
}

impl Heartbeat {
    /// The brain or an operator wants the item to end.
    pub fn asks_to_stop(&self) -> bool {
        !self.extended || matches!(self.state, WorkState::Stopping | WorkState::Stopped)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkState {
    Queued,
    Starting,
    Active,
    Stopping,
    Stopped,
    Other(String),
}
