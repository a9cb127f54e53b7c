//! The live stream of a session: frames of the wire as items, until it ends or fails.

use std::time::Duration;

use brain_api::{BrainError, StreamItem};
use futures::stream::{self, BoxStream, StreamExt};
use http::header::CONTENT_TYPE;
use reqwest::Response;

use crate::answer::{garbage, printable, read_refusal};
use crate::event::decode_event;
use crate::fields::{Fields, body_text};
use crate::sse::{Frame, FrameReader};

pub(crate) const STREAM: &str = "follow the session's stream";

type Item = Result<StreamItem, BrainError>;

struct Live {
    response: Response,
    reader: FrameReader,
    silence: Duration,
    over: bool,
}

/// Refuses an answer that is not a stream: a page of a portal would look like silence.
pub(crate) fn check(response: &Response) -> Result<(), BrainError> {
    let header = |name| {
        let value = response.headers().get(name)?;
        Some(printable(&String::from_utf8_lossy(value.as_bytes()), 80).to_ascii_lowercase())
    };
    let kind = header(CONTENT_TYPE);
    match kind {
        Some(kind) if kind.starts_with("text/event-stream") => Ok(()),
        Some(kind) => Err(garbage(STREAM, format!("the answer is {kind}, not an event stream"))),
        None => Err(garbage(STREAM, "the answer is not an event stream")),
    }
}

/// The items of an open stream. It ends after its first error.
pub(crate) fn items(response: Response, silence: Duration) -> BoxStream<'static, Item> {
    let live = Live { response, reader: FrameReader::new(), silence, over: false };
    stream::unfold(live, |mut live| async move {
        let item = live.next().await?;
        live.over = item.is_err();
        Some((item, live))
    })
    .boxed()
}

impl Live {
    async fn next(&mut self) -> Option<Item> {
        loop {
            if self.over {
                return None;
            }
            if let Some(frame) = self.reader.next_frame() {
                return Some(decode_frame(frame));
            }
            let chunk = match tokio::time::timeout(self.silence, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return None,
                Ok(Err(error)) => {
                    let source = Some(error.without_url().into());
                    return Some(Err(BrainError { source, ..garbage(STREAM, "it broke off") }));
                }
                Err(_) => {
                    let detail = format!("it was silent for {:?}", self.silence);
                    return Some(Err(garbage(STREAM, detail)));
                }
            };
            if let Err(error) = self.reader.push(&chunk) {
                let source = Some(error.into());
                return Some(Err(BrainError { source, ..garbage(STREAM, "it cannot be read") }));
            }
        }
    }
}

/// A frame that is not JSON may have been a tool call: an error makes the caller reconnect and
/// find it in the history, where "ignore" would lose it.
pub(crate) fn decode_frame(frame: Frame) -> Item {
    if frame.comment || frame.name == b"ping" {
        return Ok(StreamItem::Ping);
    }
    let text = body_text(&frame.data);
    if frame.name == b"error" {
        return Err(refused(&frame.data));
    }
    let json = text.trim();
    if json.is_empty() {
        return Ok(StreamItem::Ping);
    }
    if serde_json::from_str::<serde::de::IgnoredAny>(json).is_err() {
        return Err(garbage(STREAM, "a frame is not JSON"));
    }
    match Fields::parse(json).and_then(|fields| fields.text("type")).as_deref() {
        Some("ping") => Ok(StreamItem::Ping),
        Some("error") => Err(refused(&frame.data)),
        _ => Ok(StreamItem::Event(decode_event(json))),
    }
}

fn refused(data: &[u8]) -> BrainError {
    let refusal = read_refusal(data);
    BrainError {
        request_id: refusal.request_id,
        ..garbage(STREAM, format!("the brain reports an error: {}", refusal.text))
    }
}

#[cfg(test)]
mod tests {
    use brain_api::EventKind;

    use super::*;

    fn decode(name: &str, data: &[u8]) -> Item {
        decode_frame(Frame { name: name.into(), data: data.into(), comment: false })
    }

    #[test]
    fn the_type_in_the_data_decides_and_the_name_only_for_ping_and_error() {
        for name in ["", "message", "agent.message", "user.message"] {
            let item = decode(name, br#"{"type":"session.status_running"}"#).unwrap();
            let StreamItem::Event(event) = item else { panic!("{name}: {item:?}") };
            assert_eq!(event.kind, EventKind::StatusRunning);
        }
        assert!(matches!(decode("ping", b"anything"), Ok(StreamItem::Ping)));
        assert!(matches!(decode("", br#"{"type":"ping"}"#), Ok(StreamItem::Ping)));
        assert!(matches!(decode("x", b""), Ok(StreamItem::Ping)));
    }

    #[test]
    fn an_error_frame_and_a_torn_one_are_transient_errors() {
        let body = br#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#;
        for name in ["error", "", "message"] {
            let error = decode(name, body).unwrap_err();
            assert!(error.is_transient());
            assert!(error.detail.ends_with("overloaded_error: x"), "{error}");
        }
        assert!(decode("", br#"{"type":"agent.tool_use","id":"#).unwrap_err().is_transient());
        assert!(decode("error", b"").unwrap_err().is_transient());
    }
}
