//! What an operator may set: `sinew.toml`, variables, flags; each overrides the one before it.
//!
//! A configuration is parsed once into types that cannot hold a wrong value, and refused as a
//! whole: every mistake is reported at once, each with its place and what to do. One table,
//! [`KEYS`], is the source of what is accepted, of the defaults and of the reference.
//!
//! **Invariant:** no text made here contains a credential, not even one written in a wrong place.

#![forbid(unsafe_code)]

mod choose;
mod credential;
mod document;
mod environments;
mod explain;
mod keys;
mod layers;
mod load;
mod problem;
mod profiles;
mod reference;
mod review;
mod section;
mod store;
mod types;
mod value;

pub use choose::{Chosen, DEFAULT_PROFILE, SessionFacts};
pub use credential::{KeyError, read_key_file};
pub use explain::{Explanation, Miss, Outcome, ProfileVerdict, RuleVerdict};
pub use keys::{Fallback, KEYS, Key, Section};
pub use load::{Overrides, Paths, Sources, load, load_store, load_without_environments, paths};
pub use problem::{ConfigErrors, Place, Problem};
pub use reference::reference;
pub use review::{Finding, FindingKind};
pub use store::{DatabaseHost, PostgresConfig, PostgresUrl, PostgresUrlError, StoreConfig};
pub use types::{
    Config, Entrypoint, Environment, Limits, Match, Pool, Profile, Tenancy, Tier, ToolsAs,
};
pub use value::Kind;
