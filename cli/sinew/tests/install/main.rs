//! `sinew install` on this machine's real paths, seen through copies on write.

#![forbid(unsafe_code)]

mod package;
mod room;
mod service;
mod undone;
