//! Scenario files: the script that stands in for a model.
//!
//! An agent whose model is `script/NAME` plays `NAME.toml`. A file is a list of steps; each step
//! does exactly one thing:
//!
//! ```toml
//! description = "What this shows."      # optional
//!
//! [[step]]
//! say = "I look at the files."          # agent.message
//!
//! [[step]]
//! think = true                          # agent.thinking
//!
//! [[step]]                              # calls of one step are issued together, in order
//! [[step.call]]
//! tool = "bash"
//! input = { command = "ls" }
//! permission = "allow"                  # allow | ask | deny | any text; default: the agent's policy
//! custom = false                        # true: agent.custom_tool_use
//! thread = "reviewer"                   # issued by a child thread, created at its first use
//! awaited = true                        # false: the script goes on without the result
//! expect = { contains = "README", is_error = false }
//!
//! [[step]]
//! wait_ms = 500                         # the session stays `running`
//!
//! [[step]]
//! wait_for_user = true                  # waits for the next user.message, still `running`
//!
//! [[step]]
//! expect_interrupt = true               # waits for user.interrupt, or takes the one that broke
//!                                       # off the calls before it
//!
//! [[step]]
//! emit = '{"type": "agent.news"}'       # any event, as JSON
//!
//! [[step]]
//! end_thread = "reviewer"               # session.thread_status_terminated
//!
//! [[step]]
//! end_turn = "end_turn"                 # the stop_reason; the next user.message goes on after it
//!
//! [[step]]
//! terminate = true                      # session.status_terminated
//! ```
//!
//! `expect` takes `contains`, `not_contains` and `regex` (a text or a list of texts), `equals`
//! (a text), `is_error` (true or false) and `has_block` (a block type such as `image`). Texts are
//! compared with the text blocks of the result, joined by newlines. An expectation that fails is
//! a `session.error`, ends the turn and marks the session's verdict failed.
//!
//! The first `user.message` starts the script. A script that has ended starts again with the
//! next one. A file with mistakes reports all of them, each with its line and column.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use serde_json::Value;

use crate::scenario_reader::read;

/// A file longer than this is not a script somebody wrote.
pub(crate) const MAX_SCENARIO_BYTES: usize = 4 << 20;
/// Bounds the work one message can start.
pub(crate) const MAX_STEPS: usize = 10_000;
/// Bounds the calls one turn can leave open.
pub(crate) const MAX_CALLS_IN_STEP: usize = 100;
/// The longest a script may wait in one step.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(3600);
/// How a model names a script.
pub(crate) const MODEL_PREFIX: &str = "script/";

const BUILT_IN: &[(&str, &str)] = &[
    ("fix-a-bug", include_str!("../scenarios/fix-a-bug.toml")),
    ("search-and-background", include_str!("../scenarios/search-and-background.toml")),
    ("long-count", include_str!("../scenarios/long-count.toml")),
    ("six-tools", include_str!("../scenarios/six-tools.toml")),
];

#[derive(Clone, Debug)]
pub struct Scenario {
    pub(crate) steps: Vec<Step>,
    description: String,
}

impl Scenario {
    /// Reads a scenario; a failure holds every mistake of the text.
    pub fn parse(text: &str) -> Result<Scenario, Mistakes> {
        let (steps, description) = read(text)?;
        Ok(Scenario { steps, description })
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    /// How many tool calls one play issues.
    pub fn calls(&self) -> usize {
        let calls = |step: &Step| if let Step::Calls(calls) = step { calls.len() } else { 0 };
        self.steps.iter().map(calls).sum()
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Say(String),
    Think,
    Calls(Vec<CallSpec>),
    Wait(Duration),
    WaitForUser,
    ExpectInterrupt,
    Emit(Value),
    EndTurn(String),
    EndThread(String),
    Terminate,
}

#[derive(Clone, Debug)]
pub(crate) struct CallSpec {
    pub tool: String,
    pub input: Value,
    /// `None`: what the agent's tool configuration says.
    pub permission: Option<String>,
    pub custom: bool,
    pub thread: Option<String>,
    /// The script waits for the result.
    pub awaited: bool,
    pub expect: Expectation,
}

/// What a result must be like. The default accepts everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expectation {
    pub contains: Vec<String>,
    pub not_contains: Vec<String>,
    pub regex: Vec<Regex>,
    pub equals: Option<String>,
    pub is_error: Option<bool>,
    pub has_block: Option<String>,
}

/// A result is quoted in a failure up to this many characters.
const MAX_QUOTE: usize = 400;

impl Expectation {
    /// What is wrong with a result; empty when nothing is.
    pub(crate) fn check(&self, is_error: bool, content: &[Value]) -> Vec<String> {
        let text = text_of(content);
        let quote: String = text.chars().take(MAX_QUOTE).collect();
        let mut wrong = Vec::new();
        if let Some(expected) = self.is_error
            && expected != is_error
        {
            wrong.push(format!("is_error is {is_error}, the result is {quote:?}"));
        }
        for part in self.contains.iter().filter(|part| !text.contains(part.as_str())) {
            wrong.push(format!("{part:?} is not in {quote:?}"));
        }
        for part in self.not_contains.iter().filter(|part| text.contains(part.as_str())) {
            wrong.push(format!("{part:?} is in {quote:?}"));
        }
        for pattern in self.regex.iter().filter(|pattern| !pattern.is_match(&text)) {
            wrong.push(format!("/{}/ does not match {quote:?}", pattern.as_str()));
        }
        if let Some(expected) = self.equals.as_ref().filter(|expected| **expected != text) {
            wrong.push(format!("{quote:?} is not {expected:?}"));
        }
        if let Some(kind) = &self.has_block
            && !content.iter().any(|block| block["type"] == kind.as_str())
        {
            wrong.push(format!("there is no {kind} block"));
        }
        wrong
    }
}

pub(crate) fn text_of(content: &[Value]) -> String {
    let texts: Vec<&str> = content.iter().filter_map(|block| block["text"].as_str()).collect();
    texts.join("\n")
}

/// One mistake, where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// All mistakes of one file, in order of their place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{}: {}", mistake.line, mistake.column, mistake.message)?;
        }
        Ok(())
    }
}

