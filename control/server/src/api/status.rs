//! How the whole installation is doing.

use base_types::{EnvironmentId, NodeId, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusAnswer {
    pub version: String,
    pub node: NodeId,
    pub pid: u32,
    pub started_at: Timestamp,
    pub environments: Vec<EnvironmentView>,
    /// Sessions with a live driver on this node.
    pub serving: Vec<SessionId>,
    pub store: Health,
    pub driver: DriverStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentView {
    pub environment: EnvironmentId,
    /// `false`: it was taken out of the configuration, and sessions of it still have files here.
    pub configured: bool,
    pub serving: usize,
    pub concurrency_max: usize,
    pub last_poll_at: Option<Timestamp>,
    /// Why polling does not work at the moment.
    pub trouble: Option<String>,
    pub trouble_since: Option<Timestamp>,
    /// The brain refuses the key. It is tried again from time to time, and a new one in the key
    /// file at once.
    pub refused: bool,
    /// Offers that are left to other nodes, or for later, at the moment.
    pub left_alone: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub ok: bool,
    /// What is wrong, with its causes.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverStatus {
    pub tier: String,
    #[serde(flatten)]
    pub health: Health,
    pub sandboxes_running: usize,
    pub sandboxes_known: usize,
}

impl Health {
    pub fn good() -> Self {
        Self { ok: true, trouble: None }
    }

    pub fn bad(trouble: impl Into<String>) -> Self {
        Self { ok: false, trouble: Some(trouble.into()) }
    }
}
