//! The session driver as the API asks for it.

use async_trait::async_trait;
use base_types::{Chain, SessionId};
use control_server::api::EnvironmentView;
use control_server::{ControlError, GuestHold, SessionControl};
use control_session::{EnvironmentStatus, GuestError, GuestLease, HandsHandle, StopSessionError};
use store_api::{LogEvent, StoreError};

pub struct Control(pub HandsHandle);

#[async_trait]
impl SessionControl for Control {
    fn environments(&self) -> Vec<EnvironmentView> {
        self.0.environments().into_iter().map(environment_view).collect()
    }

    fn serving(&self) -> Vec<SessionId> {
        self.0.serving()
    }

    async fn guest(&self, session: &SessionId) -> Result<GuestHold, ControlError> {
        let lease = self.0.guest(session).await.map_err(|error| guest_error(session, error))?;
        let GuestLease { client, epoch, .. } = &lease;
        Ok(GuestHold { client: client.clone(), epoch: *epoch, lease: Box::new(lease) })
    }

    async fn stop(&self, session: &SessionId, forget: bool) -> Result<(), ControlError> {
        self.0.stop_session(session, forget).await.map_err(|error| stop_error(session, error))
    }

    async fn note(&self, session: &SessionId, event: LogEvent) -> Result<(), ControlError> {
        let note = self.0.note(session, event).await;
        note.map_err(|error| match error {
            StoreError::NoSuchSession(session) => ControlError::NoSuchSession(session),
            other => {
                ControlError::Note { session: session.clone(), why: Chain(&other).to_string() }
            }
        })
    }
}

fn environment_view(status: EnvironmentStatus) -> EnvironmentView {
    EnvironmentView {
        environment: status.environment,
        configured: status.configured,
        serving: status.serving,
        concurrency_max: status.concurrency_max,
        last_poll_at: status.last_poll_at,
        trouble: status.trouble,
        trouble_since: status.trouble_since,
        refused: status.refused,
        left_alone: status.left_alone,
    }
}

fn guest_error(session: &SessionId, error: GuestError) -> ControlError {
    match error {
        GuestError::NoSuchSession(session) => ControlError::NoSuchSession(session),
        GuestError::Over { session, why } => ControlError::Ended { session, why },
        GuestError::NotPrepared(session) => ControlError::NoSandbox(session),
        GuestError::Elsewhere { session, node } => ControlError::Elsewhere { session, node },
        other => {
            let why = Chain(&other).to_string();
            ControlError::Unavailable { session: session.clone(), why }
        }
    }
}

fn stop_error(session: &SessionId, error: StopSessionError) -> ControlError {
    match error {
        StopSessionError::NoSuchSession(session) => ControlError::NoSuchSession(session),
        StopSessionError::Elsewhere { session, node } => ControlError::Elsewhere { session, node },
        other => ControlError::Stop { session: session.clone(), why: Chain(&other).to_string() },
    }
}
