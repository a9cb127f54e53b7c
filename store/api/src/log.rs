//! The session's log: what an operator reads with `sinew session log`. Never a secret: it is made
//! from changes, and no change carries one.

use base_types::{CallId, Epoch, ProfileName, SandboxId, TenantId, Timestamp, ToolUseId, WorkId};
use serde::{Deserialize, Serialize};

use crate::{Phase, SandboxState, WorkEnd};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Position in the session's log; grows, may have gaps.
    pub seq: u64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: LogEvent,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogEvent {
    WorkClaimed {
        work: WorkId,
    },
    WorkEnded {
        work: WorkId,
        why: WorkEnd,
    },
    Identified {
        profile: ProfileName,
        tenant: TenantId,
        unserved: Vec<String>,
    },
    Phase(Phase),
    Sandbox {
        sandbox: SandboxId,
        epoch: Epoch,
        state: SandboxState,
    },
    CallReceived {
        call: CallId,
        tool_use: ToolUseId,
        tool: String,
        input: String,
    },
    CallStarted {
        call: CallId,
        epoch: Option<Epoch>,
    },
    CallFinished {
        call: CallId,
        is_error: bool,
        summary: String,
        exit_code: Option<i32>,
    },
    CallSettled {
        call: CallId,
        refused: Option<u16>,
    },
    /// A call waits for somebody's confirmation.
    CallHeld {
        tool_use: ToolUseId,
        tool: String,
    },
    /// A call that will not run here: denied, of a terminated thread, or for somebody else.
    CallNotRun {
        tool_use: ToolUseId,
        tool: String,
        why: String,
    },
    /// The user interrupted the turn.
    Interrupted {
        cancelled: Vec<ToolUseId>,
    },
    /// The brain connection had trouble.
    BrainTrouble {
        what: String,
    },
    /// An operator ran something in the sandbox.
    OperatorExec {
        argv: Vec<String>,
        exit_code: Option<i32>,
    },
    /// An operator used a terminal in the sandbox.
    OperatorTerminal {
        name: String,
        /// Of the operator's process, as the kernel told it.
        uid: u32,
        /// The terminal is root's, of the sandbox.
        root: bool,
        action: TerminalAction,
    },
    /// Anything else worth a line.
    Warning {
        text: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "snake_case")]
pub enum TerminalAction {
    Opened,
    /// One that was there already.
    Attached,
    /// Its shell goes on.
    Detached,
    /// Its shell ended while the operator watched.
    Ended {
        exit_code: i32,
    },
    /// The operator ended it.
    Closed,
}