/// Why the scenarios could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read the scenario directory {path}")]
    ReadDirectory { path: PathBuf, source: std::io::Error },
    #[error("cannot read the scenario {path}")]
    ReadFile { path: PathBuf, source: std::io::Error },
    #[error("the scenario {path} is longer than {MAX_SCENARIO_BYTES} bytes")]
    TooLong { path: PathBuf },
    #[error("mistakes in the scenario {name}")]
    Mistakes { name: String, source: Mistakes },
}

/// The scripts an agent's model can name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scenarios(BTreeMap<String, Arc<Scenario>>);

impl Scenarios {
    /// The built-in ones, shadowed by those of `directory`, shadowed by `given`.
    pub(crate) fn load(
        directory: Option<&Path>,
        given: &[(String, String)],
    ) -> Result<Scenarios, ScenarioError> {
        let mut scenarios = Scenarios::default();
        for (name, text) in BUILT_IN {
            scenarios.add(name, text)?;
        }
        for path in directory.map(toml_files).transpose()?.unwrap_or_default() {
            let source_of = |source| ScenarioError::ReadFile { path: path.clone(), source };
            if std::fs::metadata(&path).map_err(source_of)?.len() > MAX_SCENARIO_BYTES as u64 {
                return Err(ScenarioError::TooLong { path });
            }
            let text = std::fs::read_to_string(&path).map_err(source_of)?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            scenarios.add(&name, &text)?;
        }
        for (name, text) in given {
            scenarios.add(name, text)?;
        }
        Ok(scenarios)
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), ScenarioError> {
        let scenario = Scenario::parse(text)
            .map_err(|source| ScenarioError::Mistakes { name: name.to_owned(), source })?;
        self.0.insert(name.to_owned(), Arc::new(scenario));
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Scenario>> {
        self.0.get(name).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    let wrap = |source| ScenarioError::ReadDirectory { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(wrap)? {
        let path = entry.map_err(wrap)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The names and descriptions of the scenarios that are built in.
pub fn built_in_scenarios() -> impl Iterator<Item = (&'static str, Scenario)> {
    BUILT_IN.iter().filter_map(|(name, text)| Some((*name, Scenario::parse(text).ok()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_built_in_scenario_has_no_mistakes() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(text).unwrap_or_else(|e| panic!("{name}:\n{e}"));
            assert!(!scenario.description().is_empty(), "{name} has no description");
            assert!(scenario.calls() > 0, "{name} calls nothing");
        }
        assert_eq!(built_in_scenarios().count(), BUILT_IN.len());
    }

    #[test]
    fn an_expectation_names_everything_that_is_wrong() {
        let expect = Expectation {
            contains: vec!["ok".into(), "absent".into()],
            not_contains: vec!["ok".into()],
            regex: vec![Regex::new("^o.$").unwrap(), Regex::new("x").unwrap()],
            equals: Some("other".into()),
            is_error: Some(true),
            has_block: Some("image".into()),
        };
        let wrong = expect.check(false, &[json!({"type": "text", "text": "ok"})]);
        assert_eq!(wrong.len(), 6, "{wrong:?}");
        assert!(Expectation::default().check(true, &[]).is_empty());
    }

    #[test]
    fn files_of_a_directory_shadow_the_built_in_ones_and_mistakes_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("long-count.toml");
        std::fs::write(&file, "description = \"mine\"\n[[step]]\nsay = \"hi\"\n").unwrap();
        let scenarios = Scenarios::load(Some(directory.path()), &[]).unwrap();
        assert_eq!(scenarios.get("long-count").unwrap().description(), "mine");
        std::fs::write(&file, "[[step]]\nsai = \"hi\"\n").unwrap();
        let error = Scenarios::load(Some(directory.path()), &[]).unwrap_err();
        assert!(error.to_string().contains("long-count"), "{error}");
    }
}
