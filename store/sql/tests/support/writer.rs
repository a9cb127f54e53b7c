//! Sessions that write calls to a store until they are told to end, and what must be there then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base_types::{CallId, Generation, SessionId};
use store_api::{CallEnd, CallState, Change, LogEvent, NewCall, NewWork, Store, StoreError};
use store_sql::SqlStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const SESSIONS: usize = 4;
const PROGRESS_WAIT: Duration = Duration::from_secs(60);

/// One session that is claimed and owned.
pub struct Owned {
    pub store: SqlStore,
    pub session: SessionId,
    pub generation: Generation,
}

impl Owned {
    pub async fn new(store: &SqlStore, name: &str) -> Owned {
        let work = NewWork {
            id: name.into(),
            environment: "env_1".into(),
            session: name.into(),
            node: "node-1".into(),
            token: None,
        };
        store.claim_work(&work).await.expect("claim work");
        let generation = store.take_session(&work.session, &work.node).await.expect("take session");
        Owned { store: store.clone(), session: work.session, generation }
    }

    pub async fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.store.apply(&self.session, self.generation, changes).await
    }

    pub async fn note(&self, text: &str) -> Result<(), StoreError> {
        self.apply(&[Change::Note(LogEvent::Warning { text: text.into() })]).await
    }

    /// One call in two batches, as a session makes them. Its body is its own id, and random ones up to `size`.
    pub async fn write_call(&self, size: usize) -> Result<CallId, StoreError> {
        let id = CallId::generate();
        let call = NewCall {
            id: id.clone(),
            tool_use: id.as_str().into(),
            tool: "bash".into(),
            custom: false,
            thread: None,
            input: serde_json::Value::Null,
        };
        let start = Change::CallStarted { call: id.clone(), epoch: None };
        self.apply(&[Change::CallReceived(Box::new(call)), start]).await?;
        // Random, so that it takes the space it seems to.
        let more = (1..size).map(|_| CallId::generate());
        let body = more.fold(id.as_str().to_owned(), |body, id| body + id.as_str()).into_bytes();
        let end = CallEnd { body, is_error: false, summary: String::new(), exit_code: None };
        self.apply(&[Change::CallFinished { call: id.clone(), end }]).await?;
        Ok(id)
    }

    pub async fn log(&self, store: &SqlStore) -> Vec<LogEvent> {
        let (mut events, mut after) = (Vec::new(), None);
        loop {
            let page = store.log(&self.session, after, 1_000).await.expect("read log");
            let Some(last) = page.last() else { return events };
            after = Some(last.seq);
            events.extend(page.into_iter().map(|entry| entry.event));
        }
    }
}

/// Several sessions of one store that write at the same time.
pub struct Writers {
    stop: CancellationToken,
    acknowledged: Arc<AtomicUsize>,
    tasks: JoinSet<(Owned, Vec<CallId>)>,
}

impl Writers {
    pub async fn start(store: &SqlStore) -> Writers {
        let (stop, acknowledged) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for number in 0..SESSIONS {
            let owned = Owned::new(store, &format!("session_{number}")).await;
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            tasks.spawn(async move {
                let mut calls = Vec::new();
                while !stop.is_cancelled() {
                    calls.push(owned.write_call(1).await.expect("the outage is ridden out"));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                (owned, calls)
            });
        }
        Writers { stop, acknowledged, tasks }
    }

    /// Waits until so many more calls have been acknowledged.
    pub async fn progress(&self, calls: usize) {
        let goal = self.acknowledged.load(Ordering::SeqCst) + calls;
        let until = Instant::now() + PROGRESS_WAIT;
        while self.acknowledged.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < until, "the writers stand still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops, and checks on a store that was opened for it that all that was acknowledged is
    /// there, once and in order, and nothing else.
    pub async fn verify(self, store: &SqlStore) {
        self.stop.cancel();
        for (owned, calls) in self.tasks.join_all().await {
            let mut kept = Vec::new();
            let mut after = None;
            loop {
                let page = store.calls(&owned.session, after, 500).await.expect("list calls");
                let Some(last) = page.last() else { break };
                after = Some(last.seq);
                kept.extend(page);
            }
            let ids: Vec<_> = kept.iter().map(|record| record.call.id.clone()).collect();
            assert_eq!(ids, calls, "of {}", owned.session);
            for record in kept {
                let id = record.call.id;
                let CallState::Finished { end, .. } = record.state else { panic!("{id} is open") };
                assert_eq!(end.body, id.as_str().as_bytes());
            }
            let log = owned.log(store).await;
            assert_eq!(log.len(), 3 * calls.len(), "lines are missing or doubled");
            let distinct: BTreeSet<_> = log.iter().map(|event| format!("{event:?}")).collect();
            assert_eq!(distinct.len(), log.len());
        }
    }
}
