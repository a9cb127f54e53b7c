//! Changes of a work item: claiming → active → ended.

use base_types::WorkId;
use sqlx::{Row, SqliteConnection};
use store_api::{StoreError, WorkEnd};

use crate::apply::Batch;
use crate::rows::name_of;
use crate::{failed, stored};

pub(crate) async fn acked(batch: &mut Batch<'_>, work: &WorkId) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE work SET phase = 'active' WHERE id = $1 AND session = $2 AND phase <> 'ended'",
    )
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .execute(&mut *batch.connection)
    .await
    .map_err(failed("record acknowledgement"))?;
    require(batch, work, "work acked", done.rows_affected()).await
}

pub(crate) async fn beat_intended(batch: &mut Batch<'_>, work: &WorkId) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE work SET beat_open = TRUE WHERE id = $1 AND session = $2 AND phase = 'active'",
    )
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .execute(&mut *batch.connection)
    .await
    .map_err(failed("record heartbeat"))?;
    require(batch, work, "beat intended", done.rows_affected()).await
}

pub(crate) async fn beat(
    batch: &mut Batch<'_>,
    work: &WorkId,
    last: &str,
    ttl_ms: Option<u64>,
) -> Result<(), StoreError> {
    let ttl_ms = ttl_ms.map(|ms| stored(ms, "beat", "ttl")).transpose()?;
    let done = sqlx::query(
        "UPDATE work SET beat_open = FALSE, last_beat = $3, last_beat_at = $4, ttl_ms = $5 \
         WHERE id = $1 AND session = $2 AND phase = 'active' AND beat_open",
    )
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .bind(last)
    .bind(batch.now)
    .bind(ttl_ms)
    .execute(&mut *batch.connection)
    .await
    .map_err(failed("record heartbeat"))?;
    require(batch, work, "beat", done.rows_affected()).await
}

/// The token goes with the item: nothing may use it any more.
pub(crate) async fn ended(
    batch: &mut Batch<'_>,
    work: &WorkId,
    why: WorkEnd,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE work SET phase = 'ended', ended_at = $3, ended_why = $4, token = NULL \
         WHERE id = $1 AND session = $2 AND phase <> 'ended'",
    )
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .bind(batch.now)
    .bind(name_of(&why))
    .execute(&mut *batch.connection)
    .await
    .map_err(failed("record end of work"))?;
    require(batch, work, "work ended", done.rows_affected()).await
}

/// A change that fitted no row is refused with what was found instead.
async fn require(
    batch: &mut Batch<'_>,
    work: &WorkId,
    change: &'static str,
    rows: u64,
) -> Result<(), StoreError> {
    match rows {
        0 => Err(refusal(batch.connection, batch.session.as_str(), work, change).await?),
        _ => Ok(()),
    }
}

async fn refusal(
    connection: &mut SqliteConnection,
    session: &str,
    work: &WorkId,
    change: &'static str,
) -> Result<StoreError, StoreError> {
    let row = sqlx::query("SELECT phase, beat_open, session FROM work WHERE id = $1")
        .bind(work.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("look up work"))?;
    let why = match row {
        None => format!("no work item {work}"),
        Some(row) => {
            let owner: String = row.try_get("session").map_err(failed("look up work"))?;
            let phase: String = row.try_get("phase").map_err(failed("look up work"))?;
            match (owner == session, phase.as_str()) {
                (false, _) => format!("work item {work} belongs to another session"),
                (true, "active") => format!("no heartbeat of work item {work} is under way"),
                (true, phase) => format!("work item {work} is {phase}"),
            }
        }
    };
    Ok(StoreError::Refused { change, why })
}
