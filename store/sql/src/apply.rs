//! One batch of changes: whose it is, what each change does, and the lines it adds to the log.

use base_types::{Generation, SessionId};
use sqlx::{Row, SqliteConnection};
use store_api::{Change, LogEvent, StoreError};

use crate::dialect::now_ms;
use crate::{calls, failed, sessions, stored, work};

/// Checks the owner, locks the row, and reserves one position of the log per change, all at once.
const OPEN_BATCH: &str = concat!(
    "UPDATE sessions SET next_seq = next_seq + $3, \
     updated_at = CASE WHEN $4 THEN ",
    now_ms!(),
    " ELSE updated_at END \
     WHERE id = $1 AND generation = $2 RETURNING next_seq - $3 AS seq, ",
    now_ms!(),
    " AS now"
);

/// What each change of a batch works with.
pub(crate) struct Batch<'a> {
    pub connection: &'a mut SqliteConnection,
    pub session: &'a SessionId,
    pub now: i64,
    /// The position of the present change in the session's log.
    pub seq: i64,
}

pub(crate) async fn apply(
    connection: &mut SqliteConnection,
    session: &SessionId,
    generation: Generation,
    changes: &[Change],
) -> Result<(), StoreError> {
    // A heartbeat is not activity: it would put every live session at the top of every list.
    let activity = !changes.iter().all(Change::is_beat);
    let row = sqlx::query(OPEN_BATCH)
        .bind(session.as_str())
        .bind(i64::try_from(generation.0).unwrap_or(-1))
        .bind(stored(changes.len() as u64, "batch", "length")?)
        .bind(activity)
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed("apply changes"))?;
    let Some(row) = row else {
        return Err(not_owner(connection, session, generation).await?);
    };
    let mut batch = Batch {
        session,
        now: row.try_get("now").map_err(failed("apply changes"))?,
        seq: row.try_get("seq").map_err(failed("apply changes"))?,
        connection,
    };
    for change in changes {
        batch.apply(change).await?;
        if let Some(event) = change.log_event() {
            batch.log(&event).await?;
        }
        batch.seq += 1;
    }
    Ok(())
}

async fn not_owner(
    connection: &mut SqliteConnection,
    session: &SessionId,
    generation: Generation,
) -> Result<StoreError, StoreError> {
    let known = sqlx::query("SELECT id FROM sessions WHERE id = $1")
        .bind(session.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("apply changes"))?;
    Ok(match known {
        Some(_) => StoreError::NotOwner { session: session.clone(), generation },
        None => StoreError::NoSuchSession(session.clone()),
    })
}

impl Batch<'_> {
    async fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::WorkAcked { work } => work::acked(self, work).await,
            Change::BeatIntended { work } => work::beat_intended(self, work).await,
            Change::Beat { work, last, ttl_ms } => work::beat(self, work, last, *ttl_ms).await,
            Change::WorkEnded { work, why } => work::ended(self, work, *why).await,
            Change::Identified(identity) => sessions::identified(self, identity).await,
            Change::Phase(phase) => sessions::phase(self, phase).await,
            Change::Sandbox(sandbox) => sessions::sandbox(self, sandbox).await,
            Change::CallReceived(call) => calls::received(self, call).await,
            Change::CallStarted { call, epoch } => calls::started(self, call, *epoch).await,
            Change::CallFinished { call, end } => calls::finished(self, call, end).await,
            Change::CallShortened { call, body } => calls::shortened(self, call, body).await,
            Change::CallSettled { call, refused } => calls::settled(self, call, *refused).await,
            Change::Note(_) => Ok(()),
        }
    }

    async fn log(&mut self, event: &LogEvent) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO log (session, seq, at, event) VALUES ($1, $2, $3, $4)")
            .bind(self.session.as_str())
            .bind(self.seq)
            .bind(self.now)
            .bind(json(event, "log")?)
            .execute(&mut *self.connection)
            .await
            .map_err(failed("write log"))?;
        Ok(())
    }
}

/// A document for a text column.
pub(crate) fn json(
    value: &impl serde::Serialize,
    change: &'static str,
) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Refused { change, why: error.to_string() })
}
