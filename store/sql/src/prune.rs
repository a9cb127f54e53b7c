//! Forgetting what is old.

use base_types::Timestamp;
use sqlx::SqlitePool;
use store_api::StoreError;

use crate::failed;

/// Sessions deleted in one transaction. Each takes its calls, work and log with it, and writers
/// wait meanwhile.
const SESSIONS_PER_STEP: i64 = 50;

/// Log entries deleted in one transaction: some milliseconds' worth.
const ENTRIES_PER_STEP: i64 = 5_000;

/// A session goes when it is over and nothing of it is left to finish: no open call, no open
/// work item, no sandbox that may still exist.
const PRUNE_SESSIONS: &str = "\
    DELETE FROM sessions WHERE id IN ( \
        SELECT id FROM sessions s \
        WHERE s.phase IN ('ended', 'failed') AND s.phase_at < $1 AND s.updated_at < $1 \
        AND (s.sandbox IS NULL OR s.sandbox_gone) \
        AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.session = s.id AND c.state <> 'settled') \
        AND NOT EXISTS (SELECT 1 FROM work w WHERE w.session = s.id AND w.phase <> 'ended') \
        LIMIT $2)";

const PRUNE_LOG: &str = "\
    DELETE FROM log WHERE (session, seq) IN (SELECT session, seq FROM log WHERE at < $1 LIMIT $2)";

/// In steps, so that a first run over a large journal does not hold up the sessions it serves.
pub(crate) async fn prune(writer: &SqlitePool, before: Timestamp) -> Result<u64, StoreError> {
    let steps = [
        (PRUNE_SESSIONS, SESSIONS_PER_STEP, "prune sessions"),
        (PRUNE_LOG, ENTRIES_PER_STEP, "prune log"),
    ];
    let mut gone = 0;
    for (statement, step, action) in steps {
        loop {
            let done = sqlx::query(statement)
                .bind(before.0)
                .bind(step)
                .execute(writer)
                .await
                .map_err(failed(action))?
                .rows_affected();
            gone += done;
            if done < step.unsigned_abs() {
                break;
            }
        }
    }
    Ok(gone)
}
