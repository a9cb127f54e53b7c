//! Agents and their versions.

use serde_json::{Map, Value, json};

use super::{Request, in_order, list_of, metadata_of, optional_text, required_text};
use crate::metadata::patch_metadata;
use crate::reply::{ApiError, new_id, page};
use crate::scenario::MODEL_PREFIX;
use crate::state::{Agent, MAX_AGENT_VERSIONS, MAX_AGENTS, State};

const MAX_NAME: usize = 256;
const MAX_DESCRIPTION: usize = 2048;
const MAX_SYSTEM: usize = 100_000;
const MAX_TOOLS: usize = 256;
const MAX_MCP_SERVERS: usize = 20;
const MAX_SKILLS: usize = 64;

const TOOLSET: &str = "agent_toolset_20260401";
const TOOLSET_NAMES: &[&str] =
    &["bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"];

/// What may stand in a create or an update, and in the overrides of a session.
const FIELDS: &[&str] = &[
    "name",
    "description",
    "system",
    "model",
    "tools",
    "mcp_servers",
    "skills",
    "multiagent",
    "execution_identity",
];

pub(crate) fn create(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let input = request.json()?;
    required_text(&input, "name", MAX_NAME)?;
    if state.agents.len() >= MAX_AGENTS {
        return Err(ApiError::full(format!("more than {MAX_AGENTS} agents")));
    }
    let time = state.stamps.now();
    let mut body = json!({
        "type": "agent",
        "id": new_id("agent"),
        "version": 1,
        "description": null,
        "system": null,
        "tools": [],
        "skills": [],
        "mcp_servers": [],
        "multiagent": null,
        "execution_identity": { "type": "service_account" },
        "metadata": metadata_of(&input)?,
        "created_at": time,
        "updated_at": time,
        "archived_at": null,
    });
    apply_fields(state, &mut body, &input)?;
    if body["model"].is_null() {
        return Err(ApiError::invalid("model: required"));
    }
    let id = body["id"].as_str().unwrap_or_default().to_owned();
    let order = state.stamps.sequence();
    state.agents.insert(id, Agent { order, versions: vec![body.clone()] });
    Ok(body)
}

/// Puts the fields of a create, an update or an override into an agent, checked.
pub(crate) fn apply_fields(state: &State, body: &mut Value, input: &Value) -> Result<(), ApiError> {
    for field in FIELDS.iter().copied().filter(|field| input.get(field).is_some()) {
        body[field] = match field {
            "name" => Value::from(required_text(input, field, MAX_NAME)?),
            "description" => json!(optional_text(input, field, MAX_DESCRIPTION)?),
            "system" => json!(optional_text(input, field, MAX_SYSTEM)?),
            "model" => model(state, &input[field])?,
            "tools" => tools(&list_of(input, field, MAX_TOOLS)?)?,
            "mcp_servers" => Value::from(list_of(input, field, MAX_MCP_SERVERS)?),
            "skills" => Value::from(list_of(input, field, MAX_SKILLS)?),
            _ => input[field].clone(),
        };
    }
    Ok(())
}

/// A model in its full form. A script must exist; any other name is taken and plays nothing.
fn model(state: &State, input: &Value) -> Result<Value, ApiError> {
    let model = match input {
        Value::String(id) => json!({ "id": id }),
        Value::Object(_) => input.clone(),
        _ => Value::Null,
    };
    let id = model["id"].as_str().filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| ApiError::invalid("model: expected an id or {\"id\": …}"))?;
    if let Some(name) = id.strip_prefix(MODEL_PREFIX)
        && state.scenarios.get(name).is_none()
    {
        let known = state.scenarios.names().join(", ");
        return Err(ApiError::invalid(format!("model: no script {name:?}; there are {known}")));
    }
    Ok(model)
}

