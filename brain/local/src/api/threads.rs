//! Child threads of a session: only as much as a script creates.

use serde_json::Value;

use super::Request;
use crate::history::ListQuery;
use crate::reply::{ApiError, page};
use crate::state::State;

pub(crate) fn list(state: &State, request: &Request) -> Result<Value, ApiError> {
    let session = state.session(&request.target.session)?;
    let statuses = request.list("statuses");
    let bodies = session
        .threads
        .values()
        .filter(|thread| statuses.is_empty() || statuses.iter().any(|s| s == thread.status.name()))
        .map(|thread| session.thread_body(thread))
        .collect();
    page(bodies, request.limit()?, request.page())
}

pub(crate) fn get(state: &State, request: &Request) -> Result<Value, ApiError> {
    let session = state.session(&request.target.session)?;
    let id = &request.target.thread;
    let thread = session.thread_by_id(id).ok_or_else(|| ApiError::not_found("thread", id))?;
    Ok(session.thread_body(thread))
}

pub(crate) fn archive(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.thread;
    let (mut play, _) = state.play(&request.target.session)?;
    let name = play.session.threads.iter().find(|(_, thread)| thread.id == *id);
    let name = name.map(|(name, _)| name.clone());
    let name = name.ok_or_else(|| ApiError::not_found("thread", id))?;
    play.end_thread(&name);
    play.calls_changed();
    let time = play.now.stamps.now();
    if let Some(thread) = play.session.threads.get_mut(&name) {
        thread.archived_at.get_or_insert(time);
    }
    let thread = play.session.thread_by_id(id);
    let thread = thread.ok_or_else(|| ApiError::not_found("thread", id))?;
    Ok(play.session.thread_body(thread))
}

pub(crate) fn events(state: &State, request: &Request) -> Result<Value, ApiError> {
    let session = state.session(&request.target.session)?;
    let id = &request.target.thread;
    session.thread_by_id(id).ok_or_else(|| ApiError::not_found("thread", id))?;
    let query = ListQuery { thread: Some(id.clone()), ..request.event_query()? };
    session.history.list(&query)
}
