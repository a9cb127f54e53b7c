//! The one process-wide view: which sessions have an actor, and how the outside reaches them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base_tasks::{Drained, TaskKind, Tasks};
use base_types::{Clock, EnvironmentId, Epoch, NodeId, SessionId};
use sandbox_api::SandboxDriver;
use sandbox_api::guest::client::GuestClient;
use store_api::{Change, LogEvent, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tools_api::Tool;

use crate::actor::Actor;
use crate::environment::Environment;
use crate::journal::Journal;
use crate::keeper::{self, Removed};
use crate::message::{INBOX_MAX, Message, Outside};
use crate::node::{self, Holder, Standing};
use crate::parts::{EnvironmentStatus, HandsParts, Profiles, Timeouts};
use crate::poller::Poller;
use crate::seal::Sealer;

/// How long an outside request waits for the actor's answer; a sandbox start is within it.
const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// The hands: serves every environment it was built with.
pub struct Hands {
    shared: Arc<Shared>,
}

/// The outside's way in. Cheap to clone.
#[derive(Clone)]
pub struct HandsHandle {
    shared: Arc<Shared>,
}

/// A connection to a session's sandbox. While it lives the sandbox is not put to sleep.
pub struct GuestLease {
    pub client: GuestClient,
    pub epoch: Epoch,
    pub(crate) _awake: Arc<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    #[error("read the journal")]
    Journal(#[source] StoreError),
    #[error("every environment's key was refused: {0}")]
    AllRefused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("no session {0}")]
    NoSuchSession(SessionId),
    #[error("session {session} is over: {why}")]
    Over { session: SessionId, why: String },
    #[error("session {0} has not been prepared yet")]
    NotPrepared(SessionId),
    #[error("session {session} is served by node {node}")]
    Elsewhere { session: SessionId, node: NodeId },
    #[error(
        "the files of session {session} were on node {node}, which is gone; its next work item \
         begins with an empty workspace here"
    )]
    FilesLost { session: SessionId, node: NodeId },
    #[error("the sandbox of session {session} does not start: {why}")]
    NoSandbox { session: SessionId, why: String },
    #[error("session {0} is too busy to answer")]
    Busy(SessionId),
    #[error("read the journal")]
    Journal(#[source] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum StopSessionError {
    #[error("no session {0}")]
    NoSuchSession(SessionId),
    #[error("session {session} is served by node {node}")]
    Elsewhere { session: SessionId, node: NodeId },
    #[error("session {0} is too busy to answer")]
    Busy(SessionId),
    #[error("stop session {session}: {why}")]
    Failed { session: SessionId, why: String },
    #[error("read the journal")]
    Journal(#[source] StoreError),
}

/// What every actor, poller and keeper sees.
pub(crate) struct Shared {
    pub node: NodeId,
    pub store: Arc<dyn Store>,
    pub environments: Vec<Environment>,
    pub driver: Arc<dyn SandboxDriver>,
    pub tools: HashMap<String, Arc<dyn Tool>>,
    pub profiles: Arc<dyn Profiles>,
    pub sealer: Sealer,
    pub clock: Arc<dyn Clock>,
    pub timeouts: Timeouts,
    pub tasks: Tasks,
    /// Whether this node may believe that its sessions are its own.
    pub standing: Standing,
    /// Environments that sessions here are of and that are not configured any more.
    pub removed: Mutex<Removed>,
    actors: Mutex<HashMap<SessionId, mpsc::Sender<Message>>>,
}

/// The actor has as many messages waiting as it may.
#[derive(Debug)]
pub(crate) struct ActorBusy;

// === impl Hands ===

impl Hands {
    pub fn build(parts: HandsParts) -> Self {
        let environments = parts.environments.into_iter().map(Environment::new);
        let tools = parts.tools.into_iter().map(|tool| (tool.name().to_owned(), tool));
        let shared = Shared {
            node: parts.node,
            store: parts.store,
            environments: environments.collect(),
            driver: parts.driver,
            tools: tools.collect(),
            profiles: parts.profiles,
            sealer: parts.sealer,
            clock: parts.clock,
            timeouts: parts.timeouts,
            tasks: Tasks::new(),
            standing: Standing::new(),
            removed: Mutex::default(),
            actors: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn handle(&self) -> HandsHandle {
        HandsHandle { shared: self.shared.clone() }
    }

    /// Goes on with what a restart left, then claims work until `stop`, then drains: running calls
    /// are given `Timeouts::drain`, and an item with open calls is never stopped.
    pub async fn run(self, stop: CancellationToken) -> Result<(), HandsError> {
        let shared = self.shared;
        // Before anything is taken up: a session is this node's for as long as the node is alive.
        let renewed = shared.renew().await.map_err(HandsError::Journal)?;
        shared.standing.begin(renewed);
        keeper::resume(&shared).await.map_err(HandsError::Journal)?;
        let claiming = shared.tasks.child();
        // Until the actors are at rest: what they still do is this node's.
        let living = shared.tasks.child();
        let signs = node::keep(shared.clone(), renewed, living.stopping());
        living.spawn(TaskKind::Reconciler, signs);
        for index in 0..shared.environments.len() {
            let poller = Poller { shared: shared.clone(), index, stop: claiming.stopping() };
            claiming.spawn(TaskKind::BrainPoller, poller.run());
        }
        let sweeping = keeper::keep(shared.clone(), claiming.stopping());
        claiming.spawn(TaskKind::Reconciler, sweeping);
        let refused = tokio::select! {
            () = stop.cancelled() => None,
            why = shared.all_refused() => Some(why),
        };
        // Claiming ends first, so that nothing new comes in while the rest goes down.
        claiming.drain(shared.timeouts.beat_attempt).await;
        shared.tell_all(|| Outside::Shutdown);
        let grace = shared.timeouts.drain + shared.timeouts.beat_attempt;
        let drained = shared.tasks.drain_without_stop(grace).await;
        living.drain(shared.timeouts.beat_attempt).await;
        match drained {
            Drained::All => tracing::info!("all sessions are at rest"),
            Drained::TimedOut { running } => {
                tracing::warn!(running, "the drain is over; leases are left to lapse");
            }
        }
        refused.map_or(Ok(()), |why| Err(HandsError::AllRefused(why)))
    }
}

// === impl HandsHandle ===

impl HandsHandle {
    pub fn environments(&self) -> Vec<EnvironmentStatus> {
        let now = self.shared.clock.now();
        let configured = self.shared.environments.iter();
        let configured = configured.map(|environment| environment.status(now));
        configured.chain(self.shared.removed().statuses()).collect()
    }

    /// Sessions that have an actor at the moment: served, idle, or asleep with processes.
    pub fn serving(&self) -> Vec<SessionId> {
        let mut serving: Vec<_> = self.shared.actors().keys().cloned().collect();
        serving.sort();
        serving
    }

    /// A connection to the session's sandbox, which is woken if it sleeps.
    pub async fn guest(&self, session: &SessionId) -> Result<GuestLease, GuestError> {
        let known = self.shared.store.session(session).await.map_err(GuestError::Journal)?;
        let known = known.ok_or_else(|| GuestError::NoSuchSession(session.clone()))?;
        if let store_api::Phase::Ended { reason } = &known.phase {
            let (session, why) = (session.clone(), reason.clone());
            return Err(GuestError::Over { session, why });
        }
        match self.shared.holder(session).await.map_err(GuestError::Journal)? {
            Holder::Us | Holder::Nobody => {}
            Holder::Other { node } => {
                return Err(GuestError::Elsewhere { session: session.clone(), node });
            }
            Holder::Lost { node } => {
                return Err(GuestError::FilesLost { session: session.clone(), node });
            }
        }
        let (reply, answer) = oneshot::channel();
        let busy = || GuestError::Busy(session.clone());
        self.shared.tell(session, Outside::Guest { reply }).map_err(|_| busy())?;
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Ok(Ok(answer)) => answer,
            _ => Err(busy()),
        }
    }

    /// Kills what runs, posts what is finished and stops the work item and the sandbox. With
    /// `forget` the volume goes too and the session is over here.
    pub async fn stop_session(
        &self,
        session: &SessionId,
        forget: bool,
    ) -> Result<(), StopSessionError> {
        let known = self.shared.store.session(session).await.map_err(StopSessionError::Journal)?;
        if known.is_none() {
            return Err(StopSessionError::NoSuchSession(session.clone()));
        }
        let holder = self.shared.holder(session).await.map_err(StopSessionError::Journal)?;
        if let Holder::Other { node } = holder {
            return Err(StopSessionError::Elsewhere { session: session.clone(), node });
        }
        let (reply, answer) = oneshot::channel();
        let busy = || StopSessionError::Busy(session.clone());
        self.shared.tell(session, Outside::Stop { forget, reply }).map_err(|_| busy())?;
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Ok(Ok(answer)) => answer,
            _ => Err(busy()),
        }
    }

    /// Adds a line to the session's log, under whatever generation owns it now.
    pub async fn note(&self, session: &SessionId, event: LogEvent) -> Result<(), StoreError> {
        let known = self.shared.store.session(session).await?;
        let known = known.ok_or_else(|| StoreError::NoSuchSession(session.clone()))?;
        let journal = Journal::new(self.shared.store.clone(), session.clone(), known.generation);
        journal.record(&[Change::Note(event)]).await
    }
}

// === impl Shared ===

impl Shared {
    pub fn environment(&self, id: &EnvironmentId) -> Option<&Environment> {
        self.environments.iter().find(|environment| environment.id() == id)
    }

    /// Hands a message to the session's actor, which is started if there is none.
    pub fn tell(self: &Arc<Self>, session: &SessionId, message: Outside) -> Result<(), ActorBusy> {
        let mut actors = self.actors();
        let mut message = Message::Outside(message);
        if let Some(actor) = actors.get(session) {
            match actor.try_send(message) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => return Err(ActorBusy),
                // It panicked: what it had is in the journal, and a new one goes on from there.
                Err(mpsc::error::TrySendError::Closed(back)) => message = back,
            }
        }
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        if sender.try_send(message).is_err() {
            return Err(ActorBusy);
        }
        actors.insert(session.clone(), sender.clone());
        let actor = Actor::run(self.clone(), session.clone(), sender, inbox);
        self.tasks.spawn(TaskKind::SessionDriver, actor);
        Ok(())
    }

    /// Takes an actor off the list, unless a message came in the last moment: that is returned.
    pub fn retire(
        &self,
        session: &SessionId,
        inbox: &mut mpsc::Receiver<Message>,
    ) -> Option<Message> {
        let mut actors = self.actors();
        match inbox.try_recv() {
            Ok(message) => Some(message),
            Err(_) => {
                actors.remove(session);
                None
            }
        }
    }

    pub fn has_actor(&self, session: &SessionId) -> bool {
        self.actors().contains_key(session)
    }

    /// Resolves when no environment's key is accepted any more: there is nothing left to serve.
    async fn all_refused(&self) -> String {
        const LOOK_EVERY: Duration = Duration::from_secs(1);
        loop {
            let refused: Vec<String> = self
                .environments
                .iter()
                .filter_map(|environment| {
                    let trouble = environment.trouble().filter(|trouble| trouble.refused)?;
                    Some(format!("{}: {}", environment.id(), trouble.what))
                })
                .collect();
            if !refused.is_empty() && refused.len() == self.environments.len() {
                return refused.join("; ");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub fn tell_all(&self, message: impl Fn() -> Outside) {
        let actors: Vec<_> = self.actors().values().cloned().collect();
        for actor in actors {
            // A full inbox means the actor is far behind; a deadline of its own is its answer.
            let _ = actor.try_send(Message::Outside(message()));
        }
    }

    pub fn removed(&self) -> MutexGuard<'_, Removed> {
        self.removed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn actors(&self) -> MutexGuard<'_, HashMap<SessionId, mpsc::Sender<Message>>> {
        self.actors.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
