//! `GET /sessions/{id}/log`, as a page or as a stream of lines.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use base_types::{SessionId, Timestamp};
use bytes::Bytes;
use futures::Stream;
use store_api::{LogEntry, PAGE_MAX, StoreError};
use tokio::time::Instant;

use super::input::Query;
use super::sessions::known;
use super::{Shared, State};
use crate::api::{LogPage, LogQuery};
use crate::fault::Refusal;

const LOG_PAGE_DEFAULT: u32 = 200;
/// How late a followed entry may be; also how often an idle follower asks the store.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// An empty line this often shows the reader that the connection lives, and us that it does not.
const FOLLOW_SIGN_OF_LIFE: Duration = Duration::from_secs(10);

pub(super) async fn log(
    Extract(shared): State,
    Path(session): Path<SessionId>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Refusal> {
    known(&shared, &session).await?;
    let limit = query.limit.unwrap_or(LOG_PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let reader = Reader { shared, session, since: query.since, after: query.after, limit };
    if query.follow {
        let body = Body::from_stream(follow(reader));
        let kind = [(http::header::CONTENT_TYPE, "application/x-ndjson")];
        return Ok((kind, body).into_response());
    }
    Ok(Json(reader.page().await?).into_response())
}

/// One reader's place in a log.
struct Reader {
    shared: Arc<Shared>,
    session: SessionId,
    since: Option<Timestamp>,
    after: Option<u64>,
    limit: u32,
}

impl Reader {
    async fn page(mut self) -> Result<LogPage, Refusal> {
        // Entries before `since` are skipped page by page, so that an answer is empty only at the
        // end of the log.
        loop {
            let (entries, more) = self.next().await?;
            if !entries.is_empty() || !more {
                return Ok(LogPage { entries, next_after: self.after.filter(|_| more) });
            }
        }
    }

    /// What there is after the reader's place, and whether there may be more.
    async fn next(&mut self) -> Result<(Vec<LogEntry>, bool), StoreError> {
        let store = &self.shared.store;
        let mut entries = store.log(&self.session, self.after, self.limit).await?;
        let more = entries.len() as u64 == u64::from(self.limit);
        if let Some(last) = entries.last() {
            self.after = Some(last.seq);
        }
        if let Some(since) = self.since {
            entries.retain(|entry| entry.at >= since);
        }
        Ok((entries, more))
    }
}

/// Lines of JSON as they happen. Ends when the server stops or the store fails.
fn follow(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    futures::stream::unfold(reader, |mut reader| async move {
        let quiet_until = Instant::now() + FOLLOW_SIGN_OF_LIFE;
        loop {
            let (entries, more) = match reader.next().await {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(error = %base_types::Chain(&error), "following a log ended");
                    return None;
                }
            };
            if !entries.is_empty() {
                return Some((Ok(lines(&entries)), reader));
            }
            if Instant::now() >= quiet_until {
                return Some((Ok(Bytes::from_static(b"\n")), reader));
            }
            if !more {
                tokio::select! {
                    () = reader.shared.stop.cancelled() => return None,
                    () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
                }
            }
        }
    })
}

fn lines(entries: &[LogEntry]) -> Bytes {
    let mut text = Vec::new();
    for entry in entries {
        // Entries are plain data; one that does not serialise is left out rather than cut the log.
        if let Ok(line) = serde_json::to_vec(entry) {
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
    }
    text.into()
}