/// Tools as an answer carries them: toolsets with every tool's configuration resolved.
fn tools(input: &[Value]) -> Result<Value, ApiError> {
    let mut resolved = Vec::new();
    for (index, tool) in input.iter().enumerate() {
        let at = |what: &str| ApiError::invalid(format!("tools.{index}: {what}"));
        match tool["type"].as_str() {
            Some(TOOLSET) => resolved.push(toolset(tool)),
            Some("custom") => {
                let name = tool["name"].as_str().unwrap_or_default();
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
                    return Err(at("name: expected 1 to 128 of A-Z a-z 0-9 _ -"));
                }
                if TOOLSET_NAMES.contains(&name) || name.starts_with("mcp__") {
                    return Err(at("name: is taken by a built-in tool"));
                }
                if tool["description"].as_str().is_none_or(str::is_empty) {
                    return Err(at("description: required"));
                }
                if tool["input_schema"]["type"] != "object" {
                    return Err(at("input_schema: expected a schema of type object"));
                }
                resolved.push(tool.clone());
            }
            Some("mcp_toolset") => resolved.push(tool.clone()),
            _ => return Err(at("type: unknown")),
        }
    }
    Ok(Value::from(resolved))
}

fn toolset(tool: &Value) -> Value {
    let mut default = Map::new();
    default.insert("enabled".into(), Value::Bool(true));
    default.insert("permission_policy".into(), json!({ "type": "always_allow" }));
    merge(&mut default, &tool["default_config"]);
    let given = tool["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let configs: Vec<Value> = TOOLSET_NAMES
        .iter()
        .map(|name| {
            let mut config = default.clone();
            for own in given.iter().filter(|config| config["name"] == *name) {
                merge(&mut config, own);
            }
            config.insert("name".into(), Value::from(*name));
            Value::Object(config)
        })
        .collect();
    json!({ "type": TOOLSET, "default_config": default, "configs": configs })
}

fn merge(config: &mut Map<String, Value>, over: &Value) {
    for (key, value) in over.as_object().into_iter().flatten() {
        if !value.is_null() {
            config.insert(key.clone(), value.clone());
        }
    }
}

pub(crate) fn list(state: &State, request: &Request) -> Result<Value, ApiError> {
    let archived = request.flag("include_archived");
    let bodies = in_order(&state.agents, |agent| agent.order, true)
        .into_iter()
        .map(Agent::current)
        .filter(|body| archived || body["archived_at"].is_null())
        .cloned()
        .collect();
    page(bodies, request.limit()?, request.page())
}

pub(crate) fn get(state: &State, request: &Request) -> Result<Value, ApiError> {
    let agent = state.agent(&request.target.agent)?;
    match request.number("version")? {
        None => Ok(agent.current().clone()),
        Some(number) => version(agent, number),
    }
}

pub(crate) fn version(agent: &Agent, number: u64) -> Result<Value, ApiError> {
    let found = agent.versions.iter().find(|body| body["version"] == number);
    found.cloned().ok_or_else(|| ApiError::not_found("agent version", &number.to_string()))
}

pub(crate) fn versions(state: &State, request: &Request) -> Result<Value, ApiError> {
    let agent = state.agent(&request.target.agent)?;
    page(agent.versions.iter().rev().cloned().collect(), request.limit()?, request.page())
}

pub(crate) fn update(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    let input = request.json()?;
    let agent = state.agent(&request.target.agent)?;
    let mut body = agent.current().clone();
    if !body["archived_at"].is_null() {
        return Err(ApiError::invalid("the agent is archived"));
    }
    if !input["version"].is_null() && input["version"] != body["version"] {
        return Err(ApiError::conflict(format!("the agent is at version {}", body["version"])));
    }
    if agent.versions.len() >= MAX_AGENT_VERSIONS {
        return Err(ApiError::full(format!("more than {MAX_AGENT_VERSIONS} versions")));
    }
    apply_fields(state, &mut body, &input)?;
    if let (Some(patch), Some(metadata)) =
        (input["metadata"].as_object(), body["metadata"].as_object_mut())
    {
        patch_metadata(metadata, patch)?;
    }
    body["version"] = Value::from(body["version"].as_u64().unwrap_or(0) + 1);
    body["updated_at"] = Value::from(state.stamps.now());
    if let Some(agent) = state.agents.get_mut(&request.target.agent) {
        agent.versions.push(body.clone());
    }
    Ok(body)
}

pub(crate) fn archive(state: &mut State, request: &Request) -> Result<Value, ApiError> {
    state.agent(&request.target.agent)?;
    let time = Value::from(state.stamps.now());
    let agent = state.agents.get_mut(&request.target.agent);
    let Some(body) = agent.and_then(|agent| agent.versions.last_mut()) else {
        return Err(ApiError::not_found("agent", &request.target.agent));
    };
    if body["archived_at"].is_null() {
        body["archived_at"] = time.clone();
        body["updated_at"] = time;
    }
    Ok(body.clone())
}
