//! What a refused or failed request to the brain means for the caller.

use std::time::Duration;

/// A request to the brain that gave no answer we can use. `Display` says what was asked and
/// what came back; the source, where there is one, says why.
#[derive(Debug, thiserror::Error)]
#[error("{request}: {detail}")]
pub struct BrainError {
    pub kind: BrainErrorKind,
    /// What was asked, as a verb phrase: "poll for work", "send a result".
    pub request: &'static str,
    /// What came back, for the operator: the status and the brain's message, bounded.
    pub detail: String,
    /// The `request-id` of the answer, to quote to whoever runs the brain.
    pub request_id: Option<String>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrainErrorKind {
    /// The brain refuses for good: a 4xx other than those with a kind of their own.
    Fatal { status: u16 },
    /// 401 or 403.
    Unauthorized { status: u16 },
    /// 404.
    NotFound,
    /// 413.
    TooLarge,
    /// 412 on a heartbeat: the lease is somebody else's, or nobody's.
    LeaseLost,
    /// Try again later: 408, 409, 429, 5xx, a connection that could not be made, garbage.
    Transient { retry_after: Option<Duration> },
    /// A request that changes something left, and its answer did not come: it may have happened.
    Ambiguous,
}

impl BrainError {
    /// Whether the same request may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, BrainErrorKind::Transient { .. } | BrainErrorKind::Ambiguous)
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            BrainErrorKind::Transient { retry_after } => retry_after,
            _ => None,
        }
    }
}
