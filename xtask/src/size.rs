//! Files and functions stay short. What was too long when the rule came is listed in
//! `docs/size-ratchet.toml` with its length, and may only shrink.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;

use crate::report::Outcome;
use crate::source::{code_only, functions};
use crate::workspace::Workspace;

const RATCHET: &str = "docs/size-ratchet.toml";
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratchet {
    /// Lines by path.
    #[serde(default)]
    files: BTreeMap<String, usize>,
    /// Lines by `path::function`.
    #[serde(default)]
    functions: BTreeMap<String, usize>,
}

pub fn check(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let text = workspace.read(RATCHET)?;
    let listed: Ratchet = toml::from_str(&text).with_context(|| format!("parse {RATCHET}"))?;
    let sources = workspace.rust_files()?;
    let lines: usize = sources.iter().map(|(_, text)| text.lines().count()).sum();
    let found = too_long(&sources);
    let mut findings = compare("file", FILE_LINES_MAX, &found.files, &listed.files);
    findings.extend(compare("function", FUNCTION_LINES_MAX, &found.functions, &listed.functions));
    let summary = format!(
        "{} files, {lines} lines, {} listed exceptions",
        sources.len(),
        listed.files.len() + listed.functions.len()
    );
    Ok(Outcome::new(summary, findings))
}

pub fn update(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let found = too_long(&workspace.rust_files()?);
    let mut text = String::from(
        "# What is longer than the limits of `cargo xtask size` (files 800 lines, functions 70).\n\
         # An entry may only shrink; `cargo xtask size --update` writes this file anew.\n",
    );
    for (table, entries) in [("files", &found.files), ("functions", &found.functions)] {
        let _ = write!(text, "\n[{table}]\n");
        for (name, lines) in entries {
            let _ = writeln!(text, "\"{name}\" = {lines}");
        }
    }
    std::fs::write(workspace.root.join(RATCHET), text)
        .with_context(|| format!("write {RATCHET}"))?;
    let count = found.files.len() + found.functions.len();
    Ok(Outcome::new(format!("{RATCHET} written, {count} exceptions"), Vec::new()))
}

fn too_long(sources: &[(PathBuf, String)]) -> Ratchet {
    let mut found = Ratchet::default();
    for (path, text) in sources {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            found.files.insert(path.display().to_string(), lines);
        }
        for function in functions(&code_only(text)) {
            if function.lines > FUNCTION_LINES_MAX {
                let name = format!("{}::{}", path.display(), function.name);
                let entry = found.functions.entry(name).or_default();
                *entry = function.lines.max(*entry);
            }
        }
    }
    found
}

fn compare(
    what: &str,
    limit: usize,
    found: &BTreeMap<String, usize>,
    listed: &BTreeMap<String, usize>,
) -> Vec<String> {
    let grown = found.iter().filter_map(|(name, lines)| match listed.get(name) {
        None => Some(format!("{what} {name} has {lines} lines, the limit is {limit}: split it")),
        Some(allowed) if lines > allowed => {
            Some(format!("{what} {name} grew from {allowed} to {lines} lines: it may only shrink"))
        }
        Some(_) => None,
    });
    let stale = listed.iter().filter_map(|(name, allowed)| match found.get(name) {
        None => Some(format!("{RATCHET}: {what} {name} is within the limit now: remove its entry")),
        Some(lines) if lines < allowed => {
            Some(format!("{RATCHET}: {what} {name} shrank to {lines} lines: lower its entry"))
        }
        Some(_) => None,
    });
    grown.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, usize)]) -> BTreeMap<String, usize> {
        entries.iter().map(|(name, lines)| ((*name).to_owned(), *lines)).collect()
    }

    #[test]
    fn the_ratchet_turns_one_way() {
        let listed = map(&[("same", 90), ("grows", 90), ("shrinks", 90), ("gone", 90)]);
        let found = map(&[("same", 90), ("grows", 91), ("shrinks", 80), ("new", 75)]);
        let findings = compare("function", 70, &found, &listed);
        for part in ["grows grew from 90", "new has 75", "shrinks shrank", "gone is within"] {
            assert!(findings.iter().any(|finding| finding.contains(part)), "{part}: {findings:#?}");
        }
        assert_eq!(findings.len(), 4);
    }

    #[test]
    fn long_files_and_functions_are_found() {
        let long = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(70));
        let file = "// line\n".repeat(801);
        let found = too_long(&[("a.rs".into(), long), ("b.rs".into(), file)]);
        assert_eq!(found.functions, map(&[("a.rs::long", 72)]));
        assert_eq!(found.files, map(&[("b.rs", 801)]));
    }
}
