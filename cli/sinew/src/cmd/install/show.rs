//! A plan as people read it before they agree, and as programs do.

use serde_json::{Value, json};

use super::pieces::{Kind, Owner};
use super::plan::{Change, Plan};
use super::service::ServiceChange;
use super::target::{SERVE_UNIT, Target};
use crate::output::printable;

pub fn text(plan: &Plan, target: &Target) -> String {
    let mut lines = Vec::new();
    let mut generated = Vec::new();
    for change in &plan.changes {
        match change {
            Change::Write { piece, before } if piece.kind == Kind::Generated => {
                let mark = if before.is_none() { '+' } else { '~' };
                generated.push(format!("{mark} {}", target.place(&piece.path).display()));
            }
            Change::Service(_) => {
                lines.append(&mut generated);
                lines.push(line(change, target));
            }
            other => lines.push(line(other, target)),
        }
        if let Change::Write { piece, before } = change {
            lines.extend(content(piece.kind, before.as_deref(), &piece.content));
        }
    }
    lines.append(&mut generated);
    lines.extend(plan.notes.iter().map(|note| format!("! {note}")));
    lines.join("\n")
}

/// `+` makes, `~` changes, `-` removes, `$` runs.
fn line(change: &Change, target: &Target) -> String {
    let owner = |owner| match owner {
        Owner::Root => "root:root".to_owned(),
        Owner::RootForService => format!("root:{}", target.user),
        Owner::Service => format!("{0}:{0}", target.user),
    };
    match change {
        Change::MakeUser => {
            format!("+ system user and group `{}`, without a login or a home", target.user)
        }
        Change::MakeDirectory(directory) => format!(
            "+ {}/ ({:04o} {})",
            target.place(&directory.path).display(),
            directory.mode,
            owner(directory.owner)
        ),
        Change::MendDirectory(directory) => format!(
            "~ {}/ becomes {:04o} {}",
            directory.path.display(),
            directory.mode,
            owner(directory.owner)
        ),
        Change::Write { piece, before } => {
            let is_program = piece.kind == Kind::Program;
            let mark = if before.is_some() { '~' } else { '+' };
            let what = if is_program { ", this program" } else { "" };
            let place = target.place(&piece.path);
            let mark = if is_program && place.exists() { '~' } else { mark };
            format!("{mark} {} ({:04o} {}{what})", place.display(), piece.mode, owner(piece.owner))
        }
        Change::Remove(path) => format!("- {}", path.display()),
        Change::RemoveDirectory(path) => format!("- {}/, if it is empty then", path.display()),
        Change::RemoveTree(path) => format!("- {} and everything in it", path.display()),
        Change::RemoveUser => format!("- user and group `{}`", target.user),
        Change::Service(change) => format!("$ {}", service(*change)),
    }
}

fn service(change: ServiceChange) -> String {
    match change {
        ServiceChange::Reload => "systemctl daemon-reload".to_owned(),
        ServiceChange::Enable(unit) => format!("systemctl enable {unit}"),
        ServiceChange::Disable(unit) => format!("systemctl disable {unit}"),
        ServiceChange::Start(unit) => format!("systemctl start {unit}"),
        ServiceChange::Restart(unit) if unit == SERVE_UNIT => {
            format!("systemctl restart {unit} (sessions go on)")
        }
        ServiceChange::Restart(unit) => format!("systemctl restart {unit} (sandboxes go on)"),
        ServiceChange::Stop(unit) => format!("systemctl stop {unit}"),
        ServiceChange::CheckSandboxes { may_end: false } => {
            "ask the launcher that no sandbox runs".to_owned()
        }
        ServiceChange::CheckSandboxes { may_end: true } => "ask the launcher".to_owned(),
        ServiceChange::EndLauncher(_) => "end the launcher and what it has mounted".to_owned(),
    }
}

fn content(kind: Kind, before: Option<&[u8]>, after: &[u8]) -> Vec<String> {
    if !matches!(kind, Kind::Unit | Kind::Config) {
        return Vec::new();
    }
    let after = String::from_utf8_lossy(after);
    match before {
        None => after.lines().map(|line| format!("    {line}").trim_end().to_owned()).collect(),
        Some(before) => difference(&String::from_utf8_lossy(before), &after),
    }
}

/// The lines between the first and the last that differ.
fn difference(before: &str, after: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[start..], &new[start..]);
    let end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let removed = old_rest[..old_rest.len() - end].iter().map(|line| format!("    - {line}"));
    let added = new_rest[..new_rest.len() - end].iter().map(|line| format!("    + {line}"));
    let at = format!("    from line {}:", start + 1);
    let lines = std::iter::once(at).chain(removed).chain(added);
    lines.map(|line| printable(&line)).collect()
}

/// Stable keys: `changes` of `{do, path | unit | user}`, `notes`, `next`.
pub fn json(plan: &Plan, target: &Target, action: &str, done: bool) -> Value {
    let changes: Vec<Value> = plan.changes.iter().map(|change| entry(change, target)).collect();
    json!({
        "action": action,
        "done": done,
        "changes": changes,
        "notes": plan.notes,
        "next": plan.next,
    })
}

fn entry(change: &Change, target: &Target) -> Value {
    let path =
        |what: &str, path: &std::path::Path| json!({ "do": what, "path": target.place(path) });
    let unit = |what: &str, unit: &str| json!({ "do": what, "unit": unit });
    match change {
        Change::MakeUser => json!({ "do": "make_user", "user": target.user }),
        Change::RemoveUser => json!({ "do": "remove_user", "user": target.user }),
        Change::MakeDirectory(directory) => path("make_directory", &directory.path),
        Change::MendDirectory(directory) => path("mend_directory", &directory.path),
        Change::Write { piece, .. } => path("write", &piece.path),
        Change::Remove(file) => path("remove", file),
        Change::RemoveDirectory(directory) => path("remove_directory", directory),
        Change::RemoveTree(tree) => path("remove_tree", tree),
        Change::Service(change) => match change {
            ServiceChange::Reload => json!({ "do": "reload" }),
            ServiceChange::Enable(name) => unit("enable", name),
            ServiceChange::Disable(name) => unit("disable", name),
            ServiceChange::Start(name) => unit("start", name),
            ServiceChange::Restart(name) => unit("restart", name),
            ServiceChange::Stop(name) => unit("stop", name),
            ServiceChange::CheckSandboxes { .. } => json!({ "do": "check_sandboxes" }),
            ServiceChange::EndLauncher(_) => json!({ "do": "end_launcher" }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_changed_and_nothing_else() {
        let shown = difference("a\nb\nc\nd\n", "a\nx\ny\nd\n");
        assert_eq!(shown, ["    from line 2:", "    - b", "    - c", "    + x", "    + y"]);
        assert_eq!(difference("a\n", "a\nb\n"), ["    from line 2:", "    + b"]);
        assert_eq!(difference("a\na\n", "a\n"), ["    from line 2:", "    - a"]);
    }
}
