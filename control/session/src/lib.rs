//! Serves sessions: claims work, keeps leases, runs tool calls once and posts their results until
//! the brain has them.
//!
//! ```text
//! poller (one per environment) ──item──► hub ──► session actor (one per session)
//!                                                  ├─ lease: heartbeats, on its own task
//!                                                  ├─ feed: stream + history, on its own task
//!                                                  ├─ router: pure; which calls are ours, and when
//!                                                  ├─ call: one at a time, on its own task
//!                                                  └─ sender: posts what is finished, in order
//! ```
//!
//! One actor owns a session; everybody else sends it messages. What an actor does is journaled
//! before it has an effect (`store-api`), so that a restart goes on from the journal.
//!
//! **Invariant:** nothing here knows a wire format, a database or a kind of sandbox.

#![forbid(unsafe_code)]

mod actor;
mod call;
mod entrypoint;
mod environment;
mod feed;
mod hub;
mod identity;
mod journal;
mod keeper;
mod lease;
mod message;
mod node;
mod parts;
mod poller;
mod router;
mod sandbox;
mod seal;
mod sender;

pub use hub::{GuestError, GuestLease, Hands, HandsError, HandsHandle, StopSessionError};
pub use parts::{
    Chosen, EnvironmentParts, EnvironmentStatus, HandsParts, KeySource, Profiles, SessionFacts,
    Shape, Tenancy, Timeouts,
};
pub use seal::{KEY_BYTES, SealError, Sealer};
