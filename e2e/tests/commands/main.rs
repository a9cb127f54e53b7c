//! Commands that bring an installation of their own and must leave nothing of it.

#![forbid(unsafe_code)]

mod bench;
mod demo;
