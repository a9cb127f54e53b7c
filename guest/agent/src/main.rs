//! The guest agent: PID 1 of a sandbox. It runs what the host asks for and remembers how it
//! ended, until the host says that it knows.
//!
//! Invariants:
//! - **A call runs at most once.** Its id is looked up before anything is started; a finished call
//!   stays until its ack, and an acknowledged id is remembered as such.
//! - **Nothing of the guest runs as the agent.** Programs run under a supervisor and file tools in
//!   a child, both with the ids of the tool's user. The agent itself opens no path that a guest
//!   chose and parses nothing but the host's frames and the fixed reports of its children.
//! - **A call is its tree.** Each program has a supervisor that adopts whatever its descendants
//!   orphan, so a kill reaches double-forked and `setsid` children and nothing else.
//! - **One thread.** The event loop of [`server`] owns all state, and `fork` without `exec` is
//!   sound: children continue in this program with what they need already in memory.

mod call;
mod connection;
mod ending;
mod entrypoint;
mod files;
mod kept;
mod payload;
mod process;
mod report;
mod requests;
mod scrollback;
mod server;
mod shell;
mod spool;
mod starting;
mod supervisor;
mod terminals;
mod tree;

use std::process::ExitCode;

use guest_protocol::boot::BootArgs;

/// What the host sees of this build in its hello.
const BUILD: &str = concat!("sinew-guest-agent/", env!("CARGO_PKG_VERSION"));

fn main() -> ExitCode {
    let boot = match BootArgs::parse(std::env::args().skip(1)) {
        Ok(boot) => boot,
        Err(error) => return fail("arguments", &error),
    };
    let prepared = match process::prepare(&boot) {
        Ok(prepared) => prepared,
        Err(error) => return fail("prepare", &error),
    };
    match server::Agent::new(boot, prepared).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail("event loop", &error),
    }
}

fn fail(what: &str, error: &dyn std::error::Error) -> ExitCode {
    process::log(&format!("{what}: {error}"));
    ExitCode::FAILURE
}
