//! Questions to the journal. They run beside the writer and see everything acknowledged.

use base_types::{CallId, NodeId, SessionId, Timestamp, ToolUseId, WorkId};
use futures::TryStreamExt;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite, SqlitePool};
use store_api::{
    CallRecord, LogEntry, PAGE_BYTES_MAX, PAGE_MAX, SessionFilter, SessionRecord, StoreError,
    WorkRecord,
};

use crate::dialect::now_ms;
use crate::{failed, rows};

type Prepared = Query<'static, Sqlite, SqliteArguments>;

pub(crate) async fn session(
    readers: &SqlitePool,
    session: &SessionId,
) -> Result<Option<SessionRecord>, StoreError> {
    let query = sqlx::query("SELECT * FROM sessions WHERE id = $1").bind(session.to_string());
    one(readers, query, "read session", rows::session).await
}

pub(crate) async fn sessions(
    readers: &SqlitePool,
    filter: &SessionFilter,
) -> Result<Vec<SessionRecord>, StoreError> {
    let query = sqlx::query(
        "SELECT * FROM sessions \
         WHERE (NOT $1 OR phase NOT IN ('ended', 'failed')) AND ($2 IS NULL OR owner = $2) \
         ORDER BY updated_at DESC, id LIMIT $3",
    )
    .bind(filter.open_only)
    .bind(filter.owner.as_ref().map(NodeId::to_string))
    .bind(i64::from(filter.limit.min(PAGE_MAX)));
    all(readers, query, "list sessions", rows::session).await
}

pub(crate) async fn owned_sessions(
    readers: &SqlitePool,
    node: &NodeId,
    after: Option<&SessionId>,
    limit: u32,
) -> Result<Vec<SessionRecord>, StoreError> {
    let query = sqlx::query(
        "SELECT * FROM sessions \
         WHERE owner = $1 AND phase NOT IN ('ended', 'failed') AND id > $2 ORDER BY id LIMIT $3",
    )
    .bind(node.to_string())
    .bind(after.map_or("", SessionId::as_str))
    .bind(i64::from(limit.min(PAGE_MAX)));
    all(readers, query, "list owned sessions", rows::session).await
}

pub(crate) async fn work(
    readers: &SqlitePool,
    work: &WorkId,
) -> Result<Option<WorkRecord>, StoreError> {
    let query = sqlx::query("SELECT * FROM work WHERE id = $1").bind(work.to_string());
    one(readers, query, "read work", rows::work).await
}

pub(crate) async fn open_work(
    readers: &SqlitePool,
    node: &NodeId,
) -> Result<Vec<WorkRecord>, StoreError> {
    let query = sqlx::query(
        "SELECT * FROM work WHERE node = $1 AND phase <> 'ended' ORDER BY claimed_at, id",
    )
    .bind(node.to_string());
    all(readers, query, "list work", rows::work).await
}

pub(crate) async fn call(
    readers: &SqlitePool,
    call: &CallId,
) -> Result<Option<CallRecord>, StoreError> {
    let query = sqlx::query("SELECT * FROM calls WHERE id = $1").bind(call.to_string());
    one(readers, query, "read call", rows::call).await
}

pub(crate) async fn call_for(
    readers: &SqlitePool,
    session: &SessionId,
    tool_use: &ToolUseId,
) -> Result<Option<CallRecord>, StoreError> {
    let query = sqlx::query("SELECT * FROM calls WHERE session = $1 AND tool_use = $2")
        .bind(session.to_string())
        .bind(tool_use.to_string());
    one(readers, query, "read call", rows::call).await
}

pub(crate) async fn calls(
    readers: &SqlitePool,
    session: &SessionId,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<CallRecord>, StoreError> {
    let query =
        sqlx::query("SELECT * FROM calls WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3")
            .bind(session.to_string())
            .bind(position(after))
            .bind(i64::from(limit.min(PAGE_MAX)));
    page(readers, query, "list calls", &["call", "body"], rows::call).await
}

pub(crate) async fn open_calls(
    readers: &SqlitePool,
    session: &SessionId,
) -> Result<Vec<CallRecord>, StoreError> {
    let query =
        sqlx::query("SELECT * FROM calls WHERE session = $1 AND state <> 'settled' ORDER BY seq")
            .bind(session.to_string());
    all(readers, query, "list open calls", rows::call).await
}

pub(crate) async fn log(
    readers: &SqlitePool,
    session: &SessionId,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<LogEntry>, StoreError> {
    let query =
        sqlx::query("SELECT * FROM log WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3")
            .bind(session.to_string())
            .bind(position(after))
            .bind(i64::from(limit.min(PAGE_MAX)));
    page(readers, query, "read log", &["event"], rows::log_entry).await
}

pub(crate) async fn now(readers: &SqlitePool) -> Result<Timestamp, StoreError> {
    let row = sqlx::query(concat!("SELECT ", now_ms!(), " AS now"))
        .fetch_one(readers)
        .await
        .map_err(failed("read clock"))?;
    row.try_get("now").map(Timestamp).map_err(failed("read clock"))
}

/// Positions count from 1. One that no row can have is after all of them.
fn position(after: Option<u64>) -> i64 {
    after.map_or(0, |seq| i64::try_from(seq).unwrap_or(i64::MAX))
}

async fn one<T>(
    readers: &SqlitePool,
    query: Prepared,
    action: &'static str,
    read: fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let row = query.fetch_optional(readers).await.map_err(failed(action))?;
    row.as_ref().map(read).transpose()
}

async fn all<T>(
    readers: &SqlitePool,
    query: Prepared,
    action: &'static str,
    read: fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let rows = query.fetch_all(readers).await.map_err(failed(action))?;
    rows.iter().map(read).collect()
}

/// As [`all`], but ends when the columns in `weighed` have filled a page.
async fn page<T>(
    readers: &SqlitePool,
    query: Prepared,
    action: &'static str,
    weighed: &[&'static str],
    read: fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut rows = query.fetch(readers);
    let mut page = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(action))? {
        for column in weighed {
            // A column of another type is the reader's error to report, not ours.
            bytes += row
                .try_get_unchecked::<Option<&[u8]>, _>(*column)
                .ok()
                .flatten()
                .map_or(0, <[u8]>::len);
        }
        page.push(read(&row)?);
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(page)
}
