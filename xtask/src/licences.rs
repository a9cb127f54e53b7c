//! Every crate that ends up in a build has a licence that `deny.toml` allows, and none is banned
//! there. The file is cargo-deny's own, so that both programs read one list.

use std::collections::BTreeSet;

use anyhow::Context;
use serde::Deserialize;

use crate::ci::cargo;
use crate::report::Outcome;
use crate::workspace::Workspace;

const RULES: &str = "deny.toml";

/// The parts of cargo-deny's configuration that this check reads.
#[derive(Debug, Deserialize)]
struct Rules {
    graph: GraphRules,
    licenses: LicenceRules,
    bans: BanRules,
}

#[derive(Debug, Deserialize)]
struct GraphRules {
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct LicenceRules {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct BanRules {
    deny: Vec<Ban>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    name: String,
    reason: String,
}

pub fn check(workspace: &Workspace) -> anyhow::Result<Outcome> {
    let rules: Rules =
        toml::from_str(&workspace.read(RULES)?).with_context(|| format!("parse {RULES}"))?;
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for target in &rules.graph.targets {
        // Not `cargo metadata`: its graph holds optional crates that no feature asks for.
        let output = cargo(&["tree", "--workspace", "--locked", "--edges", "normal,build,dev"])
            .args(["--prefix", "none", "--format", "{p}\t{l}", "--target", target])
            .current_dir(&workspace.root)
            .output()
            .context("run `cargo tree`")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "`cargo tree` failed: {}", errors.trim());
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some((package, licence)) = line.trim_end_matches(" (*)").split_once('\t') else {
                continue;
            };
            // `name v1.2.3`, and a path behind it where the crate is ours.
            let name = package.split(' ').next().unwrap_or_default();
            seen.insert(package.to_owned());
            if !package.contains(" (/") {
                found.extend(judge(name, Some(licence).filter(|text| !text.is_empty()), &rules));
            }
        }
    }
    let summary = format!("{} crates on {} targets", seen.len(), rules.graph.targets.len());
    Ok(Outcome::new(summary, found.into_iter().collect()))
}

fn judge(name: &str, licence: Option<&str>, rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == name) {
        found.push(format!("`{name}` is banned: {}", ban.reason));
    }
    match licence {
        None => found.push(format!("`{name}` names no licence")),
        Some(text) if !allowed(text, &rules.licenses.allow) => {
            found.push(format!("`{name}` has the licence `{text}`, which {RULES} does not allow"));
        }
        Some(_) => {}
    }
    found
}

/// Evaluates an SPDX expression. Crates of an older time write `/` for OR. What cannot be read is
/// not allowed.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Expression { words: &words, at: 0, allow };
    reader.any() == Some(true) && reader.at == words.len()
}

struct Expression<'a> {
    words: &'a [&'a str],
    at: usize,
    allow: &'a BTreeSet<String>,
}

impl Expression<'_> {
    fn any(&mut self) -> Option<bool> {
        let mut good = self.all()?;
        while self.take("OR") {
            good |= self.all()?;
        }
        Some(good)
    }

    fn all(&mut self) -> Option<bool> {
        let mut good = self.one()?;
        while self.take("AND") {
            good &= self.one()?;
        }
        Some(good)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let good = self.any()?;
            return self.take(")").then_some(good);
        }
        let mut licence = (*self.words.get(self.at)?).to_owned();
        self.at += 1;
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.words.get(self.at)?);
            self.at += 1;
        }
        Some(self.allow.contains(&licence))
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is_next);
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_spdx_says() {
        let allow = ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
        let allow = allow.iter().map(|licence| (*licence).to_owned()).collect();
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "ISC AND (MIT OR GPL-3.0)",
        ] {
            assert!(allowed(good, &allow), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "ISC AND (GPL-3.0", "", "MIT MIT", "OR MIT", "("]
        {
            assert!(!allowed(bad, &allow), "{bad}");
        }
    }

    #[test]
    fn banned_and_unlicensed_crates_are_found() {
        let rules: Rules = toml::from_str(
            "[graph]\ntargets = []\n[licenses]\nallow = [\"MIT\"]\n\
             [bans]\ndeny = [{ name = \"ring\", reason = \"one library\" }]\n",
        )
        .unwrap();
        assert_eq!(judge("good", Some("MIT"), &rules), Vec::<String>::new());
        assert_eq!(judge("ring", Some("MIT"), &rules), ["`ring` is banned: one library"]);
        assert_eq!(judge("x", None, &rules).len(), 1);
        assert_eq!(judge("x", Some("AGPL-3.0"), &rules).len(), 1);
    }
}
