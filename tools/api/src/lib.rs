//! What a tool is: it gets the input the model wrote, and answers with content for the model.
//!
//! **Invariant:** an input is whatever the model sent, not necessarily an object. A tool answers
//! a wrong one with an error result that says what it takes; it never fails the session.

#![forbid(unsafe_code)]

use std::time::Duration;

use async_trait::async_trait;
use base_types::{CallId, Epoch, SessionId};
use brain_api::Block;
use sandbox_api::guest::client::GuestClient;
use serde_json::Value;

/// One built-in tool.
#[async_trait]
pub trait Tool: Send + Sync + 'static {
    /// The name the model calls it by.
    fn name(&self) -> &'static str;

    /// What happens to a call whose outcome a crash has hidden.
    fn idempotency(&self) -> Idempotency;

    /// Whether a call with this input needs a sandbox. A call that is refused for its input does
    /// not start one.
    fn check(&self, input: &Value) -> Result<(), ToolAnswer>;

    /// Runs the call, or joins it if the agent has it already: the call id is the agent's
    /// idempotency key, so a restart of ours calls this again with the same id.
    ///
    /// # Cancel safety
    /// Cancel-safe: whoever wants the call to end kills it at the agent and drops this.
    async fn run(&self, context: &ToolContext<'_>, input: &Value) -> Result<ToolAnswer, ToolError>;
}

/// Where a call runs and what bounds it.
pub struct ToolContext<'a> {
    pub session: &'a SessionId,
    pub call: &'a CallId,
    pub epoch: Epoch,
    pub guest: &'a GuestClient,
    pub limits: ToolLimits,
    /// A sentence that must reach the model before the output: the sandbox's shell was lost, the
    /// files come from somewhere else.
    pub notice: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolLimits {
    /// `bash` without a time-out of its own.
    pub bash: Duration,
    /// What `bash` may ask for at most.
    pub bash_max: Duration,
    /// Every other tool.
    pub other: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idempotency {
    /// Running it twice is the same as once.
    Repeatable,
    /// The executor refuses a second run of the same call id.
    Keyed,
    /// After a crash the answer is "outcome unknown".
    Once,
}

/// What the model reads.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolAnswer {
    pub content: Vec<Block>,
    pub is_error: bool,
    /// One line for the operator's log: "exit code 0", "wrote 12 bytes".
    pub summary: String,
    pub exit_code: Option<i32>,
}

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The connection to the agent broke while the call ran. The agent may live and the call with
    /// it: the caller connects again and joins it.
    #[error("the connection to the sandbox broke during the call")]
    ConnectionLost(#[source] sandbox_api::guest::client::ClientError),
    /// The agent is there and has no outcome for a call that may have run.
    #[error("the sandbox does not know what became of the call")]
    OutcomeUnknown(#[source] sandbox_api::guest::client::ClientError),
}

// === impl ToolAnswer ===

impl ToolAnswer {
    pub fn error(text: impl Into<String>) -> Self {
        let text = text.into();
        let summary = text.lines().next().unwrap_or_default().chars().take(200).collect();
        Self { content: vec![Block::text(text)], is_error: true, summary, exit_code: None }
    }
}
