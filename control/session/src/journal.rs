//! One session's journal, under one owner generation. What is recorded here has happened.

use std::sync::Arc;
use std::time::Duration;

use base_types::{CallId, Chain, Generation, SessionId, ToolUseId};
use store_api::{CallEnd, CallRecord, CallState, Change, Store, StoreError, WorkPhase};
use tokio::time::Instant;

/// A database that is briefly busy must not cost a session its lease; one that stays away must not
/// keep its owner believing. An outage of a database server is waited out by the store itself.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct Journal {
    store: Arc<dyn Store>,
    session: SessionId,
    generation: Generation,
}

impl Journal {
    pub fn new(store: Arc<dyn Store>, session: SessionId, generation: Generation) -> Self {
        Self { store, session, generation }
    }

    /// Makes the changes durable, all or none.
    pub async fn record(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut patience = self.patience();
        loop {
            match self.store.apply(&self.session, self.generation, changes).await {
                Err(error) if may_pass(&error) => {
                    patience.wait(error).await?;
                }
                // What cannot be done twice may have been done by the attempt before.
                Err(error @ StoreError::Refused { .. }) if patience.waited => {
                    match self.has_happened(changes).await {
                        Ok(true) => return Ok(()),
                        Ok(false) => return Err(error),
                        Err(error) => patience.wait(error).await?,
                    }
                }
                applied => return applied,
            }
        }
    }

    /// Whether a batch, which is applied whole or not at all, was applied: the first change that
    /// can happen once only tells.
    async fn has_happened(&self, changes: &[Change]) -> Result<bool, StoreError> {
        for change in changes {
            return Ok(match change {
                Change::CallReceived(call) => self.store.call(&call.id).await?.is_some(),
                Change::CallStarted { call, .. } => {
                    self.store.call(call).await?.is_some_and(|call| call.started.is_some())
                }
                Change::CallFinished { call, end } => {
                    self.ended(call).await?.is_some_and(|(known, _)| known == *end)
                }
                Change::CallShortened { call, body } => {
                    self.ended(call).await?.is_some_and(|(known, _)| known.body == *body)
                }
                Change::CallSettled { call, .. } => {
                    self.ended(call).await?.is_some_and(|(_, settled)| settled)
                }
                Change::WorkEnded { work, .. } => {
                    let work = self.store.work(work).await?;
                    work.is_some_and(|work| matches!(work.phase, WorkPhase::Ended { .. }))
                }
                Change::Beat { work, last, .. } => {
                    let work = self.store.work(work).await?;
                    work.is_some_and(|work| {
                        matches!(work.phase, WorkPhase::Active { last_beat: Some(known), .. }
                            if known == *last)
                    })
                }
                _ => continue,
            });
        }
        Ok(false)
    }

    async fn ended(&self, call: &CallId) -> Result<Option<(CallEnd, bool)>, StoreError> {
        let state = self.store.call(call).await?.map(|record| record.state);
        Ok(match state {
            Some(CallState::Finished { end, .. }) => Some((end, false)),
            Some(CallState::Settled { end, .. }) => Some((end, true)),
            _ => None,
        })
    }

    /// The call that answers a tool use, if it was ever received.
    pub async fn call_for(&self, tool_use: &ToolUseId) -> Result<Option<CallRecord>, StoreError> {
        let mut patience = self.patience();
        loop {
            match self.store.call_for(&self.session, tool_use).await {
                Err(error) if may_pass(&error) => {
                    patience.wait(error).await?;
                }
                known => return known,
            }
        }
    }

    pub async fn open_calls(&self) -> Result<Vec<CallRecord>, StoreError> {
        let mut patience = self.patience();
        loop {
            match self.store.open_calls(&self.session).await {
                Err(error) if may_pass(&error) => {
                    patience.wait(error).await?;
                }
                known => return known,
            }
        }
    }

    pub fn session(&self) -> &SessionId {
        &self.session
    }

    fn patience(&self) -> Patience<'_> {
        let until = Instant::now() + PATIENCE;
        Patience { session: &self.session, until, next: FIRST_WAIT, waited: false }
    }
}

fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Database { .. } | StoreError::Unavailable { .. })
}

/// How long one question to the store may still be repeated.
struct Patience<'a> {
    session: &'a SessionId,
    until: Instant,
    next: Duration,
    /// An attempt failed, and what became of it is not known.
    waited: bool,
}

impl Patience<'_> {
    /// Waits for the next attempt, or gives the error back when there is none.
    async fn wait(&mut self, error: StoreError) -> Result<(), StoreError> {
        if Instant::now() + self.next >= self.until {
            return Err(error);
        }
        tracing::warn!(session = %self.session, error = %Chain(&error), "journal");
        tokio::time::sleep(self.next).await;
        self.next *= 2;
        self.waited = true;
        Ok(())
    }
}
