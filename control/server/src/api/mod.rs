//! The words of `/api/v1`: requests, answers, faults and the frames of `exec`.
//!
//! Keys are stable: a key is added, never renamed. Times are milliseconds since 1970.

mod entrypoint;
mod exec;
mod fault;
mod log;
mod session;
mod status;
mod terminal;

pub use entrypoint::EntrypointView;
pub use exec::{
    ExecExit, ExecRequest, FRAME_BYTES_MAX, Frame, FrameError, TerminalSize, UPGRADE_PROTOCOL,
    read_frame, write_frame,
};
pub use fault::{Fault, FaultBody, FaultCode};
pub use log::{LogPage, LogQuery};
pub use session::{
    CallPage, CallQuery, CallView, CallsSummary, SandboxView, SessionList, SessionQuery,
    SessionView, StopAnswer, StopRequest,
};
pub use status::{DriverStatus, EnvironmentView, Health, StatusAnswer};
pub use terminal::{
    OutputGap, TERMINAL_PROTOCOL, TerminalAttached, TerminalClosed, TerminalList, TerminalRequest,
    TerminalView,
};

/// Every route of this version: method, path, and what it is for. The reference is generated from
/// it, and a test asks each one.
pub const ROUTES: &[(&str, &str, &str)] = &[
    ("GET", "/api/v1/status", "version, node, environments, store and driver"),
    ("GET", "/api/v1/sessions", "sessions, newest activity first; query `open`, `limit`"),
    ("GET", "/api/v1/sessions/{id}", "one session: identity, sandbox, usage, calls"),
    (
        "POST",
        "/api/v1/sessions/{id}/stop",
        "stops the work item; with `{\"forget\": true}` also removes sandbox and volume",
    ),
    (
        "GET",
        "/api/v1/sessions/{id}/log",
        "the session's log; query `after`, `limit`, `since`; with `follow=true` one JSON object a line as it happens",
    ),
    ("GET", "/api/v1/sessions/{id}/calls", "the session's tool calls; query `after`, `limit`"),
    (
        "POST",
        "/api/v1/sessions/{id}/exec",
        "runs a program in the session's sandbox; upgrades to `sinew-exec/1`",
    ),
    ("GET", "/api/v1/sessions/{id}/terminals", "the terminals of the session's sandbox"),
    (
        "POST",
        "/api/v1/sessions/{id}/terminals/{name}",
        "opens a terminal, or attaches to the one of this name; upgrades to `sinew-terminal/1`",
    ),
    ("DELETE", "/api/v1/sessions/{id}/terminals/{name}", "hangs up on a terminal's shell"),
];
