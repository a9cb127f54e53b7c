//! One session: its history, the calls it waits for, its threads and where its script stands.
//!
//! Everything that changes it goes through [`Play`], which pairs the session with what it may
//! touch beside itself: the queue, the clock and the switches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use base_types::ToolUseId;
use serde::Serialize;
use serde_json::{Value, json};

use crate::history::{Event, History};
use crate::queue::{NewItem, Now, Queue};
use crate::reply::{Fields, new_id};
use crate::route::CredentialKind;
use crate::scenario::{Expectation, Scenario};

/// Messages that wait for the end of a turn.
pub(crate) const MAX_QUEUED_MESSAGES: usize = 1000;
/// Failures remembered per session; the first ones tell the story.
const MAX_FAILURES: usize = 100;

#[derive(Debug)]
pub(crate) struct Session {
    pub id: String,
    pub environment: String,
    pub order: u64,
    pub agent: Value,
    pub scenario: Option<Arc<Scenario>>,
    pub status: Status,
    pub title: Option<String>,
    pub metadata: Fields,
    pub resources: Vec<Value>,
    pub vault_ids: Value,
    pub budget: Value,
    pub created_at: String,
    pub updated_at: String,
    pub archived_at: Option<String>,
    pub history: History,
    /// Keyed by tool-use id.
    pub calls: BTreeMap<String, Call>,
    /// Keyed by the name a script gives them.
    pub threads: BTreeMap<String, Thread>,
    pub player: Player,
    /// Ids of `user.message` events that wait for the end of the turn.
    pub queued: VecDeque<String>,
    pub results: Vec<ResultRecord>,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Idle,
    Running,
    Terminated,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::Idle => "idle",
            Status::Running => "running",
            Status::Terminated => "terminated",
        }
    }
}

/// Where the script stands.
#[derive(Debug, Default)]
pub(crate) struct Player {
    /// The step that comes next.
    pub next: usize,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No turn is on.
    #[default]
    BetweenTurns,
    AwaitResults,
    AwaitTime(Instant),
    AwaitMessage,
    AwaitInterrupt,
    /// The session is over.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub order: u64,
    pub name: String,
    pub custom: bool,
    pub thread: Option<String>,
    pub state: CallState,
    /// The script waits for it.
    pub awaited: bool,
    pub expect: Expectation,
    /// The step that issued it, counted from 1.
    pub step: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallState {
    /// Held until a confirmation.
    AwaitConfirmation,
    AwaitResult,
    /// The turn went on without it (an interrupt); a result is still taken.
    Abandoned,
    Answered {
        is_error: bool,
        content: Value,
        echo: Event,
    },
    /// Refused by policy or by a person: the brain answered it itself.
    Denied,
    /// Its thread is over.
    Gone,
}

impl CallState {
    /// Whether the session waits for somebody to act on it.
    pub(crate) fn blocks(&self) -> bool {
        matches!(self, CallState::AwaitConfirmation | CallState::AwaitResult)
    }
}

#[derive(Debug)]
pub(crate) struct Thread {
    pub id: String,
    pub created_at: String,
    pub updated_at: String,
    pub archived_at: Option<String>,
    pub status: Status,
}

/// One tool call's result as the brain took it.
#[derive(Clone, Debug, Serialize)]
pub struct ResultRecord {
    pub tool_use_id: ToolUseId,
    pub tool: String,
    pub is_error: bool,
    /// The text blocks, joined by newlines.
    pub text: String,
    pub content: Value,
    pub credential: CredentialKind,
    pub at: String,
    /// It came after an interrupt had ended the turn.
    pub late: bool,
    /// Identical re-posts, accepted without effect.
    pub repeats: u32,
    /// Re-posts with another content, refused.
    pub conflicts: u32,
}

/// How a session's script fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How often the script was played to its end.
    pub completed: u32,
    /// Expectations that failed, with the step they belong to.
    pub failures: Vec<String>,
    /// Calls without a result.
    pub open_calls: usize,
}

