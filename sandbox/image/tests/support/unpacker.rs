//! The jailed unpacker as a program, for the tests of this crate.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    sandbox_image::unpacker()
}
