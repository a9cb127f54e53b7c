//! The work API.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Request;
use crate::queue::{Beat, NewItem, Poll};
use crate::reply::{ApiError, page};
use crate::state::{Shared, State};

/// The longest a poll may block.
const MAX_BLOCK_MS: u64 = 999;

pub(crate) async fn poll(shared: &Shared, request: &Request) -> Result<Value, ApiError> {
    let block = request.number("block_ms")?;
    if block.is_some_and(|ms| !(1..=MAX_BLOCK_MS).contains(&ms)) {
        return Err(ApiError::invalid("block_ms: expected a number from 1 to 999"));
    }
    let deadline = Instant::now() + Duration::from_millis(block.unwrap_or(0));
    let poll = Poll {
        environment: &request.target.environment,
        worker: request.worker.as_deref(),
        reclaim: request.number("reclaim_older_than_ms")?.map(Duration::from_millis),
    };
    let mut changes = shared.changes();
    let mut looked_at = None;
    loop {
        changes.mark_unchanged();
        let offered = shared.change_silently(|state| {
            state.environment(poll.environment)?;
            let (queue, mut now) = state.queue();
            // The first look is not spared: it also takes what can be reclaimed.
            if looked_at.replace(queue.arrivals()) == Some(queue.arrivals()) {
                return Ok(None);
            }
            Ok::<_, ApiError>(queue.poll(&poll, &mut now))
        })?;
        if let Some(item) = offered {
            return Ok(item);
        }
        tokio::select! {
            // An error would mean that `shared` is gone, and it is borrowed here.
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline.into()) => return Ok(Value::Null),
            () = shared.stop.cancelled() => return Ok(Value::Null),
        }
    }
}

pub(crate) fn ack(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let (queue, mut now) = state.queue();
    queue.ack(&request.target.environment, &request.target.work, &mut now)
}

pub(crate) fn heartbeat(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let beat = Beat {
        expected: request.query("expected_last_heartbeat"),
        desired_ttl: request.number("desired_ttl_seconds")?,
    };
    let (queue, mut now) = state.queue();
    queue.heartbeat((&request.target.environment, &request.target.work), &beat, &mut now)
}

pub(crate) fn stop(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let force = match &request.json()?["force"] {
        Value::Null => false,
        value => {
            value.as_bool().ok_or_else(|| ApiError::invalid("force: expected true or false"))?
        }
    };
    let (queue, mut now) = state.queue();
    queue.stop((&request.target.environment, &request.target.work), force, &mut now)
}

pub(crate) fn list(state: &State, request: &Request) -> Result<Value, ApiError> {
    state.environment(&request.target.environment)?;
    page(state.queue.list(&request.target.environment), request.limit()?, request.page())
}

pub(crate) fn get(state: &State, request: &Request) -> Result<Value, ApiError> {
    Ok(state.queue.get(&request.target.environment, &request.target.work)?.body())
}

pub(crate) fn update(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    state.queue.update(&request.target.environment, &request.target.work, &body)
}

pub(crate) fn stats(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    state.environment(&request.target.environment)?;
    let (queue, now) = state.queue();
    Ok(queue.stats(&request.target.environment, &now))
}

/// An item that no session asked for, such as a health check.
pub(crate) fn queue_item(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    let data_type = body["data_type"].as_str().unwrap_or("healthcheck");
    let data_id = body["data_id"].as_str().unwrap_or("none");
    state.environment(&request.target.environment)?;
    let new = NewItem { environment: &request.target.environment, data_type, data_id };
    let (queue, mut now) = state.queue();
    Ok(json!({ "item": queue.add(new, &mut now)?.body() }))
}
