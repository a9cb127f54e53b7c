//! Beginning to serve an item: claim it durably, acknowledge it, keep its lease, learn who the
//! session is, listen.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base_tasks::TaskKind;
use base_types::{EnvironmentId, WorkId};
use brain_api::{
    Brain, BrainError, BrainErrorKind, BrainSession, ExpectedBeat, ItemToken, SessionInfo,
    SessionStatus, WorkItem,
};
use store_api::{Change, LogEvent, NewWork, Phase, StoreError, WorkEnd, WorkPhase, WorkRecord};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::ending::End;
use super::serving::Serving;
use super::{Actor, DEFERRED_MAX};
use crate::feed::Feed;
use crate::hub::Shared;
use crate::identity;
use crate::lease::Lease;
use crate::message::{FeedMessage, Outbox, Outside, line};
use crate::router::Router;
use crate::sender::{QUEUE_MAX, Sender};

/// How long the brain may take to answer an acknowledgement. Afterwards the beat decides.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// An item that is ours.
struct Claimed {
    work: WorkId,
    environment: EnvironmentId,
    token: Option<ItemToken>,
    expected: ExpectedBeat,
    permit: OwnedSemaphorePermit,
}

/// What the brain said to an acknowledgement.
enum Acked {
    Yes,
    /// It will be offered again.
    Later(String),
    Refused(String),
}

// === impl Shared ===

impl Shared {
    /// The row to write before an item is acknowledged. A token that cannot be sealed is left out:
    /// the environment key serves as well.
    pub(super) fn new_work(&self, item: &WorkItem, session: &base_types::SessionId) -> NewWork {
        let token = item.token.as_ref().and_then(|token| {
            let sealed = self.sealer.seal(&item.id, &token.0);
            sealed.inspect_err(|error| tracing::warn!(error = %line(error), "keep a token")).ok()
        });
        NewWork {
            id: item.id.clone(),
            environment: item.environment.clone(),
            session: session.clone(),
            node: self.node.clone(),
            token,
        }
    }

    /// An offer that is not taken is left alone for a while.
    fn leave(&self, item: &WorkItem) {
        if let Some(environment) = self.environment(&item.environment) {
            environment.leave(&item.id);
        }
    }

    /// The session cannot be had: whoever waits is told, and an offer goes back.
    pub(super) fn give_back(
        &self,
        session: &base_types::SessionId,
        message: Outside,
        error: &StoreError,
    ) {
        if let Outside::Offered { item, .. } = &message {
            self.leave(item);
        }
        message.refuse(session, error);
    }
}

// === impl Actor ===

impl Actor {
    /// An offered item: durable first, then acknowledged, then its lease is kept.
    pub(super) async fn begin(&mut self, item: WorkItem, permit: OwnedSemaphorePermit) {
        if let Some(serving) = &self.serving {
            if serving.work == item.id {
                // Offered again because the acknowledgement is not through yet.
                return;
            }
            // A new item while we hold one means that ours is over at the brain; the lease will say
            // so. The new one is offered until somebody acknowledges it.
            tracing::info!(session = %self.session, work = %item.id, held = %serving.work,
                "a second item for the session; it waits until the first has ended");
            return self.shared.leave(&item);
        }
        if self.shutting_down || self.superseded {
            return self.shared.leave(&item);
        }
        let shared = self.shared.clone();
        let Some(environment) = shared.environment(&item.environment) else { return };
        let brain = environment.parts.brain.clone();
        let new = self.shared.new_work(&item, &self.session);
        if let Err(error) = self.shared.store.claim_work(&new).await {
            // Not acknowledged, so nothing is lost: it is offered again.
            tracing::error!(work = %item.id, error = %line(&error), "could not record a work item");
            return self.shared.leave(&item);
        }
        // An actor that slept may have lost the session and not know. An item that is acknowledged and
        // not served is offered to nobody: better one that waits for the session to be taken anew.
        if !self.is_still_owner().await {
            return self.shared.leave(&item);
        }
        match ack(&*brain, &item.id).await {
            Acked::Yes => environment.taken(&item.id),
            Acked::Later(why) => {
                tracing::warn!(work = %item.id, %why, "acknowledge");
                return environment.leave(&item.id);
            }
            Acked::Refused(why) => {
                tracing::warn!(work = %item.id, %why, "the acknowledgement was refused");
                environment.leave(&item.id);
                if self.is_still_owner().await {
                    if let Err(error) = brain.stop(&item.id, None).await {
                        tracing::debug!(work = %item.id, error = %line(&error), "stop");
                    }
                    self.end_work(&item.id, WorkEnd::Refused).await;
                }
                return;
            }
        }
        let claimed = Claimed {
            work: item.id,
            environment: item.environment,
            token: item.token,
            expected: ExpectedBeat::None,
            permit,
        };
        self.serve(claimed, brain).await;
    }

