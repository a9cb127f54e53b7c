//! `sinew reference man --dir DIR`: a manual page for each command, from the same source as
//! `--help`. They are made when a package is built, and are not kept in the tree.

use std::path::PathBuf;

use anyhow::Context;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::visible_command;
use crate::exit::{CODES, Exit};
use crate::output;

pub fn run(dir: Option<PathBuf>) -> anyhow::Result<Exit> {
    let dir = dir.context("name a directory with --dir")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let pages = pages()?;
    for (name, page) in &pages {
        let path = dir.join(name);
        std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    }
    output::line(&format!("{} manual pages in {}", pages.len(), dir.display()))?;
    Ok(Exit::Ok)
}

/// Every page with its file's name.
pub fn pages() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut pages = Vec::new();
    add(&visible_command().disable_help_subcommand(true), "sinew", &mut pages)?;
    Ok(pages)
}

/// The page of a command and those of its subcommands.
fn add(
    command: &clap::Command,
    name: &str,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> anyhow::Result<()> {
    pages.push((format!("{name}.1"), page(command, name)?));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        add(sub, &format!("{name}-{}", sub.get_name()), pages)?;
    }
    Ok(())
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
