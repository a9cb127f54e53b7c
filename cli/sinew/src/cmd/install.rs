//! `sinew install`: makes a service of systemd of this program, upgrades it and removes it, each
//! after showing what that means.

mod apply;
mod pieces;
mod plan;
mod record;
mod remove;
mod service;
mod show;
mod target;

use std::fs::File;
use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

use crate::args::InstallArgs;
use crate::exit::{Exit, UsageError};
use crate::installation::is_root;
use crate::output;
use plan::Plan;
use record::Record;
use target::Target;

/// Held while something is done: two runs at once would each undo what the other did.
const LOCKED: &str = "/etc";

pub fn run(args: InstallArgs) -> anyhow::Result<Exit> {
    let target = Target {
        prefix: args.prefix.clone(),
        data: args.data.clone(),
        user: args.user.clone(),
        destdir: args.destdir.clone(),
    };
    let target = target.checked()?;
    if !is_root() && target.destdir.is_none() && !args.dry_run {
        return Err(not_root().into());
    }
    let _lock = lock(&args, &target)?;
    let record = match target.destdir {
        Some(_) => None,
        None => Record::read(&target.record())?,
    };
    let (action, target, plan) = match (args.uninstall, record) {
        (false, record) => {
            let mut plan = plan::of_files(&target, record.as_ref())?;
            if target.destdir.is_none() {
                service::add(&mut plan, &target, args.no_start)?;
            }
            let is_there = record.is_some_and(|record| record.files.len() > 1);
            (if is_there { "upgrade" } else { "install" }, target, plan)
        }
        (true, Some(record)) => {
            let target = Target {
                prefix: record.prefix.clone(),
                data: record.data.clone(),
                user: record.user.clone(),
                ..target
            };
            let plan = remove::plan(&args, &target, &record)?;
            ("uninstall", target, plan)
        }
        (true, None) => {
            let plan = Plan { notes: vec!["nothing is installed".to_owned()], ..Plan::default() };
            ("uninstall", target, plan)
        }
    };
    carry_out(&args, &target, plan, action)
}

fn carry_out(
    args: &InstallArgs,
    target: &Target,
    plan: Plan,
    action: &str,
) -> anyhow::Result<Exit> {
    let is_nothing = plan.changes.is_empty();
    let done = !args.dry_run;
    let answer = show::json(&plan, target, action, done);
    if !args.json.json {
        let text = show::text(&plan, target);
        if !text.is_empty() {
            output::line(&text)?;
        }
    }
    let next = plan.next.clone();
    if done && !is_nothing {
        agree(args, action)?;
        apply::apply(target, plan)?;
    }
    if args.json.json {
        output::json(&answer)?;
        return Ok(Exit::Ok);
    }
    output::line(&match (done, is_nothing) {
        (_, true) => format!("{action}: nothing to do"),
        (true, _) => format!("{action}: done"),
        (false, _) => format!("{action}: nothing was done (--dry-run)"),
    })?;
    if !next.is_empty() {
        output::line(&format!("then:\n  {}", next.join("\n  ")))?;
    }
    Ok(Exit::Ok)
}

/// A person at a terminal says yes; a script says `--yes`.
fn agree(args: &InstallArgs, action: &str) -> anyhow::Result<()> {
    if args.yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if args.json.json || !stdin.is_terminal() {
        let text = "nobody is there to ask: say --yes to do this, or --dry-run to only see it";
        return Err(UsageError(text.to_owned()).into());
    }
    eprint!("{action}: do this? [y/N] ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    match ["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()) {
        true => Ok(()),
        false => bail!("nothing was done"),
    }
}

fn not_root() -> UsageError {
    let args: Vec<String> = std::env::args().skip(1).collect();
    UsageError(format!(
        "a service of the whole machine is root's to make: run `sudo sinew {}` (or look with \
         --dry-run, or write into a directory with --destdir)",
        args.join(" ")
    ))
}

fn lock(args: &InstallArgs, target: &Target) -> anyhow::Result<Option<File>> {
    if args.dry_run || target.destdir.is_some() {
        return Ok(None);
    }
    let file = File::open(LOCKED).with_context(|| format!("open {LOCKED}"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!("another `sinew install` is at work"),
        Err(errno) => Err(errno).with_context(|| format!("lock {LOCKED}")),
    }
}
