//! One session's actor: the task that owns the session, from its first work item until nothing of
//! it runs any more.
//!
//! ```text
//!            offered                     turn over, idle time passed
//!  (none) ────────────► serving item ──────────────────────────────► sleeping ──► (none)
//!                       │   ▲   │ stop, loss, end of session            │  keep_running passed:
//!                       │   └───┼───────────────────────────────────────┘  processes stopped,
//!                       └───────┘            offered                       volume kept
//! ```
//!
//! Everything it awaits in its loop is short: the journal, a bounded request, its own queue.
//! Whatever can take long (a sandbox start, a call, a delivery, a heartbeat) runs on a task that
//! sends it a message. After each message [`Actor::advance`] looks at the whole state and does
//! what is due, so that no order of messages is special.

mod calls;
mod ending;
mod item;
mod rest;
mod sandbox;
mod serving;
mod settling;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base_tasks::Tasks;
use base_types::SessionId;
use store_api::{Change, Identity, LogEvent, Phase, SandboxRecord, SessionRecord, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::ending::End;
use self::sandbox::Retry;
use self::serving::Serving;
use self::settling::Unsettled;
use crate::hub::{GuestError, GuestLease, Shared};
use crate::journal::Journal;
use crate::message::{Inside, Message, Outside, line};
use crate::parts::Shape;
use crate::sandbox::LiveSandbox;

/// How long the actor's own tasks may take to see their stop signal.
const TASKS_WAIT: Duration = Duration::from_secs(10);
/// Messages from outside that wait for the end of an item; whoever asks has a deadline of its own.
const DEFERRED_MAX: usize = 64;

pub(crate) struct Actor {
    shared: Arc<Shared>,
    session: SessionId,
    journal: Journal,
    me: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
    /// What came from outside while an item was being ended.
    deferred: VecDeque<Outside>,
    tasks: Tasks,
    identity: Option<Identity>,
    shape: Option<Shape>,
    record: Option<SandboxRecord>,
    sandbox: Slot,
    phase: Phase,
    serving: Option<Serving>,
    /// Results that the brain has and the journal does not know yet.
    unsettled: Unsettled,
    /// Operators who wait for the sandbox.
    guests_waiting: Vec<oneshot::Sender<Result<GuestLease, GuestError>>>,
    /// Held by every lease that was given out.
    awake: Arc<()>,
    /// When processes are stopped, unless an item comes first.
    sleep_at: Option<Instant>,
    /// Nothing may be written any more: another owner has the session.
    superseded: bool,
    /// This process is going down.
    shutting_down: bool,
}

/// The sandbox from where the actor stands.
enum Slot {
    Cold {
        /// Why the last epoch ended, where it is known.
        last_end: Option<String>,
        retry: Option<Retry>,
    },
    Preparing {
        wait: Duration,
    },
    Ready(LiveSandbox),
}

// === impl Actor ===

impl Actor {
    /// The whole life of the actor. Its first message is in the inbox.
    pub async fn run(
        shared: Arc<Shared>,
        session: SessionId,
        me: mpsc::Sender<Message>,
        mut inbox: mpsc::Receiver<Message>,
    ) {
        let Some(Message::Outside(first)) = inbox.recv().await else { return };
        let tasks = shared.tasks.child();
        match Self::open(&shared, &session, &first).await {
            Ok((journal, record)) => {
                let mut actor = Self::new(shared.clone(), journal, record, me, inbox, tasks);
                actor.deferred.push_back(first);
                actor.live().await;
                actor.tasks.drain(TASKS_WAIT).await;
            }
            Err(error) => {
                if let StoreError::OwnedElsewhere { node, .. } = &error {
                    tracing::info!(%session, %node, "the session is another node's");
                } else {
                    tracing::error!(%session, error = %line(&error), "could not take the session");
                }
                shared.give_back(&session, first, &error);
                while let Some(message) = shared.retire(&session, &mut inbox) {
                    if let Message::Outside(outside) = message {
                        shared.give_back(&session, outside, &error);
                    }
                }
            }
        }
    }

    /// Makes the session's row, where the first item of a session brings it, and takes ownership.
    async fn open(
        shared: &Shared,
        session: &SessionId,
        first: &Outside,
    ) -> Result<(Journal, SessionRecord), StoreError> {
        if let Outside::Offered { item, .. } = first {
            let work = shared.new_work(item, session);
            shared.store.claim_work(&work).await?;
        }
        let generation = shared.store.take_session(session, &shared.node).await?;
        let record = shared.store.session(session).await?;
        let record = record.ok_or_else(|| StoreError::NoSuchSession(session.clone()))?;
        let journal = Journal::new(shared.store.clone(), session.clone(), generation);
        Ok((journal, record))
    }

    fn new(
        shared: Arc<Shared>,
        journal: Journal,
        record: SessionRecord,
        me: mpsc::Sender<Message>,
        inbox: mpsc::Receiver<Message>,
        tasks: Tasks,
    ) -> Self {
        let profile = record.identity.as_ref().map(|identity| &identity.profile);
        let shape = profile.and_then(|profile| shared.profiles.shape(profile));
        Self {
            session: record.id.clone(),
            journal,
            me,
            inbox,
            deferred: VecDeque::new(),
            tasks,
            identity: record.identity,
            shape,
            record: record.sandbox,
            sandbox: Slot::Cold { last_end: None, retry: None },
            phase: record.phase,
            serving: None,
            unsettled: Unsettled::default(),
            guests_waiting: Vec::new(),
            awake: Arc::new(()),
            sleep_at: None,
            superseded: false,
            shutting_down: false,
            shared,
        }
    }

    async fn live(&mut self) {
        loop {
            let message = match self.next().await {
                Next::Message(message) => message,
                Next::Due => {
                    self.advance().await;
                    continue;
                }
                Next::Retired => return,
            };
            match message {
                Message::Outside(outside) => self.on_outside(outside).await,
                Message::Inside(inside) => self.on_inside(inside).await,
            }
            self.advance().await;
        }
    }

    /// The next thing to do. An actor with nothing to look after retires.
    async fn next(&mut self) -> Next {
        if let Some(deferred) = self.deferred.pop_front() {
            return Next::Message(Message::Outside(deferred));
        }
        if self.is_at_rest() {
            let session = self.session.clone();
            return match self.shared.retire(&session, &mut self.inbox) {
                Some(message) => Next::Message(message),
                None => Next::Retired,
            };
        }
        let due = self.due_at();
        tokio::select! {
            biased;
            message = self.inbox.recv() => match message {
                Some(message) => Next::Message(message),
                None => Next::Retired,
            },
            () = sleep_until(due) => Next::Due,
        }
    }

    /// No item, no processes, nobody waiting.
    fn is_at_rest(&self) -> bool {
        self.superseded
            || (self.serving.is_none()
                && self.unsettled.is_empty()
                && self.guests_waiting.is_empty()
                && matches!(self.sandbox, Slot::Cold { .. })
                && (self.shutting_down || self.sleep_at.is_none()))
    }

    fn due_at(&self) -> Option<Instant> {
        let idle = self.serving.as_ref().and_then(|serving| serving.idle_until);
        let retry = match &self.sandbox {
            Slot::Cold { retry: Some(retry), .. } => Some(retry.at),
            _ => None,
        };
        let sleep = if self.serving.is_none() { self.sleep_at } else { None };
        [idle, retry, sleep, self.unsettled.due_at()].into_iter().flatten().min()
    }

    async fn on_outside(&mut self, message: Outside) {
        match message {
            Outside::Offered { item, permit } => self.begin(item, permit).await,
            Outside::Resumed { work, permit } => self.resume(work, permit).await,
            Outside::Tend => self.tend().await,
            Outside::Guest { reply } => self.lend(reply),
            Outside::Stop { forget, reply } => {
                let stopped = self.stop(forget).await;
                let _ = reply.send(stopped);
            }
            Outside::Orphaned { work } => self.let_go(work).await,
            Outside::Lapsed => {
                let why = "this node could not tell the store that it is alive".to_owned();
                self.refuse_guests(&why);
                self.end_item(End::LeaseLost { why }).await;
            }
            Outside::Shutdown => {
                self.shutting_down = true;
                if self.serving.is_some() {
                    self.end_item(End::Shutdown).await;
                }
                // The sandbox goes on without us; the next process finds it in the journal.
                self.sandbox = Slot::Cold { last_end: None, retry: None };
                self.refuse_guests("the server is shutting down");
            }
        }
    }

    async fn on_inside(&mut self, message: Inside) {
        match message {
            Inside::Lease(end) => self.end_item(End::from(end)).await,
            Inside::Identity(fetched) => self.on_identity(fetched).await,
            Inside::Feed(message) => self.on_feed(message).await,
            Inside::Prepared(prepared) => self.on_prepared(prepared).await,
            Inside::SandboxEnded { epoch, why } => self.on_sandbox_ended(epoch, why),
            Inside::Entrypoint { text } => self.note(LogEvent::Warning { text }).await,
            Inside::CallDone { call, outcome } => self.on_call_done(call, outcome).await,
            Inside::Sent { call, end } => self.on_sent(call, end).await,
        }
    }

    /// Does what is due, whatever made it due.
    async fn advance(&mut self) {
        if self.superseded {
            self.abandon();
            return;
        }
        self.advance_sandbox().await;
        self.advance_calls().await;
        self.advance_settling().await;
        self.advance_idle().await;
        self.advance_sleep().await;
    }

    async fn remember(&mut self, record: SandboxRecord) -> Result<(), StoreError> {
        self.record_changes(&[Change::Sandbox(record.clone())]).await?;
        self.record = Some(record);
        Ok(())
    }

    async fn enter(&mut self, phase: Phase) -> Result<(), StoreError> {
        if self.phase == phase {
            return Ok(());
        }
        self.record_changes(&[Change::Phase(phase.clone())]).await?;
        self.phase = phase;
        Ok(())
    }

    /// A line for the log; the session does not depend on it.
    async fn note(&mut self, event: LogEvent) {
        if let Err(error) = self.record_changes(&[Change::Note(event)]).await {
            tracing::warn!(session = %self.session, error = %line(&error), "note");
        }
    }

    /// Makes changes durable, and with them what is unsettled.
    async fn record_changes(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let recorded = self.record_with_unsettled(changes).await;
        if let Err(error @ StoreError::NotOwner { .. }) = &recorded {
            tracing::warn!(session = %self.session, error = %line(error), "another owner");
            self.superseded = true;
        }
        recorded
    }

    /// Another owner has the session: let go of everything, write and say nothing.
    fn abandon(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.tasks.stopping().cancel();
        }
        self.sandbox = Slot::Cold { last_end: None, retry: None };
        self.sleep_at = None;
        self.unsettled = Unsettled::default();
        self.refuse_guests("another process serves the session now");
    }
}

#[expect(clippy::large_enum_variant, reason = "one exists at a time, for a moment")]
enum Next {
    Message(Message),
    /// A deadline has come.
    Due,
    Retired,
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
