//! What the host and the guest agent say to each other: schema, framing, versions and the host's
//! client.
//!
//! A connection is a byte stream (unix socket, vsock, virtio-serial). Each frame is a `u32`
//! little-endian length and one protobuf message. The first frame of each side is a hello; after
//! it every request carries an id that its answer repeats, so that many calls are in flight at
//! once. Nothing on a connection is state: a call lives in the agent under its [`CallId`], and a
//! new connection goes on where a lost one stopped.
//!
//! The host treats the agent as hostile, because whoever takes over the guest's root may speak in
//! its place: lengths are checked before anything is allocated, what is waiting is bounded, and a
//! wrong answer is an error of the request, never a panic.
//!
//! - [`call`]: the words (what to run, how it ended), as types.
//! - [`terminal`]: the same for shells that people open and come back to; [`vt`]: what their output
//!   does to a terminal.
//! - [`boot`]: the argument vector of the agent, shared with whoever starts it.
//! - [`client`]: the host end.
//! - [`frame`], [`wire`], [`version`]: what both ends need to speak.

#![forbid(unsafe_code)]

pub mod boot;
pub mod call;
#[cfg(feature = "client")]
pub mod client;
mod convert;
pub mod frame;
pub mod fuzz;
pub mod terminal;
pub mod version;
pub mod vt;
pub mod wire;

pub use base_types::{CallId, Epoch};
pub use call::{
    AgentInfo, Block, CallSpec, CallState, EntrypointEnd, EntrypointInfo, ExecSpec, Exit, FileOp,
    FileSpec, KillScope, Note, Outcome, OutputChunk, OutputLimits, PtySize, Root, RunAs, ShellSpec,
    StdinData, Work,
};
#[cfg(feature = "client")]
pub use client::{ClientError, ConnectError, GuestClient};
pub use convert::{Malformed, call_id};

/// Longest message from the agent. It is not trusted, so this bounds what it can make us hold.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Longest message to the agent: a whole file in a `write`. The host is trusted by the agent.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// Longest piece of output in one answer; leaves room for the message around it.
pub const CHUNK_BYTES_MAX: usize = 512 << 10;

/// Head and tail of an outcome together; leaves room in a frame for notes and paths.
pub const OUTCOME_BYTES_MAX: usize = 768 << 10;

/// The end of an entrypoint's output that its info repeats; all that is kept is in its log.
pub const ENTRYPOINT_TAIL_BYTES_MAX: usize = 2048;

/// The entrypoint's log, in the directory of outputs.
pub const ENTRYPOINT_LOG: &str = "entrypoint.log";

/// Where tools see the kept outputs, read-only.
pub const OUTPUT_PATH: &str = "/run/sinew/output";
