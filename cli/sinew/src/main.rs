//! The one binary: parses the command line, runs one command, turns its outcome into an exit code.
//!
//! This crate is the composition root, the only place that names implementations. Each command has
//! its file in [`cmd`]; what several of them share lies beside this file.

#![forbid(unsafe_code)]

mod args;
mod brain_client;
mod cmd;
mod demo;
mod doctor;
mod exit;
mod installation;
mod logging;
mod measure;
mod output;
mod scratch;
mod serve;
mod store;
mod supervisor;
mod terminal;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::of_clap(&error),
    };
    match cmd::run(cli) {
        Ok(exit) => exit.code(),
        Err(error) if error.is::<output::NoReader>() => exit::Exit::Ok.code(),
        Err(error) => {
            eprintln!("sinew: {error:#}");
            exit::of(&error).code()
        }
    }
}
