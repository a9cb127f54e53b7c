//! The words of the system as types: ids, times, secrets and sizes.
//!
//! Everything else depends on this crate and it depends on nothing of ours. It holds no logic
//! beyond parsing and printing.

#![forbid(unsafe_code)]

mod chain;
mod clock;
mod ids;
mod secret;
mod units;

pub use chain::Chain;
pub use clock::{Clock, SystemClock, Timestamp};
pub use ids::*;
pub use secret::Secret;
pub use units::{ByteSize, HumanDuration, ParseUnitError};
