//! Rows as records. A row that does not make sense is reported with its id, never guessed at.

use base_types::{CallId, Epoch, Generation, Timestamp, WorkId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use store_api::{
    CallEnd, CallRecord, CallState, LogEntry, NewCall, Phase, Sealed, SessionRecord, StartedAt,
    StoreError, WorkPhase, WorkRecord,
};

use crate::database::{Column, Row};

/// One row, with what an error about it says.
struct Reader<'r> {
    row: &'r Row,
    what: &'static str,
    id: String,
}

impl<'r> Reader<'r> {
    fn new(row: &'r Row, what: &'static str, id_column: &'static str) -> Result<Self, StoreError> {
        let id = row.get(id_column).map_err(|error| StoreError::Unreadable {
            what,
            id: "?".into(),
            why: error.to_string(),
        })?;
        Ok(Self { row, what, id })
    }

    fn get<T: Column<'r>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.row.get(column).map_err(|error| self.unreadable(error.to_string()))
    }

    /// A column that this row's state requires.
    fn need<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        Option<T>: Column<'r>,
    {
        self.get::<Option<T>>(column)?.ok_or_else(|| self.unreadable(format!("no {column}")))
    }

    /// A counter: never negative.
    fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.get::<i64>(column)?)
            .map_err(|_| self.unreadable(format!("negative {column}")))
    }

    fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.get(column).map(Timestamp)
    }

    fn document<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        document(self.need::<&str>(column)?, self.what, &self.id)
    }

    fn unreadable(&self, why: String) -> StoreError {
        StoreError::Unreadable { what: self.what, id: self.id.clone(), why }
    }
}

pub(crate) fn session(row: &Row) -> Result<SessionRecord, StoreError> {
    let row = Reader::new(row, "session", "id")?;
    let identity: Option<&str> = row.get("identity")?;
    let sandbox: Option<&str> = row.get("sandbox")?;
    let phase = json!({
        "phase": row.get::<&str>("phase")?,
        "reason": row.get::<Option<&str>>("phase_reason")?,
    });
    Ok(SessionRecord {
        id: row.id.as_str().into(),
        environment: row.get::<String>("environment")?.into(),
        owner: row.get::<Option<String>>("owner")?.map(Into::into),
        generation: Generation(row.count("generation")?),
        phase: serde_json::from_value(phase).map_err(|error| row.unreadable(error.to_string()))?,
        identity: identity.map(|text| document(text, row.what, &row.id)).transpose()?,
        sandbox: sandbox.map(|text| document(text, row.what, &row.id)).transpose()?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        phase_at: row.time("phase_at")?,
    })
}

pub(crate) fn work(row: &Row) -> Result<WorkRecord, StoreError> {
    let row = Reader::new(row, "work item", "id")?;
    let ttl_ms = match row.get::<Option<i64>>("ttl_ms")? {
        Some(_) => Some(row.count("ttl_ms")?),
        None => None,
    };
    let phase = match row.get::<&str>("phase")? {
        "claiming" => WorkPhase::Claiming,
        "active" => WorkPhase::Active {
            last_beat: row.get("last_beat")?,
            last_beat_at: row.get::<Option<i64>>("last_beat_at")?.map(Timestamp),
            ttl_ms,
            beat_open: row.get("beat_open")?,
        },
        "ended" => WorkPhase::Ended {
            at: Timestamp(row.need("ended_at")?),
            why: named(row.need("ended_why")?)
                .map_err(|error| row.unreadable(error.to_string()))?,
        },
        other => return Err(row.unreadable(format!("unknown phase `{other}`"))),
    };
    Ok(WorkRecord {
        id: WorkId::new(row.id.as_str()),
        environment: row.get::<String>("environment")?.into(),
        session: row.get::<String>("session")?.into(),
        node: row.get::<String>("node")?.into(),
        token: row.get::<Option<Vec<u8>>>("token")?.map(Sealed),
        phase,
        claimed_at: row.time("claimed_at")?,
    })
}

pub(crate) fn call(row: &Row) -> Result<CallRecord, StoreError> {
    let row = Reader::new(row, "call", "id")?;
    let call: NewCall = row.document("call")?;
    if call.id != CallId::new(row.id.as_str()) {
        return Err(row.unreadable(format!("it holds call {}", call.id)));
    }
    let state = match row.get::<&str>("state")? {
        "received" => CallState::Received,
        "started" => {
            row.need::<i64>("started_at")?;
            CallState::Started
        }
        "finished" => {
            CallState::Finished { at: Timestamp(row.need("finished_at")?), end: call_end(&row)? }
        }
        "settled" => CallState::Settled {
            at: Timestamp(row.need("settled_at")?),
            end: call_end(&row)?,
            refused: small(&row, "refused")?,
        },
        other => return Err(row.unreadable(format!("unknown state `{other}`"))),
    };
    Ok(CallRecord {
        seq: row.count("seq")?,
        session: row.get::<String>("session")?.into(),
        call,
        received_at: row.time("received_at")?,
        started: started(&row)?,
        state,
    })
}

fn started(row: &Reader<'_>) -> Result<Option<StartedAt>, StoreError> {
    let Some(at) = row.get::<Option<i64>>("started_at")? else { return Ok(None) };
    let epoch = match row.get::<Option<i64>>("epoch")? {
        Some(_) => Some(Epoch(row.count("epoch")?)),
        None => None,
    };
    Ok(Some(StartedAt { at: Timestamp(at), epoch }))
}

fn call_end(row: &Reader<'_>) -> Result<CallEnd, StoreError> {
    Ok(CallEnd {
        body: row.need("body")?,
        is_error: row.need("is_error")?,
        summary: row.need("summary")?,
        exit_code: small(row, "exit_code")?,
    })
}

/// A number narrower than the column that holds it.
fn small<T: TryFrom<i64>>(row: &Reader<'_>, column: &'static str) -> Result<Option<T>, StoreError> {
    let value: Option<i64> = row.get(column)?;
    value
        .map(|value| T::try_from(value).map_err(|_| row.unreadable(format!("{column} is {value}"))))
        .transpose()
}

pub(crate) fn log_entry(row: &Row) -> Result<LogEntry, StoreError> {
    let row = Reader::new(row, "log of session", "session")?;
    Ok(LogEntry { seq: row.count("seq")?, at: row.time("at")?, event: row.document("event")? })
}

/// A document of a text column.
pub(crate) fn document<T: DeserializeOwned>(
    text: &str,
    what: &'static str,
    id: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Unreadable {
        what,
        id: id.to_owned(),
        why: error.to_string(),
    })
}

/// The name that a plain enum has in the contract's own serialisation.
pub(crate) fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        other => unreachable!("a plain enum serialises as a string, not {other:?}"),
    }
}

fn named<T: DeserializeOwned>(name: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::String(name.to_owned()))
}

pub(crate) fn reason_of(phase: &Phase) -> Option<&str> {
    match phase {
        Phase::Ended { reason } | Phase::Failed { reason } => Some(reason),
        Phase::Claimed | Phase::Preparing | Phase::Serving | Phase::Idle | Phase::Sleeping => None,
    }
}
