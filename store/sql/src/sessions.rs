//! Changes of the session's own row: who it is, where it is in its life, where it runs.

use sqlx::Row;
use store_api::{Identity, Phase, SandboxRecord, SandboxState, StoreError};

use crate::apply::{Batch, json};
use crate::failed;
use crate::rows::{document, reason_of};

pub(crate) async fn identified(
    batch: &mut Batch<'_>,
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
    sqlx::query("UPDATE sessions SET identity = $2 WHERE id = $1")
        .bind(batch.session.as_str())
        .bind(json(identity, "identified")?)
        .execute(&mut *batch.connection)
        .await
        .map_err(failed("record identity"))?;
    Ok(())
}

pub(crate) async fn phase(batch: &mut Batch<'_>, phase: &Phase) -> Result<(), StoreError> {
    sqlx::query("UPDATE sessions SET phase = $2, phase_reason = $3, phase_at = $4 WHERE id = $1")
        .bind(batch.session.as_str())
        .bind(phase.name())
        .bind(reason_of(phase))
        .bind(batch.now)
        .execute(&mut *batch.connection)
        .await
        .map_err(failed("record phase"))?;
    Ok(())
}

pub(crate) async fn sandbox(
    batch: &mut Batch<'_>,
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
    sqlx::query("UPDATE sessions SET sandbox = $2, sandbox_gone = $3 WHERE id = $1")
        .bind(batch.session.as_str())
        .bind(json(sandbox, "sandbox")?)
        .bind(sandbox.state == SandboxState::Gone)
        .execute(&mut *batch.connection)
        .await
        .map_err(failed("record sandbox"))?;
    Ok(())
}

/// A document of the session's row as it is in this transaction.
async fn column<T: serde::de::DeserializeOwned>(
    batch: &mut Batch<'_>,
    name: &'static str,
) -> Result<Option<T>, StoreError> {
    let row = sqlx::query("SELECT id, identity, sandbox FROM sessions WHERE id = $1")
        .bind(batch.session.as_str())
        .fetch_one(&mut *batch.connection)
        .await
        .map_err(failed("look up session"))?;
    let text: Option<String> = row.try_get(name).map_err(failed("look up session"))?;
    text.map(|text| document(&text, "session", batch.session.as_str())).transpose()
}
