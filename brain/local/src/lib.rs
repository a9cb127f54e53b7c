//! The development brain: the Managed Agents API in memory, with scripts in the place of a
//! model.
//!
//! It is the other side of the wire for tests, for `sinew demo` and for an agent developer on a
//! laptop, and it is faithful to the protocol rather than kind: leases end, credentials are
//! checked, a result that does not belong is refused. It is for development only: it forgets
//! everything when it ends, and its credentials protect nothing but the order of a test.
//!
//! [`BrainServer::start`] serves it; [`BrainHandle`] shows what arrived and puts faults on the
//! line. Scenario files are described in [`scenario`].
//!
//! **Not here:** skills, memory stores, files, vaults, webhooks, deployments; the events
//! `session.usage`, `span.*` and `workflow_run.*` unless a script emits them.

#![forbid(unsafe_code)]

mod api;
mod config;
mod connection;
mod fault;
mod handle;
mod history;
mod metadata;
mod player;
mod queue;
mod record;
mod reply;
mod route;
pub mod scenario;
mod scenario_reader;
mod send;
mod server;
mod service;
mod session;
mod state;
mod stream;

pub use config::{BrainConfig, Credentials, Switches, Timings};
pub use fault::{Fault, FaultRule, StreamFault, TooManyFaults};
pub use handle::{BrainHandle, NewSession, NotInTime, Refused, WorkView};
pub use record::Recorded;
pub use route::{CredentialKind, Route};
pub use scenario::{Mistake, Mistakes, Scenario, ScenarioError, built_in_scenarios};
pub use send::Counters;
pub use server::{BrainServer, StartError};
pub use service::BANNER;
pub use session::{ResultRecord, Verdict};
