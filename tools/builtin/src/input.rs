//! Reads an input strictly and says helpfully what is wrong with one: the reader is a model that
//! will try again.

use guest_protocol::REQUEST_BYTES_MAX;
use serde_json::{Map, Value};
use tools_api::ToolAnswer;

/// All texts of an input together; leaves room in a request for the words around them.
const INPUT_BYTES_MAX: usize = REQUEST_BYTES_MAX - (64 << 10);
/// Of a model's own words in an answer about them.
const QUOTE_CHARS_MAX: usize = 60;

/// One field that a tool takes.
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Content of any form.
    Text,
    /// A path or a pattern: something that is there.
    Name,
    Boolean,
    Integer,
    /// `[start_line, end_line]`
    LineRange,
}

/// The fields of an input that fits the tool.
pub struct Input<'a>(&'a Map<String, Value>);

/// Checks everything that can be told without running the call.
pub fn parse<'a>(
    tool: &'static str,
    fields: &[Field],
    input: &'a Value,
) -> Result<Input<'a>, ToolAnswer> {
    check(fields, input)
        .map_err(|why| ToolAnswer::error(format!("{tool}: {why}. {}", takes(tool, fields))))
}

fn check<'a>(fields: &[Field], input: &'a Value) -> Result<Input<'a>, String> {
    let Value::Object(given) = input else {
        return Err(format!("the input must be a JSON object, not {}", kind_of(input)));
    };
    if let Some(name) = given.keys().find(|name| !fields.iter().any(|f| f.name == *name)) {
        return Err(format!("unknown field {}", quoted(name)));
    }
    for field in fields {
        match given.get(field.name).filter(|value| !value.is_null()) {
            None if field.required => return Err(format!("{} is required", field.name)),
            None => {}
            Some(value) => check_field(field, value)?,
        }
    }
    let size: usize = given.values().filter_map(Value::as_str).map(str::len).sum();
    if size > INPUT_BYTES_MAX {
        return Err(format!("the input is {size} bytes, exceeds {INPUT_BYTES_MAX}-byte limit"));
    }
    Ok(Input(given))
}

fn check_field(field: &Field, value: &Value) -> Result<(), String> {
    let name = field.name;
    let fits = match field.kind {
        Kind::Text | Kind::Name => value.is_string(),
        Kind::Boolean => value.is_boolean(),
        Kind::Integer => integer(value).is_some(),
        Kind::LineRange => {
            return match line_range(value) {
                Some(_) => Ok(()),
                None => Err(format!("{name} must be [start_line, end_line]")),
            };
        }
    };
    if !fits {
        return Err(format!("{name} must be {}, not {}", field.kind.noun(), kind_of(value)));
    }
    let text = value.as_str().unwrap_or_default();
    if field.kind == Kind::Name && text.contains('\0') {
        return Err(format!("{name} contains a NUL byte"));
    }
    if field.kind == Kind::Name && text.is_empty() && value.is_string() {
        return Err(format!("{name} must not be empty"));
    }
    Ok(())
}

/// "read takes {file_path: string, view_range?: [start_line, end_line]}"
fn takes(tool: &str, fields: &[Field]) -> String {
    let fields: Vec<_> = fields
        .iter()
        .map(|field| {
            let optional = if field.required { "" } else { "?" };
            format!("{}{optional}: {}", field.name, field.kind.type_name())
        })
        .collect();
    format!("{tool} takes {{{}}}", fields.join(", "))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTE_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// A whole number, also one that was written as `500.0`.
fn integer(value: &Value) -> Option<i64> {
    let float = || value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15);
    value.as_i64().or_else(|| float().map(|f| f as i64))
}

fn line_range(value: &Value) -> Option<(i64, i64)> {
    match value.as_array()?.as_slice() {
        [start, end] => Some((integer(start)?, integer(end)?)),
        _ => None,
    }
}

// === impl Kind ===

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Text | Kind::Name => "a string",
            Kind::Boolean => "a boolean",
            Kind::Integer => "a whole number",
            Kind::LineRange => "[start_line, end_line]",
        }
    }

    fn type_name(self) -> &'static str {
        match self {
            Kind::Text | Kind::Name => "string",
            Kind::Boolean => "boolean",
            Kind::Integer => "integer",
            Kind::LineRange => "[start_line, end_line]",
        }
    }
}

// === impl Input ===

impl Input<'_> {
    pub fn text(&self, name: &str) -> Option<String> {
        self.0.get(name)?.as_str().map(str::to_owned)
    }

    /// A field that [`parse`] found to be there.
    pub fn required(&self, name: &str) -> String {
        self.text(name).unwrap_or_default()
    }

    pub fn boolean(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn integer(&self, name: &str) -> Option<i64> {
        integer(self.0.get(name)?)
    }

    pub fn line_range(&self, name: &str) -> Option<(i64, i64)> {
        line_range(self.0.get(name)?)
    }
}
