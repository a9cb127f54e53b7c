//! One file per command.

pub mod bench;
pub mod brain;
pub mod completions;
pub mod demo;
pub mod doctor;
pub mod exec;
pub mod image;
pub mod install;
pub mod launcher;
pub mod manual;
pub mod profile;
pub mod reference;
pub mod serve;
pub mod session;
pub mod shell;
pub mod teardown;

use anyhow::Context;

use crate::args::{Cli, Command};
use crate::exit::Exit;

pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Brain(args) => brain::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Image(command) => image::run(command),
        Command::Session(command) => session::run(command),
        Command::Profile(command) => profile::run(command),
        Command::Exec(args) => exec::run(args),
        Command::Shell(args) => shell::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Install(args) => install::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Launcher(args) => launcher::run(args).map(|()| Exit::Ok),
        Command::Unpack => Ok(if sandbox_image::unpacker() { Exit::Ok } else { Exit::Failed }),
        Command::Teardown(args) => teardown::run(args),
        Command::Reference(args) => reference::run(args),
    }
}

/// Commands that serve or orchestrate. What still runs on a thread when the command is over (a
/// build that was interrupted, a read that nobody waits for) does not keep the process.
pub fn block_on_threads<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("start the async runtime")?;
    let done = runtime.block_on(future);
    runtime.shutdown_background();
    done
}

/// Commands that only ask and print need one thread.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the async runtime")?;
    let done = runtime.block_on(future);
    // A read of the terminal cannot be taken back; the command must not wait for one more key.
    runtime.shutdown_background();
    done
}