    /// An item of before a restart: its lease goes on with the stored string. One that was being
    /// claimed may never have been acknowledged, so that is tried first; whatever the answer, the
    /// beat that follows decides.
    pub(super) async fn resume(&mut self, work: WorkRecord, permit: OwnedSemaphorePermit) {
        if self.serving.is_some() || self.shutting_down {
            return;
        }
        let Some(environment) = self.shared.environment(&work.environment) else { return };
        let brain = environment.parts.brain.clone();
        let expected = match &work.phase {
            WorkPhase::Ended { .. } => return,
            WorkPhase::Claiming => {
                if let Acked::Later(why) | Acked::Refused(why) = ack(&*brain, &work.id).await {
                    tracing::debug!(work = %work.id, %why, "acknowledge again");
                }
                ExpectedBeat::None
            }
            WorkPhase::Active { last_beat: None, .. } => ExpectedBeat::None,
            WorkPhase::Active { last_beat: Some(last), .. } => ExpectedBeat::Last(last.clone()),
        };
        let token = work.token.as_ref().and_then(|sealed| {
            match self.shared.sealer.open(&work.id, sealed) {
                Ok(token) => Some(ItemToken(token)),
                Err(error) => {
                    tracing::warn!(work = %work.id, error = %line(&error),
                        "the environment key is used instead of the item's token");
                    None
                }
            }
        });
        tracing::info!(session = %self.session, work = %work.id, "going on after a restart");
        let claimed =
            Claimed { work: work.id, environment: work.environment, token, expected, permit };
        self.serve(claimed, brain).await;
    }

