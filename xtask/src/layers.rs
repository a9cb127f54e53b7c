//! Dependencies point one way. The rule is `docs/layers.toml`; this file only compares.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use cargo_metadata::DependencyKind;
use serde::Deserialize;

use crate::report::Outcome;
use crate::workspace::Workspace;

pub const RULES: &str = "docs/layers.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    layer: Vec<Layer>,
    #[serde(default)]
    exception: Vec<Exception>,
    pub r#unsafe: Crates,
    pub spawn: Crates,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    name: String,
    /// For the reader of the file; required, so that no layer is without a meaning.
    what: String,
    crates: Vec<String>,
    uses: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    from: String,
    to: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crates {
    pub crates: BTreeSet<String>,
}

/// Each crate of the workspace with those of the workspace that it is built from.
type Graph = BTreeMap<String, BTreeSet<String>>;

pub fn rules(workspace: &Workspace) -> anyhow::Result<Rules> {
    toml::from_str(&workspace.read(RULES)?).with_context(|| format!("parse {RULES}"))
}

pub fn check(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let graph = graph(workspace);
    let dependencies: usize = graph.values().map(BTreeSet::len).sum();
    let summary = format!("{} crates, {dependencies} dependencies between them", graph.len());
    Ok(Outcome::new(summary, violations(&graph, &rules(workspace)?)))
}

fn graph(workspace: &Workspace) -> Graph {
    let packages = &workspace.metadata.packages;
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let uses = |package: &cargo_metadata::Package| {
        let built = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        built.map(|d| d.name.clone()).filter(|name| ours.contains(name.as_str())).collect()
    };
    packages.iter().map(|package| (package.name.to_string(), uses(package))).collect()
}

fn violations(graph: &Graph, rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    let mut layer_of: BTreeMap<&str, &Layer> = BTreeMap::new();
    for layer in &rules.layer {
        if layer.what.trim().is_empty() {
            found.push(format!("{RULES}: layer `{}` does not say what it is", layer.name));
        }
        for other in &layer.uses {
            if !rules.layer.iter().any(|known| known.name == *other) {
                found.push(format!("{RULES}: layer `{}` uses unknown `{other}`", layer.name));
            }
        }
        for name in &layer.crates {
            if !graph.contains_key(name) {
                found.push(format!("{RULES}: crate `{name}` does not exist: remove it"));
            }
            if layer_of.insert(name, layer).is_some() {
                found.push(format!("{RULES}: crate `{name}` is in two layers"));
            }
        }
    }
    let mut needed = BTreeSet::new();
    for (name, uses) in graph {
        let Some(layer) = layer_of.get(name.as_str()) else {
            found.push(format!("{RULES}: crate `{name}` is in no layer: add it to one"));
            continue;
        };
        for used in uses {
            let Some(below) = layer_of.get(used.as_str()) else { continue };
            if layer.uses.contains(&below.name) {
                continue;
            }
            let excepted = rules.exception.iter().position(|e| e.from == *name && e.to == *used);
            match excepted {
                Some(index) => {
                    needed.insert(index);
                }
                None => found.push(format!(
                    "`{name}` ({}) depends on `{used}` ({}): use a contract instead, or write an \
                     exception with its reason in {RULES}",
                    layer.name, below.name
                )),
            }
        }
    }
    for (index, exception) in rules.exception.iter().enumerate() {
        let Exception { from, to, reason } = exception;
        if !needed.contains(&index) {
            found.push(format!(
                "{RULES}: the exception `{from}` -> `{to}` is not needed: remove it"
            ));
        }
        if reason.trim().is_empty() {
            found.push(format!("{RULES}: the exception `{from}` -> `{to}` has no reason"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        [[layer]]
        name = "contracts"
        what = "c"
        crates = ["store-api"]
        uses = []
        [[layer]]
        name = "implementations"
        what = "i"
        crates = ["store-sql", "store-disk"]
        uses = ["contracts"]
        [unsafe]
        crates = []
        [spawn]
        crates = []
    "#;

    #[track_caller]
    fn check(graph: &[(&str, &[&str])], exceptions: &str, expected: &[&str]) {
        let rules: Rules = toml::from_str(&format!("{SAMPLE}{exceptions}")).unwrap();
        let graph = graph
            .iter()
            .map(|(name, uses)| {
                ((*name).to_owned(), uses.iter().map(|used| (*used).to_owned()).collect())
            })
            .collect();
        let found = violations(&graph, &rules);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (finding, part) in found.iter().zip(expected) {
            assert!(finding.contains(part), "{finding}");
        }
    }

    const GOOD: &[(&str, &[&str])] =
        &[("store-api", &[]), ("store-disk", &[]), ("store-sql", &["store-api"])];

    #[test]
    fn one_way_is_allowed() {
        check(GOOD, "", &[]);
    }

    #[test]
    fn the_wrong_way_sideways_and_unknown_crates_are_found() {
        let upward: &[(&str, &[&str])] =
            &[("store-api", &["store-sql"]), ("store-disk", &[]), ("store-sql", &[])];
        check(upward, "", &["`store-api` (contracts) depends on `store-sql`"]);
        let sideways: &[(&str, &[&str])] =
            &[("store-api", &[]), ("store-disk", &["store-sql"]), ("store-sql", &[])];
        check(sideways, "", &["`store-disk` (implementations) depends on `store-sql`"]);
        let excepted =
            "[[exception]]\nfrom = \"store-disk\"\nto = \"store-sql\"\nreason = \"because\"\n";
        check(sideways, excepted, &[]);
        check(GOOD, excepted, &["is not needed"]);
        let more: &[(&str, &[&str])] =
            &[("new", &[]), ("store-api", &[]), ("store-disk", &[]), ("store-sql", &[])];
        check(more, "", &["`new` is in no layer"]);
        check(&[("store-api", &[]), ("store-sql", &[])], "", &["`store-disk` does not exist"]);
    }
}
