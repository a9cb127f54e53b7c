//! Routes of the development brain itself, all under `/dev/`: what a test in another process
//! looks at and sets.

use serde_json::{Value, json};

use super::Request;
use crate::fault::FaultRule;
use crate::reply::ApiError;
use crate::state::{Shared, State};

pub(crate) fn requests(shared: &Shared, request: &Request) -> Result<Value, ApiError> {
    let since = request.number("since")?.unwrap_or(0);
    let found: Vec<Value> =
        shared.recorder.since(since).iter().map(|recorded| recorded.body_json()).collect();
    Ok(json!({ "data": found }))
}

pub(crate) fn session(state: &State, request: &Request) -> Result<Value, ApiError> {
    let session = state.session(&request.target.session)?;
    let verdict = session.verdict();
    let passed = verdict.passed();
    Ok(json!({
        "session": session.body(),
        "verdict": verdict,
        "passed": passed,
        "results": session.results,
        "items": state.queue.items_of(&session.id).map(|item| item.body()).collect::<Vec<_>>(),
    }))
}

pub(crate) fn counters(state: &State) -> Value {
    json!(state.counters)
}

/// Body: `{"clear": bool, "rules": [rule…]}`, both optional.
pub(crate) fn faults(shared: &Shared, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    let rules: Vec<FaultRule> = match &body["rules"] {
        Value::Null => Vec::new(),
        rules => serde_json::from_value(rules.clone())
            .map_err(|error| ApiError::invalid(format!("rules: {error}")))?,
    };
    if body["clear"] == true {
        shared.faults.clear();
    }
    let count = rules.len();
    for rule in rules {
        shared.faults.add(rule).map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    Ok(json!({ "added": count }))
}

/// Body: any event; `{"event": …, "only_stream": true}` keeps it out of the history.
pub(crate) fn emit(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    let event = body["event"].clone();
    if !event["type"].is_string() {
        return Err(ApiError::invalid("event: expected an object with a type"));
    }
    let (mut play, _) = state.play(&request.target.session)?;
    if body["only_stream"] == true {
        play.session.history.only_stream(event);
    } else {
        play.emit_raw(event);
    }
    Ok(json!({}))
}
