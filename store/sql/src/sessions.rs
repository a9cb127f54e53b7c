//! Changes of the session's own row: who it is, where it is in its life, where it runs.

use store_api::{Identity, Phase, SandboxRecord, SandboxState, StoreError};

use crate::apply::{Batch, json};
use crate::database::query;
use crate::dialect::sql;
use crate::failure::failed;
use crate::rows::{document, reason_of};
use crate::without_nul;

pub(crate) async fn identified(
    batch: &mut Batch<'_, '_>,
    identity: &Identity,
) -> Result<(), StoreError> {
    if let Some(known) = column::<Identity>(batch, "identity").await? {
        if known.tenant != identity.tenant {
            return Err(StoreError::TenantChanged {
                session: batch.session.clone(),
                known: known.tenant,
                offered: identity.tenant.clone(),
            });
        }
        if known.profile != identity.profile {
            return Err(StoreError::Refused {
                change: "identified",
                why: format!("the profile is {}, not {}", known.profile, identity.profile),
            });
        }
    }
    query(sql!("UPDATE sessions SET identity = $2 WHERE id = $1"))
        .bind(batch.session.as_str())
        .bind(json(identity, "identified")?)
        .execute(batch.connection)
        .await
        .map_err(failed("record identity"))?;
    Ok(())
}

pub(crate) async fn phase(batch: &mut Batch<'_, '_>, phase: &Phase) -> Result<(), StoreError> {
    query(sql!("UPDATE sessions SET phase = $2, phase_reason = $3, phase_at = $4 WHERE id = $1"))
        .bind(batch.session.as_str())
        .bind(phase.name())
        .bind(reason_of(phase).map(without_nul))
        .bind(batch.now)
        .execute(batch.connection)
        .await
        .map_err(failed("record phase"))?;
    Ok(())
}

pub(crate) async fn sandbox(
    batch: &mut Batch<'_, '_>,
    sandbox: &SandboxRecord,
) -> Result<(), StoreError> {
    if let Some(known) = column::<SandboxRecord>(batch, "sandbox").await?
        && known.id == sandbox.id
        && known.epoch > sandbox.epoch
    {
        return Err(StoreError::Refused {
            change: "sandbox",
            why: format!("sandbox {} is in epoch {}, not {}", known.id, known.epoch, sandbox.epoch),
        });
    }
    query(sql!("UPDATE sessions SET sandbox = $2, sandbox_gone = $3 WHERE id = $1"))
        .bind(batch.session.as_str())
        .bind(json(sandbox, "sandbox")?)
        .bind(sandbox.state == SandboxState::Gone)
        .execute(batch.connection)
        .await
        .map_err(failed("record sandbox"))?;
    Ok(())
}

/// A document of the session's row as it is in this transaction.
async fn column<T: serde::de::DeserializeOwned>(
    batch: &mut Batch<'_, '_>,
    name: &'static str,
) -> Result<Option<T>, StoreError> {
    let row = query(sql!("SELECT id, identity, sandbox FROM sessions WHERE id = $1"))
        .bind(batch.session.as_str())
        .one(batch.connection)
        .await
        .map_err(failed("look up session"))?;
    let text: Option<String> = row.get(name).map_err(failed("look up session"))?;
    text.map(|text| document(&text, "session", batch.session.as_str())).transpose()
}
