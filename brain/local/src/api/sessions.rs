//! Sessions, their resources and their events.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::{Request, agents, in_order, list_of, metadata_of, optional_text};
use crate::history::{History, TimeBound};
use crate::metadata::patch_metadata;
use crate::reply::{ApiError, new_id, page};
use crate::scenario::MODEL_PREFIX;
use crate::session::{Phase, Player, Session, Status, Verdict};
use crate::state::{MAX_SESSIONS, State};

const MAX_TITLE: usize = 512;
const MAX_RESOURCES: usize = 100;
const MAX_INITIAL_EVENTS: usize = 50;
const MAX_VAULTS: usize = 50;

pub(crate) fn create(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    if state.sessions.len() >= MAX_SESSIONS {
        return Err(ApiError::full(format!("more than {MAX_SESSIONS} sessions")));
    }
    let environment = body["environment_id"]
        .as_str()
        .ok_or_else(|| ApiError::invalid("environment_id: required"))?
        .to_owned();
    if !state.environment(&environment)?.body["archived_at"].is_null() {
        return Err(
            ApiError::invalid("the environment is archived").with_code("environment_archived")
        );
    }
    let agent = snapshot(state, &body["agent"])?;
    let model = agent["model"]["id"].as_str().unwrap_or_default();
    let scenario = model.strip_prefix(MODEL_PREFIX).and_then(|name| state.scenarios.get(name));
    let initial = list_of(&body, "initial_events", MAX_INITIAL_EVENTS)?;
    for event in &initial {
        if !matches!(event["type"].as_str(), Some("user.message" | "user.define_outcome")) {
            return Err(ApiError::invalid(
                "initial_events: expected user.message and user.define_outcome only",
            ));
        }
    }
    let time = state.stamps.now();
    let session = Session {
        id: new_id("sesn"),
        environment,
        order: state.stamps.sequence(),
        agent,
        scenario,
        status: Status::Idle,
        title: optional_text(&body, "title", MAX_TITLE)?,
        metadata: metadata_of(&body)?,
        resources: resources(&body, &time)?,
        vault_ids: Value::from(list_of(&body, "vault_ids", MAX_VAULTS)?),
        budget: body["budget"].clone(),
        created_at: time.clone(),
        updated_at: time,
        archived_at: None,
        history: History::default(),
        calls: BTreeMap::new(),
        threads: BTreeMap::new(),
        player: Player::default(),
        queued: VecDeque::new(),
        results: Vec::new(),
        verdict: Verdict::default(),
    };
    let id = session.id.clone();
    state.sessions.insert(id.clone(), session);
    let (mut play, counters) = state.play(&id)?;
    play.ensure_work();
    if !initial.is_empty() {
        let sent = play.send(&json!({ "events": initial }), request.caller.kind(), counters);
        if let Err(error) = sent {
            state.queue.end_where(|item| item.session == id, &mut state.stamps);
            state.sessions.remove(&id);
            return Err(error);
        }
    }
    Ok(state.session(&id)?.body())
}

/// The agent as this session sees it from now on.
fn snapshot(state: &State, reference: &Value) -> Result<Value, ApiError> {
    let id = match reference {
        Value::String(id) => id.as_str(),
        Value::Object(_) => reference["id"].as_str().unwrap_or_default(),
        _ => return Err(ApiError::invalid("agent: expected an id or an object with an id")),
    };
    let agent = state.agent(id)?;
    let mut body = match reference["version"].as_u64() {
        Some(number) => agents::version(agent, number)?,
        None => agent.current().clone(),
    };
    if !agent.current()["archived_at"].is_null() {
        return Err(ApiError::invalid("the agent is archived"));
    }
    if reference["type"] == "agent_with_overrides" {
        agents::apply_fields(state, &mut body, reference)?;
    }
    if let Some(fields) = body.as_object_mut() {
        for field in ["created_at", "updated_at", "archived_at", "metadata"] {
            fields.remove(field);
        }
    }
    Ok(body)
}

fn resources(body: &Value, time: &str) -> Result<Vec<Value>, ApiError> {
    list_of(body, "resources", MAX_RESOURCES)?
        .into_iter()
        .map(|resource| made_resource(resource, time))
        .collect()
}

/// A resource as an answer carries it. The development brain mounts nothing.
fn made_resource(mut resource: Value, time: &str) -> Result<Value, ApiError> {
    match resource["type"].as_str() {
        Some("memory_store") => {}
        Some("file" | "github_repository") => {
            resource["id"] = Value::from(new_id("sesrsc"));
            resource["created_at"] = Value::from(time);
            resource["updated_at"] = Value::from(time);
            if let Some(fields) = resource.as_object_mut() {
                fields.remove("authorization_token");
            }
        }
        _ => return Err(ApiError::invalid("resources: unknown type")),
    }
    Ok(resource)
}

pub(crate) fn list(state: &State, request: &Request) -> Result<Value, ApiError> {
    let archived = request.flag("include_archived");
    let statuses = request.list("statuses");
    let bounds = request.time_bounds()?;
    let bodies = in_order(&state.sessions, |session| session.order, request.descending(true)?)
        .into_iter()
        .filter(|session| archived || session.archived_at.is_none())
        .filter(|session| {
            statuses.is_empty() || statuses.iter().any(|s| s == session.status.name())
        })
        .filter(|session| request.query("agent_id").is_none_or(|id| session.agent["id"] == id))
        .filter(|session| {
            let version = session.agent["version"].to_string();
            request.query("agent_version").is_none_or(|wanted| wanted == version)
        })
        .filter(|session| in_bounds(&session.created_at, &bounds))
        .map(Session::body)
        .collect();
    page(bodies, request.limit()?, request.page())
}