    /// An item of an environment that is not configured any more: nobody can keep its lease.
    pub(super) async fn let_go(&mut self, work: WorkRecord) {
        let mut changes =
            vec![Change::WorkEnded { work: work.id.clone(), why: WorkEnd::LeaseLost }];
        if !self.phase.is_final() {
            let text = format!(
                "environment {} is not in the configuration any more: its work item {} is let go; \
                 the files are kept",
                work.environment, work.id
            );
            changes.push(Change::Phase(Phase::Sleeping));
            changes.push(Change::Note(LogEvent::Warning { text }));
        }
        match self.record_changes(&changes).await {
            Ok(()) if !self.phase.is_final() => self.phase = Phase::Sleeping,
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(work = %work.id, error = %line(&error), "let a work item go");
            }
        }
        self.tend().await;
    }

    /// From here on the lease is kept and the session is being learnt.
    async fn serve(&mut self, claimed: Claimed, brain: Arc<dyn Brain>) {
        let tasks = self.tasks.child();
        let outbox = Outbox::new(self.me.clone(), tasks.stopping());
        let work = || claimed.work.clone();
        let recorded = self
            .record_changes(&[
                Change::WorkAcked { work: work() },
                Change::BeatIntended { work: work() },
                Change::Phase(Phase::Preparing),
            ])
            .await;
        self.phase = Phase::Preparing;
        let lease = Lease {
            brain: brain.clone(),
            work: work(),
            token: claimed.token.clone(),
            expected: claimed.expected,
            intended: recorded.is_ok(),
            journal: self.journal.clone(),
            attempt: self.shared.timeouts.beat_attempt,
        };
        // A journal that fails now is the lease's to report: its first write is the next thing.
        if let Err(error) = recorded {
            tracing::error!(work = %claimed.work, error = %line(&error), "record a claim");
        }
        tasks.spawn(TaskKind::LeaseHeartbeat, lease.keep(outbox.clone()));
        let remote = brain.session(&self.session, claimed.token.clone());
        let remote: Arc<dyn BrainSession> = Arc::from(remote);
        tasks.spawn(TaskKind::EventReader, identity::fetch(remote.clone(), outbox));
        let (deliveries, queue_end) = mpsc::channel(QUEUE_MAX);
        tracing::info!(session = %self.session, work = %claimed.work,
            environment = %claimed.environment, "serving");
        self.sleep_at = None;
        self.serving = Some(Serving {
            work: claimed.work,
            brain,
            token: claimed.token,
            remote,
            tasks,
            deliveries,
            queue_end: Some(queue_end),
            undelivered: HashMap::new(),
            router: Router::new(self.shared.tools.keys().cloned()),
            queue: VecDeque::new(),
            running: None,
            caught_up: false,
            idle_until: None,
            trouble: None,
            ending: false,
            _permit: claimed.permit,
        });
    }

    pub(super) async fn on_identity(&mut self, fetched: Result<SessionInfo, BrainError>) {
        let Some(serving) = &self.serving else { return };
        let info = match fetched {
            Ok(info) => info,
            Err(error) => {
                let why = line(&error);
                return self.end_item(End::Refused { why }).await;
            }
        };
        if info.status == SessionStatus::Terminated {
            return self.end_item(End::SessionOver { reason: "terminated" }).await;
        }
        let environment = serving.brain.environment().clone();
        if let Err(reason) = self.identify(info, &environment).await {
            return self.end_item(End::Failed { reason }).await;
        }
        self.listen();
    }

    /// Takes in who the session is. `Err` is why it cannot be served.
    async fn identify(
        &mut self,
        info: SessionInfo,
        environment: &EnvironmentId,
    ) -> Result<(), String> {
        let Some(known) = self.shared.environment(environment) else {
            return Err(format!("environment {environment} is not configured"));
        };
        let identity = identity::identify(
            info,
            self.identity.as_ref(),
            environment,
            known.tenancy(),
            &*self.shared.profiles,
        )
        .map_err(|error| line(&error))?;
        let shape = self.shared.profiles.shape(&identity.profile).ok_or_else(|| {
            format!("profile `{}` is not in the configuration any more", identity.profile)
        })?;
        if shape.tier != self.shared.driver.tier() {
            return Err(format!(
                "profile `{}` asks for the {} tier, which this installation does not run",
                identity.profile, shape.tier
            ));
        }
        if self.identity.as_ref() != Some(&identity) {
            if !identity.unserved.is_empty() {
                tracing::warn!(session = %self.session, unserved = ?identity.unserved,
                    "the session is served without what is attached to it");
            }
            match self.record_changes(&[Change::Identified(Box::new(identity.clone()))]).await {
                Ok(()) => {}
                Err(error @ StoreError::NotOwner { .. }) => return Err(line(&error)),
                Err(error) => return Err(format!("record the session: {}", line(&error))),
            }
        }
        self.identity = Some(identity);
        self.shape = Some(shape);
        Ok(())
    }

    /// Starts the event reader and the sender, once per item.
    fn listen(&mut self) {
        let Some(serving) = &mut self.serving else { return };
        let Some(queue) = serving.queue_end.take() else { return };
        let outbox = Outbox::new(self.me.clone(), serving.tasks.stopping());
        let sender = Sender { session: serving.remote.clone(), outbox: outbox.clone() };
        serving.tasks.spawn(TaskKind::ResultSender, sender.run(queue));
        let feed = Feed { session: serving.remote.clone(), outbox };
        serving.tasks.spawn(TaskKind::EventReader, feed.run());
    }

    pub(super) async fn on_feed(&mut self, message: FeedMessage) {
        let Some(serving) = &mut self.serving else { return };
        match message {
            FeedMessage::Page { events, first, last, .. } => {
                serving.router.on_page(events, first);
                if last {
                    let is_first = !std::mem::replace(&mut serving.caught_up, true);
                    serving.trouble = None;
                    let steps = serving.router.end_history();
                    self.take_steps(steps, true).await;
                    if is_first {
                        self.settle_known().await;
                    }
                }
            }
            FeedMessage::Live(event) => {
                let steps = serving.router.on_live(&event);
                self.take_steps(steps, false).await;
            }
            FeedMessage::Trouble(what) => {
                if serving.trouble.as_ref() != Some(&what) {
                    serving.trouble = Some(what.clone());
                    self.note(LogEvent::BrainTrouble { what }).await;
                }
            }
            FeedMessage::Refused(error) => {
                let why = line(&error);
                self.end_item(End::Refused { why }).await;
            }
        }
    }

    /// Fetches the session again: its metadata, title or agent changed.
    pub(super) fn refresh_identity(&self) {
        let Some(serving) = &self.serving else { return };
        let outbox = Outbox::new(self.me.clone(), serving.tasks.stopping());
        let fetch = identity::fetch(serving.remote.clone(), outbox);
        serving.tasks.spawn(TaskKind::EventReader, fetch);
    }

    pub(super) async fn end_work(&mut self, work: &WorkId, why: WorkEnd) {
        let ended = Change::WorkEnded { work: work.clone(), why };
        if let Err(error) = self.record_changes(&[ended]).await {
            tracing::error!(%work, error = %line(&error), "record the end of a work item");
        }
    }

    /// Keeps what came from outside for after the item's end.
    pub(super) fn defer(&mut self, message: Outside) {
        if self.deferred.len() < DEFERRED_MAX {
            return self.deferred.push_back(message);
        }
        if let Outside::Offered { item, .. } = &message {
            self.shared.leave(item);
        }
        message.turn_away(&self.session);
    }
}

async fn ack(brain: &dyn Brain, work: &WorkId) -> Acked {
    let Ok(acked) = tokio::time::timeout(ACK_WAIT, brain.ack(work)).await else {
        return Acked::Yes;
    };
    match acked {
        Ok(()) => Acked::Yes,
        Err(error) => match error.kind {
            BrainErrorKind::Transient { .. } => Acked::Later(line(&error)),
            // The brain may have it. A beat will tell; an item that was not acknowledged is refused
            // there and offered again here.
            BrainErrorKind::Ambiguous => Acked::Yes,
            _ => Acked::Refused(line(&error)),
        },
    }
}
