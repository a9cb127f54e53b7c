//! One batch of changes: whose it is, what each change does, and the lines it adds to the log.

use base_types::{Generation, SessionId};
use store_api::{Change, LogEvent, StoreError};
use uuid::Uuid;

use crate::database::{Connection, query};
use crate::dialect::{Statement, sql};
use crate::failure::failed;
use crate::{calls, sessions, stored, work};

/// Checks the owner, locks the row, and reserves one position of the log per change, all at once.
///
/// PostgreSQL also remembers the batch by its key: whoever repeats it, because the answer to the
/// commit was lost, finds it there, and waits for it while it is still being committed.
const OPEN_BATCH: Statement = sql!(
    (postgres
        "WITH batch AS ( \
            INSERT INTO batches (id, at) VALUES ($5, "),
    (postgres now_ms),
    (postgres ") ON CONFLICT DO NOTHING RETURNING id) "),
    "UPDATE sessions SET next_seq = next_seq + $3, \
     updated_at = CASE WHEN $4 THEN ",
    now_ms,
    " ELSE updated_at END \
     WHERE id = $1 AND generation = $2 RETURNING next_seq - $3 AS seq, \
     CASE WHEN $4 THEN updated_at ELSE ",
    now_ms,
    " END AS now",
    (postgres ", EXISTS (SELECT 1 FROM batch) AS is_new"),
);

/// A batch as its caller gave it, and the key by which a repetition is known.
pub(crate) struct Incoming<'a> {
    pub session: &'a SessionId,
    pub generation: Generation,
    pub changes: &'a [Change],
    key: Uuid,
}

impl<'a> Incoming<'a> {
    pub fn new(session: &'a SessionId, generation: Generation, changes: &'a [Change]) -> Self {
        // Ordered by time: the index of keys grows at its end.
        Self { session, generation, changes, key: Uuid::now_v7() }
    }
}

/// What each change of a batch works with.
pub(crate) struct Batch<'a, 'c> {
    pub connection: &'a mut Connection<'c>,
    pub session: &'a SessionId,
    pub now: i64,
    /// The position of the present change in the session's log.
    pub seq: i64,
}

pub(crate) async fn apply(
    connection: &mut Connection<'_>,
    incoming: &Incoming<'_>,
) -> Result<(), StoreError> {
    let Incoming { session, generation, changes, key } = *incoming;
    // A heartbeat is not activity: it would put every live session at the top of every list.
    let activity = !changes.iter().all(Change::is_beat);
    let mut open = query(OPEN_BATCH)
        .bind(session.as_str())
        .bind(i64::try_from(generation.0).unwrap_or(-1))
        .bind(stored(changes.len() as u64, "batch", "length")?)
        .bind(activity);
    let remembers = matches!(connection, Connection::Postgres(_));
    if remembers {
        open = open.bind(key.as_bytes().as_slice());
    }
    let row = open.optional(connection).await.map_err(failed("apply changes"))?;
    let Some(row) = row else {
        return Err(not_owner(connection, session, generation).await?);
    };
    if remembers && !row.get::<bool>("is_new").map_err(failed("apply changes"))? {
        return Ok(());
    }
    let mut batch = Batch {
        session,
        now: row.get("now").map_err(failed("apply changes"))?,
        seq: row.get("seq").map_err(failed("apply changes"))?,
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
    connection: &mut Connection<'_>,
    session: &SessionId,
    generation: Generation,
) -> Result<StoreError, StoreError> {
    let known = query(sql!("SELECT id FROM sessions WHERE id = $1"))
        .bind(session.as_str())
        .optional(connection)
        .await
        .map_err(failed("apply changes"))?;
    Ok(match known {
        Some(_) => StoreError::NotOwner { session: session.clone(), generation },
        None => StoreError::NoSuchSession(session.clone()),
    })
}

impl Batch<'_, '_> {
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
        query(sql!("INSERT INTO log (session, seq, at, event) VALUES ($1, $2, $3, $4)"))
            .bind(self.session.as_str())
            .bind(self.seq)
            .bind(self.now)
            .bind(json(event, "log")?)
            .execute(self.connection)
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
