//! What an agent may reach: policies, read and checked, and the engine that decides by them.
//!
//! ```text
//! Source ──read──► Policy ──check──► PolicySet ──select──► Engine ──decide──► Decision
//!                                    (all policies)        (one session's)     │
//!                                                          Permit ◄────────────┘
//! ```
//!
//! Pure: no file, no socket, no clock, no task. What takes time into account ([`Meter`]) is told
//! the time.
//!
//! **Invariants.** What no rule opens is refused, and an empty deployment opens nothing. A rule
//! that closes wins over all that open. A narrower layer, a title or an agent's name never lets
//! anything more through. What is in doubt never opens and always closes. Only this crate makes a
//! [`Permit`], and only a permit turns an address into one that can be dialled.

#![forbid(unsafe_code)]

mod address;
mod conflicts;
mod decide;
mod decision;
mod explain;
mod expression;
pub mod fuzz;
mod glob;
mod host;
mod identity;
mod index;
mod keys;
mod matcher;
pub mod measure;
mod meter;
mod model;
mod outline;
mod path;
mod permit;
mod problem;
mod read;
mod reference;
mod request;
mod set;
mod table;

pub use address::{AddressClass, Block, Net, NetError, canonical, classify};
pub use decide::Engine;
pub use decision::{
    Allowance, Cause, Connection, Decision, Denial, Obligations, Question, RuleRef,
};
pub use explain::{Considered, Outcome};
pub use expression::{Expression, ExpressionError};
pub use glob::{Case, Glob, PathGlob, PathGlobError};
pub use host::{Host, HostError, HostPattern, Name, PatternError};
pub use identity::{Identity, Select};
pub use keys::{KEYS, Key, Kind, Need, Section};
pub use matcher::Doubt;
pub use meter::{Exceeded, Meter, Slot};
pub use model::{
    Action, Conditions, Effect, Injection, InjectionForm, Layer, Limits, Policy, Redaction, Rule,
    Signing, SigningScheme, Unmatched,
};
pub use path::{PathDoubt, RequestPath};
pub use permit::{AddressRefused, Dial, Permit, Way};
pub use problem::{PolicyErrors, Source};
pub use reference::reference;
pub use request::{Destination, Malformed, Request, Scheme};
pub use set::{Machinery, PolicySet, Revision, SecretBinding, Selection, Setup};
