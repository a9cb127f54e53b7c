//! The frame of `sinew bench`: what a report looks like, how samples become figures, and when a
//! goal is met. Pure: what is measured lives with whoever can measure it.
//!
//! One benchmark is one JSON object on one line:
//! `{bench, machine, results: [{name, unit, n, p50, p90, p99, max, peer}], goals: [{name, limit,
//! measured, met}]}`. Keys are stable.

#![forbid(unsafe_code)]

mod machine;
mod report;
mod statistics;

pub use machine::Machine;
pub use report::{Goal, Measurement, Report};
pub use statistics::{Figures, TooFewSamples, Unit};

/// A latency is given from at least this many runs; a 99th percentile of fewer is a rumour.
pub const RUNS_MIN: usize = 300;
