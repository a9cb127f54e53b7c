//! A work item's life in the journal: claiming → active → ended.

use base_types::{EnvironmentId, NodeId, SessionId, Timestamp, WorkId};
use serde::{Deserialize, Serialize};

/// An item that is about to be acknowledged.
#[derive(Clone, Debug)]
pub struct NewWork {
    pub id: WorkId,
    pub environment: EnvironmentId,
    pub session: SessionId,
    pub node: NodeId,
    pub token: Option<Sealed>,
}

/// A credential encrypted under the installation's master key. The store cannot read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

#[derive(Clone, Debug, PartialEq)]
pub struct WorkRecord {
    pub id: WorkId,
    pub environment: EnvironmentId,
    pub session: SessionId,
    pub node: NodeId,
    pub token: Option<Sealed>,
    pub phase: WorkPhase,
    pub claimed_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub enum WorkPhase {
    /// The acknowledgement may or may not have reached the brain.
    Claiming,
    /// The lease is ours as far as we know.
    Active {
        /// The last heartbeat string, verbatim; `None` before the first beat.
        last_beat: Option<String>,
        last_beat_at: Option<Timestamp>,
        ttl_ms: Option<u64>,
        /// A beat was about to be sent and its answer was not recorded.
        beat_open: bool,
    },
    Ended {
        at: Timestamp,
        why: WorkEnd,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkEnd {
    /// We stopped it: the session went idle, ended or failed.
    Stopped,
    /// The brain or an operator asked us to stop.
    StopRequested,
    /// 412, or no beat went through for a whole lease.
    LeaseLost,
    /// The acknowledgement or the lease was refused.
    Refused,
    /// The item was not for us to run.
    NotRun,
}
