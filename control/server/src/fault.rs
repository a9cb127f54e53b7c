//! Errors become faults here, and nowhere else.

use axum::Json;
use axum::response::{IntoResponse, Response};
use base_types::{Chain, SessionId};
use http::StatusCode;
use store_api::StoreError;

use crate::api::{Fault, FaultBody, FaultCode};
use crate::control::ControlError;

/// What a handler refuses with.
pub(crate) struct Refusal(pub Fault);

impl Refusal {
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        Self(Fault::new(code, message))
    }

    pub fn no_such_session(session: &SessionId) -> Self {
        Self::new(FaultCode::NoSuchSession, format!("no session {session}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(FaultBody { error: self.0 })).into_response()
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NoSuchSession(session) => Refusal::no_such_session(session),
            _ => {
                // The text may name files; it is for the operator's log, not for the answer.
                tracing::error!(error = %Chain(&error), "the store failed an API request");
                Refusal::new(FaultCode::StoreFailed, "the journal could not be read or written")
            }
        }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let code = match &error {
            ControlError::NoSuchSession(_) => FaultCode::NoSuchSession,
            ControlError::Ended { .. } => FaultCode::SessionEnded,
            ControlError::NoSandbox(_) => FaultCode::NoSandbox,
            ControlError::Elsewhere { .. } => FaultCode::Elsewhere,
            ControlError::Unavailable { .. } => FaultCode::SandboxUnavailable,
            ControlError::Stop { .. } => FaultCode::StopFailed,
            ControlError::Note { .. } => FaultCode::StoreFailed,
        };
        Refusal::new(code, error.to_string())
    }
}
