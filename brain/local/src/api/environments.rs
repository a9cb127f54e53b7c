//! Environments. The real API has no route that tells an environment's key; here the answer to
//! `create` carries it once, as `environment_key`.

use serde_json::{Value, json};

use super::{Request, in_order, metadata_of, optional_text, required_text};
use crate::metadata::patch_metadata;
use crate::reply::{ApiError, new_id, page};
use crate::session::Phase;
use crate::state::{MAX_ENVIRONMENTS, State, new_environment_key};

const MAX_NAME: usize = 256;
const MAX_DESCRIPTION: usize = 2048;

pub(crate) fn create(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let body = request.json()?;
    let name = required_text(&body, "name", MAX_NAME)?;
    let description = optional_text(&body, "description", MAX_DESCRIPTION)?;
    let metadata = metadata_of(&body)?;
    check_config(&body["config"])?;
    check_name(state, &name, "")?;
    if state.environments.len() >= MAX_ENVIRONMENTS {
        return Err(ApiError::full(format!("more than {MAX_ENVIRONMENTS} environments")));
    }
    let id = new_id("env");
    let key = new_environment_key();
    state.put_environment(&id, &name, Some(key.clone()));
    let Some(environment) = state.environments.get_mut(&id) else {
        return Err(ApiError::not_found("environment", &id));
    };
    environment.body["description"] = json!(description);
    environment.body["metadata"] = Value::Object(metadata);
    let mut answer = environment.body.clone();
    answer["environment_key"] = Value::from(key.expose());
    Ok(answer)
}

fn check_config(config: &Value) -> Result<(), ApiError> {
    match config {
        Value::Null => Ok(()),
        Value::Object(fields) if config["type"] == "self_hosted" && fields.len() == 1 => Ok(()),
        _ => Err(ApiError::invalid(
            "config: this brain has self-hosted environments only: {\"type\": \"self_hosted\"}",
        )),
    }
}

fn check_name(state: &State, name: &str, own_id: &str) -> Result<(), ApiError> {
    let taken = state
        .environments
        .values()
        .any(|environment| environment.body["name"] == name && environment.body["id"] != own_id);
    match taken {
        true => Err(ApiError::conflict(format!("an environment named {name:?} exists"))),
        false => Ok(()),
    }
}

pub(crate) fn list(state: &State, request: &Request) -> Result<Value, ApiError> {
    let archived = request.flag("include_archived");
    let bodies = in_order(&state.environments, |environment| environment.order, true)
        .into_iter()
        .filter(|environment| archived || environment.body["archived_at"].is_null())
        .map(|environment| environment.body.clone())
        .collect();
    page(bodies, request.limit()?, request.page())
}

pub(crate) fn get(state: &State, request: &Request) -> Result<Value, ApiError> {
    Ok(state.environment(&request.target.environment)?.body.clone())
}

pub(crate) fn update(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.environment;
    let patch = request.json()?;
    let mut body = state.environment(id)?.body.clone();
    if !body["archived_at"].is_null() {
        return Err(
            ApiError::invalid("the environment is archived").with_code("environment_archived")
        );
    }
    check_config(&patch["config"])?;
    if let Some(name) = optional_text(&patch, "name", MAX_NAME)? {
        check_name(state, &name, id)?;
        body["name"] = Value::from(name);
    }
    if patch.get("description").is_some() {
        body["description"] = json!(optional_text(&patch, "description", MAX_DESCRIPTION)?);
    }
    if let (Some(patch), Some(metadata)) =
        (patch["metadata"].as_object(), body["metadata"].as_object_mut())
    {
        patch_metadata(metadata, patch)?;
    }
    store(state, id, body)
}

pub(crate) fn archive(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.environment;
    let mut body = state.environment(id)?.body.clone();
    if body["archived_at"].is_null() {
        body["archived_at"] = Value::from(state.stamps.now());
    }
    store(state, id, body)
}

fn store(state: &mut State, id: &str, mut body: Value) -> Result<Value, ApiError> {
    body["updated_at"] = Value::from(state.stamps.now());
    match state.environments.get_mut(id) {
        Some(environment) => environment.body = body.clone(),
        None => return Err(ApiError::not_found("environment", id)),
    }
    Ok(body)
}

pub(crate) fn delete(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.environment;
    state.environment(id)?;
    let in_use = state
        .sessions
        .values()
        .any(|session| session.environment == *id && session.player.phase != Phase::Ended);
    if in_use {
        return Err(ApiError::conflict("the environment has sessions"));
    }
    state.environments.remove(id);
    state.queue.end_where(|item| item.environment == *id, &mut state.stamps);
    Ok(json!({ "id": id, "type": "environment_deleted" }))
}

/// What the Console does: a new key; the old one is refused from now on.
pub(crate) fn rotate_key(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let id = &request.target.environment;
    let key = new_environment_key();
    match state.environments.get_mut(id) {
        Some(environment) => environment.key = key.clone(),
        None => return Err(ApiError::not_found("environment", id)),
    }
    Ok(json!({ "environment_key": key.expose() }))
}
