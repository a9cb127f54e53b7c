//! Ending an item: what is killed, what is still posted, whether the brain is told, and what the
//! session is afterwards. One table decides; one procedure carries it out.

use std::time::Duration;

use store_api::{Phase, WorkEnd};
use tokio::time::Instant;

use super::serving::{Queued, Stage};
use super::{Actor, Slot, TASKS_WAIT};
use crate::call::{CancelReason, outcome_unknown_answer};
use crate::message::{CallOutcome, Inside, LeaseEnd, Message, line};

/// How long a killed call may take; the call's own task gives up sooner.
const KILL_WAIT: Duration = Duration::from_secs(12);
/// How long finished results may take to be posted before an item is stopped all the same: the
/// brain waits for the stop.
const POST_WAIT: Duration = Duration::from_secs(10);
/// How long the brain may take to answer that an item is stopped. One that hangs must not keep
/// the session from its next message.
const STOP_WAIT: Duration = Duration::from_secs(15);
/// The longest that a start of a sandbox takes before it fails by itself.
const PREPARE_WAIT: Duration = Duration::from_secs(90);

/// Why an item ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The turn is over and the idle time has passed.
    Idle,
    /// The session is over at the brain.
    SessionOver { reason: &'static str },
    /// The brain or an operator asked through the queue.
    StopRequested,
    /// An operator asked us.
    Operator,
    /// The lease is not ours any more, or nothing can be promised about it.
    LeaseLost { why: String },
    /// The brain refuses the heartbeat for good.
    Rejected { why: String },
    /// The brain refuses the session or its events for good.
    Refused { why: String },
    /// The session cannot be served.
    Failed { reason: String },
    /// The journal has another owner.
    Superseded,
    /// This process is going down.
    Shutdown,
}

/// What an end means for what runs and waits.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    running: Running,
    /// Results that are finished are posted first.
    post: bool,
    /// The brain is told.
    stop: bool,
    /// What the journal says of the item; `None` leaves it open for a restart.
    work: Option<WorkEnd>,
}

#[derive(Debug, PartialEq, Eq)]
enum Running {
    Kill,
    /// Given the drain's time to end by itself; it goes on in the sandbox when it does not.
    Await,
    /// Not ours to touch.
    Leave,
}

// === impl End ===

impl End {
    fn terms(&self, quiet: bool) -> Terms {
        use Running::{Await, Kill, Leave};
        let terms = |running, post, stop, work| Terms { running, post, stop, work };
        match self {
            End::Idle => terms(Kill, true, true, Some(WorkEnd::Stopped)),
            End::SessionOver { .. } => terms(Kill, false, true, Some(WorkEnd::Stopped)),
            End::StopRequested => terms(Kill, true, true, Some(WorkEnd::StopRequested)),
            End::Operator => terms(Kill, true, true, Some(WorkEnd::Stopped)),
            End::LeaseLost { .. } => terms(Kill, false, false, Some(WorkEnd::LeaseLost)),
            End::Rejected { .. } => terms(Kill, false, true, Some(WorkEnd::Refused)),
            End::Refused { .. } => terms(Kill, false, true, Some(WorkEnd::Refused)),
            End::Failed { .. } => terms(Kill, true, true, Some(WorkEnd::Stopped)),
            End::Superseded => terms(Leave, false, false, None),
            // An item whose turn is over can go; one with open calls must not be stopped, because
            // a stopped item with open calls is never queued again.
            End::Shutdown if quiet => terms(Await, true, true, Some(WorkEnd::Stopped)),
            End::Shutdown => terms(Await, true, false, None),
        }
    }

    fn phase(&self) -> Option<Phase> {
        match self {
            End::SessionOver { reason } => Some(Phase::Ended { reason: (*reason).to_owned() }),
            End::Failed { reason } => Some(Phase::Failed { reason: reason.clone() }),
            End::Superseded => None,
            End::Shutdown => None,
            _ => Some(Phase::Sleeping),
        }
    }