fn in_bounds(time: &str, bounds: &[(TimeBound, jiff::Timestamp)]) -> bool {
    let Ok(time) = time.parse::<jiff::Timestamp>() else { return false };
    bounds.iter().all(|(bound, limit)| match bound {
        TimeBound::After => time > *limit,
        TimeBound::NotBefore => time >= *limit,
        TimeBound::Before => time < *limit,
        TimeBound::NotAfter => time <= *limit,
    })
}

pub(crate) fn get(state: &State, request: &Request) -> Result<Value, ApiError> {
    Ok(state.session(&request.target.session)?.body())
}

pub(crate) fn update(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let patch = request.json()?;
    let current = state.session(&request.target.session)?;
    let mut agent = current.agent.clone();
    if patch["agent"].is_object() {
        if current.status != Status::Idle {
            return Err(ApiError::conflict("the session is not idle"));
        }
        let only = json!({ "tools": patch["agent"]["tools"], "mcp_servers": patch["agent"]["mcp_servers"] });
        let given = only.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        let given: Value = given.map(|(key, value)| (key.clone(), value.clone())).collect();
        agents::apply_fields(state, &mut agent, &given)?;
    }
    let title = optional_text(&patch, "title", MAX_TITLE)?;
    let (mut play, _) = state.play(&request.target.session)?;
    let mut metadata = play.session.metadata.clone();
    if let Some(patch) = patch["metadata"].as_object() {
        patch_metadata(&mut metadata, patch)?;
    }
    play.session.metadata = metadata.clone();
    play.session.agent = agent;
    let mut changed = json!({});
    if patch.get("title").is_some() {
        play.session.title = title.clone();
        changed["title"] = json!(title);
    }
    if patch.get("metadata").is_some() {
        changed["metadata"] = Value::Object(metadata);
    }
    if patch.get("agent").is_some() {
        changed["agent"] = play.session.agent.clone();
    }
    if let Some(budget) = patch.get("budget") {
        play.session.budget = budget.clone();
        changed["budget"] = budget.clone();
    }
    play.session.updated_at = play.now.stamps.now();
    play.emit("session.updated", changed);
    Ok(play.session.body())
}

pub(crate) fn archive(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let (mut play, _) = state.play(&request.target.session)?;
    if play.session.status == Status::Running {
        return Err(ApiError::conflict("the session is running"));
    }
    play.terminate();
    let time = play.now.stamps.now();
    play.session.updated_at = time.clone();
    play.session.archived_at.get_or_insert(time);
    Ok(play.session.body())
}

pub(crate) fn delete(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.session;
    let (mut play, _) = state.play(id)?;
    if play.session.status == Status::Running {
        return Err(ApiError::conflict("the session is running"));
    }
    play.session.player.phase = Phase::Ended;
    play.emit("session.deleted", json!({}));
    state.sessions.remove(id);
    state.queue.end_where(|item| item.session == *id, &mut state.stamps);
    Ok(json!({ "id": id, "type": "session_deleted" }))
}

pub(crate) fn resource_list(state: &State, request: &Request) -> Result<Value, ApiError> {
    let session = state.session(&request.target.session)?;
    page(session.resources.clone(), request.limit()?, request.page())
}

pub(crate) fn resource_get(state: &State, request: &Request) -> Result<Value, ApiError> {
    let session = state.session(&request.target.session)?;
    let id = &request.target.resource;
    let found = session.resources.iter().find(|resource| resource["id"] == id.as_str());
    found.cloned().ok_or_else(|| ApiError::not_found("resource", id))
}

pub(crate) fn resource_add(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    if body["type"] != "file" {
        return Err(ApiError::invalid("type: only a file can be added"));
    }
    let time = state.stamps.now();
    let (play, _) = state.play(&request.target.session)?;
    if play.session.resources.len() >= MAX_RESOURCES {
        return Err(ApiError::invalid(format!("resources: at most {MAX_RESOURCES}")));
    }
    let resource = made_resource(body, &time)?;
    play.session.resources.push(resource.clone());
    Ok(resource)
}

pub(crate) fn resource_delete(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.resource;
    let (play, _) = state.play(&request.target.session)?;
    let before = play.session.resources.len();
    play.session.resources.retain(|resource| resource["id"] != id.as_str());
    if play.session.resources.len() == before {
        return Err(ApiError::not_found("resource", id));
    }
    Ok(json!({ "id": id, "type": "session_resource_deleted" }))
}

pub(crate) fn event_list(state: &State, request: &Request) -> Result<Value, ApiError> {
    let mut query = request.event_query()?;
    if let Some(most) = state.switches.events_per_page {
        query.limit = Some(query.limit.unwrap_or(most).min(most));
    }
    state.session(&request.target.session)?.history.list(&query)
}

pub(crate) fn event_send(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    let (mut play, counters) = state.play(&request.target.session)?;
    play.send(&body, request.caller.kind(), counters)
}
