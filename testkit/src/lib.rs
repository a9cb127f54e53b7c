//! What end-to-end tests stand on: a whole installation of the built binary on temporary
//! directories, with the development brain on the other side of the wire.
//!
//! Everything is real: processes, sockets, sandboxes, signals. What a test leaves running is ended
//! when its [`Installation`] is dropped, also after a panic.

#![forbid(unsafe_code)]

mod binary;
mod brain;
mod brain_process;
mod installation;
mod machine;
mod postgres;
mod skip;

pub use binary::sinew_binary;
pub use brain::{Brain, Played, PostedResult, Verdict};
pub use brain_process::BrainProcess;
pub use installation::{Installation, Options};
pub use machine::{BINARY_IN_MACHINE, Machine};
pub use postgres::{Ending, Postgres, PostgresSettings};
pub use skip::{SHARED_IMAGES, can_run_sandboxes, skip};
