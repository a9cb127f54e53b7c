//! Which nodes are alive, and which of them holds a session.

use std::time::Duration;

use base_types::{NodeId, SessionId};
use store_api::{Owner, StoreError};

use crate::database::{Connection, query};
use crate::dialect::{Statement, sql};
use crate::failure::failed;
use crate::stored;

const RENEW: Statement = sql!(
    "INSERT INTO nodes (id, alive_until) VALUES ($1, ",
    now_ms,
    " + $2) ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until"
);

/// A node, not `$2`, that is alive and has either an open item of the session or its sandbox.
const HOLDER: Statement = sql!(
    "SELECT n.id FROM nodes n WHERE n.id <> $2 AND n.alive_until > ",
    now_ms,
    " AND (EXISTS (SELECT 1 FROM sessions s WHERE s.id = $1 AND s.owner = n.id \
                   AND s.sandbox IS NOT NULL AND NOT s.sandbox_gone) \
       OR EXISTS (SELECT 1 FROM work w WHERE w.session = $1 AND w.node = n.id \
                  AND w.phase <> 'ended')) \
     ORDER BY n.id LIMIT 1"
);

const OWNER: Statement = sql!(
    "SELECT s.owner, s.sandbox IS NOT NULL AND NOT s.sandbox_gone AS holds_volume, \
     n.id IS NOT NULL AS alive \
     FROM sessions s LEFT JOIN nodes n ON n.id = s.owner AND n.alive_until > ",
    now_ms,
    " WHERE s.id = $1 AND s.owner IS NOT NULL"
);

pub(crate) async fn renew(
    connection: &mut Connection<'_>,
    node: &NodeId,
    ttl: Duration,
) -> Result<(), StoreError> {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    // A sum beyond the column's range is as far away as a time can be.
    let ttl_ms = stored(ttl_ms, "renew node", "ttl")?.min(i64::MAX / 2);
    query(RENEW)
        .bind(node.as_str())
        .bind(ttl_ms)
        .execute(connection)
        .await
        .map_err(failed("renew node"))?;
    Ok(())
}

pub(crate) async fn retire(
    connection: &mut Connection<'_>,
    node: &NodeId,
) -> Result<(), StoreError> {
    query(sql!("DELETE FROM nodes WHERE id = $1"))
        .bind(node.as_str())
        .execute(connection)
        .await
        .map_err(failed("retire node"))?;
    Ok(())
}

/// Refuses what another node holds. The session's row must be locked: whatever makes a holder
/// writes to that row first, so that what is seen here stays true until the transaction ends.
pub(crate) async fn not_held_elsewhere(
    connection: &mut Connection<'_>,
    session: &SessionId,
    node: &NodeId,
    action: &'static str,
) -> Result<(), StoreError> {
    let row = query(HOLDER)
        .bind(session.as_str())
        .bind(node.as_str())
        .optional(connection)
        .await
        .map_err(failed(action))?;
    let Some(row) = row else { return Ok(()) };
    let holder: String = row.get("id").map_err(failed(action))?;
    Err(StoreError::OwnedElsewhere { session: session.clone(), node: holder.into() })
}

pub(crate) async fn owner(
    connection: &mut Connection<'_>,
    session: &SessionId,
) -> Result<Option<Owner>, StoreError> {
    let row = query(OWNER)
        .bind(session.as_str())
        .optional(connection)
        .await
        .map_err(failed("read owner"))?;
    let Some(row) = row else { return Ok(None) };
    let node: String = row.get("owner").map_err(failed("read owner"))?;
    Ok(Some(Owner {
        node: node.into(),
        alive: row.get("alive").map_err(failed("read owner"))?,
        holds_volume: row.get("holds_volume").map_err(failed("read owner"))?,
    }))
}
