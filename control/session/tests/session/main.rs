//! The session driver between a brain and sandboxes in memory, over a real journal.

#![forbid(unsafe_code)]

mod environments;
mod held;
mod images;
mod nodes;
mod serving;
mod support;
mod threads;
