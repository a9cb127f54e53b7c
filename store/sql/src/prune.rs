//! Forgetting what is old.

use base_types::Timestamp;
use store_api::StoreError;

use crate::backend::{Backend, attempt};
use crate::database::{Connection, query};
use crate::dialect::{Statement, sql};
use crate::failure::failed;

/// Sessions deleted in one transaction. Each takes its calls, work and log with it, and writers
/// wait meanwhile.
const SESSIONS_PER_STEP: i64 = 50;

/// Log entries deleted in one transaction: some milliseconds' worth.
const ENTRIES_PER_STEP: i64 = 5_000;

/// The key of a batch is kept this long: many times as long as a repetition of it is tried.
const BATCH_KEYS_KEPT_MS: i64 = 10 * 60 * 1_000;

/// A session goes when it is over and nothing of it is left to finish: no open call, no open
/// work item, no sandbox that may still exist. Activity is asked for twice: a claim that comes in
/// between changes it, and PostgreSQL looks at the row again before it deletes it, though not at
/// the list that it was found by.
const PRUNE_SESSIONS: Statement = sql!(
    "DELETE FROM sessions WHERE updated_at < $1 AND id IN ( \
        SELECT id FROM sessions s \
        WHERE s.phase IN ('ended', 'failed') AND s.phase_at < $1 AND s.updated_at < $1 \
        AND (s.sandbox IS NULL OR s.sandbox_gone) \
        AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.session = s.id AND c.state <> 'settled') \
        AND NOT EXISTS (SELECT 1 FROM work w WHERE w.session = s.id AND w.phase <> 'ended') \
        LIMIT $2)"
);

const PRUNE_LOG: Statement = sql!(
    "DELETE FROM log WHERE (session, seq) IN (SELECT session, seq FROM log WHERE at < $1 LIMIT $2)"
);

/// Only PostgreSQL has them.
const PRUNE_BATCHES: Statement = sql!(
    (postgres
        "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE at < $1 LIMIT $2)")
);

/// In steps, so that a first run over a large journal does not hold up the sessions it serves.
pub(crate) async fn prune(
    backend: &Backend,
    before: Timestamp,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let sessions = steps(backend, PRUNE_SESSIONS, before.0, SESSIONS_PER_STEP).await?;
    let entries = steps(backend, PRUNE_LOG, before.0, ENTRIES_PER_STEP).await?;
    if let Backend::Postgres { .. } = backend {
        let kept_from = now.0.saturating_sub(BATCH_KEYS_KEPT_MS);
        steps(backend, PRUNE_BATCHES, kept_from, ENTRIES_PER_STEP).await?;
    }
    Ok(sessions + entries)
}

async fn steps(
    backend: &Backend,
    statement: Statement,
    before: i64,
    step: i64,
) -> Result<u64, StoreError> {
    let mut gone = 0;
    loop {
        let done = attempt!(backend, write, "prune", |connection| {
            one_step(connection, statement, before, step)
        })?;
        gone += done;
        if done < step.unsigned_abs() {
            return Ok(gone);
        }
    }
}

async fn one_step(
    connection: &mut Connection<'_>,
    statement: Statement,
    before: i64,
    step: i64,
) -> Result<u64, StoreError> {
    query(statement).bind(before).bind(step).execute(connection).await.map_err(failed("prune"))
}
