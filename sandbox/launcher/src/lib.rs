//! The privileged process that starts sandboxes, and the client that drives it.
//!
//! ```text
//! sinew serve ── LauncherDriver ──unix socket──► Server ── Sandboxes ──► Parts (volumes, images,
//!  (no privileges)                               (root)        │          containers, profiles)
//!                                                              └── Watcher: pidfds, memory
//! ```
//!
//! Start reading at [`run`], then `sandboxes`: what exists and what is done to it.
//!
//! **Invariant:** a request names things by id only, and the launcher looks each one up in its own
//! configuration. **Invariant:** nothing here reads a byte that a guest wrote. **Invariant:** a
//! launcher that is killed at any point is replaced by one that finds everything again.

mod client;
mod connection;
mod guest;
mod jobs;
mod layout;
mod link;
pub mod parts;
mod privilege;
mod ranges;
mod run;
mod sandboxes;
mod server;
#[cfg(test)]
mod server_tests;
mod start;
mod table;
#[cfg(test)]
mod testing;
mod watch;
pub mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use client::LauncherDriver;
pub use layout::{InstallationLock, Layout, OpenLayoutError};
pub use run::{Prepared, RunError, ServeUser};
pub use sandboxes::RecoverError;
pub use start::{EnsureError, EnsureRunning, Launched, ensure_running};

/// Our locks guard values that are whole between any two statements, so a panic elsewhere does not
/// make them unusable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
