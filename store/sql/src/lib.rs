//! The journal in SQL. SQLite is the embedded default; every statement is written so that
//! PostgreSQL takes it too, and what must differ is in [`dialect`].
//!
//! **Invariant:** each method of the contract that writes is one transaction, committed with a
//! sync of the log before it returns. Dropping its future before then leaves either all of it or
//! nothing.

#![forbid(unsafe_code)]

mod apply;
mod calls;
mod claim;
mod dialect;
mod nodes;
mod open;
mod prune;
mod read;
mod rows;
mod sessions;
mod work;

use std::time::Duration;

use async_trait::async_trait;
use base_types::{CallId, Generation, NodeId, SessionId, Timestamp, ToolUseId, WorkId};
use sqlx::{Sqlite, SqlitePool, Transaction};
use store_api::{
    CallRecord, Change, LogEntry, NewWork, Owner, SessionFilter, SessionRecord, Store, StoreError,
    WorkRecord,
};

pub use open::OpenError;

/// The journal in one SQLite file.
#[derive(Clone, Debug)]
pub struct SqlStore {
    /// One connection: SQLite has one writer, and waiting here is fair where its lock is not.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqlStore {
    /// Waits for what is running and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn claim_work(&self, work: &NewWork) -> Result<(), StoreError> {
        let mut transaction = self.writer.begin().await.map_err(failed("claim work"))?;
        let done = claim::claim_work(&mut transaction, work).await;
        finish(transaction, done, "claim work").await
    }

    async fn take_session(
        &self,
        session: &SessionId,
        node: &NodeId,
    ) -> Result<Generation, StoreError> {
        let mut transaction = self.writer.begin().await.map_err(failed("take session"))?;
        let taken = claim::take_session(&mut transaction, session, node).await;
        finish(transaction, taken, "take session").await
    }

    async fn renew_node(&self, node: &NodeId, ttl: Duration) -> Result<(), StoreError> {
        nodes::renew(&self.writer, node, ttl).await
    }

    async fn retire_node(&self, node: &NodeId) -> Result<(), StoreError> {
        nodes::retire(&self.writer, node).await
    }

    async fn owner(&self, session: &SessionId) -> Result<Option<Owner>, StoreError> {
        nodes::owner(&self.readers, session).await
    }

    async fn apply(
        &self,
        session: &SessionId,
        generation: Generation,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        let mut transaction = self.writer.begin().await.map_err(failed("apply changes"))?;
        let done = apply::apply(&mut transaction, session, generation, changes).await;
        finish(transaction, done, "apply changes").await
    }

    async fn session(&self, session: &SessionId) -> Result<Option<SessionRecord>, StoreError> {
        read::session(&self.readers, session).await
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRecord>, StoreError> {
        read::sessions(&self.readers, filter).await
    }

    async fn owned_sessions(
        &self,
        node: &NodeId,
        after: Option<&SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        read::owned_sessions(&self.readers, node, after, limit).await
    }

    async fn work(&self, work: &WorkId) -> Result<Option<WorkRecord>, StoreError> {
        read::work(&self.readers, work).await
    }

    async fn open_work(&self, node: &NodeId) -> Result<Vec<WorkRecord>, StoreError> {
        read::open_work(&self.readers, node).await
    }

    async fn call(&self, call: &CallId) -> Result<Option<CallRecord>, StoreError> {
        read::call(&self.readers, call).await
    }

    async fn call_for(
        &self,
        session: &SessionId,
        tool_use: &ToolUseId,
    ) -> Result<Option<CallRecord>, StoreError> {
        read::call_for(&self.readers, session, tool_use).await
    }

    async fn calls(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        read::calls(&self.readers, session, after, limit).await
    }

    async fn open_calls(&self, session: &SessionId) -> Result<Vec<CallRecord>, StoreError> {
        read::open_calls(&self.readers, session).await
    }

    async fn log(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<LogEntry>, StoreError> {
        read::log(&self.readers, session, after, limit).await
    }

    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError> {
        prune::prune(&self.writer, before).await
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        read::now(&self.readers).await
    }
}

/// Commits what went well and takes back what did not.
async fn finish<T>(
    transaction: Transaction<'_, Sqlite>,
    done: Result<T, StoreError>,
    action: &'static str,
) -> Result<T, StoreError> {
    match done {
        Ok(value) => transaction.commit().await.map(|()| value).map_err(failed(action)),
        Err(error) => {
            // One that fails leaves its mark on the connection, which is then not used again.
            let _ = transaction.rollback().await;
            Err(error)
        }
    }
}

/// Names what was being done when the database failed.
fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { action, source: Box::new(source) }
}

/// An integer as the database holds it. Counters start near zero; one beyond 2^63 is damage.
fn stored(value: u64, change: &'static str, what: &str) -> Result<i64, StoreError> {
    i64::try_from(value)
        .map_err(|_| StoreError::Refused { change, why: format!("{what} {value} is too large") })
}
