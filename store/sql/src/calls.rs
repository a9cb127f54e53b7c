//! Changes of a tool call: received → started → finished (→ shortened) → settled.

use base_types::{CallId, Epoch};
use store_api::{CallEnd, NewCall, StoreError};

use crate::apply::{Batch, json};
use crate::database::query;
use crate::dialect::sql;
use crate::failure::failed;
use crate::{indexed, stored, without_nul};

pub(crate) async fn received(batch: &mut Batch<'_, '_>, call: &NewCall) -> Result<(), StoreError> {
    indexed("call received", &[call.id.as_str(), call.tool_use.as_str()])?;
    let done = query(sql!(
        "INSERT INTO calls (id, session, seq, tool_use, call, state, received_at, shortened) \
         VALUES ($1, $2, $3, $4, $5, 'received', $6, FALSE) ON CONFLICT DO NOTHING"
    ))
    .bind(call.id.as_str())
    .bind(batch.session.as_str())
    .bind(batch.seq)
    .bind(call.tool_use.as_str())
    .bind(json(call, "call received")?)
    .bind(batch.now)
    .execute(batch.connection)
    .await
    .map_err(failed("record call"))?;
    match done {
        0 => Err(StoreError::Refused {
            change: "call received",
            why: format!("call {} or tool use {} is known already", call.id, call.tool_use),
        }),
        _ => Ok(()),
    }
}

pub(crate) async fn started(
    batch: &mut Batch<'_, '_>,
    call: &CallId,
    epoch: Option<Epoch>,
) -> Result<(), StoreError> {
    let epoch = epoch.map(|Epoch(count)| stored(count, "call started", "epoch")).transpose()?;
    let done = query(sql!(
        "UPDATE calls SET state = 'started', started_at = $3, epoch = $4 \
         WHERE id = $1 AND session = $2 AND state = 'received'"
    ))
    .bind(call.as_str())
    .bind(batch.session.as_str())
    .bind(batch.now)
    .bind(epoch)
    .execute(batch.connection)
    .await
    .map_err(failed("record start of call"))?;
    require(batch, call, "call started", done).await
}

pub(crate) async fn finished(
    batch: &mut Batch<'_, '_>,
    call: &CallId,
    end: &CallEnd,
) -> Result<(), StoreError> {
    let done = query(sql!(
        "UPDATE calls SET state = 'finished', finished_at = $3, body = $4, is_error = $5, \
         summary = $6, exit_code = $7 \
         WHERE id = $1 AND session = $2 AND state IN ('received', 'started')"
    ))
    .bind(call.as_str())
    .bind(batch.session.as_str())
    .bind(batch.now)
    .bind(end.body.as_slice())
    .bind(end.is_error)
    .bind(without_nul(&end.summary))
    .bind(end.exit_code.map(i64::from))
    .execute(batch.connection)
    .await
    .map_err(failed("record result of call"))?;
    require(batch, call, "call finished", done).await
}

pub(crate) async fn shortened(
    batch: &mut Batch<'_, '_>,
    call: &CallId,
    body: &[u8],
) -> Result<(), StoreError> {
    let done = query(sql!(
        "UPDATE calls SET shortened = TRUE, body = $3 \
         WHERE id = $1 AND session = $2 AND state = 'finished' AND NOT shortened"
    ))
    .bind(call.as_str())
    .bind(batch.session.as_str())
    .bind(body)
    .execute(batch.connection)
    .await
    .map_err(failed("record shortened result"))?;
    require(batch, call, "call shortened", done).await
}

pub(crate) async fn settled(
    batch: &mut Batch<'_, '_>,
    call: &CallId,
    refused: Option<u16>,
) -> Result<(), StoreError> {
    let done = query(sql!(
        "UPDATE calls SET state = 'settled', settled_at = $3, refused = $4 \
         WHERE id = $1 AND session = $2 AND state = 'finished'"
    ))
    .bind(call.as_str())
    .bind(batch.session.as_str())
    .bind(batch.now)
    .bind(refused.map(i64::from))
    .execute(batch.connection)
    .await
    .map_err(failed("record delivery of result"))?;
    require(batch, call, "call settled", done).await
}

/// A change that fitted no row is refused with what was found instead.
async fn require(
    batch: &mut Batch<'_, '_>,
    call: &CallId,
    change: &'static str,
    rows: u64,
) -> Result<(), StoreError> {
    if rows > 0 {
        return Ok(());
    }
    let row = query(sql!("SELECT state, shortened FROM calls WHERE id = $1 AND session = $2"))
        .bind(call.as_str())
        .bind(batch.session.as_str())
        .optional(batch.connection)
        .await
        .map_err(failed("look up call"))?;
    let why = match row {
        None => format!("the session has no call {call}"),
        Some(row) => {
            let state: String = row.get("state").map_err(failed("look up call"))?;
            let shortened: bool = row.get("shortened").map_err(failed("look up call"))?;
            format!("call {call} is {state}{}", if shortened { " and shortened" } else { "" })
        }
    };
    Err(StoreError::Refused { change, why })
}
