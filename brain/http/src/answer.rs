//! What an answer that is not a success means: the one place that classifies.

use std::time::Duration;

use base_types::Timestamp;
use brain_api::{BrainError, BrainErrorKind};
use http::{HeaderMap, StatusCode};

use crate::fields::{Fields, body_text};

/// As much of the brain's message as a log line should hold.
const DETAIL_CHARS_MAX: usize = 500;
const REQUEST_ID_CHARS_MAX: usize = 128;
/// The longest wait a brain can ask for; a wrong header must not stop a worker for ever.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// The brain's words about a refused request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `type[/error_code]: message`
    pub text: String,
    pub request_id: Option<String>,
}

/// What a 412 says of the lease as the brain has it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the brain has another heartbeat")]
pub(crate) struct LeaseConflict {
    pub last: String,
    /// Somebody holds the lease.
    pub is_live: bool,
    pub ttl: Option<Duration>,
}

pub(crate) fn read_lease_conflict(body: &[u8]) -> Option<LeaseConflict> {
    let text = body_text(body);
    let details = Fields::parse(text.trim())?.object("error")?.object("details")?;
    let current = details.object("current_state")?;
    Some(LeaseConflict {
        last: current.id("last_heartbeat")?,
        is_live: matches!(current.text("state").as_deref(), Some("starting" | "active")),
        ttl: current.read::<u64>("ttl_seconds").map(Duration::from_secs),
    })
}

pub(crate) fn read_refusal(body: &[u8]) -> Refusal {
    let text = body_text(body);
    let Some(fields) = Fields::parse(text.trim()) else {
        return Refusal { text: printable(&text, DETAIL_CHARS_MAX), request_id: None };
    };
    let error = fields.object("error");
    let word = |name| error.as_ref().and_then(|error| error.text(name));
    let code = error.as_ref().and_then(|e| e.object("details")).and_then(|d| d.text("error_code"));
    let mut said = word("type").unwrap_or_default();
    if let Some(code) = code {
        said = format!("{said}/{code}");
    }
    if let Some(message) = word("message") {
        said = if said.is_empty() { message } else { format!("{said}: {message}") };
    }
    let request_id = fields.id("request_id").map(|id| printable(&id, REQUEST_ID_CHARS_MAX));
    Refusal { text: printable(&said, DETAIL_CHARS_MAX), request_id }
}

/// One line of at most `chars_max` characters, so that a brain cannot forge or flood a log.
pub(crate) fn printable(text: &str, chars_max: usize) -> String {
    let text = text.trim();
    let mut line: String = text
        .chars()
        .take(chars_max)
        .map(|c| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { ' ' } else { c })
        .collect();
    if text.chars().nth(chars_max).is_some() {
        line.push('…');
    }
    line
}

/// What the caller should do about `status`.
pub(crate) fn kind_of(status: StatusCode, retry_after: Option<Duration>) -> BrainErrorKind {
    match status.as_u16() {
        status @ (401 | 403) => BrainErrorKind::Unauthorized { status },
        404 => BrainErrorKind::NotFound,
        413 => BrainErrorKind::TooLarge,
        408 | 409 | 429 => BrainErrorKind::Transient { retry_after },
        status @ 400..=499 => BrainErrorKind::Fatal { status },
        // 5xx; and what a proxy or a portal in between may answer for a while: redirects.
        _ => BrainErrorKind::Transient { retry_after },
    }
}

/// Whether a request that changes something may have happened despite this answer. 503 and 529
/// say that it was not taken up; another 5xx may come from a gateway whose back end has it.
pub(crate) fn may_have_happened(status: StatusCode) -> bool {
    status.is_server_error() && !matches!(status.as_u16(), 503 | 529)
}

/// Whether the same request may be repeated below the caller.
pub(crate) fn worth_repeating(status: StatusCode, headers: &HeaderMap) -> bool {
    match headers.get("x-should-retry").map(|value| value.as_bytes()) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => matches!(status.as_u16(), 408 | 409 | 429) || status.is_server_error(),
    }
}

