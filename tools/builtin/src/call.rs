//! One call at the guest agent: started once, waited for, and what to say when that fails.

use brain_api::Block;
use guest_protocol::client::{ClientError, RunError};
use guest_protocol::wire::ErrorCode;
use guest_protocol::{CallSpec, Outcome};
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
    context.guest.run(context.call, spec).await.map_err(|error| match error {
        RunError::Start(error) => failed_to_start(tool, error),
        RunError::Wait(error) => failed_later(tool, error),
    })
}

/// The end of every tool: an answer of whatever origin, with what the model must know before it.
pub fn conclude(
    ended: Result<ToolAnswer, NoOutcome>,
    notice: Option<&str>,
) -> Result<ToolAnswer, ToolError> {
    match ended {
        Ok(answer) => Ok(with_notice(answer, notice)),
        Err(NoOutcome::Answer(answer)) => Ok(with_notice(*answer, notice)),
        Err(NoOutcome::Lost(error)) => Err(error),
    }
}

fn with_notice(mut answer: ToolAnswer, notice: Option<&str>) -> ToolAnswer {
    let Some(notice) = notice else { return answer };
    match answer.content.first_mut() {
        Some(Block::Text { text }) => *text = format!("{notice}\n{text}"),
        _ => answer.content.insert(0, Block::text(notice)),
    }
    answer
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
        | ClientError::AgentTooOld { .. }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_stands_first_before_text_and_before_a_picture() {
        let answer = with_notice(ToolAnswer::error("no"), Some("[lost]"));
        assert_eq!(answer.content, [Block::text("[lost]\nno")]);
        let image = Block::Image { media_type: "image/png".into(), data: String::new() };
        let picture = ToolAnswer {
            content: vec![image.clone()],
            is_error: false,
            summary: String::new(),
            exit_code: None,
        };
        assert_eq!(with_notice(picture, Some("[lost]")).content, [Block::text("[lost]"), image]);
    }
}
