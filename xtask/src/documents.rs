//! The documents agree with the tree: links lead somewhere, a promise names a test that exists,
//! and README's way in is two commands.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::ci::cargo;
use crate::report::Outcome;
use crate::source::{code_only, functions};
use crate::workspace::Workspace;

const README: &str = "README.md";
const SPECIFICATION: &str = "SPECIFICATION.md";
/// What README's first block of commands consists of.
const WAY_IN: &[&str] = &["make demo", "make test"];

pub fn check(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let is_markdown = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let documents: Vec<&PathBuf> = workspace.files.iter().filter(is_markdown).collect();
    let mut findings = Vec::new();
    let mut links = 0;
    for path in &documents {
        let text = workspace.read(path)?;
        for (line, target) in relative_links(&text) {
            links += 1;
            if let Some(problem) = broken(&workspace.root, path, &target) {
                findings.push(format!("{}:{line}: {problem}", path.display()));
            }
        }
    }
    findings.extend(way_in(&workspace.read(README)?));
    let tests = tests_of(workspace)?;
    let named = named_tests(&workspace.read(SPECIFICATION)?);
    for (line, test) in &named {
        if !tests.contains(test) {
            findings.push(format!("{SPECIFICATION}:{line}: there is no test `{test}`"));
        }
    }
    let summary =
        format!("{} documents, {links} links, {} promises tested", documents.len(), named.len());
    Ok(Outcome::new(summary, findings))
}

/// The pages that `sinew reference` prints, and the folder they are kept in.
const REFERENCE_PAGES: &[&str] = &["config", "cli", "api", "errors", "policy"];
const REFERENCE_FOLDER: &str = "docs/user";

/// The generated reference is what the program prints now.
pub fn check_reference(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let mut findings = Vec::new();
    for (path, text) in print_reference(workspace)? {
        if workspace.read(&path).unwrap_or_default() != text {
            findings.push(format!("{path} is out of date: run `cargo xtask reference --update`"));
        }
    }
    Ok(Outcome::new(format!("{} generated pages", REFERENCE_PAGES.len()), findings))
}

pub fn update_reference(workspace: &Workspace) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(workspace.root.join(REFERENCE_FOLDER))?;
    for (path, text) in print_reference(workspace)? {
        std::fs::write(workspace.root.join(path), text)?;
    }
    Ok(Outcome::new(format!("{REFERENCE_FOLDER} written"), Vec::new()))
}

/// Each page with the path that it is kept under.
fn print_reference(workspace: &Workspace) -> anyhow::Result<Vec<(String, String)>> {
    let built = cargo(&["build", "--quiet", "--locked", "-p", "sinew"])
        .current_dir(&workspace.root)
        .status()
        .context("run `cargo build`")?;
    anyhow::ensure!(built.success(), "the program does not build (output above)");
    let program = workspace.metadata.target_directory.join("debug/sinew");
    let print = |page: &&str| {
        // The help texts show the values of variables that are set: none are.
        let output = Command::new(&program).args(["reference", page]).env_clear().output();
        let output = output.with_context(|| format!("run {program}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "`sinew reference {page}`: {}", errors.trim());
        let text = String::from_utf8(output.stdout).context("the reference is not UTF-8")?;
        Ok((format!("{REFERENCE_FOLDER}/{page}.md"), text))
    };
    REFERENCE_PAGES.iter().map(print).collect()
}

/// `[text](target)` outside code, without those that leave the tree.
fn relative_links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let rest = line.get(at + 2..).unwrap_or_default();
            let target = rest.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push((index + 1, target.to_owned()));
            }
        }
    }
    found
}

fn broken(root: &Path, document: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let relative = match path {
        "" => document.to_owned(),
        _ => document.parent().unwrap_or(Path::new("")).join(path),
    };
    let inside = relative.components().try_fold(0_usize, |depth, part| match part {
        Component::ParentDir => depth.checked_sub(1),
        Component::Normal(_) => Some(depth + 1),
        _ => Some(depth),
    });
    if inside.is_none() {
        return Some(format!("the link `{target}` leaves the tree"));
    }
    let file = root.join(&relative);
    if !file.exists() {
        return Some(format!("the link `{target}` leads nowhere"));
    }
    if anchor.is_empty() {
        return None;
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let exists = headings.map(slug).any(|heading| heading == anchor);
    (!exists).then(|| format!("the link `{target}` names no heading of {}", relative.display()))
}

/// The anchor that a heading gets.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn way_in(readme: &str) -> Option<String> {
    let block = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    let commands: Vec<&str> = block
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split('#').next())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    (commands != WAY_IN)
        .then(|| format!("{README}: the first block of commands is {commands:?}, not {WAY_IN:?}"))
}

/// `crate::name` for every function of every crate, tests among them.
fn tests_of(workspace: &Workspace) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for (path, text) in workspace.rust_files()? {
        let folder = path.iter().filter_map(|part| part.to_str());
        let parts: Vec<&str> =
            folder.take_while(|part| !matches!(*part, "src" | "tests")).collect();
        let name = parts.join("-");
        let name = if name == "cli-sinew" { "sinew" } else { &name };
        found.extend(functions(&code_only(&text)).iter().map(|f| format!("{name}::{}", f.name)));
    }
    Ok(found)
}

/// The words in backticks that read `crate::test`.
fn named_tests(specification: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in specification.lines().enumerate() {
        for word in line.split('`').skip(1).step_by(2) {
            let is_test = word.split_once("::").is_some_and(|(krate, test)| {
                !test.is_empty() && [krate, test].iter().all(|part| part.chars().all(is_name))
            });
            if is_test {
                found.push((index + 1, word.to_owned()));
            }
        }
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let dir = std::env::temp_dir().join(format!("xtask-docs-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("docs")).unwrap();
        std::fs::write(dir.join("A.md"), "# The first: heading\n").unwrap();
        let check = |target: &str| broken(&dir, Path::new("docs/b.md"), target);
        assert_eq!(check("../A.md"), None);
        assert_eq!(check("../A.md#the-first-heading"), None);
        for bad in ["../B.md", "../A.md#second", "A.md", "../../A.md"] {
            assert!(check(bad).is_some(), "{bad}");
        }
        std::fs::remove_dir_all(dir).unwrap();
        let text = "[a](x.md) [b](https://h/)\n```\n[c](y.md)\n```\n[d](#e)\n";
        assert_eq!(relative_links(text), [(1, "x.md".to_owned()), (5, "#e".to_owned())]);
    }

    #[test]
    fn the_way_in_is_two_commands() {
        assert_eq!(way_in("a\n```sh\nmake demo   # 12 min\nmake test\n```\n"), None);
        assert!(way_in("```sh\nmake demo\nmake other\n```\n").is_some());
        assert!(way_in("").is_some());
    }

    #[test]
    fn promises_name_tests() {
        let line = "| x | `store-sql::a_row_is_kept` and `make test` | `Foo::bar` |\n";
        assert_eq!(named_tests(line), [(1, "store-sql::a_row_is_kept".to_owned())]);
    }
}