    fn reason(&self) -> String {
        match self {
            End::Idle => "the session went idle".to_owned(),
            End::SessionOver { reason } => format!("the session was {reason}"),
            End::StopRequested => "the work item was stopped".to_owned(),
            End::Operator => "an operator stopped the session".to_owned(),
            End::LeaseLost { why } => format!("the lease was lost: {why}"),
            End::Rejected { why } | End::Refused { why } => format!("the brain refused: {why}"),
            End::Failed { reason } => reason.clone(),
            End::Superseded => "another process serves the session".to_owned(),
            End::Shutdown => "the server shut down".to_owned(),
        }
    }
}

impl From<LeaseEnd> for End {
    fn from(end: LeaseEnd) -> Self {
        match end {
            LeaseEnd::StopRequested => End::StopRequested,
            LeaseEnd::Lost { why } => End::LeaseLost { why },
            LeaseEnd::Rejected { why } => End::Rejected { why },
            LeaseEnd::Superseded => End::Superseded,
        }
    }
}

// === impl Actor ===

impl Actor {
    /// Ends the item that is served, by the terms of `end`. Afterwards none is.
    pub(super) async fn end_item(&mut self, end: End) {
        let Some(serving) = &mut self.serving else { return };
        // The first end counts: what fails while it is carried out does not begin another.
        if std::mem::replace(&mut serving.ending, true) {
            return;
        }
        let terms = end.terms(serving.is_quiet());
        tracing::info!(session = %self.session, work = %serving.work, reason = %end.reason(),
            "the work item ends");
        // Nothing that waits is begun any more: it is in the journal, or still at the brain.
        serving.queue.clear();
        if end == End::Superseded {
            self.superseded = true;
            return self.abandon();
        }
        match terms.running {
            Running::Kill => self.kill_running(&end.reason()).await,
            Running::Await => {
                let until = Instant::now() + self.shared.timeouts.drain;
                self.listen_until(until, |serving| serving.running.is_none()).await;
            }
            Running::Leave => {}
        }
        if terms.post {
            let until = Instant::now() + POST_WAIT;
            self.listen_until(until, |serving| serving.undelivered.is_empty()).await;
        }
        self.settle_now().await;
        if self.superseded {
            return self.abandon();
        }
        let Some(serving) = self.serving.take() else { return };
        // The last beat must not follow the stop.
        serving.tasks.drain(TASKS_WAIT).await;
        if terms.stop && self.is_still_owner().await {
            let stop = serving.brain.stop(&serving.work, serving.token.as_ref());
            match tokio::time::timeout(STOP_WAIT, stop).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(work = %serving.work, error = %line(&error), "stop");
                }
                Err(_) => tracing::warn!(work = %serving.work, "the brain did not answer a stop"),
            }
        }
        if self.superseded {
            return self.abandon();
        }
        if let Some(why) = terms.work {
            self.end_work(&serving.work, why).await;
        }
        self.after_item(end).await;
    }

    /// Asked right before the brain is told something of an item that no journal can take back. A
    /// process that stood still may have lost the session meanwhile; the brain offers the same item to
    /// the next owner, and a stop would be of that one's. Where the journal does not say, the lease
    /// lapses instead.
    pub(super) async fn is_still_owner(&mut self) -> bool {
        let asked = self.record_changes(&[]).await;
        if let Err(error) = &asked {
            tracing::warn!(session = %self.session, error = %line(error), "ask whose session it is");
        }
        asked.is_ok()
    }

    async fn after_item(&mut self, end: End) {
        if let End::SessionOver { .. } = &end {
            self.settle_open_calls().await;
            if let Err(why) = self.destroy_sandbox().await {
                tracing::warn!(session = %self.session, %why, "remove an ended session's sandbox");
            }
        }
        if let End::Failed { .. } = &end
            && let Err(why) = self.stop_sandbox("the session failed").await
        {
            tracing::warn!(session = %self.session, %why, "stop the sandbox of a failed session");
        }
        if let Some(phase) = end.phase() {
            let stays = !phase.is_final();
            if let Err(error) = self.enter(phase).await {
                tracing::error!(session = %self.session, error = %line(&error), "record a phase");
            }
            self.sleep_at = stays.then(|| Instant::now() + self.keep_running());
        }
    }

    /// What an end still takes in: deliveries, and news of the sandbox, which come once. Events of the
    /// item are let pass; the next item's history has them.
    async fn while_ending(&mut self, message: Message) {
        match message {
            Message::Inside(Inside::Sent { call, end }) => self.on_sent(call, end).await,
            Message::Inside(Inside::Prepared(prepared)) => {
                Box::pin(self.on_prepared(prepared)).await;
            }
            Message::Inside(Inside::SandboxEnded { epoch, why }) => {
                self.on_sandbox_ended(epoch, why);
            }
            Message::Inside(_) => {}
            Message::Outside(outside) => self.defer(outside),
        }
    }

    /// Waits for a preparation that is under way: what it makes must not outlive a stop.
    pub(super) async fn settle_preparation(&mut self) {
        let until = Instant::now() + PREPARE_WAIT;
        while matches!(self.sandbox, Slot::Preparing { .. }) {
            let Ok(Some(message)) = tokio::time::timeout_at(until, self.inbox.recv()).await else {
                return;
            };
            self.while_ending(message).await;
        }
    }

    /// Kills the running call and writes down that its outcome is unknown; it is not posted. The
    /// call's own answer counts if it comes first.
    async fn kill_running(&mut self, reason: &str) {
        let Some(serving) = &mut self.serving else { return };
        let Some(running) = &mut serving.running else { return };
        running.cancel(CancelReason::ItemEnded);
        let call = running.call.clone();
        let until = Instant::now() + KILL_WAIT;
        let outcome = self.listen_for_call(until).await;
        let tells = self
            .serving
            .as_mut()
            .and_then(|serving| serving.running.take())
            .and_then(|running| running.tells);
        let (answer, tells) = match outcome {
            Some(CallOutcome::Answered(answer)) => (answer, tells),
            // The notice of a loss went down with the call's output: it is told another time.
            _ => (outcome_unknown_answer(reason), None),
        };
        let end = self.encode(&call, answer);
        let queued = Queued::new(call, Stage::Started(None));
        if let Err(error) = self.record_end(&queued, &end, tells).await {
            tracing::error!(session = %self.session, error = %line(&error), "record a killed call");
        }
    }

    /// Waits for the running call's end, and for nothing else of the item.
    async fn listen_for_call(&mut self, until: Instant) -> Option<CallOutcome> {
        loop {
            let message = tokio::time::timeout_at(until, self.inbox.recv()).await.ok()??;
            match message {
                Message::Inside(Inside::CallDone { outcome, .. }) => return Some(outcome),
                message => self.while_ending(message).await,
            }
        }
    }

    /// Takes in ends of calls and deliveries until `done` or the time is over. New events are let
    /// pass: the next item's history has them.
    async fn listen_until(
        &mut self,
        until: Instant,
        done: impl Fn(&super::serving::Serving) -> bool,
    ) {
        while self.serving.as_ref().is_some_and(|serving| !done(serving)) {
            let Ok(Some(message)) = tokio::time::timeout_at(until, self.inbox.recv()).await else {
                return;
            };
            match message {
                Message::Inside(Inside::CallDone { call, outcome }) => {
                    self.on_call_done(call, outcome).await;
                    if let Some(serving) = &mut self.serving {
                        serving.queue.clear();
                    }
                }
                message => self.while_ending(message).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the brain is told, and what it must not be, for every end.
    #[test]
    fn the_terms_of_every_end() {
        let stop_and_post = |end: &End, quiet| {
            let terms = end.terms(quiet);
            (terms.stop, terms.post)
        };
        let lost = End::LeaseLost { why: String::new() };
        assert_eq!(stop_and_post(&lost, false), (false, false), "a lost lease says nothing");
        assert_eq!(stop_and_post(&End::StopRequested, false), (true, true));
        assert_eq!(stop_and_post(&End::Idle, true), (true, true));
        assert_eq!(stop_and_post(&End::Superseded, false), (false, false));
        assert_eq!(stop_and_post(&End::Shutdown, true), (true, true));
        let open = End::Shutdown.terms(false);
        assert!(!open.stop, "an item with open calls is never stopped by a shutdown");
        assert_eq!(open.work, None, "and a restart goes on with it");
        assert_eq!(open.running, Running::Await, "and its call is not killed");
    }
}
