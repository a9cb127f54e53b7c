//! The container tier through the real launcher: the driver's contract, and what only a process
//! can show.

#![forbid(unsafe_code)]

mod ahead;
mod place;
mod process;
mod storm;
mod upgrade;

use place::Launcher;

/// The test's own name is in what it prints; the place does not need it.
const CONTRACT: &str = "driver_contract";

sandbox_api::driver_contract!(Launcher::start(CONTRACT).await);