/// `retry-after-ms`, else `retry-after` in seconds or as an HTTP date.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |name| text(name).and_then(|text| text.parse::<f64>().ok());
    let seconds = number("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| number("retry-after"))
        .or_else(|| text("retry-after").and_then(|date| seconds_until(date, now)))?;
    if seconds.is_nan() || seconds < 0.0 {
        return None;
    }
    let wait = Duration::try_from_secs_f64(seconds).unwrap_or(RETRY_AFTER_MAX);
    Some(wait.min(RETRY_AFTER_MAX))
}

fn seconds_until(date: &str, now: Timestamp) -> Option<f64> {
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(at.as_millisecond().saturating_sub(now.0).max(0) as f64 / 1000.0)
}

pub(crate) fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("request-id")?.to_str().ok()?;
    Some(printable(id, REQUEST_ID_CHARS_MAX)).filter(|id| !id.is_empty())
}

/// A success whose body cannot be used.
pub(crate) fn garbage(request: &'static str, detail: impl Into<String>) -> BrainError {
    BrainError {
        kind: BrainErrorKind::Transient { retry_after: None },
        request,
        detail: detail.into(),
        request_id: None,
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn each_status_has_the_kind_of_the_protocol() {
        let none = None;
        for (status, expected) in [
            (302, BrainErrorKind::Transient { retry_after: none }),
            (400, BrainErrorKind::Fatal { status: 400 }),
            (401, BrainErrorKind::Unauthorized { status: 401 }),
            (402, BrainErrorKind::Fatal { status: 402 }),
            (403, BrainErrorKind::Unauthorized { status: 403 }),
            (404, BrainErrorKind::NotFound),
            (408, BrainErrorKind::Transient { retry_after: none }),
            (409, BrainErrorKind::Transient { retry_after: none }),
            (412, BrainErrorKind::Fatal { status: 412 }),
            (413, BrainErrorKind::TooLarge),
            (429, BrainErrorKind::Transient { retry_after: none }),
            (500, BrainErrorKind::Transient { retry_after: none }),
            (529, BrainErrorKind::Transient { retry_after: none }),
        ] {
            assert_eq!(kind_of(StatusCode::from_u16(status).unwrap(), none), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_in_every_form_and_bounded() {
        let now = Timestamp(1_445_412_480_000 - 7_000); // 7 s before 2015-10-21T07:28:00Z
        for (name, value, expected) in [
            ("retry-after", "3", Some(3_000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after-ms", "250", Some(250)),
            ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", Some(7_000)),
            ("retry-after", "Wed, 21 Oct 2009 07:28:00 GMT", Some(0)),
            ("retry-after", "1e300", Some(3_600_000)),
            ("retry-after", "inf", Some(3_600_000)),
            ("retry-after", "-1", None),
            ("retry-after", "nan", None),
            ("retry-after", "soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let expected = expected.map(Duration::from_millis);
            assert_eq!(retry_after(&headers, now), expected, "{name}: {value}");
        }
    }

    #[test]
    fn a_refusal_is_one_bounded_line() {
        let body = br#"{"type":"error","error":{"type":"invalid_request_error","message":"no\nway",
            "details":{"error_code":"archived"}},"request_id":"req_1"}"#;
        let refusal = read_refusal(body);
        assert_eq!(refusal.text, "invalid_request_error/archived: no way");
        assert_eq!(refusal.request_id.as_deref(), Some("req_1"));
        assert_eq!(read_refusal(b"<html>\x1b[31mBad\r\nGateway").text, "<html> [31mBad  Gateway");
        let long = read_refusal("é".repeat(5_000).as_bytes()).text;
        assert_eq!(long.chars().count(), DETAIL_CHARS_MAX + 1);
    }
}
