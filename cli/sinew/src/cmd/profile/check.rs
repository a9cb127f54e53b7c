//! `sinew profile check`: everything that can be said of the profiles before a session comes.

use base_config::{Config, ConfigErrors, Entrypoint, Finding, Problem, Profile};
use base_types::Chain;
use sandbox_image::{ImageConfig, ImageStore};
use serde::Serialize;

use super::{ProblemView, configured, load, wants};
use crate::args::ProfileCheckArgs;
use crate::exit::Exit;
use crate::output;

#[derive(Default, Serialize)]
struct Answer {
    /// Whether `sinew serve` would take it.
    ok: bool,
    file: Option<String>,
    mistakes: Vec<ProblemView>,
    profiles: Vec<ProfileView>,
    /// Rules that never decide.
    rules: Vec<RuleView>,
    warnings: Vec<ProblemView>,
}

#[derive(Serialize)]
struct ProfileView {
    name: String,
    tier: &'static str,
    image: String,
    /// `null`: there is no image cache here that could be looked into.
    image_found: Option<bool>,
    image_problem: Option<String>,
    /// One text for each match; empty where it is for every session that is left.
    matches: Vec<String>,
}

#[derive(Serialize)]
struct RuleView {
    /// `unreachable` or `unused`.
    kind: &'static str,
    profile: String,
    /// Counted from 1; `null` when it is the whole profile.
    #[serde(rename = "match")]
    number: Option<usize>,
    #[serde(flatten)]
    problem: ProblemView,
}

pub fn run(args: ProfileCheckArgs) -> anyhow::Result<Exit> {
    let sources = configured(&args.data, args.config, args.images.images);
    let config = match load(&sources) {
        Ok(config) => config,
        Err(errors) if args.json.json => return refused(&errors),
        Err(errors) => return Err(errors.into()),
    };
    let answer = examine(&config);
    match args.json.json {
        true => output::json(&answer)?,
        false => print(&answer, &config)?,
    }
    let warned = !answer.rules.is_empty() || !answer.warnings.is_empty();
    Ok(match answer.ok && !(args.strict && warned) {
        true => Exit::Ok,
        false => Exit::Failed,
    })
}

/// A program that reads JSON gets the mistakes as JSON, too.
fn refused(errors: &ConfigErrors) -> anyhow::Result<Exit> {
    let mistakes = errors.problems.iter().map(ProblemView::of).collect();
    output::json(&Answer { mistakes, ..Answer::default() })?;
    Ok(Exit::Usage)
}

fn examine(config: &Config) -> Answer {
    let mut warnings = Vec::new();
    let images = config.images.exists().then(|| ImageStore::open(&config.images)).transpose();
    let images = images.unwrap_or_else(|error| {
        let place = config.images.display().to_string();
        let what = format!("images cannot be looked for: {}", Chain(&error));
        warnings.push(ProblemView { place, line: None, what, fix: None });
        None
    });
    let profiles = config.profiles.iter();
    let profiles: Vec<_> = profiles.map(|of| ProfileView::of(of, images.as_ref())).collect();
    warnings.extend(config.profiles.iter().filter_map(|of| no_entrypoint(of, images.as_ref()?)));
    let findings = config.review();
    let is_of_a_rule = |warning: &&Problem| findings.iter().any(|of| of.problem == **warning);
    let others = config.warnings.iter().filter(|warning| !is_of_a_rule(warning));
    warnings.extend(others.map(ProblemView::of));
    Answer {
        ok: profiles.iter().all(|profile| profile.image_found != Some(false)),
        file: config.file.as_ref().map(|file| file.display().to_string()),
        mistakes: Vec::new(),
        profiles,
        rules: findings.iter().map(RuleView::of).collect(),
        warnings,
    }
}

/// A profile that asks for what its image does not name.
fn no_entrypoint(profile: &Profile, images: &ImageStore) -> Option<ProblemView> {
    let image = images.get(&profile.image).ok()?;
    let names_one = |of: &ImageConfig| !of.entrypoint.is_empty() || !of.cmd.is_empty();
    if profile.entrypoint != Entrypoint::OfImage
        || image.manifest.config.as_ref().is_some_and(names_one)
    {
        return None;
    }
    let (name, image) = (&profile.name, &profile.image);
    Some(ProblemView::of(&Problem {
        place: profile.place.clone(),
        what: format!("profile `{name}` has `entrypoint = true`, and image `{image}` names none"),
        fix: Some("write the words of a program, or remove it".to_owned()),
    }))
}

impl ProfileView {
    fn of(profile: &Profile, images: Option<&ImageStore>) -> Self {
        let found = images.map(|images| images.get(&profile.image));
        let problem = found.as_ref().and_then(|found| found.as_ref().err());
        Self {
            name: profile.name.to_string(),
            tier: profile.tier.name(),
            image: profile.image.clone(),
            image_found: found.as_ref().map(Result::is_ok),
            image_problem: problem.map(|error| Chain(error).to_string()),
            matches: profile.matches.iter().map(wants).collect(),
        }
    }
}

impl RuleView {
    fn of(finding: &Finding) -> Self {
        Self {
            kind: finding.kind.name(),
            profile: finding.profile.to_string(),
            number: finding.number,
            problem: ProblemView::of(&finding.problem),
        }
    }
}

fn print(answer: &Answer, config: &Config) -> anyhow::Result<()> {
    let from = answer.file.as_deref().unwrap_or("variables and defaults");
    output::line(&format!("configuration from {from}"))?;
    let rows = answer.profiles.iter().flat_map(rows).collect();
    output::table(&["profile", "tier", "image", "for sessions with"], rows)?;
    let problems = answer.rules.iter().map(|rule| &rule.problem).chain(&answer.warnings);
    let mut warnings = 0;
    for ProblemView { place, what, fix, .. } in problems {
        let fix = fix.as_ref().map_or(String::new(), |fix| format!(": {fix}"));
        output::line(&output::printable(&format!("warning: {place}: {what}{fix}")))?;
        warnings += 1;
    }
    let images = config.images.display();
    for ProfileView { name, image_problem, .. } in &answer.profiles {
        let Some(problem) = image_problem else { continue };
        let text = format!("FAIL: profile `{name}`: {problem} ({images})");
        output::line(&output::printable(&text))?;
    }
    if !config.images.exists() {
        output::line(&format!("images were not looked for: there is no {images}"))?;
    }
    let verdict = match (answer.ok, warnings) {
        (false, _) => "profile check: `sinew serve` would not start".to_owned(),
        (true, 0) => "profile check: ok".to_owned(),
        (true, 1) => "profile check: ok, with a warning".to_owned(),
        (true, count) => format!("profile check: ok, with {count} warnings"),
    };
    output::line(&verdict)
}

/// One row for each match; a profile's name stands in the first.
fn rows(profile: &ProfileView) -> Vec<Vec<String>> {
    let head = [profile.name.clone(), profile.tier.to_owned(), profile.image.clone()];
    if profile.matches.is_empty() {
        return vec![head.into_iter().chain(["anything, where no other".to_owned()]).collect()];
    }
    let row = |(index, wants): (usize, &String)| {
        let head = head.iter().map(|cell| if index == 0 { cell.clone() } else { String::new() });
        head.chain([wants.clone()]).collect()
    };
    profile.matches.iter().enumerate().map(row).collect()
}
