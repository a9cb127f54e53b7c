//! One call at the guest agent: started once, waited for, and what to say when that fails.

use guest_protocol::client::ClientError;
use guest_protocol::wire::ErrorCode;
use guest_protocol::{CallSpec, CallState, Outcome};
use tools_api::{ToolAnswer, ToolContext, ToolError};

use crate::text::line;

/// Of the agent's words in an answer.
pub const REASON_CHARS_MAX: usize = 500;

/// Why there is no outcome.
pub enum NoOutcome {
    /// The caller connects again and joins the call.
    Lost(ToolError),
    /// The model is told, and the session goes on.
    Answer(Box<ToolAnswer>),
}

/// Starts the call, or joins the one that runs under this id, and waits for its end.
pub async fn run(
    tool: &'static str,
    context: &ToolContext<'_>,
    spec: &CallSpec,
) -> Result<Outcome, NoOutcome> {
    match context.guest.start(context.call, spec).await {
        Ok(CallState::Finished(outcome)) => Ok(*outcome),
        Ok(CallState::Running { .. }) => {
            context.guest.wait(context.call).await.map_err(|error| failed_later(tool, error))
        }
        Ok(CallState::Unknown) => Err(unknown(tool, "the sandbox did not take the call")),
        Err(error) => Err(failed_to_start(tool, error)),
    }
}

fn failed_to_start(tool: &'static str, error: ClientError) -> NoOutcome {
    match error.refusal() {
        // It ran, and its outcome was taken: only a journal that lost it asks again.
        Some(ErrorCode::AlreadyAcked) => unknown(tool, "the sandbox has forgotten the outcome"),
        Some(_) => {
            let why = line(&error.to_string(), REASON_CHARS_MAX);
            let text = format!("{tool}: the call was not started: {why}");
            NoOutcome::Answer(Box::new(ToolAnswer::error(text)))
        }
        None => failed_later(tool, error),
    }
}

/// The call may be running.
pub fn failed_later(tool: &'static str, error: ClientError) -> NoOutcome {
    match error {
        ClientError::Closed(_) | ClientError::TooManyInFlight => {
            NoOutcome::Lost(ToolError::ConnectionLost(error))
        }
        // An agent that answers so would do it again: to connect once more helps nobody.
        ClientError::Request(_)
        | ClientError::WrongAnswer { .. }
        | ClientError::Malformed { .. }
        | ClientError::Refused { .. } => unknown(tool, &line(&error.to_string(), REASON_CHARS_MAX)),
    }
}

fn unknown(tool: &'static str, why: &str) -> NoOutcome {
    let mut answer = ToolAnswer::error(format!(
        "{tool}: outcome unknown: {why}. The call may have run, wholly or in part; check the state \
         of the workspace before you repeat it."
    ));
    answer.summary = "outcome unknown".to_owned();
    NoOutcome::Answer(Box::new(answer))
}
