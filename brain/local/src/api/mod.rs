//! What each route does. One function per route, called with the request and the state.

pub(crate) mod agents;
pub(crate) mod dev;
pub(crate) mod environments;
pub(crate) mod sessions;
pub(crate) mod threads;
pub(crate) mod work;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::history::{ListQuery, PAGE, TimeBound};
use crate::reply::{ApiError, Fields};
use crate::route::{Caller, Route, Target};

/// Items of a resource list when the request does not say, and at most.
const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 1000;

pub(crate) struct Request {
    pub route: Route,
    pub target: Target,
    pub query: Vec<(String, String)>,
    pub body: Bytes,
    pub caller: Caller,
    pub worker: Option<String>,
}

impl Request {
    /// The body as an object; no body is an empty one.
    pub(crate) fn json(&self) -> Result<Value, ApiError> {
        if self.body.is_empty() {
            return Ok(Value::Object(Map::new()));
        }
        match serde_json::from_slice(&self.body) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(ApiError::invalid("the body is not an object")),
            Err(error) => Err(ApiError::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let parse = |text: &str| {
            let expected = || ApiError::invalid(format!("{name}: expected a whole number"));
            text.parse::<u64>().map_err(|_| expected())
        };
        self.query(name).map(parse).transpose()
    }

    pub(crate) fn limit(&self) -> Result<usize, ApiError> {
        let limit = self.number("limit")?.unwrap_or(DEFAULT_LIMIT as u64);
        within("limit", limit, MAX_LIMIT)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.query(name) == Some("true")
    }

    /// The values of `name[]`, and of `name` given more than once.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let array = format!("{name}[]");
        let wanted = |(key, _): &&(String, String)| *key == array || key == name;
        self.query.iter().filter(wanted).map(|(_, value)| value.clone()).collect()
    }

    pub(crate) fn page(&self) -> Option<&str> {
        self.query("page")
    }

    pub(crate) fn descending(&self, default: bool) -> Result<bool, ApiError> {
        match self.query("order") {
            None => Ok(default),
            Some("asc") => Ok(false),
            Some("desc") => Ok(true),
            Some(_) => Err(ApiError::invalid("order: expected asc or desc")),
        }
    }

    pub(crate) fn event_query(&self) -> Result<ListQuery, ApiError> {
        let limit = self.number("limit")?.map(|limit| within("limit", limit, PAGE)).transpose()?;
        Ok(ListQuery {
            limit,
            page: self.page().map(str::to_owned),
            descending: self.descending(false)?,
            types: self.list("types"),
            thread: None,
            created: self.time_bounds()?,
        })
    }

    pub(crate) fn time_bounds(&self) -> Result<Vec<(TimeBound, jiff::Timestamp)>, ApiError> {
        let names = [
            ("created_at[gt]", TimeBound::After),
            ("created_at[gte]", TimeBound::NotBefore),
            ("created_at[lt]", TimeBound::Before),
            ("created_at[lte]", TimeBound::NotAfter),
        ];
        let mut bounds = Vec::new();
        for (name, bound) in names {
            if let Some(text) = self.query(name) {
                let expected = |_| ApiError::invalid(format!("{name}: expected an RFC 3339 time"));
                bounds.push((bound, text.parse().map_err(expected)?));
            }
        }
        Ok(bounds)
    }
}

fn within(name: &str, value: u64, max: usize) -> Result<usize, ApiError> {
    match usize::try_from(value) {
        Ok(value) if (1..=max).contains(&value) => Ok(value),
        _ => Err(ApiError::invalid(format!("{name}: expected a number from 1 to {max}"))),
    }
}

/// A text that may be left out or null.
fn optional_text(body: &Value, key: &str, max: usize) -> Result<Option<String>, ApiError> {
    match &body[key] {
        Value::Null => Ok(None),
        Value::String(text) if text.chars().count() <= max => Ok(Some(text.clone())),
        _ => Err(ApiError::invalid(format!("{key}: expected a text of at most {max} characters"))),
    }
}

fn required_text(body: &Value, key: &str, max: usize) -> Result<String, ApiError> {
    let text = optional_text(body, key, max)?.filter(|text| !text.is_empty());
    text.ok_or_else(|| ApiError::invalid(format!("{key}: required")))
}

/// A list that may be left out or null.
fn list_of(body: &Value, key: &str, max: usize) -> Result<Vec<Value>, ApiError> {
    match &body[key] {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) if items.len() <= max => Ok(items.clone()),
        _ => Err(ApiError::invalid(format!("{key}: expected a list of at most {max}"))),
    }
}

fn metadata_of(body: &Value) -> Result<Fields, ApiError> {
    let mut metadata = Fields::new();
    match &body["metadata"] {
        Value::Null => {}
        Value::Object(patch) => crate::metadata::patch_metadata(&mut metadata, patch)?,
        _ => return Err(ApiError::invalid("metadata: expected an object")),
    }
    Ok(metadata)
}

/// The members of a map in the order they were made.
fn in_order<T>(
    map: &BTreeMap<String, T>,
    order: impl Fn(&T) -> u64,
    newest_first: bool,
) -> Vec<&T> {
    let mut items: Vec<&T> = map.values().collect();
    items.sort_by_key(|item| order(item));
    if newest_first {
        items.reverse();
    }
    items
}
