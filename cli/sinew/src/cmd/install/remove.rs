//! What `--uninstall` takes away: what the record says, and with `--purge` the data too.

use std::fs;

use sandbox_launcher::wire::Leave;

use super::apply::left_overs;
use super::plan::{Change, Plan, is_there, user};
use super::record::Record;
use super::service::{
    ServiceChange, had_launcher, is_booted, refuse_running, running_sandboxes, state,
};
use super::target::{LAUNCHER_UNIT, SANDBOXES_UNIT, SERVE_UNIT, Target};
use crate::args::InstallArgs;

/// What an installation keeps in its data directory. Anything else in it is somebody else's.
pub const OF_DATA: [&str; 5] =
    [control_server::SOCKET_FILE, control_server::SOCKET_DIR, "serve", "launcher", "images"];

pub fn plan(args: &InstallArgs, target: &Target, record: &Record) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    services(&mut plan, args, target, record)?;
    let mut remains = record.clone();
    remains.files.clear();
    let config = target.config();
    let is_untouched = fs::read_to_string(&config).ok() == record.config;
    for file in &record.files {
        if !is_there(file)? {
            continue;
        }
        if *file == config && !is_untouched && !args.purge {
            let text = format!("{} was changed since it was written: it stays", config.display());
            plan.notes.push(text);
            remains.files.insert(config.clone());
        } else {
            plan.changes.push(Change::Remove(file.clone()));
        }
    }
    for path in record.files.iter().chain([&target.record()]).flat_map(|file| left_overs(file)) {
        if is_there(&path)? {
            plan.changes.push(Change::Remove(path));
        }
    }
    if is_booted() && !plan.changes.is_empty() {
        plan.changes.push(Change::Service(ServiceChange::Reload));
    }
    match args.purge {
        true => purge(&mut plan, target, record)?,
        false => stays(&mut plan, target, remains)?,
    }
    if plan.changes.is_empty() {
        return Ok(plan);
    }
    // From the bottom up; what is not empty stays.
    let mut directories = record.directories.clone();
    if args.purge {
        directories.insert(record.data.clone());
    }
    for directory in directories.iter().rev() {
        if is_there(directory)? {
            plan.changes.push(Change::RemoveDirectory(directory.clone()));
        }
    }
    Ok(plan)
}

/// What is left is still ours to remove, or to take up again.
fn stays(plan: &mut Plan, target: &Target, remains: Record) -> anyhow::Result<()> {
    let data = remains.data.display();
    plan.notes
        .push(format!("{data} stays, with the journal, the images and every session's files"));
    if remains.made_user {
        let user = &remains.user;
        plan.notes.push(format!("user `{user}` stays, because files of its do"));
    }
    plan.notes.push("`sinew install --uninstall --purge` removes these too".to_owned());
    plan.record(target, &remains)
}

fn services(
    plan: &mut Plan,
    args: &InstallArgs,
    target: &Target,
    record: &Record,
) -> anyhow::Result<()> {
    // Where the unit was removed before, its launcher ended then, with every sandbox.
    let can_start = is_there(&target.units().join(LAUNCHER_UNIT))?;
    let had_launcher = is_booted()
        && had_launcher(&record.data)?
        && (can_start || running_sandboxes(&record.data)?.is_some());
    if had_launcher {
        let may_end = args.end_sandboxes;
        match running_sandboxes(&record.data)? {
            Some(count) if !may_end => refuse_running(count)?,
            Some(count) if count > 0 => {
                plan.notes.push(format!("processes of sandboxes are ended, of {count} now"));
            }
            _ => {}
        }
        plan.changes.push(Change::Service(ServiceChange::CheckSandboxes { may_end }));
    }
    if state(SERVE_UNIT)?.active {
        plan.changes.push(Change::Service(ServiceChange::Stop(SERVE_UNIT)));
    }
    if had_launcher {
        let leave = if args.purge { Leave::Nothing } else { Leave::Volumes };
        plan.changes.push(Change::Service(ServiceChange::EndLauncher(leave)));
    }
    for unit in [LAUNCHER_UNIT, SANDBOXES_UNIT] {
        if state(unit)?.active {
            plan.changes.push(Change::Service(ServiceChange::Stop(unit)));
        }
    }
    for unit in [SERVE_UNIT, LAUNCHER_UNIT] {
        if state(unit)?.enabled {
            plan.changes.push(Change::Service(ServiceChange::Disable(unit)));
        }
    }
    Ok(())
}

fn purge(plan: &mut Plan, target: &Target, record: &Record) -> anyhow::Result<()> {
    let of_data = OF_DATA.map(|name| record.data.join(name));
    for path in of_data.into_iter().chain([target.keys()]) {
        if is_there(&path)? {
            plan.changes.push(Change::RemoveTree(path));
        }
    }
    if record.made_user && user(&record.user)?.is_some() {
        plan.changes.push(Change::RemoveUser);
    }
    // Last: without it nobody would know what there is left to remove.
    if is_there(&target.record())? {
        plan.changes.push(Change::Remove(target.record()));
    }
    Ok(())
}
