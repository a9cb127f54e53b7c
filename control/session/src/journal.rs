//! One session's journal, under one owner generation. What is recorded here has happened.

use std::sync::Arc;
use std::time::Duration;

use base_types::{Chain, Generation, SessionId};
use store_api::{Change, Store, StoreError};

/// A database that is briefly busy or out of reach must not cost a session its lease; one that
/// stays away must not keep its owner believing.
const ATTEMPTS_MAX: u32 = 6;
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
        let mut wait = FIRST_WAIT;
        for _ in 1..ATTEMPTS_MAX {
            match self.store.apply(&self.session, self.generation, changes).await {
                Err(error @ StoreError::Database { .. }) => {
                    tracing::warn!(session = %self.session, error = %Chain(&error), "journal");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                done => return done,
            }
        }
        self.store.apply(&self.session, self.generation, changes).await
    }

    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub fn session(&self) -> &SessionId {
        &self.session
    }
}
