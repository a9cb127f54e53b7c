//! Sessions: list, show, calls, stop.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State as Extract};
use base_types::SessionId;
use sandbox_api::Vitality;
use store_api::{PAGE_MAX, SandboxState, SessionFilter, SessionRecord};

use super::input::{Body, Query};
use super::{Shared, State};
use crate::api::{
    CallPage, CallQuery, CallView, CallsSummary, EntrypointView, SandboxView, SessionList,
    SessionQuery, SessionView, StopAnswer, StopRequest,
};
use crate::fault::Refusal;

const LIST_DEFAULT: u32 = 100;
/// Calls are read whole, with their result bodies: pages stay small.
const CALLS_PAGE_DEFAULT: u32 = 100;
/// A summary counts this many calls and then says that there are more.
const CALLS_COUNTED_MAX: u64 = 5_000;
/// A guest agent answers within milliseconds, or its guest holds it up.
const ENTRYPOINT_WAIT: Duration = Duration::from_secs(2);

pub(super) async fn list(
    Extract(shared): State,
    Query(query): Query<SessionQuery>,
) -> Result<Json<SessionList>, Refusal> {
    let filter = SessionFilter {
        open_only: query.open,
        owner: None,
        limit: query.limit.unwrap_or(LIST_DEFAULT).clamp(1, PAGE_MAX),
    };
    let records = shared.store.sessions(&filter).await?;
    let serving = shared.control.serving();
    let view = |record: SessionRecord| {
        let served_here = serving.contains(&record.id);
        SessionView::of(record, served_here)
    };
    let mut ill = shared.control.environments();
    ill.retain(|environment| environment.trouble.is_some());
    Ok(Json(SessionList { sessions: records.into_iter().map(view).collect(), ill }))
}

pub(super) async fn show(
    Extract(shared): State,
    Path(session): Path<SessionId>,
) -> Result<Json<SessionView>, Refusal> {
    let record = known(&shared, &session).await?;
    let served_here = shared.control.serving().contains(&session);
    let mut view = SessionView::of(record, served_here);
    if let Some(sandbox) = view.sandbox.as_mut().filter(|s| s.state == SandboxState::Running) {
        // A driver that does not answer costs the usage, not the answer.
        let status = shared.driver.status(&sandbox.id).await.ok().flatten();
        sandbox.usage = status
            .filter(|status| matches!(status.vitality, Vitality::Running { .. }))
            .map(|status| status.usage);
        let asked = tokio::time::timeout(ENTRYPOINT_WAIT, entrypoint(&shared, sandbox));
        sandbox.entrypoint = asked.await.ok().flatten();
    }
    view.calls = Some(count_calls(&shared, &session).await?);
    Ok(Json(view))
}

/// Of the sandbox itself; one that does not answer costs this, not the answer.
async fn entrypoint(shared: &Shared, sandbox: &SandboxView) -> Option<EntrypointView> {
    let client = shared.driver.connect(&sandbox.id, sandbox.epoch).await.ok()?;
    client.info().await.ok()?.entrypoint.map(EntrypointView::of)
}

async fn count_calls(shared: &Shared, session: &SessionId) -> Result<CallsSummary, Refusal> {
    let mut summary = CallsSummary::default();
    let mut after = None;
    loop {
        let page = shared.store.calls(session, after, CALLS_PAGE_DEFAULT).await?;
        let Some(last) = page.last() else { return Ok(summary) };
        after = Some(last.seq);
        for call in page.into_iter().map(CallView::of) {
            summary.total += 1;
            summary.open += u64::from(call.state != "settled");
            summary.failed += u64::from(call.is_error == Some(true));
        }
        if summary.total >= CALLS_COUNTED_MAX {
            summary.truncated = true;
            return Ok(summary);
        }
    }
}

pub(super) async fn calls(
    Extract(shared): State,
    Path(session): Path<SessionId>,
    Query(query): Query<CallQuery>,
) -> Result<Json<CallPage>, Refusal> {
    known(&shared, &session).await?;
    let limit = query.limit.unwrap_or(CALLS_PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let records = shared.store.calls(&session, query.after, limit).await?;
    let full = records.len() as u64 == u64::from(limit);
    let next_after = records.last().filter(|_| full).map(|record| record.seq);
    Ok(Json(CallPage { calls: records.into_iter().map(CallView::of).collect(), next_after }))
}

pub(super) async fn stop(
    Extract(shared): State,
    Path(session): Path<SessionId>,
    Body(request): Body<StopRequest>,
) -> Result<Json<StopAnswer>, Refusal> {
    known(&shared, &session).await?;
    // Stopping goes on when the client hangs up: a half-stopped session helps nobody.
    let control = shared.control.clone();
    let stopped = session.clone();
    let stop = async move { control.stop(&stopped, request.forget).await };
    match base_tasks::spawn(base_tasks::TaskKind::ApiConnection, stop).await {
        Ok(done) => done?,
        Err(panic) => {
            tracing::error!(error = %panic, "stopping a session failed");
            return Err(Refusal::new(crate::api::FaultCode::Internal, "stopping failed"));
        }
    }
    Ok(Json(StopAnswer { session, stopped: true, forgotten: request.forget }))
}

pub(super) async fn known(shared: &Shared, session: &SessionId) -> Result<SessionRecord, Refusal> {
    let record = shared.store.session(session).await?;
    record.ok_or_else(|| Refusal::no_such_session(session))
}
