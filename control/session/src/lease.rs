//! Keeps one work item's lease, on a task of its own that nothing a guest does can slow down.
//!
//! Each beat is journaled before it leaves and after it is answered, so that a restart goes on
//! with the right string. A beat that fails is tried again soon, not an interval later: at half
//! the lease between beats, one lost beat would otherwise cost the lease.

use std::sync::Arc;
use std::time::Duration;

use base_types::WorkId;
use brain_api::{Brain, BrainErrorKind, ExpectedBeat, Heartbeat, ItemToken};
use store_api::{Change, StoreError};
use tokio::time::Instant;

use crate::journal::Journal;
use crate::message::{Inside, LeaseEnd, Outbox, line};

const FIRST_TTL: Duration = Duration::from_secs(90);
const INTERVAL_MAX: Duration = Duration::from_secs(30);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Between attempts of one beat.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);

pub struct Lease {
    pub brain: Arc<dyn Brain>,
    pub work: WorkId,
    pub token: Option<ItemToken>,
    pub expected: ExpectedBeat,
    /// The first beat is in the journal already: it leaves at once.
    pub intended: bool,
    pub journal: Journal,
    /// One request may take this long.
    pub attempt: Duration,
}

/// What one attempt says about the lease.
enum Beat {
    Kept(Heartbeat),
    Failed,
    Ended(LeaseEnd),
}

impl Lease {
    /// Beats until the lease ends or the scope stops.
    pub async fn keep(mut self, outbox: Outbox) {
        let mut ttl = FIRST_TTL;
        let mut interval = INTERVAL_MAX;
        let mut last_ok = Instant::now();
        loop {
            let wait = match self.beat(&outbox).await {
                None => return,
                Some(Beat::Ended(end)) => {
                    let _ = outbox.tell(Inside::Lease(end)).await;
                    return;
                }
                Some(Beat::Kept(beat)) => {
                    last_ok = Instant::now();
                    if let Some(given) = beat.ttl.filter(|ttl| !ttl.is_zero()) {
                        ttl = given;
                        interval = (given / 2).clamp(INTERVAL_MIN, INTERVAL_MAX);
                    }
                    interval
                }
                Some(Beat::Failed) if last_ok.elapsed() > ttl => {
                    let why = format!("no heartbeat went through for {}s", ttl.as_secs());
                    let _ = outbox.tell(Inside::Lease(LeaseEnd::Lost { why })).await;
                    return;
                }
                Some(Beat::Failed) => RETRY_WAIT_MAX.min(ttl / 10),
            };
            if outbox.pause(wait).await.is_err() {
                return;
            }
        }
    }

    /// `None` when the scope was stopped.
    async fn beat(&mut self, outbox: &Outbox) -> Option<Beat> {
        if !std::mem::take(&mut self.intended) {
            let intended = Change::BeatIntended { work: self.work.clone() };
            if let Err(error) = self.journal.record(&[intended]).await {
                return Some(journal_failed(&error));
            }
        }
        let request = self.brain.heartbeat(&self.work, self.token.as_ref(), &self.expected);
        let answer = tokio::select! {
            answer = tokio::time::timeout(self.attempt, request) => answer,
            () = outbox.stopping().cancelled() => return None,
        };
        match answer {
            Err(_) => Some(Beat::Failed),
            Ok(Ok(beat)) => Some(self.beaten(beat).await),
            Ok(Err(error)) => Some(match error.kind {
                BrainErrorKind::LeaseLost => Beat::Ended(LeaseEnd::Lost { why: line(&error) }),
                _ if error.is_transient() => {
                    tracing::debug!(work = %self.work, error = %line(&error), "heartbeat failed");
                    Beat::Failed
                }
                _ => Beat::Ended(LeaseEnd::Rejected { why: line(&error) }),
            }),
        }
    }

    async fn beaten(&mut self, beat: Heartbeat) -> Beat {
        let change = Change::Beat {
            work: self.work.clone(),
            last: beat.last.clone(),
            ttl_ms: beat.ttl.map(|ttl| ttl.as_millis() as u64),
        };
        // An empty string stands for "none recorded".
        self.expected = match beat.last.as_str() {
            "" => ExpectedBeat::None,
            last => ExpectedBeat::Last(last.to_owned()),
        };
        if let Err(error) = self.journal.record(&[change]).await {
            return journal_failed(&error);
        }
        if beat.asks_to_stop() { Beat::Ended(LeaseEnd::StopRequested) } else { Beat::Kept(beat) }
    }
}

fn journal_failed(error: &StoreError) -> Beat {
    match error {
        StoreError::NotOwner { .. } => Beat::Ended(LeaseEnd::Superseded),
        // Without a journal nothing may be promised: the lease is let go, and whoever serves the
        // session next reads what was written.
        _ => Beat::Ended(LeaseEnd::Lost { why: line(error) }),
    }
}
