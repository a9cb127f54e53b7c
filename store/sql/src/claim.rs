//! Work items before they are acknowledged, and the ownership of sessions.

use base_types::{Generation, NodeId, SessionId};
use store_api::{NewWork, Sealed, StoreError};

use crate::database::{Connection, query};
use crate::dialect::{Statement, sql};
use crate::failure::failed;
use crate::indexed;
use crate::nodes::not_held_elsewhere;

/// The session's row is made or touched, and says which environment it is of.
const TOUCH_SESSION: Statement = sql!(
    "INSERT INTO sessions \
     (id, environment, generation, phase, phase_at, sandbox_gone, next_seq, created_at, updated_at) \
     VALUES ($1, $2, 0, 'claimed', ",
    now_ms,
    ", FALSE, 1, ",
    now_ms,
    ", ",
    now_ms,
    ") ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at RETURNING environment"
);

/// A known item starts over, unless it is another session's.
const CLAIM: Statement = sql!(
    "INSERT INTO work (id, environment, session, node, token, phase, beat_open, claimed_at) \
     VALUES ($1, $2, $3, $4, $5, 'claiming', FALSE, ",
    now_ms,
    ") ON CONFLICT (id) DO UPDATE SET node = excluded.node, token = excluded.token, \
     phase = 'claiming', last_beat = NULL, last_beat_at = NULL, ttl_ms = NULL, \
     beat_open = FALSE, ended_at = NULL, ended_why = NULL, claimed_at = excluded.claimed_at \
     WHERE work.session = excluded.session"
);

/// Locks the session's row without changing it.
const LOCK_SESSION: Statement =
    sql!("UPDATE sessions SET owner = owner WHERE id = $1 RETURNING id");

/// The open items that other nodes have of the session: they are gone, or this would not be asked.
const END_ORPHANS: Statement = sql!(
    "UPDATE work SET phase = 'ended', ended_at = ",
    now_ms,
    ", ended_why = 'lease_lost', token = NULL \
     WHERE session = $1 AND node <> $2 AND phase <> 'ended'"
);

/// Generations grow with the clock: after a failover that lost the last take-overs, one more would
/// give out a generation again that somebody holds already.
const TAKE: Statement = sql!(
    "UPDATE sessions SET owner = $2, generation = CASE WHEN generation < ",
    now_ms,
    " THEN ",
    now_ms,
    " ELSE generation + 1 END, updated_at = ",
    now_ms,
    " WHERE id = $1 RETURNING generation"
);

pub(crate) async fn claim_work(
    connection: &mut Connection<'_>,
    work: &NewWork,
) -> Result<(), StoreError> {
    let ids = [work.id.as_str(), work.environment.as_str(), work.session.as_str()];
    indexed("claim work", &ids)?;
    let row = query(TOUCH_SESSION)
        .bind(work.session.as_str())
        .bind(work.environment.as_str())
        .one(connection)
        .await
        .map_err(failed("claim work"))?;
    let known: String = row.get("environment").map_err(failed("claim work"))?;
    if known != work.environment.as_str() {
        return Err(StoreError::WrongEnvironment {
            session: work.session.clone(),
            known: known.into(),
            offered: work.environment.clone(),
        });
    }
    not_held_elsewhere(connection, &work.session, &work.node, "claim work").await?;
    let claimed = query(CLAIM)
        .bind(work.id.as_str())
        .bind(work.environment.as_str())
        .bind(work.session.as_str())
        .bind(work.node.as_str())
        .bind(work.token.as_ref().map(|Sealed(bytes)| bytes.as_slice()))
        .execute(connection)
        .await
        .map_err(failed("claim work"))?;
    if claimed == 0 {
        return Err(StoreError::Refused {
            change: "claim work",
            why: format!("work item {} belongs to another session", work.id),
        });
    }
    query(END_ORPHANS)
        .bind(work.session.as_str())
        .bind(work.node.as_str())
        .execute(connection)
        .await
        .map_err(failed("claim work"))?;
    Ok(())
}

pub(crate) async fn take_session(
    connection: &mut Connection<'_>,
    session: &SessionId,
    node: &NodeId,
) -> Result<Generation, StoreError> {
    // Locked first and looked at in a statement of its own, which sees all that was written before
    // the lock was had; one statement for both would look with the eyes of before it waited.
    query(LOCK_SESSION)
        .bind(session.as_str())
        .optional(connection)
        .await
        .map_err(failed("take session"))?
        .ok_or_else(|| StoreError::NoSuchSession(session.clone()))?;
    not_held_elsewhere(connection, session, node, "take session").await?;
    let row = query(TAKE)
        .bind(session.as_str())
        .bind(node.as_str())
        .one(connection)
        .await
        .map_err(failed("take session"))?;
    let generation: i64 = row.get("generation").map_err(failed("take session"))?;
    Ok(Generation(generation.unsigned_abs()))
}
