//! End-to-end tests: the built binary, real clients, real sandboxes. The library holds what only
//! they need: a brain that replays the golden transcript.

#![forbid(unsafe_code)]

pub mod replay;
