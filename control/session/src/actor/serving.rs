//! What an actor has while it serves a work item, and only then.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base_tasks::Tasks;
use base_types::{CallId, Epoch, ToolUseId, WorkId};
use brain_api::{Brain, BrainSession, ItemToken};
use store_api::NewCall;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::call::{CancelReason, Running};
use crate::router::Router;
use crate::sender::Delivery;

pub struct Serving {
    pub work: WorkId,
    pub brain: Arc<dyn Brain>,
    pub token: Option<ItemToken>,
    pub remote: Arc<dyn BrainSession>,
    /// Lease, feed, sender and the fetch of the identity: they end with the item.
    pub tasks: Tasks,
    pub deliveries: mpsc::Sender<Delivery>,
    /// Present until the session is identified and the sender starts.
    pub queue_end: Option<mpsc::Receiver<Delivery>>,
    /// Results that are with the sender.
    pub undelivered: HashMap<CallId, Undelivered>,
    pub router: Router,
    /// Calls that are ours to answer, in the order of their events.
    pub queue: VecDeque<Queued>,
    pub running: Option<Running>,
    /// The first history has been seen: what is open is known.
    pub caught_up: bool,
    /// The turn is over and nothing is outstanding; then the item is stopped.
    pub idle_until: Option<Instant>,
    /// The last trouble with the brain that was noted, so that each is noted once.
    pub trouble: Option<String>,
    /// The item's end is being carried out.
    pub ending: bool,
    pub _permit: OwnedSemaphorePermit,
}

/// A call that waits for its turn.
#[derive(Debug)]
pub struct Queued {
    pub call: NewCall,
    pub stage: Stage,
    /// It was cancelled while it waited to be joined: it is killed as soon as it is.
    pub cancelled: Option<CancelReason>,
}

impl Queued {
    pub fn new(call: NewCall, stage: Stage) -> Self {
        Self { call, stage, cancelled: None }
    }
}

/// What the journal has of a waiting call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing yet.
    Fresh,
    Received,
    /// It may have run, in this epoch.
    Started(Option<Epoch>),
}

/// A result on its way.
#[derive(Debug)]
pub struct Undelivered {
    pub tool_use: ToolUseId,
    pub custom: bool,
    pub is_error: bool,
    /// The journal has it as settled already: the brain lost it, and gets it again.
    pub settled: bool,
    pub shortened: bool,
    pub body_bytes: usize,
}

// === impl Serving ===

impl Serving {
    /// A call waits that cannot be answered without a sandbox, or soon will: the sandbox is
    /// prepared as soon as the session is known, so that the first call finds it.
    pub fn wants_sandbox(&self) -> bool {
        !self.queue.is_empty() || self.running.is_some() || !self.caught_up || !self.is_quiet()
    }

    /// The turn is over, nothing waits, runs or is unposted.
    pub fn is_quiet(&self) -> bool {
        self.caught_up && self.router.is_quiet() && !self.has_open_calls()
    }

    /// A call that waits and has not been started, taken out of the queue.
    pub fn take_waiting(&mut self, tool_use: &ToolUseId) -> Option<Queued> {
        let waits = |queued: &Queued| {
            queued.call.tool_use == *tool_use && !matches!(queued.stage, Stage::Started(_))
        };
        let at = self.queue.iter().position(waits)?;
        self.queue.remove(at)
    }

    /// A call that waits, runs, or is on its way to the brain.
    pub fn has_in_hand(&self, tool_use: &ToolUseId) -> bool {
        self.queue.iter().any(|queued| queued.call.tool_use == *tool_use)
            || self.running.as_ref().is_some_and(|running| running.call.tool_use == *tool_use)
            || self.undelivered.values().any(|undelivered| undelivered.tool_use == *tool_use)
    }

    pub fn has_open_calls(&self) -> bool {
        !self.queue.is_empty() || self.running.is_some() || !self.undelivered.is_empty()
    }
}
