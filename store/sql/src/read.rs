//! Questions to the journal. They run beside the writer and see everything acknowledged.

use base_types::{CallId, NodeId, SessionId, Timestamp, ToolUseId, WorkId};
use futures::TryStreamExt;
use store_api::{
    CallRecord, LogEntry, PAGE_BYTES_MAX, PAGE_MAX, SessionFilter, SessionRecord, StoreError,
    WorkRecord,
};

use crate::database::{Connection, Query, Row, query};
use crate::dialect::sql;
use crate::failure::failed;
use crate::rows;

pub(crate) async fn session(
    connection: &mut Connection<'_>,
    session: &SessionId,
) -> Result<Option<SessionRecord>, StoreError> {
    let question = query(sql!("SELECT * FROM sessions WHERE id = $1")).bind(session.as_str());
    one(connection, question, "read session", rows::session).await
}

pub(crate) async fn sessions(
    connection: &mut Connection<'_>,
    filter: &SessionFilter,
) -> Result<Vec<SessionRecord>, StoreError> {
    let question = query(sql!(
        "SELECT * FROM sessions \
         WHERE (NOT $1 OR phase NOT IN ('ended', 'failed')) AND ($2 IS NULL OR owner = $2) \
         ORDER BY updated_at DESC, id LIMIT $3"
    ))
    .bind(filter.open_only)
    .bind(filter.owner.as_ref().map(NodeId::as_str))
    .bind(i64::from(filter.limit.min(PAGE_MAX)));
    readable(connection, question, "list sessions", rows::session).await
}

pub(crate) async fn owned_sessions(
    connection: &mut Connection<'_>,
    node: &NodeId,
    after: Option<&SessionId>,
    limit: u32,
) -> Result<Vec<SessionRecord>, StoreError> {
    let question = query(sql!(
        "SELECT * FROM sessions \
         WHERE owner = $1 AND phase NOT IN ('ended', 'failed') AND id > $2 ORDER BY id LIMIT $3"
    ))
    .bind(node.as_str())
    .bind(after.map_or("", SessionId::as_str))
    .bind(i64::from(limit.min(PAGE_MAX)));
    readable(connection, question, "list owned sessions", rows::session).await
}

pub(crate) async fn work(
    connection: &mut Connection<'_>,
    work: &WorkId,
) -> Result<Option<WorkRecord>, StoreError> {
    let question = query(sql!("SELECT * FROM work WHERE id = $1")).bind(work.as_str());
    one(connection, question, "read work", rows::work).await
}

pub(crate) async fn open_work(
    connection: &mut Connection<'_>,
    node: &NodeId,
) -> Result<Vec<WorkRecord>, StoreError> {
    let question = query(sql!(
        "SELECT * FROM work WHERE node = $1 AND phase <> 'ended' ORDER BY claimed_at, id"
    ))
    .bind(node.as_str());
    readable(connection, question, "list work", rows::work).await
}

pub(crate) async fn call(
    connection: &mut Connection<'_>,
    call: &CallId,
) -> Result<Option<CallRecord>, StoreError> {
    let question = query(sql!("SELECT * FROM calls WHERE id = $1")).bind(call.as_str());
    one(connection, question, "read call", rows::call).await
}

pub(crate) async fn call_for(
    connection: &mut Connection<'_>,
    session: &SessionId,
    tool_use: &ToolUseId,
) -> Result<Option<CallRecord>, StoreError> {
    let question = query(sql!("SELECT * FROM calls WHERE session = $1 AND tool_use = $2"))
        .bind(session.as_str())
        .bind(tool_use.as_str());
    one(connection, question, "read call", rows::call).await
}

pub(crate) async fn calls(
    connection: &mut Connection<'_>,
    session: &SessionId,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<CallRecord>, StoreError> {
    let question =
        query(sql!("SELECT * FROM calls WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3"))
            .bind(session.as_str())
            .bind(position(after))
            .bind(i64::from(limit.min(PAGE_MAX)));
    page(connection, question, "list calls", &["call", "body"], rows::call).await
}

pub(crate) async fn open_calls(
    connection: &mut Connection<'_>,
    session: &SessionId,
) -> Result<Vec<CallRecord>, StoreError> {
    let question =
        query(sql!("SELECT * FROM calls WHERE session = $1 AND state <> 'settled' ORDER BY seq"))
            .bind(session.as_str());
    all(connection, question, "list open calls", rows::call).await
}

pub(crate) async fn log(
    connection: &mut Connection<'_>,
    session: &SessionId,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<LogEntry>, StoreError> {
    let question =
        query(sql!("SELECT * FROM log WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3"))
            .bind(session.as_str())
            .bind(position(after))
            .bind(i64::from(limit.min(PAGE_MAX)));
    page(connection, question, "read log", &["event"], rows::log_entry).await
}

pub(crate) async fn now(connection: &mut Connection<'_>) -> Result<Timestamp, StoreError> {
    let row = query(sql!("SELECT ", now_ms, " AS now"))
        .one(connection)
        .await
        .map_err(failed("read clock"))?;
    row.get("now").map(Timestamp).map_err(failed("read clock"))
}

/// Positions count from 1. One that no row can have is after all of them.
fn position(after: Option<u64>) -> i64 {
    after.map_or(0, |seq| i64::try_from(seq).unwrap_or(i64::MAX))
}

async fn one<T>(
    connection: &mut Connection<'_>,
    question: Query<'_>,
    action: &'static str,
    read: fn(&Row) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let row = question.optional(connection).await.map_err(failed(action))?;
    row.as_ref().map(read).transpose()
}

async fn all<T>(
    connection: &mut Connection<'_>,
    question: Query<'_>,
    action: &'static str,
    read: fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut rows = question.rows(connection);
    let mut all = Vec::new();
    while let Some(row) = rows.try_next().await.map_err(failed(action))? {
        all.push(read(&row)?);
    }
    Ok(all)
}

/// As [`all`], for rows of different sessions: one that cannot be read is left out and named in the
/// log, so that it costs its own session and no other.
async fn readable<T>(
    connection: &mut Connection<'_>,
    question: Query<'_>,
    action: &'static str,
    read: fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut rows = question.rows(connection);
    let mut readable = Vec::new();
    while let Some(row) = rows.try_next().await.map_err(failed(action))? {
        match read(&row) {
            Ok(record) => readable.push(record),
            Err(error @ StoreError::Unreadable { .. }) => {
                tracing::error!(action, %error, "left out")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(readable)
}

/// As [`all`], but ends when the columns in `weighed` have filled a page.
async fn page<T>(
    connection: &mut Connection<'_>,
    question: Query<'_>,
    action: &'static str,
    weighed: &[&'static str],
    read: fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut rows = question.rows(connection);
    let mut page = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(action))? {
        bytes += weighed.iter().map(|column| row.size(column)).sum::<usize>();
        page.push(read(&row)?);
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(page)
}
