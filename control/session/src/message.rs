//! What a session's actor is told. A closed set: every cause of work in a session is here.

use std::time::Duration;

use base_types::{CallId, Chain, Epoch, SessionId};
use brain_api::{BrainError, Event, SessionInfo, WorkItem};
use store_api::{StoreError, WorkRecord};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tools_api::ToolAnswer;

use crate::hub::{GuestError, GuestLease, StopSessionError};
use crate::sandbox::{PrepareError, Prepared};

/// Messages that wait for one actor. Whoever sends more waits; each sender has few in flight.
pub const INBOX_MAX: usize = 256;

pub enum Message {
    /// From outside the actor's own tasks.
    Outside(Outside),
    /// From a task of the actor's, tagged with the item it works for so that a late word of an old
    /// item is not taken for one of the present.
    Inside(Inside),
}

pub enum Outside {
    /// The queue offered an item for this session.
    Offered {
        item: WorkItem,
        permit: OwnedSemaphorePermit,
    },
    /// An item of before a restart.
    Resumed {
        work: WorkRecord,
        permit: OwnedSemaphorePermit,
    },
    /// Look after what a restart left: processes whose time may be up, a volume past its retention.
    Tend,
    Guest {
        reply: oneshot::Sender<Result<GuestLease, GuestError>>,
    },
    Stop {
        forget: bool,
        reply: oneshot::Sender<Result<(), StopSessionError>>,
    },
    /// An open item of an environment that is not configured any more.
    Orphaned {
        work: WorkRecord,
    },
    /// This node may not believe any more that the session is its own.
    Lapsed,
    /// This process is going down.
    Shutdown,
}

impl Outside {
    /// Answers whoever waits for an answer that the session cannot be had.
    pub fn refuse(self, session: &SessionId, error: &StoreError) {
        match self {
            Outside::Guest { reply } => {
                let _ = reply.send(Err(match error {
                    StoreError::OwnedElsewhere { session, node } => {
                        GuestError::Elsewhere { session: session.clone(), node: node.clone() }
                    }
                    _ => GuestError::NoSandbox { session: session.clone(), why: line(error) },
                }));
            }
            Outside::Stop { reply, .. } => {
                let _ = reply.send(Err(match error {
                    StoreError::OwnedElsewhere { session, node } => {
                        StopSessionError::Elsewhere { session: session.clone(), node: node.clone() }
                    }
                    _ => StopSessionError::Failed { session: session.clone(), why: line(error) },
                }));
            }
            _ => {}
        }
    }

    /// Answers that the session has too much to do.
    pub fn turn_away(self, session: &SessionId) {
        match self {
            Outside::Guest { reply } => {
                let _ = reply.send(Err(GuestError::Busy(session.clone())));
            }
            Outside::Stop { reply, .. } => {
                let _ = reply.send(Err(StopSessionError::Busy(session.clone())));
            }
            _ => {}
        }
    }
}

pub enum Inside {
    Lease(LeaseEnd),
    Identity(Result<SessionInfo, BrainError>),
    Feed(FeedMessage),
    Prepared(Result<Prepared, PrepareError>),
    SandboxEnded {
        epoch: Epoch,
        why: String,
    },
    /// What became of the program beside the tools.
    Entrypoint {
        text: String,
    },
    CallDone {
        call: CallId,
        outcome: CallOutcome,
    },
    Sent {
        call: CallId,
        end: SendEnd,
    },
}

/// Why the lease is no longer kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    StopRequested,
    /// 412, or silence for a whole lease.
    Lost {
        why: String,
    },
    Rejected {
        why: String,
    },
    /// The journal has another owner: nothing may be written or said any more.
    Superseded,
}

pub enum FeedMessage {
    /// A page of the history. It counts with the last one, which is empty.
    Page {
        events: Vec<Event>,
        first: bool,
        last: bool,
        /// Given back when the page has been looked through: the next one may come then.
        _slot: OwnedSemaphorePermit,
    },
    Live(Event),
    Trouble(String),
    /// The brain refuses the stream for good.
    Refused(BrainError),
}

/// How a call's own task ended.
pub enum CallOutcome {
    Answered(ToolAnswer),
    /// It was killed, as it was told to be.
    Cancelled,
    /// The connection to its agent broke. Whether the agent lives is not known yet.
    ConnectionLost {
        why: String,
    },
    /// It may have run, and nobody knows how it ended.
    Unknown {
        why: String,
    },
}

/// How the delivery of one result ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendEnd {
    /// The brain has it.
    Delivered,
    /// The brain will never take it.
    Refused {
        status: u16,
    },
    /// 401 or 403, with the environment key too: it stays in the journal.
    Kept {
        why: String,
    },
    TooLarge,
}

/// A task's way to the actor: it gives up when the task's scope is stopped, so that an actor which
/// waits for its tasks never waits for a task that waits for it.
#[derive(Clone)]
pub struct Outbox {
    inbox: mpsc::Sender<Message>,
    stop: CancellationToken,
}

/// The scope was stopped, or the actor is gone.
#[derive(Debug)]
pub struct Stopped;

impl Outbox {
    pub fn new(inbox: mpsc::Sender<Message>, stop: CancellationToken) -> Self {
        Self { inbox, stop }
    }

    pub async fn tell(&self, message: Inside) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            sent = self.inbox.send(Message::Inside(message)) => sent.map_err(|_| Stopped),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }

    /// Waits, unless the scope is stopped meanwhile.
    pub async fn pause(&self, time: Duration) -> Result<(), Stopped> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }

    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }
}

/// An error as one bounded line, for logs and the journal.
pub fn line(error: &(dyn std::error::Error + 'static)) -> String {
    const CHARS_MAX: usize = 400;
    Chain(error).to_string().chars().take(CHARS_MAX).collect()
}