impl Verdict {
    /// The script was played to its end, and nothing was amiss.
    pub fn passed(&self) -> bool {
        self.completed > 0 && self.failures.is_empty()
    }

    pub fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    pub(crate) fn add_failure(&mut self, failure: String) {
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(failure);
        }
    }
}

impl Session {
    pub(crate) fn verdict(&self) -> Verdict {
        let open = |call: &&Call| call.state.blocks() || call.state == CallState::Abandoned;
        Verdict { open_calls: self.calls.values().filter(open).count(), ..self.verdict.clone() }
    }

    /// The ids the session waits for, in the order they were issued.
    pub(crate) fn blocking(&self) -> Vec<String> {
        let blocking = self.calls.iter().filter(|(_, call)| call.awaited && call.state.blocks());
        let mut found: Vec<(u64, &String)> = blocking.map(|(id, call)| (call.order, id)).collect();
        found.sort();
        found.into_iter().map(|(_, id)| id.clone()).collect()
    }

    pub(crate) fn thread_by_id(&self, id: &str) -> Option<&Thread> {
        self.threads.values().find(|thread| thread.id == id)
    }

    pub(crate) fn body(&self) -> Value {
        json!({
            "type": "session",
            "id": self.id,
            "status": self.status.name(),
            "agent": self.agent,
            "environment_id": self.environment,
            "title": self.title,
            "metadata": self.metadata,
            "resources": self.resources,
            "vault_ids": self.vault_ids,
            "deployment_id": null,
            "budget": self.budget,
            "outcome_evaluations": [],
            "usage": {},
            "stats": { "active_seconds": 0, "duration_seconds": 0 },
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "archived_at": self.archived_at,
        })
    }

    pub(crate) fn thread_body(&self, thread: &Thread) -> Value {
        json!({
            "type": "session_thread",
            "id": thread.id,
            "session_id": self.id,
            "parent_thread_id": null,
            "status": thread.status.name(),
            "agent": self.agent,
            "workflow_run_id": null,
            "stats": null,
            "usage": null,
            "created_at": thread.created_at,
            "updated_at": thread.updated_at,
            "archived_at": thread.archived_at,
        })
    }
}

/// A session together with what it may change beside itself.
pub(crate) struct Play<'a> {
    pub session: &'a mut Session,
    pub queue: &'a mut Queue,
    pub now: Now<'a>,
}

impl Play<'_> {
    /// Appends an event and sends it to the streams.
    pub(crate) fn emit(&mut self, kind: &str, mut fields: Value) -> Event {
        fields["type"] = Value::from(kind);
        fields["id"] = Value::from(new_id("sevt"));
        fields["processed_at"] = Value::from(self.now.stamps.now());
        self.append(fields)
    }

    pub(crate) fn append(&mut self, event: Value) -> Event {
        let sequence = self.now.stamps.sequence();
        self.session.history.push(sequence, event)
    }

    pub(crate) fn set_running(&mut self) {
        if self.session.status == Status::Idle {
            self.session.status = Status::Running;
            self.emit("session.status_running", json!({}));
            self.ensure_work();
        }
    }

    pub(crate) fn set_idle(&mut self, stop_reason: Value) {
        if self.session.status != Status::Terminated {
            self.session.status = Status::Idle;
            self.emit("session.status_idle", json!({ "stop_reason": stop_reason }));
        }
    }

    pub(crate) fn terminate(&mut self) {
        if self.session.status == Status::Terminated {
            return;
        }
        self.session.status = Status::Terminated;
        self.session.player.phase = Phase::Ended;
        self.emit("session.status_terminated", json!({}));
    }

    /// A session has at most one item that is not stopped.
    pub(crate) fn ensure_work(&mut self) {
        if self.queue.live_item(&self.session.id).is_some() {
            return;
        }
        let new = NewItem {
            environment: &self.session.environment,
            data_type: "session",
            data_id: &self.session.id,
        };
        if let Err(error) = self.queue.add(new, &mut self.now) {
            tracing::warn!(session = %self.session.id, %error, "no work item for a session");
        }
    }
}
