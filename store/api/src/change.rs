//! Everything that can happen to a session, as the journal records it.

use base_types::{CallId, Epoch, WorkId};

use crate::{CallEnd, Identity, LogEvent, NewCall, Phase, SandboxRecord, WorkEnd};

/// One step of a session's life. A store refuses a step that does not follow from the state
/// before it ([`crate::StoreError::Refused`]): a call is started once, finished once, settled once.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The brain took the acknowledgement, or a restart goes on with the item. Allowed until the
    /// item has ended; what is known of the lease stays.
    WorkAcked { work: WorkId },
    /// A heartbeat is about to leave. Allowed while the item is active; may be repeated when no
    /// answer came.
    BeatIntended { work: WorkId },
    /// Its answer came. Refused without the intent before it: a restart tells from the intent
    /// whether a beat may have left.
    Beat { work: WorkId, last: String, ttl_ms: Option<u64> },
    /// The item is over, and its token is forgotten. Allowed once, from claiming and from active.
    WorkEnded { work: WorkId, why: WorkEnd },

    /// The session was fetched from the brain. Refused if it names another tenant or profile than
    /// the one recorded.
    Identified(Box<Identity>),
    /// Which phase may follow which is the session driver's rule, not the store's.
    Phase(Phase),
    /// The sandbox as it now is; the whole record. Refused if the same sandbox would go back to
    /// an earlier epoch.
    Sandbox(SandboxRecord),

    /// A tool call came in. Refused if the session has a call for this tool use already.
    CallReceived(Box<NewCall>),
    /// It is about to be sent to where it runs. From here on it may have run.
    CallStarted { call: CallId, epoch: Option<Epoch> },
    /// Its result is decided. Allowed from received (answered without running) and from started.
    CallFinished { call: CallId, end: CallEnd },
    /// The brain found the result too large (413): from here on this shorter body is what is
    /// posted. Allowed once, from finished.
    CallShortened { call: CallId, body: Vec<u8> },
    /// The brain has the result (`refused: None`), or answered that it will never take it.
    CallSettled { call: CallId, refused: Option<u16> },

    /// A line of the session's log that changes nothing else.
    Note(LogEvent),
}

impl Change {
    pub fn name(&self) -> &'static str {
        match self {
            Change::WorkAcked { .. } => "work acked",
            Change::BeatIntended { .. } => "beat intended",
            Change::Beat { .. } => "beat",
            Change::WorkEnded { .. } => "work ended",
            Change::Identified(_) => "identified",
            Change::Phase(_) => "phase",
            Change::Sandbox(_) => "sandbox",
            Change::CallReceived(_) => "call received",
            Change::CallStarted { .. } => "call started",
            Change::CallFinished { .. } => "call finished",
            Change::CallShortened { .. } => "call shortened",
            Change::CallSettled { .. } => "call settled",
            Change::Note(_) => "note",
        }
    }

    /// A heartbeat: it changes what is known of the lease, and is not activity of the session.
    pub fn is_beat(&self) -> bool {
        matches!(self, Change::BeatIntended { .. } | Change::Beat { .. })
    }

    /// The line this change adds to the session's log. Heartbeats add none: they would drown the
    /// rest.
    pub fn log_event(&self) -> Option<LogEvent> {
        Some(match self {
            Change::BeatIntended { .. } | Change::Beat { .. } => return None,
            Change::WorkAcked { work } => LogEvent::WorkClaimed { work: work.clone() },
            Change::WorkEnded { work, why } => {
                LogEvent::WorkEnded { work: work.clone(), why: *why }
            }
            Change::Identified(identity) => LogEvent::Identified {
                profile: identity.profile.clone(),
                tenant: identity.tenant.clone(),
                unserved: identity.unserved.clone(),
            },
            Change::Phase(phase) => LogEvent::Phase(phase.clone()),
            Change::Sandbox(sandbox) => LogEvent::Sandbox {
                sandbox: sandbox.id.clone(),
                epoch: sandbox.epoch,
                state: sandbox.state,
            },
            Change::CallReceived(call) => LogEvent::CallReceived {
                call: call.id.clone(),
                tool_use: call.tool_use.clone(),
                tool: call.tool.clone(),
                input: bounded_input(&call.input),
            },
            Change::CallStarted { call, epoch } => {
                LogEvent::CallStarted { call: call.clone(), epoch: *epoch }
            }
            Change::CallFinished { call, end } => LogEvent::CallFinished {
                call: call.clone(),
                is_error: end.is_error,
                summary: end.summary.clone(),
                exit_code: end.exit_code,
            },
            Change::CallShortened { call, .. } => LogEvent::Warning {
                text: format!(
                    "the brain found the result of {call} too large; a shorter one is posted"
                ),
            },
            Change::CallSettled { call, refused } => {
                LogEvent::CallSettled { call: call.clone(), refused: *refused }
            }
            Change::Note(event) => event.clone(),
        })
    }
}

/// The log shows what was asked, not whole files: longer inputs are in the call's own record.
pub const LOG_INPUT_CHARS_MAX: usize = 500;

fn bounded_input(input: &serde_json::Value) -> String {
    let text = input.to_string();
    match text.char_indices().nth(LOG_INPUT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
