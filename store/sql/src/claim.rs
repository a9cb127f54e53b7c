//! Work items before they are acknowledged, and the ownership of sessions.

use base_types::{Generation, NodeId, SessionId};
use sqlx::{Row, SqliteConnection, SqlitePool};
use store_api::{NewWork, Sealed, StoreError};

use crate::dialect::now_ms;
use crate::failed;

/// The session's row is made or touched, and says which environment it is of.
const TOUCH_SESSION: &str = concat!(
    "INSERT INTO sessions \
     (id, environment, generation, phase, phase_at, sandbox_gone, next_seq, created_at, updated_at) \
     VALUES ($1, $2, 0, 'claimed', ",
    now_ms!(),
    ", FALSE, 1, ",
    now_ms!(),
    ", ",
    now_ms!(),
    ") ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at RETURNING environment"
);

/// A known item starts over, unless it is another session's.
const CLAIM: &str = concat!(
    "INSERT INTO work (id, environment, session, node, token, phase, beat_open, claimed_at) \
     VALUES ($1, $2, $3, $4, $5, 'claiming', FALSE, ",
    now_ms!(),
    ") ON CONFLICT (id) DO UPDATE SET node = excluded.node, token = excluded.token, \
     phase = 'claiming', last_beat = NULL, last_beat_at = NULL, ttl_ms = NULL, \
     beat_open = FALSE, ended_at = NULL, ended_why = NULL, claimed_at = excluded.claimed_at \
     WHERE work.session = excluded.session"
);

const TAKE: &str = concat!(
    "UPDATE sessions SET owner = $2, generation = generation + 1, updated_at = ",
    now_ms!(),
    " WHERE id = $1 RETURNING generation"
);

pub(crate) async fn claim_work(
    connection: &mut SqliteConnection,
    work: &NewWork,
) -> Result<(), StoreError> {
    let row = sqlx::query(TOUCH_SESSION)
        .bind(work.session.as_str())
        .bind(work.environment.as_str())
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("claim work"))?;
    let known: String = row.try_get("environment").map_err(failed("claim work"))?;
    if known != work.environment.as_str() {
        return Err(StoreError::WrongEnvironment {
            session: work.session.clone(),
            known: known.into(),
            offered: work.environment.clone(),
        });
    }
    let claimed = sqlx::query(CLAIM)
        .bind(work.id.as_str())
        .bind(work.environment.as_str())
        .bind(work.session.as_str())
        .bind(work.node.as_str())
        .bind(work.token.as_ref().map(|Sealed(bytes)| bytes.as_slice()))
        .execute(connection)
        .await
        .map_err(failed("claim work"))?;
    match claimed.rows_affected() {
        0 => Err(StoreError::Refused {
            change: "claim work",
            why: format!("work item {} belongs to another session", work.id),
        }),
        _ => Ok(()),
    }
}

pub(crate) async fn take_session(
    writer: &SqlitePool,
    session: &SessionId,
    node: &NodeId,
) -> Result<Generation, StoreError> {
    let row = sqlx::query(TAKE)
        .bind(session.as_str())
        .bind(node.as_str())
        .fetch_optional(writer)
        .await
        .map_err(failed("take session"))?;
    let row = row.ok_or_else(|| StoreError::NoSuchSession(session.clone()))?;
    let generation: i64 = row.try_get("generation").map_err(failed("take session"))?;
    Ok(Generation(generation.unsigned_abs()))
}
