//! Changes of a work item: claiming → active → ended.

use base_types::WorkId;
use store_api::{StoreError, WorkEnd};

use crate::apply::Batch;
use crate::database::{Connection, query};
use crate::dialect::sql;
use crate::failure::failed;
use crate::rows::name_of;
use crate::stored;

pub(crate) async fn acked(batch: &mut Batch<'_, '_>, work: &WorkId) -> Result<(), StoreError> {
    let done = query(sql!(
        "UPDATE work SET phase = 'active' WHERE id = $1 AND session = $2 AND phase <> 'ended'"
    ))
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .execute(batch.connection)
    .await
    .map_err(failed("record acknowledgement"))?;
    require(batch, work, "work acked", done).await
}

pub(crate) async fn beat_intended(
    batch: &mut Batch<'_, '_>,
    work: &WorkId,
) -> Result<(), StoreError> {
    let done = query(sql!(
        "UPDATE work SET beat_open = TRUE WHERE id = $1 AND session = $2 AND phase = 'active'"
    ))
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .execute(batch.connection)
    .await
    .map_err(failed("record heartbeat"))?;
    require(batch, work, "beat intended", done).await
}

pub(crate) async fn beat(
    batch: &mut Batch<'_, '_>,
    work: &WorkId,
    last: &str,
    ttl_ms: Option<u64>,
) -> Result<(), StoreError> {
    let ttl_ms = ttl_ms.map(|ms| stored(ms, "beat", "ttl")).transpose()?;
    let done = query(sql!(
        "UPDATE work SET beat_open = FALSE, last_beat = $3, last_beat_at = $4, ttl_ms = $5 \
         WHERE id = $1 AND session = $2 AND phase = 'active' AND beat_open"
    ))
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .bind(last)
    .bind(batch.now)
    .bind(ttl_ms)
    .execute(batch.connection)
    .await
    .map_err(failed("record heartbeat"))?;
    require(batch, work, "beat", done).await
}

/// The token goes with the item: nothing may use it any more.
pub(crate) async fn ended(
    batch: &mut Batch<'_, '_>,
    work: &WorkId,
    why: WorkEnd,
) -> Result<(), StoreError> {
    let done = query(sql!(
        "UPDATE work SET phase = 'ended', ended_at = $3, ended_why = $4, token = NULL \
         WHERE id = $1 AND session = $2 AND phase <> 'ended'"
    ))
    .bind(work.as_str())
    .bind(batch.session.as_str())
    .bind(batch.now)
    .bind(name_of(&why))
    .execute(batch.connection)
    .await
    .map_err(failed("record end of work"))?;
    require(batch, work, "work ended", done).await
}

/// A change that fitted no row is refused with what was found instead.
async fn require(
    batch: &mut Batch<'_, '_>,
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
    connection: &mut Connection<'_>,
    session: &str,
    work: &WorkId,
    change: &'static str,
) -> Result<StoreError, StoreError> {
    let row = query(sql!("SELECT phase, beat_open, session FROM work WHERE id = $1"))
        .bind(work.as_str())
        .optional(connection)
        .await
        .map_err(failed("look up work"))?;
    let why = match row {
        None => format!("no work item {work}"),
        Some(row) => {
            let owner: String = row.get("session").map_err(failed("look up work"))?;
            let phase: String = row.get("phase").map_err(failed("look up work"))?;
            match (owner == session, phase.as_str()) {
                (false, _) => format!("work item {work} belongs to another session"),
                (true, "active") => format!("no heartbeat of work item {work} is under way"),
                (true, phase) => format!("work item {work} is {phase}"),
            }
        }
    };
    Ok(StoreError::Refused { change, why })
}
