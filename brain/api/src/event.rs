//! Sessions, their history, and the results we add to it. Whatever we do not know is kept as
//! "other" and never an error.

use std::collections::BTreeMap;

use base_types::{AgentId, EventId, SessionId, ThreadId, ToolUseId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the brain says of a session: its identity for policy and profile rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub id: SessionId,
    pub status: SessionStatus,
    pub agent: Option<AgentId>,
    pub agent_version: Option<i64>,
    /// Texts that anyone may choose: shown, never decided by.
    pub agent_name: Option<String>,
    pub title: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Attached things that this version serves the session without: `skill`, `memory_store`,
    /// `file`, `github_repository`, … as `type: name`.
    pub unserved: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    Idle,
    Running,
    Rescheduling,
    Terminated,
    /// Absent, or a word of a later version.
    Unknown,
}

/// One page of a history.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub events: Vec<Event>,
    pub next: Option<String>,
}

/// What the live stream delivers.
#[derive(Clone, Debug)]
pub enum StreamItem {
    Event(Event),
    /// Proof of life; resets the silence clock.
    Ping,
}

/// One event of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Interrupts may come without an id.
    pub id: Option<EventId>,
    /// The wire name, for the log.
    pub name: String,
    pub kind: EventKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    ToolUse(ToolUse),
    Confirmation(Confirmation),
    /// A result of ours, of a client or of the brain: this call is answered.
    Answered(ToolUseId),
    StatusIdle(StopReason),
    StatusRunning,
    StatusTerminated,
    SessionDeleted,
    SessionUpdated,
    ThreadTerminated(ThreadId),
    UserInterrupt {
        thread: Option<ThreadId>,
    },
    UserMessage,
    /// Anything else, of this version or a later one.
    Other,
}

/// The brain asks for a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolUse {
    /// The event's id; what the result must name.
    pub id: ToolUseId,
    pub kind: ToolUseKind,
    pub name: String,
    /// As it came: not necessarily an object.
    pub input: Value,
    pub permission: Permission,
    pub thread: Option<ThreadId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolUseKind {
    /// `agent.tool_use`
    Builtin,
    /// `agent.custom_tool_use`
    Custom,
    /// `agent.mcp_tool_use`: the brain's own business.
    Mcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    Allow,
    Deny,
    /// `ask`, and every word we do not know: hold until confirmed.
    Ask,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Confirmation {
    pub call: ToolUseId,
    /// Only the literal `allow` is an allowance.
    pub allowed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    RequiresAction {
        calls: Vec<ToolUseId>,
    },
    /// The turn is over: `end_turn` and every other reason, known or not.
    TurnOver {
        reason: String,
    },
}

/// What we answer to a tool use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolResult {
    pub call: ToolUseId,
    pub kind: ToolResultKind,
    pub is_error: bool,
    pub content: Vec<Block>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolResultKind {
    /// `user.tool_result`
    Builtin,
    /// `user.custom_tool_result`
    Custom,
}

/// A content block of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    Text {
        text: String,
    },
    /// Base64 data.
    Image {
        media_type: String,
        data: String,
    },
    Document {
        media_type: String,
        data: String,
    },
}

impl Block {
    pub fn text(text: impl Into<String>) -> Self {
        Block::Text { text: text.into() }
    }
}

impl ToolResult {
    pub fn text(call: ToolUseId, kind: ToolResultKind, text: impl Into<String>) -> Self {
        Self { call, kind, is_error: false, content: vec![Block::text(text)] }
    }

    pub fn error(call: ToolUseId, kind: ToolResultKind, text: impl Into<String>) -> Self {
        Self { call, kind, is_error: true, content: vec![Block::text(text)] }
    }
}
