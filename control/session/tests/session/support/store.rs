//! A real store at the other end of a line that can be cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base_types::{CallId, Generation, NodeId, SessionId, Timestamp, ToolUseId, WorkId};
use store_api::{
    CallRecord, Change, LogEntry, NewWork, Owner, SessionFilter, SessionRecord, Store, StoreError,
    WorkRecord,
};

/// Whether the line is cut.
#[derive(Clone, Default)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    pub fn set(&self, cut: bool) {
        self.0.store(cut, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(StoreError::Database { action: "reach the store", source: "cut".into() }),
            false => Ok(()),
        }
    }
}

pub struct CuttableStore {
    pub store: Arc<dyn Store>,
    pub cut: Cut,
}

macro_rules! through {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {{
        $self.cut.check()?;
        $self.store.$method($($argument),*).await
    }};
}

#[async_trait]
impl Store for CuttableStore {
    async fn claim_work(&self, work: &NewWork) -> Result<(), StoreError> {
        through!(self.claim_work(work))
    }

    async fn take_session(&self, id: &SessionId, node: &NodeId) -> Result<Generation, StoreError> {
        through!(self.take_session(id, node))
    }

    async fn apply(
        &self,
        session: &SessionId,
        generation: Generation,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        through!(self.apply(session, generation, changes))
    }

    async fn renew_node(&self, node: &NodeId, ttl: Duration) -> Result<(), StoreError> {
        through!(self.renew_node(node, ttl))
    }

    async fn retire_node(&self, node: &NodeId) -> Result<(), StoreError> {
        through!(self.retire_node(node))
    }

    async fn owner(&self, session: &SessionId) -> Result<Option<Owner>, StoreError> {
        through!(self.owner(session))
    }

    async fn session(&self, session: &SessionId) -> Result<Option<SessionRecord>, StoreError> {
        through!(self.session(session))
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRecord>, StoreError> {
        through!(self.sessions(filter))
    }

    async fn owned_sessions(
        &self,
        node: &NodeId,
        after: Option<&SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        through!(self.owned_sessions(node, after, limit))
    }

    async fn work(&self, work: &WorkId) -> Result<Option<WorkRecord>, StoreError> {
        through!(self.work(work))
    }

    async fn open_work(&self, node: &NodeId) -> Result<Vec<WorkRecord>, StoreError> {
        through!(self.open_work(node))
    }

    async fn call(&self, call: &CallId) -> Result<Option<CallRecord>, StoreError> {
        through!(self.call(call))
    }

    async fn call_for(
        &self,
        session: &SessionId,
        tool_use: &ToolUseId,
    ) -> Result<Option<CallRecord>, StoreError> {
        through!(self.call_for(session, tool_use))
    }

    async fn calls(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<CallRecord>, StoreError> {
        through!(self.calls(session, after, limit))
    }

    async fn open_calls(&self, session: &SessionId) -> Result<Vec<CallRecord>, StoreError> {
        through!(self.open_calls(session))
    }

    async fn log(
        &self,
        session: &SessionId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<LogEntry>, StoreError> {
        through!(self.log(session, after, limit))
    }

    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError> {
        through!(self.prune(before))
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        through!(self.now())
    }
}
