//! The router of `/api/v1`.

mod exec;
mod input;
mod log;
mod sessions;
mod status;
mod terminals;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use base_types::{NodeId, Timestamp};
use sandbox_api::SandboxDriver;
use store_api::Store;
use tokio_util::sync::CancellationToken;

use crate::REQUEST_BYTES_MAX;
use crate::api::FaultCode;
use crate::control::SessionControl;
use crate::fault::Refusal;

/// What handlers share.
pub(crate) struct Shared {
    pub version: String,
    pub node: NodeId,
    pub started_at: Timestamp,
    pub store: Arc<dyn Store>,
    pub control: Arc<dyn SessionControl>,
    pub driver: Arc<dyn SandboxDriver>,
    pub viewers: Arc<terminals::Viewers>,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

pub(crate) type State = axum::extract::State<Arc<Shared>>;

/// The routes of [`crate::api::ROUTES`], and an answer in the same words for everything else.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/sessions", get(sessions::list))
        .route("/api/v1/sessions/{id}", get(sessions::show))
        .route("/api/v1/sessions/{id}/stop", post(sessions::stop))
        .route("/api/v1/sessions/{id}/log", get(log::log))
        .route("/api/v1/sessions/{id}/calls", get(sessions::calls))
        .route("/api/v1/sessions/{id}/exec", post(exec::exec))
        .route("/api/v1/sessions/{id}/terminals", get(terminals::list))
        .route(
            "/api/v1/sessions/{id}/terminals/{name}",
            post(terminals::attach).delete(terminals::close),
        )
        .fallback(|uri: http::Uri| async move {
            Refusal::new(FaultCode::NoSuchRoute, format!("no route {}", uri.path()))
        })
        .method_not_allowed_fallback(|method: http::Method, uri: http::Uri| async move {
            let message = format!("{} does not take {method}", uri.path());
            Refusal::new(FaultCode::WrongMethod, message)
        })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(shared)
}
