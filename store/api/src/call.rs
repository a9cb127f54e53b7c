//! One tool call's life in the journal: received → started → finished → settled.

use base_types::{CallId, Epoch, SessionId, ThreadId, Timestamp, ToolUseId};
use serde::{Deserialize, Serialize};

/// A tool call as it was received, before anything ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewCall {
    pub id: CallId,
    pub tool_use: ToolUseId,
    pub tool: String,
    /// A custom tool's call is answered with another event than a built-in one's.
    pub custom: bool,
    pub thread: Option<ThreadId>,
    pub input: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CallRecord {
    /// Position among the session's calls; the order they were received in.
    pub seq: u64,
    pub session: SessionId,
    pub call: NewCall,
    pub received_at: Timestamp,
    pub started: Option<StartedAt>,
    pub state: CallState,
}

/// When and in which incarnation of the sandbox a call began to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartedAt {
    pub at: Timestamp,
    pub epoch: Option<Epoch>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CallState {
    Received,
    /// May be running, may have run, may never have reached the agent.
    Started,
    /// The result is decided and not yet with the brain.
    Finished {
        at: Timestamp,
        end: CallEnd,
    },
    /// The brain has the result, or will never take it (`refused` is its status).
    Settled {
        at: Timestamp,
        end: CallEnd,
        refused: Option<u16>,
    },
}

/// How a call ended, and the exact bytes that tell the brain.
#[derive(Clone, Debug, PartialEq)]
pub struct CallEnd {
    /// The request body to post, byte for byte.
    pub body: Vec<u8>,
    pub is_error: bool,
    /// One line for people: "exit code 0", "timed out", "outcome unknown".
    pub summary: String,
    pub exit_code: Option<i32>,
}
