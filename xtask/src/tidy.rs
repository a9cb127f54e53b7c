//! Small rules that a reader relies on: every file says what it is, `unsafe` and spawning have an
//! address, nothing unfinished is committed, and no file names the machine it was written on.

use std::collections::BTreeSet;
use std::path::Path;

use crate::layers::{self, Rules};
use crate::report::Outcome;
use crate::source::{code_only, without_unit_tests};
use crate::workspace::Workspace;

const FORBID_UNSAFE: &str = "#![forbid(unsafe_code)]";
const SPAWNS: &[&str] = &["tokio::spawn(", "tokio::task::spawn(", "task::spawn("];
/// In pieces, so that this file does not find itself.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];
/// Package sources are chosen by whoever builds; paths of one machine mean nothing on another.
const FOREIGN: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".org"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("snapshot.debian", ".org"),
    concat!("/work/", "main"),
    concat!("/work/", "shared"),
    concat!("/root/", "."),
];
/// Written by cargo, which names its registry in it.
const GENERATED: &[&str] = &["Cargo.lock"];
/// Folders that exist for tests, which may spawn as they like.
const TEST_FOLDERS: &[&str] = &["testkit", "e2e"];

pub fn check(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let rules = layers::rules(workspace)?;
    let mut findings = Vec::new();
    let mut looked_at = 0;
    for path in &workspace.files {
        let Ok(text) = std::fs::read_to_string(workspace.root.join(path)) else { continue };
        looked_at += 1;
        findings.extend(any_file(path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            findings.extend(rust_file(path, &text, &rules));
        }
    }
    findings.extend(roots(workspace, &rules)?);
    findings.extend(unused_dependencies(workspace)?);
    Ok(Outcome::new(format!("{looked_at} files"), findings))
}

fn any_file(path: &Path, text: &str) -> Vec<String> {
    if GENERATED.iter().any(|name| path.ends_with(name)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = format!("{}:{}", path.display(), index + 1);
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(**word)) {
            found.push(format!("{place}: `{word}`: finish it, or open an issue and remove it"));
        }
        if let Some(name) = FOREIGN.iter().find(|name| line.contains(**name)) {
            found.push(format!("{place}: names `{name}`: no package source or machine path here"));
        }
    }
    found
}

fn rust_file(path: &Path, text: &str, rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{}:1: has no module doc: say in `//!` what it is", path.display()));
    }
    let folder: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
    let is_test = folder.first().is_some_and(|first| TEST_FOLDERS.contains(first))
        || folder.iter().any(|part| matches!(*part, "tests" | "examples" | "contract"))
        || path.file_stem().and_then(|stem| stem.to_str()).is_some_and(is_test_module);
    if is_test || rules.spawn.crates.contains(&crate_of(&folder)) {
        return found;
    }
    let code = code_only(text);
    for (index, line) in without_unit_tests(&code).lines().enumerate() {
        if SPAWNS.iter().any(|spawn| line.contains(spawn)) {
            let place = format!("{}:{}", path.display(), index + 1);
            found.push(format!("{place}: spawns a task without a name: use base_tasks"));
        }
    }
    found
}

fn is_test_module(stem: &str) -> bool {
    stem == "tests" || stem.ends_with("_tests") || stem.starts_with("test_")
}

/// `sandbox/volume/src/lib.rs` is part of `sandbox-volume`.
fn crate_of(folder: &[&str]) -> String {
    let crate_path = folder.iter().take_while(|part| **part != "src").copied();
    crate_path.collect::<Vec<_>>().join("-")
}

fn roots(workspace: &Workspace, rules: &Rules) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut allowed_and_used = BTreeSet::new();
    for package in &workspace.metadata.packages {
        let may = rules.r#unsafe.crates.contains(package.name.as_str());
        if may {
            allowed_and_used.insert(package.name.to_string());
            continue;
        }
        let built = package.targets.iter().filter(|target| {
            !target.is_test()
                && !target.is_example()
                && !target.is_bench()
                && !target.is_custom_build()
        });
        for target in built {
            let path = Path::new(target.src_path.as_str());
            let relative = path.strip_prefix(&workspace.root).unwrap_or(path);
            if !workspace.read(relative)?.contains(FORBID_UNSAFE) {
                let place = relative.display();
                found.push(format!(
                    "{place}: has no `{FORBID_UNSAFE}`, and is not listed in docs/layers.toml"
                ));
            }
        }
    }
    for name in rules.r#unsafe.crates.difference(&allowed_and_used) {
        found.push(format!("docs/layers.toml: `{name}` may use unsafe, but does not exist"));
    }
    Ok(found)
}

/// A dependency whose name no file of the crate has. It costs everybody's build.
fn unused_dependencies(workspace: &Workspace) -> anyhow::Result<Vec<String>> {
    let sources = workspace.rust_files()?;
    let mut found = Vec::new();
    for package in &workspace.metadata.packages {
        let manifest = Path::new(package.manifest_path.as_str());
        let manifest = manifest.strip_prefix(&workspace.root).unwrap_or(manifest);
        let folder = manifest.parent().unwrap_or(Path::new(""));
        let ours = sources.iter().filter(|(path, _)| path.starts_with(folder));
        let code: Vec<String> = ours.map(|(_, text)| code_only(text)).collect();
        for dependency in &package.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            if !code.iter().any(|text| has_word(text, &name)) {
                let place = manifest.display();
                found.push(format!("{place}: `{}` is used nowhere: remove it", dependency.name));
            }
        }
    }
    Ok(found)
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|head| head.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|tail| tail.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let text = "layer = []\n[unsafe]\ncrates = []\n[spawn]\ncrates = [\"base-tasks\"]\n";
        toml::from_str(text).unwrap()
    }

    #[track_caller]
    fn finds(path: &str, text: &str, expected: usize) {
        let path = Path::new(path);
        let mut found = any_file(path, text);
        found.extend(rust_file(path, text, &rules()));
        assert_eq!(found.len(), expected, "{found:#?}");
    }

    #[test]
    fn a_name_is_found_as_a_word_only() {
        assert!(has_word("use serde::Serialize;", "serde"));
        for other in ["use serde_json::Value;", "my_serde", "", "serdes"] {
            assert!(!has_word(other, "serde"), "{other}");
        }
    }

    #[test]
    fn each_rule_can_fail() {
        let spawn = "//! x\nfn a() { tokio::spawn(b()); }\n";
        finds("a/b/src/x.rs", "//! x\nfn a() {}\n", 0);
        finds("a/b/src/x.rs", "fn a() {}\n", 1);
        finds("a/b/src/x.rs", spawn, 1);
        finds("base/tasks/src/x.rs", spawn, 0);
        finds("a/b/tests/x.rs", spawn, 0);
        finds("a/b/src/x.rs", "//! x\n#[cfg(test)]\nmod tests {\n tokio::spawn(b());\n}\n", 0);
        finds("a/b/src/x.rs", "//! x\n// not tokio::spawn(b())\n", 0);
        for word in UNFINISHED.iter().chain(FOREIGN) {
            finds("a/b/src/x.rs", &format!("//! x\n// {word} x\n"), 1);
        }
        finds("Cargo.lock.rs", &format!("//! {}\n", FOREIGN[0]), 1);
        assert!(any_file(Path::new("Cargo.lock"), FOREIGN[0]).is_empty());
    }
}
