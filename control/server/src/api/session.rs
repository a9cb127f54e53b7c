//! Sessions and their calls as readers see them.

use std::collections::BTreeMap;

use base_types::{
    AgentId, CallId, EnvironmentId, Epoch, ImageId, NodeId, ProfileName, SandboxId, SessionId,
    TenantId, ThreadId, Timestamp, ToolUseId, VolumeId,
};
use sandbox_api::SandboxUse;
use serde::{Deserialize, Serialize};
use store_api::{CallRecord, CallState, SandboxRecord, SandboxState, SessionRecord, Untold};

use super::{EntrypointView, EnvironmentView};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionQuery {
    /// Only sessions that have not ended or failed.
    #[serde(default)]
    pub open: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionList {
    pub sessions: Vec<SessionView>,
    /// Environments that are in trouble at the moment: new work of theirs does not come in.
    #[serde(default)]
    pub ill: Vec<EnvironmentView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    pub id: SessionId,
    pub environment: EnvironmentId,
    pub phase: String,
    /// Why it ended or failed.
    pub reason: Option<String>,
    pub tenant: Option<TenantId>,
    pub profile: Option<ProfileName>,
    pub profile_chosen_by: Option<String>,
    pub agent: Option<AgentId>,
    pub agent_version: Option<i64>,
    pub agent_name: Option<String>,
    pub title: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Attached things that the session is served without.
    pub unserved: Vec<String>,
    pub owner: Option<NodeId>,
    /// Whether a driver of this node has it in hand now.
    pub served_here: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub phase_at: Timestamp,
    pub sandbox: Option<SandboxView>,
    /// Only in the answer about one session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<CallsSummary>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxView {
    pub id: SandboxId,
    pub volume: VolumeId,
    /// The node it is on.
    #[serde(default)]
    pub node: Option<NodeId>,
    pub image: ImageId,
    pub tier: String,
    pub epoch: Epoch,
    pub state: SandboxState,
    /// What this epoch's files come from: `nothing` (a new volume) or `same_volume`.
    pub restored_from: String,
    /// What the model is still to be told with its next result.
    pub untold: Option<Untold>,
    /// Only in the answer about one session, and while the sandbox runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<SandboxUse>,
    /// What runs, or ran, beside the tools. Only in the answer about one session, while the sandbox
    /// runs, and where the profile asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<EntrypointView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallsSummary {
    pub total: u64,
    /// Not yet with the brain.
    pub open: u64,
    /// Ended with an error result.
    pub failed: u64,
    /// There are more calls than were counted.
    pub truncated: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallPage {
    pub calls: Vec<CallView>,
    pub next_after: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallView {
    pub seq: u64,
    pub id: CallId,
    pub tool_use: ToolUseId,
    pub tool: String,
    pub thread: Option<ThreadId>,
    /// `received`, `started`, `finished` or `settled`.
    pub state: String,
    pub input: serde_json::Value,
    pub epoch: Option<Epoch>,
    pub received_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub settled_at: Option<Timestamp>,
    pub is_error: Option<bool>,
    pub exit_code: Option<i32>,
    pub summary: Option<String>,
    /// The status with which the brain refused the result for good.
    pub refused: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Also remove sandbox and volume and end the session here.
    #[serde(default)]
    pub forget: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopAnswer {
    pub session: SessionId,
    pub stopped: bool,
    pub forgotten: bool,
}

// === impl SessionView ===

impl SessionView {
    pub fn of(record: SessionRecord, served_here: bool) -> Self {
        let reason = match &record.phase {
            store_api::Phase::Ended { reason } | store_api::Phase::Failed { reason } => {
                Some(reason.clone())
            }
            _ => None,
        };
        let mut view = Self {
            id: record.id,
            environment: record.environment,
            phase: record.phase.name().to_owned(),
            reason,
            tenant: None,
            profile: None,
            profile_chosen_by: None,
            agent: None,
            agent_version: None,
            agent_name: None,
            title: None,
            metadata: BTreeMap::new(),
            unserved: Vec::new(),
            owner: record.owner,
            served_here,
            created_at: record.created_at,
            updated_at: record.updated_at,
            phase_at: record.phase_at,
            sandbox: record.sandbox.map(SandboxView::of),
            calls: None,
        };
        if let Some(identity) = record.identity {
            view.tenant = Some(identity.tenant);
            view.profile = Some(identity.profile);
            view.profile_chosen_by = Some(identity.chosen_by);
            view.agent = identity.agent;
            view.agent_version = identity.agent_version;
            view.agent_name = identity.agent_name;
            view.title = identity.title;
            view.metadata = identity.metadata;
            view.unserved = identity.unserved;
        }
        view
    }
}

// === impl SandboxView ===

impl SandboxView {
    /// A later epoch continues its volume, unless the loss of it is still to be told.
    fn of(record: SandboxRecord) -> Self {
        let new =
            record.epoch == Epoch::FIRST || matches!(record.untold, Some(Untold::Files { .. }));
        let restored_from = if new { "nothing" } else { "same_volume" };
        Self {
            id: record.id,
            volume: record.volume,
            node: record.node,
            image: record.image,
            tier: record.tier,
            epoch: record.epoch,
            state: record.state,
            restored_from: restored_from.to_owned(),
            untold: record.untold,
            usage: None,
            entrypoint: None,
        }
    }
}

// === impl CallView ===

impl CallView {
    pub fn of(record: CallRecord) -> Self {
        let (state, finished_at, settled_at, end, refused) = match record.state {
            CallState::Received => ("received", None, None, None, None),
            CallState::Started => ("started", None, None, None, None),
            CallState::Finished { at, end } => ("finished", Some(at), None, Some(end), None),
            CallState::Settled { at, end, refused } => {
                ("settled", None, Some(at), Some(end), refused)
            }
        };
        Self {
            seq: record.seq,
            id: record.call.id,
            tool_use: record.call.tool_use,
            tool: record.call.tool,
            thread: record.call.thread,
            state: state.to_owned(),
            input: record.call.input,
            epoch: record.started.and_then(|started| started.epoch),
            received_at: record.received_at,
            started_at: record.started.map(|started| started.at),
            finished_at,
            settled_at,
            is_error: end.as_ref().map(|end| end.is_error),
            exit_code: end.as_ref().and_then(|end| end.exit_code),
            summary: end.map(|end| end.summary),
            refused,
        }
    }
}
