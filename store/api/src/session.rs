//! What is remembered of a session and of its sandbox.

use std::collections::BTreeMap;

use base_types::{
    AgentId, EnvironmentId, Epoch, Generation, ImageId, NodeId, ProfileName, SandboxId, SessionId,
    TenantId, Timestamp, VolumeId,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    pub id: SessionId,
    pub environment: EnvironmentId,
    pub owner: Option<NodeId>,
    pub generation: Generation,
    pub phase: Phase,
    /// Absent until the session has been fetched from the brain once.
    pub identity: Option<Identity>,
    pub sandbox: Option<SandboxRecord>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// When the phase last changed.
    pub phase_at: Timestamp,
}

/// What policy and profile rules know of a session. Tenant and profile are chosen once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub tenant: TenantId,
    pub profile: ProfileName,
    /// Which rule chose the profile, for the reader: "profile `big`, rule 2".
    pub chosen_by: String,
    pub agent: Option<AgentId>,
    pub agent_version: Option<i64>,
    pub agent_name: Option<String>,
    pub title: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Attached things the session is served without.
    pub unserved: Vec<String>,
}

/// Where a session is in its life. `Failed` is reachable from each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    Claimed,
    Preparing,
    Serving,
    /// The turn is over; the item is kept a little longer.
    Idle,
    /// No work item. Processes may still run until `keep_running` passes.
    Sleeping,
    Ended {
        reason: String,
    },
    Failed {
        reason: String,
    },
}

impl Phase {
    pub fn is_final(&self) -> bool {
        matches!(self, Phase::Ended { .. } | Phase::Failed { .. })
    }

    pub fn name(&self) -> &'static str {
        match self {
            Phase::Claimed => "claimed",
            Phase::Preparing => "preparing",
            Phase::Serving => "serving",
            Phase::Idle => "idle",
            Phase::Sleeping => "sleeping",
            Phase::Ended { .. } => "ended",
            Phase::Failed { .. } => "failed",
        }
    }
}

/// The session's place to run. The volume outlives the epochs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: SandboxId,
    pub volume: VolumeId,
    /// The node it is on. Absent in records of before nodes shared a store: then it is its
    /// session's owner.
    #[serde(default)]
    pub node: Option<NodeId>,
    pub image: ImageId,
    pub tier: String,
    pub epoch: Epoch,
    pub state: SandboxState,
    /// What the model must still be told about this epoch, with its next result: that processes
    /// are gone, that files are. Cleared in the batch that finishes the call which told it.
    #[serde(default)]
    pub untold: Option<Untold>,
}

/// A loss that the model has not been told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lost", rename_all = "snake_case")]
pub enum Untold {
    /// A new epoch on the same files: shell state and background jobs are gone.
    Processes { why: String },
    /// A new, empty volume in the place of an old one.
    Files { why: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Being created: may or may not exist.
    Creating,
    Running,
    /// No processes; the volume is kept.
    Stopped,
    /// Nothing is left of it.
    Gone,
}
