//! The events of one session: what a list reads and a stream follows.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::reply::ApiError;

/// Events kept per session; a session that has more is ended.
pub(crate) const MAX_EVENTS: usize = 50_000;
/// Bytes of events kept per session, so that results of 20 MB do not fill the machine.
pub(crate) const MAX_BYTES: usize = 512 << 20;
/// How many events a slow reader of the stream may fall behind before it is cut off.
const STREAM_BUFFER: usize = 1024;
/// What one page holds when the request does not say, and at most.
pub(crate) const PAGE: usize = 1000;

pub(crate) type Event = Arc<Value>;

#[derive(Debug, Default)]
pub(crate) struct History {
    events: Vec<Stored>,
    bytes: usize,
    /// Where the open streams listen. Its buffer is allocated in full, so a session that nobody
    /// streams has none.
    live: Option<broadcast::Sender<Event>>,
}

#[derive(Debug)]
struct Stored {
    sequence: u64,
    event: Event,
}

/// What a list asks for.
#[derive(Debug, Default)]
pub(crate) struct ListQuery {
    pub limit: Option<usize>,
    pub page: Option<String>,
    pub descending: bool,
    pub types: Vec<String>,
    pub thread: Option<String>,
    /// Bounds on the time, as (operator, RFC 3339).
    pub created: Vec<(TimeBound, jiff::Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeBound {
    After,
    NotBefore,
    Before,
    NotAfter,
}

impl History {
    pub(crate) fn push(&mut self, sequence: u64, event: Value) -> Event {
        let event = Arc::new(event);
        self.bytes = self.bytes.saturating_add(size_of_event(&event));
        self.events.push(Stored { sequence, event: event.clone() });
        self.tell(event.clone());
        event
    }

    fn tell(&mut self, event: Event) {
        // Sending fails when the last stream is gone.
        if self.live.as_ref().is_some_and(|live| live.send(event).is_err()) {
            self.live = None;
        }
    }

    /// An event goes out on the stream without becoming part of the history.
    pub(crate) fn only_stream(&mut self, event: Value) {
        self.tell(Arc::new(event));
    }

    /// Takes an event out, to be put at the end when it is processed.
    pub(crate) fn take(&mut self, id: &str) -> Option<Event> {
        let at = self.events.iter().rposition(|stored| stored.event["id"] == id)?;
        let event = self.events.remove(at).event;
        self.bytes = self.bytes.saturating_sub(size_of_event(&event));
        Some(event)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.events.len() >= MAX_EVENTS || self.bytes >= MAX_BYTES
    }

    /// Ends every open stream; new ones are not concerned.
    pub(crate) fn end_streams(&mut self) {
        self.live = None;
    }

    pub(crate) fn subscribe(&mut self) -> broadcast::Receiver<Event> {
        self.live.get_or_insert_with(|| broadcast::Sender::new(STREAM_BUFFER)).subscribe()
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.events.iter().map(|stored| stored.event.clone()).collect()
    }

    /// One page. The cursor is the place of the last event given out, so that what arrives
    /// between two pages is neither missed nor repeated.
    pub(crate) fn list(&self, query: &ListQuery) -> Result<Value, ApiError> {
        let cursor = match query.page.as_deref() {
            None | Some("") => None,
            Some(text) => Some(
                text.strip_prefix("page_")
                    .and_then(|digits| digits.parse::<u64>().ok())
                    .ok_or_else(|| ApiError::invalid("page: not a cursor of this server"))?,
            ),
        };
        let limit = query.limit.unwrap_or(PAGE);
        let beyond = |stored: &&Stored| match cursor {
            None => true,
            Some(last) if query.descending => stored.sequence < last,
            Some(last) => stored.sequence > last,
        };
        let wanted = |stored: &&Stored| beyond(stored) && query.wants(&stored.event);
        let mut page: Vec<&Stored> = match query.descending {
            false => self.events.iter().filter(wanted).take(limit + 1).collect(),
            true => self.events.iter().rev().filter(wanted).take(limit + 1).collect(),
        };
        let more = page.len() > limit;
        page.truncate(limit);
        let last = page.last().filter(|_| more).map(|stored| format!("page_{}", stored.sequence));
        let data: Vec<&Value> = page.iter().map(|stored| stored.event.as_ref()).collect();
        Ok(json!({ "data": data, "next_page": last }))
    }
}

impl ListQuery {
    fn wants(&self, event: &Value) -> bool {
        let kind = event["type"].as_str().unwrap_or_default();
        if !self.types.is_empty() && !self.types.iter().any(|wanted| wanted == kind) {
            return false;
        }
        if let Some(thread) = &self.thread
            && event["session_thread_id"] != thread.as_str()
        {
            return false;
        }
        if self.created.is_empty() {
            return true;
        }
        let time = event["processed_at"].as_str().and_then(|text| text.parse().ok());
        let Some(time): Option<jiff::Timestamp> = time else { return false };
        self.created.iter().all(|(bound, limit)| match bound {
            TimeBound::After => time > *limit,
            TimeBound::NotBefore => time >= *limit,
            TimeBound::Before => time < *limit,
            TimeBound::NotAfter => time <= *limit,
        })
    }
}

/// An estimate that counts what can be large: the texts.
fn size_of_event(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 32,
        Value::Array(items) => 32 + items.iter().map(size_of_event).sum::<usize>(),
        Value::Object(map) => {
            32 + map.iter().map(|(key, value)| key.len() + size_of_event(value)).sum::<usize>()
        }
        _ => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(count: u64) -> History {
        let mut history = History::default();
        for n in 1..=count {
            let time = format!("2026-01-01T00:00:{n:02}.000000Z");
            let kind = if n % 2 == 0 { "even" } else { "odd" };
            history.push(n, json!({"id": format!("sevt_{n}"), "type": kind, "processed_at": time}));
        }
        history
    }

    fn ids(page: &Value) -> Vec<String> {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn pages_give_every_event_once_also_when_events_arrive_between_them() {
        let mut history = history(5);
        let mut query = ListQuery { limit: Some(2), ..ListQuery::default() };
        let mut seen = Vec::new();
        loop {
            let page = history.list(&query).unwrap();
            seen.extend(ids(&page));
            if seen.len() == 2 {
                history.push(6, json!({"id": "sevt_6", "type": "even"}));
            }
            match page["next_page"].as_str() {
                Some(next) => query.page = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(seen, ["sevt_1", "sevt_2", "sevt_3", "sevt_4", "sevt_5", "sevt_6"]);
    }

    #[test]
    fn order_types_and_times_select() {
        let history = history(6);
        let descending = ListQuery { descending: true, limit: Some(2), ..ListQuery::default() };
        let page = history.list(&descending).unwrap();
        assert_eq!(ids(&page), ["sevt_6", "sevt_5"]);
        let next = page["next_page"].as_str().map(str::to_owned);
        let page = history.list(&ListQuery { page: next, ..descending }).unwrap();
        assert_eq!(ids(&page), ["sevt_4", "sevt_3"]);
        let time: jiff::Timestamp = "2026-01-01T00:00:03Z".parse().unwrap();
        let query = ListQuery {
            types: vec!["odd".into()],
            created: vec![(TimeBound::After, time)],
            ..ListQuery::default()
        };
        assert_eq!(ids(&history.list(&query).unwrap()), ["sevt_5"]);
        let broken = ListQuery { page: Some("nonsense".into()), ..ListQuery::default() };
        assert!(history.list(&broken).is_err());
    }
}
