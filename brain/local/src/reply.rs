//! What an answer is made of: JSON, an error of the API, ids and times.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

pub(crate) type Fields = Map<String, Value>;

/// An error as the API words it. The connection layer adds the request id.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{status} {kind}: {message}")]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
    pub details: Option<Value>,
    pub retry_after: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), details: None, retry_after: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", format!("{what} not found: {id}"))
    }

    pub(crate) fn no_route(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict_error", message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn precondition(message: String, details: Value) -> Self {
        let status = StatusCode::PRECONDITION_FAILED;
        Self::new(status, "invalid_request_error", message).with_details(details)
    }

    /// A limit of this server, not of the caller's request.
    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
    }

    /// What a fault rule asked for.
    pub(crate) fn injected(status: StatusCode, retry_after: Option<String>) -> Self {
        let kind = match status.as_u16() {
            400 | 412 => "invalid_request_error",
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            529 => "overloaded_error",
            _ => "api_error",
        };
        Self { retry_after, ..Self::new(status, kind, "injected by a fault rule") }
    }

    pub(crate) fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    pub(crate) fn with_code(self, code: &str) -> Self {
        self.with_details(json!({ "error_code": code }))
    }

    pub(crate) fn body(&self, request_id: &str) -> Value {
        let mut error = json!({ "type": self.kind, "message": self.message });
        if let Some(details) = &self.details {
            error["details"] = details.clone();
        }
        json!({ "type": "error", "error": error, "request_id": request_id })
    }

    pub(crate) fn into_response(self, request_id: &str) -> Response {
        let mut response = json_response(self.status, &self.body(request_id));
        if let Some(value) = self.retry_after.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (status, headers, body.to_string()).into_response()
}

/// Ids and times of one brain. Times never repeat and never go back, so that they can serve as
/// tokens and as an order.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    last_micros: i64,
    last_sequence: u64,
}

impl Stamps {
    /// The time as RFC 3339 with microseconds.
    pub(crate) fn now(&mut self) -> String {
        let now = jiff::Timestamp::now().as_microsecond();
        self.last_micros = now.max(self.last_micros + 1);
        match jiff::Timestamp::from_microsecond(self.last_micros) {
            Ok(time) => format!("{time:.6}"),
            // Only a clock outside jiff's years −9999 to 9999 gets here.
            Err(_) => "9999-12-30T00:00:00.000000Z".to_owned(),
        }
    }

    pub(crate) fn sequence(&mut self) -> u64 {
        self.last_sequence += 1;
        self.last_sequence
    }
}

/// An id in the API's form: a prefix, an underscore, 24 characters nobody can guess.
pub(crate) fn new_id(prefix: &str) -> String {
    let hex = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}_{}", &hex[..24])
}

/// A credential: a prefix and 244 random bits.
pub(crate) fn new_key(prefix: &str) -> String {
    format!("{prefix}{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

pub(crate) fn ttl_seconds(ttl: Duration) -> u64 {
    ttl.as_millis().div_ceil(1000).max(1) as u64
}

/// One page of a list: `data` and where the next page begins.
pub(crate) fn page<T: Into<Value>>(
    items: Vec<T>,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Value, ApiError> {
    let start = match cursor {
        None | Some("") => 0,
        Some(text) => text
            .strip_prefix("page_")
            .and_then(|digits| digits.parse::<usize>().ok())
            .ok_or_else(|| ApiError::invalid("page: not a cursor of this server"))?,
    };
    let total = items.len();
    let data: Vec<Value> = items.into_iter().skip(start).take(limit).map(Into::into).collect();
    let end = start.saturating_add(data.len());
    let next = (end < total && !data.is_empty()).then(|| format!("page_{end}"));
    let prev = (start > 0).then(|| format!("page_{}", start.saturating_sub(limit)));
    Ok(json!({ "data": data, "next_page": next, "prev_page": prev }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_strictly_increasing_and_sort_as_text() {
        let mut stamps = Stamps::default();
        let times: Vec<String> = (0..1000).map(|_| stamps.now()).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn pages_cover_a_list_once() {
        let items: Vec<i32> = (0..5).collect();
        let first = page(items.clone(), 2, None).unwrap();
        assert_eq!(first["data"], json!([0, 1]));
        let second = page(items.clone(), 2, first["next_page"].as_str()).unwrap();
        assert_eq!(second["data"], json!([2, 3]));
        let third = page(items.clone(), 2, second["next_page"].as_str()).unwrap();
        assert_eq!(third["data"], json!([4]));
        assert_eq!(third["next_page"], Value::Null);
        assert!(page(items, 2, Some("elsewhere")).is_err());
    }
}
