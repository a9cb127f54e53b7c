//! The journal in SQL: in a file of SQLite's, which is the embedded default, or in PostgreSQL,
//! which several nodes share. Every statement is written once; what must differ is in [`dialect`].
//!
//! **Invariant:** each method of the contract that writes is one transaction, committed with a
//! sync of the log before it returns. Dropping its future before then leaves either all of it or
//! nothing.

#![forbid(unsafe_code)]

mod apply;
mod backend;
mod calls;
mod claim;
mod database;
mod dialect;
mod failure;
mod group;
mod nodes;
mod open;
mod postgres;
mod prune;
mod read;
mod rows;
mod sessions;
mod sqlite;
mod work;

use std::time::Duration;

use async_trait::async_trait;
use base_types::{CallId, Generation, NodeId, SessionId, Timestamp, ToolUseId, WorkId};
use store_api::{
    CallRecord, Change, ID_BYTES_MAX, LogEntry, NewWork, Owner, SessionFilter, SessionRecord,
    Store, StoreError, WorkRecord,
};

use backend::{Backend, attempt};

pub use backend::PATIENCE;
pub use open::OpenError;
pub use postgres::{Encryption, Host, PostgresOptions, ServerFacts, drop_schema, inspect};

/// The journal, in one SQLite file or one schema of a PostgreSQL database.
#[derive(Clone, Debug)]
pub struct SqlStore {
    backend: Backend,
}

impl SqlStore {
    /// Waits for what is running and closes the connections.
    pub async fn close(&self) {
        self.backend.close().await;
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn claim_work(&self, work: &NewWork) -> Result<(), StoreError> {
        attempt!(self.backend, write, "claim work", |c| claim::claim_work(c, work))
    }

    async fn take_session(
        &self,
        session: &SessionId,
        node: &NodeId,
    ) -> Result<Generation, StoreError> {
        attempt!(self.backend, write, "take session", |c| claim::take_session(c, session, node))
    }

    async fn renew_node(&self, node: &NodeId, ttl: Duration) -> Result<(), StoreError> {
        attempt!(self.backend, write, "renew node", |c| nodes::renew(c, node, ttl))
    }

    async fn retire_node(&self, node: &NodeId) -> Result<(), StoreError> {
        attempt!(self.backend, write, "retire node", |c| nodes::retire(c, node))
    }

    async fn owner(&self, session: &SessionId) -> Result<Option<Owner>, StoreError> {
        attempt!(self.backend, read, "read owner", |c| nodes::owner(c, session))
    }

    async fn apply(
        &self,
        session: &SessionId,
        generation: Generation,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        // The same for every attempt, so that a batch whose answer was lost is not applied twice.
        let batch = apply::Incoming::new(session, generation, changes);
        if let Backend::Sqlite { writer, group, .. } = &self.backend {
            return group.apply(writer, &batch).await;
        }
        attempt!(self.backend, write, "apply changes", |c| apply::apply(c, &batch))
    }

    async fn session(&self, session: &SessionId) -> Result<Option<SessionRecord>, StoreError> {
        attempt!(self.backend, read, "read session", |c| read::session(c, session))
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRecord>, StoreError> {
        attempt!(self.backend, read, "list sessions", |c| read::sessions(c, filter))
    }

    async fn owned_sessions(
        &self,
        node: &NodeId,
        after: Option<&SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        attempt!(self.backend, read, "list owned sessions", |c| {
            read::owned_sessions(c, node, after, limit)
        })
    }

    async fn work(&self, work: &WorkId) -> Result<Option<WorkRecord>, StoreError> {
        attempt!(self.backend, read, "read work", |c| read::work(c, work))
    }

    async fn open_work(&self, node: &NodeId) -> Result<Vec<WorkRecord>, StoreError> {
        attempt!(self.backend, read, "list work", |c| read::open_work(c, node))
    }

    async fn call(&self, call: &CallId) -> Result<Option<CallRecord>, StoreError> {
        attempt!(self.backend, read, "read call", |c| read::call(c, call))
    }

    async fn call_for(
        &self,
        session: &SessionId,
        tool_use: &ToolUseId,
    ) -> Result<Option<CallRecord>, StoreError> {
        attempt!(self.backend, read, "read call", |c| read::call_for(c, session, tool_use))
    }

    async fn calls(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        attempt!(self.backend, read, "list calls", |c| read::calls(c, session, after, limit))
    }

    async fn open_calls(&self, session: &SessionId) -> Result<Vec<CallRecord>, StoreError> {
        attempt!(self.backend, read, "list open calls", |c| read::open_calls(c, session))
    }

    async fn log(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<LogEntry>, StoreError> {
        attempt!(self.backend, read, "read log", |c| read::log(c, session, after, limit))
    }

    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError> {
        prune::prune(&self.backend, before, self.now().await?).await
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        attempt!(self.backend, read, "read clock", |c| read::now(c))
    }
}

/// An integer as the database holds it. Counters start near zero; one beyond 2^63 is damage.
fn stored(value: u64, change: &'static str, what: &str) -> Result<i64, StoreError> {
    i64::try_from(value)
        .map_err(|_| StoreError::Refused { change, why: format!("{what} {value} is too large") })
}

/// Ids that an index can hold.
fn indexed(change: &'static str, ids: &[&str]) -> Result<(), StoreError> {
    match ids.iter().find(|id| id.len() > ID_BYTES_MAX) {
        None => Ok(()),
        Some(id) => Err(StoreError::Refused {
            change,
            why: format!("an id of {} bytes is longer than {ID_BYTES_MAX}", id.len()),
        }),
    }
}

/// A text that somebody else chose, without the one character that PostgreSQL does not hold.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
