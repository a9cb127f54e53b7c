//! Results that the brain has: the journal is told, and the agent may forget the call.
//!
//! The model's next call often comes within a millisecond of a result, and its start is a commit to
//! the journal. So the news that a result was posted waits for that moment and goes along, or by
//! itself when nothing comes. A crash in between costs nothing: the history shows the answer, and
//! [`Actor::settle_known`] settles the call by it.

use std::time::Duration;

use base_tasks::TaskKind;
use base_types::{CallId, ToolUseId};
use store_api::{CallEnd, CallState, Change, StoreError};
use tokio::time::Instant;

use super::{Actor, Slot};
use crate::message::line;
use crate::router::Fate;

/// How long the news of a posted result waits for another commit to go with.
const WAIT: Duration = Duration::from_millis(5);
/// An acknowledgement to the agent is a courtesy with a bound: what it would free is freed with
/// the epoch.
const ACK_WAIT: Duration = Duration::from_secs(5);
/// Stands for the answer of a brain that will never take a result.
const NEVER_TAKEN: u16 = 404;

/// What waits to be settled. At most as many as the sender has in flight between two commits.
#[derive(Default)]
pub(super) struct Unsettled {
    calls: Vec<(CallId, Option<u16>)>,
    since: Option<Instant>,
}

impl Unsettled {
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub fn due_at(&self) -> Option<Instant> {
        self.since.map(|since| since + WAIT)
    }

    fn push(&mut self, call: CallId, refused: Option<u16>) {
        self.calls.push((call, refused));
        self.since.get_or_insert_with(Instant::now);
    }
}

impl Actor {
    /// The brain has the result of this call, or will never take it.
    pub(super) fn settle(&mut self, call: CallId, refused: Option<u16>) {
        self.unsettled.push(call, refused);
    }

    pub(super) async fn advance_settling(&mut self) {
        if self.unsettled.due_at().is_some_and(|at| at <= Instant::now()) {
            self.settle_now().await;
        }
    }

    pub(super) async fn settle_now(&mut self) {
        if !self.unsettled.is_empty()
            && let Err(error) = self.record_changes(&[]).await
        {
            self.journal_failed(&error).await;
        }
    }

    pub(super) async fn record_with_unsettled(
        &mut self,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        if self.unsettled.is_empty() {
            return self.journal.record(changes).await;
        }
        let settled = std::mem::take(&mut self.unsettled);
        let of = |(call, refused): &(CallId, Option<u16>)| Change::CallSettled {
            call: call.clone(),
            refused: *refused,
        };
        let batch: Vec<Change> =
            settled.calls.iter().map(of).chain(changes.iter().cloned()).collect();
        if let Err(error) = self.journal.record(&batch).await {
            // Tried again with the next one.
            self.unsettled = settled;
            return Err(error);
        }
        for (call, _) in settled.calls {
            self.acknowledge(call);
        }
        Ok(())
    }

    /// The agent may forget a call whose result the brain has.
    pub(super) fn acknowledge(&self, call: CallId) {
        let Slot::Ready(live) = &self.sandbox else { return };
        let client = live.client.clone();
        self.tasks.spawn(TaskKind::ToolCall, async move {
            match tokio::time::timeout(ACK_WAIT, client.ack(&call)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%call, error = %line(&error), "acknowledge"),
                Err(_) => tracing::debug!(%call, "the agent did not take an acknowledgement"),
            }
        });
    }

    /// Settles what the journal has as open and the history as answered, denied or of a thread that
    /// is over: nothing else would, and its rows would be kept for ever.
    pub(super) async fn settle_known(&mut self) {
        let open = match self.journal.open_calls().await {
            Ok(open) => open,
            Err(error) => return self.journal_failed(&error).await,
        };
        let Some(serving) = &self.serving else { return };
        let mut changes = Vec::new();
        for record in open {
            if serving.has_in_hand(&record.call.tool_use) {
                continue;
            }
            let (summary, refused) = match serving.router.fate(&record.call.tool_use) {
                Fate::Open => continue,
                Fate::Answered => ("answered elsewhere, not run", None),
                Fate::Void => ("its thread was terminated, or it was denied", Some(NEVER_TAKEN)),
            };
            let call = record.call.id;
            if !matches!(record.state, CallState::Finished { .. }) {
                changes.push(Change::CallFinished { call: call.clone(), end: no_answer(summary) });
            }
            changes.push(Change::CallSettled { call, refused });
        }
        if !changes.is_empty()
            && let Err(error) = self.record_changes(&changes).await
        {
            self.journal_failed(&error).await;
        }
    }

    /// A session that is over takes no result any more: its calls are written off, so that its
    /// rows can be forgotten in time.
    pub(super) async fn settle_open_calls(&mut self) {
        let open = match self.journal.open_calls().await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(session = %self.session, error = %line(&error), "list open calls");
                return;
            }
        };
        let mut changes = Vec::new();
        for record in open {
            let call = record.call.id;
            if !matches!(record.state, CallState::Finished { .. }) {
                let end = no_answer("the session ended first");
                changes.push(Change::CallFinished { call: call.clone(), end });
            }
            changes.push(Change::CallSettled { call, refused: Some(NEVER_TAKEN) });
        }
        if !changes.is_empty()
            && let Err(error) = self.record_changes(&changes).await
        {
            tracing::warn!(session = %self.session, error = %line(&error), "write off open calls");
        }
    }

    /// Nobody takes the result of this call: it is ended without one.
    pub(super) async fn write_off(&mut self, queued: super::serving::Queued, summary: &str) {
        let end = CallEnd { is_error: true, ..no_answer(summary) };
        let call = queued.call.id.clone();
        let mut recorded = self.record_end(&queued, &end, None).await;
        if recorded.is_ok() {
            let settled = Change::CallSettled { call, refused: Some(NEVER_TAKEN) };
            recorded = self.record_changes(&[settled]).await;
        }
        if let Err(error) = recorded {
            self.journal_failed(&error).await;
        }
    }

    /// Somebody else answered a call that waits here: it is not run.
    pub(super) async fn drop_answered(&mut self, tool_use: &ToolUseId) {
        let Some(serving) = &mut self.serving else { return };
        let Some(queued) = serving.take_waiting(tool_use) else { return };
        let end = no_answer("answered elsewhere, not run");
        let call = queued.call.id.clone();
        let mut recorded = self.record_end(&queued, &end, None).await;
        if recorded.is_ok() {
            let settled = Change::CallSettled { call, refused: None };
            recorded = self.record_changes(&[settled]).await;
        }
        if let Err(error) = recorded {
            self.journal_failed(&error).await;
        }
    }
}

/// The end of a call that we give no answer to.
fn no_answer(summary: &str) -> CallEnd {
    CallEnd { body: Vec::new(), is_error: false, summary: summary.to_owned(), exit_code: None }
}
