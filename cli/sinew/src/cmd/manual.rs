//! `sinew reference man --dir DIR`: a manual page for each command, from the same source as
//! `--help`. They are made when a package is built, and are not kept in the tree.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::visible_command;
use crate::exit::{CODES, Exit};
use crate::output;

pub fn run(dir: Option<PathBuf>) -> anyhow::Result<Exit> {
    let dir = dir.context("name a directory with --dir")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let command = visible_command().disable_help_subcommand(true);
    let count = write(&command, "sinew", &dir)?;
    output::line(&format!("{count} manual pages in {}", dir.display()))?;
    Ok(Exit::Ok)
}

/// The page of a command and those of its subcommands. Returns how many.
fn write(command: &clap::Command, name: &str, dir: &Path) -> anyhow::Result<usize> {
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?)
        .with_context(|| format!("write {}", path.display()))?;
    let mut count = 1;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        count += write(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(count)
}

fn page(command: &clap::Command, name: &str) -> anyhow::Result<Vec<u8>> {
    let command = command.clone().display_name(name).bin_name(name.replace('-', " "));
    let man = Man::new(command)
        .title(name.to_owned())
        .manual("Sinew")
        .source(format!("sinew {}", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render(&mut page)?;
    exit_codes().to_writer(&mut page)?;
    Ok(page)
}

fn exit_codes() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (exit, meaning) in CODES {
        roff.control("TP", []);
        roff.text([bold(exit.number().to_string())]);
        roff.text([roman(*meaning)]);
    }
    roff
}
