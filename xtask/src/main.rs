//! The project's own checks: `cargo xtask ci` is what continuous integration runs, and each check
//! is a subcommand of its own. A check reads files that state the rule (`docs/layers.toml`,
//! `docs/size-ratchet.toml`, `deny.toml`) and has a test in which it fails.

#![forbid(unsafe_code)]

mod ci;
mod documents;
mod layers;
mod licences;
mod report;
mod size;
mod soak;
mod source;
mod tests_run;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Outcome;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(about = "Checks of this workspace")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything: format, lints, the checks below, then the tests.
    Ci {
        /// Leave out the tests.
        #[arg(long)]
        quick: bool,
    },
    /// Dependencies point one way, as docs/layers.toml says.
    Layers,
    /// No file and no function grows beyond its limit; docs/size-ratchet.toml lists the exceptions.
    Size {
        /// Write the exceptions anew, for review.
        #[arg(long)]
        update: bool,
    },
    /// Module docs, `unsafe`, spawning, unfinished work, and names that do not belong in files.
    Tidy,
    /// Every dependency has a licence that deny.toml allows, and none is banned there.
    Licences,
    /// Links resolve, promises name tests that exist, README has its two commands.
    Docs,
    /// The reference in docs/user is what the program prints.
    Reference {
        /// Write it anew.
        #[arg(long)]
        update: bool,
    },
    /// The tests alone, with the count of what was skipped.
    Test,
    /// The tests over and over, with more random cases.
    Soak {
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
}

fn main() -> ExitCode {
    let Arguments { task } = Arguments::parse();
    let workspace = match Workspace::load() {
        Ok(workspace) => workspace,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let one = |name: &str, check: fn(&Workspace) -> anyhow::Result<Outcome>| {
        ci::run_check(name, || check(&workspace))
    };
    let good = match task {
        Task::Ci { quick } => ci::run(&workspace, quick),
        Task::Layers => one("layers", layers::check),
        Task::Size { update: true } => one("size", size::update),
        Task::Size { update: false } => one("size", size::check),
        Task::Tidy => one("tidy", tidy::check),
        Task::Licences => one("licences", licences::check),
        Task::Docs => one("docs", documents::check),
        Task::Reference { update: true } => one("reference", documents::update_reference),
        Task::Reference { update: false } => one("reference", documents::check_reference),
        Task::Test => tests_run::run_and_report(&workspace),
        Task::Soak { minutes } => soak::run(&workspace, minutes),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
