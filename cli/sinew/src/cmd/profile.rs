//! `sinew profile check|explain`: profiles as a person can understand them.

mod check;
mod explain;

use std::path::PathBuf;

use base_config::{Config, ConfigErrors, Match, Overrides, Place, Problem, Sources};
use serde::Serialize;

use crate::args::{DataArgs, ProfileCommand};
use crate::exit::Exit;
use crate::installation::sources;
use crate::output;

pub fn run(command: ProfileCommand) -> anyhow::Result<Exit> {
    match command {
        ProfileCommand::Check(args) => check::run(args),
        ProfileCommand::Explain(args) => explain::run(args),
    }
}

fn configured(data: &DataArgs, config: Option<PathBuf>, images: Option<PathBuf>) -> Sources {
    sources(Overrides { config, data: data.data.clone(), images, ..Overrides::default() })
}

/// Without the environments' keys: who writes profiles need not be able to read them.
fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    base_config::load_without_environments(sources)
}

/// What `--json` prints of a place and what is wrong there.
#[derive(Serialize)]
struct ProblemView {
    /// The file with line and column, or the variable, or the flag.
    place: String,
    line: Option<usize>,
    what: String,
    fix: Option<String>,
}

impl ProblemView {
    fn of(problem: &Problem) -> Self {
        Self {
            place: problem.place.to_string(),
            line: line(&problem.place),
            what: problem.what.clone(),
            fix: problem.fix.clone(),
        }
    }
}

fn line(place: &Place) -> Option<usize> {
    match place {
        Place::At { line, .. } => Some(*line),
        _ => None,
    }
}

/// ` (line 7)`, where there is one.
fn at_line(place: &Place) -> String {
    line(place).map_or(String::new(), |line| format!(" (line {line})"))
}

/// `agent = x, size = big`
fn wants(rule: &Match) -> String {
    let named = |name: &str, value: Option<&str>| value.map(|value| format!("{name} = {value}"));
    let fixed = [
        named("environment", rule.environment.as_ref().map(|id| id.as_str())),
        named("agent", rule.agent.as_ref().map(|id| id.as_str())),
        named("tenant", rule.tenant.as_ref().map(|name| name.as_str())),
    ];
    let metadata = rule.metadata.iter().map(|(key, value)| format!("metadata {key} = {value}"));
    let all: Vec<String> = fixed.into_iter().flatten().chain(metadata).collect();
    output::one_line(&all.join(", "), WANTS_WIDTH)
}

const WANTS_WIDTH: usize = 100;
