//! The jailed unpacker as a program, for the tests of this crate.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if sandbox_image::unpacker() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
