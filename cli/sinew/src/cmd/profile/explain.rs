//! `sinew profile explain`: of every rule, whether it holds for a session and why not.
//!
//! The rules are those of the configuration as it is now; a session keeps the profile that was
//! chosen when it was first claimed, and the two are told apart.

use std::collections::BTreeMap;

use anyhow::Context;
use base_config::{Config, Explanation, Miss, Outcome, ProfileVerdict, RuleVerdict, SessionFacts};
use base_types::{AgentId, EnvironmentId, ProfileName, SessionId, TenantId};
use control_server::api::SessionView;
use control_server::client::ApiClient;
use control_session::Tenancy;
use serde::Serialize;

use super::{at_line, configured, line, load, wants};
use crate::args::ProfileExplainArgs;
use crate::cmd::block_on;
use crate::exit::{Exit, UsageError};
use crate::output::{self, one_line, or_dash};

/// As wide as a value of a session is shown.
const VALUE_WIDTH: usize = 80;

/// What the rules look at.
#[derive(Clone, Serialize)]
struct Facts {
    environment: EnvironmentId,
    agent: Option<AgentId>,
    tenant: TenantId,
    metadata: BTreeMap<String, String>,
}

/// What was chosen when the session was first claimed.
#[derive(Serialize)]
struct Recorded {
    profile: ProfileName,
    by: Option<String>,
    /// Whether the rules would choose the same profile now.
    same: bool,
    /// Whether the configuration still has it.
    exists: bool,
}

#[derive(Serialize)]
struct Answer {
    /// `null` where the session was described with flags.
    session: Option<SessionId>,
    file: Option<String>,
    facts: Facts,
    chosen: Chosen,
    recorded: Option<Recorded>,
    profiles: Vec<ProfileView>,
    /// What speaks against there being such a session.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Chosen {
    profile: ProfileName,
    by: String,
}

#[derive(Serialize)]
struct ProfileView {
    name: ProfileName,
    /// `chosen`, `late` (it holds, and one before it was chosen) or `no_match`.
    outcome: &'static str,
    line: Option<usize>,
    matches: Vec<RuleView>,
}

#[derive(Serialize)]
struct RuleView {
    holds: bool,
    line: Option<usize>,
    wants: String,
    misses: Vec<MissView>,
}

#[derive(Serialize)]
struct MissView {
    /// `environment`, `agent`, `tenant` or `metadata`.
    what: &'static str,
    /// The key, of metadata.
    key: Option<String>,
    wanted: String,
    is: Option<String>,
}

/// A session, and what was chosen for it if it is one that exists.
struct Question {
    session: Option<SessionId>,
    facts: Facts,
    recorded: Option<(ProfileName, Option<String>)>,
}

pub fn run(args: ProfileExplainArgs) -> anyhow::Result<Exit> {
    let config = load(&configured(&args.data, args.config.clone(), None))?;
    let json = args.json.json;
    let question = match args.session.clone() {
        Some(session) => of_session(&config, session)?,
        None => of_flags(&config, args)?,
    };
    let facts = question.facts.clone();
    let explanation = config.explain(&facts.as_configured());
    let answer = Answer::of(&config, &explanation, question);
    match json {
        true => output::json(&answer)?,
        false => print(&answer, &explanation)?,
    }
    Ok(Exit::Ok)
}

fn of_session(config: &Config, id: SessionId) -> anyhow::Result<Question> {
    let client = ApiClient::new(&config.data);
    let session = block_on(async { client.session(&id).await.context("explain a session") })?;
    let SessionView { environment, agent, metadata, profile_chosen_by, .. } = session;
    let (Some(tenant), Some(profile)) = (session.tenant, session.profile) else {
        anyhow::bail!(
            "session {id} has no profile yet: agent and metadata are asked of the brain first"
        )
    };
    Ok(Question {
        session: Some(id),
        facts: Facts { environment, agent, tenant, metadata },
        recorded: Some((profile, profile_chosen_by)),
    })
}

fn of_flags(config: &Config, args: ProfileExplainArgs) -> anyhow::Result<Question> {
    let environment = match args.environment {
        Some(environment) => environment,
        None => only_environment(config)?,
    };
    let metadata: BTreeMap<String, String> = args.meta.into_iter().collect();
    let given = || given_tenant(config, &environment, &metadata);
    // An environment that is not here has its own id for a tenant, unless somebody set another.
    let tenant = args.tenant.or_else(given).unwrap_or_else(|| TenantId::from(environment.as_str()));
    let facts = Facts { environment, agent: args.agent, tenant, metadata };
    Ok(Question { session: None, facts, recorded: None })
}

fn only_environment(config: &Config) -> Result<EnvironmentId, UsageError> {
    let mut known = config.tenancies.iter().map(|tenancy| tenancy.environment.clone());
    match (known.next(), known.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(UsageError(
            "the configuration names no environment: name the session's with --environment ID"
                .to_owned(),
        )),
        (Some(_), Some(_)) => {
            let ids: Vec<&str> =
                config.tenancies.iter().map(|tenancy| tenancy.environment.as_str()).collect();
            let text = "there are several environments: name the session's with --environment";
            Err(UsageError(format!("{text} ({})", ids.join(", "))))
        }
    }
}

/// The tenant that sessions of that environment with that metadata have.
fn given_tenant(
    config: &Config,
    environment: &EnvironmentId,
    metadata: &BTreeMap<String, String>,
) -> Option<TenantId> {
    let known = config.tenancies.iter().find(|tenancy| tenancy.environment == *environment)?;
    let (tenant, metadata_key) = (known.tenant.clone(), known.metadata_key.clone());
    Some(Tenancy { tenant, metadata_key }.tenant_of(metadata))
}

fn notes(config: &Config, facts: &Facts) -> Vec<String> {
    let Facts { environment, tenant, metadata, .. } = facts;
    match given_tenant(config, environment, metadata) {
        // Where `serve` is told its environment by variables, others do not see them.
        None if config.tenancies.is_empty() => Vec::new(),
        None => vec![format!("environment `{environment}` is not in this configuration")],
        Some(given) if given != *tenant => vec![format!(
            "by this configuration such a session of environment `{environment}` is of tenant \
             `{given}`, not `{tenant}`"
        )],
        Some(_) => Vec::new(),
    }
}

impl Facts {
    fn as_configured(&self) -> SessionFacts<'_> {
        SessionFacts {
            environment: &self.environment,
            agent: self.agent.as_ref(),
            tenant: &self.tenant,
            metadata: &self.metadata,
        }
    }
}

impl Answer {
    fn of(config: &Config, explanation: &Explanation<'_>, question: Question) -> Self {
        let Question { session, facts, recorded } = question;
        let chosen = &explanation.chosen;
        let recorded = recorded.map(|(profile, by)| Recorded {
            same: profile == chosen.profile.name,
            exists: config.profile(profile.as_str()).is_some(),
            profile,
            by,
        });
        Self {
            session,
            file: config.file.as_ref().map(|file| file.display().to_string()),
            notes: notes(config, &facts),
            facts,
            chosen: Chosen { profile: chosen.profile.name.clone(), by: chosen.by.clone() },
            recorded,
            profiles: explanation.profiles.iter().map(ProfileView::of).collect(),
        }
    }
}

impl ProfileView {
    fn of(verdict: &ProfileVerdict<'_>) -> Self {
        Self {
            name: verdict.profile.name.clone(),
            outcome: verdict.outcome.name(),
            line: line(&verdict.profile.place),
            matches: verdict.rules.iter().map(RuleView::of).collect(),
        }
    }
}

impl RuleView {
    fn of(verdict: &RuleVerdict<'_>) -> Self {
        Self {
            holds: verdict.holds(),
            line: line(&verdict.rule.place),
            wants: wants(verdict.rule),
            misses: verdict.misses.iter().map(MissView::of).collect(),
        }
    }
}

impl MissView {
    fn of(miss: &Miss) -> Self {
        let (wanted, is) = miss.wanted_and_is();
        let key = match miss {
            Miss::Metadata { key, .. } => Some(key.clone()),
            _ => None,
        };
        let (wanted, is) = (wanted.to_owned(), is.map(str::to_owned));
        Self { what: miss.subject(), key, wanted, is }
    }
}

fn print(answer: &Answer, explanation: &Explanation<'_>) -> anyhow::Result<()> {
    let Facts { environment, agent, tenant, metadata } = &answer.facts;
    let mut facts = vec![
        ("environment", environment.to_string()),
        ("tenant", tenant.to_string()),
        ("agent", or_dash(agent.as_ref())),
    ];
    facts.extend(metadata.iter().map(|(key, value)| ("metadata", format!("{key} = {value}"))));
    facts.push(("rules", answer.file.clone().unwrap_or_else(|| "the built-in default".to_owned())));
    for (name, value) in facts {
        output::line(&format!("{name:<12} {}", one_line(&value, VALUE_WIDTH)))?;
    }
    output::line("")?;
    for profile in &explanation.profiles {
        print_profile(profile)?;
    }
    output::line("")?;
    for note in &answer.notes {
        output::line(&format!("note: {}", output::printable(note)))?;
    }
    output::line(&output::printable(&verdict(answer)))
}

fn print_profile(verdict: &ProfileVerdict<'_>) -> anyhow::Result<()> {
    let outcome = match verdict.outcome {
        Outcome::Chosen => "chosen",
        Outcome::Late => "would hold, but one before it was chosen",
        Outcome::NoMatch => "no match holds",
    };
    let ProfileVerdict { profile, rules, .. } = verdict;
    let place = at_line(&profile.place);
    output::line(&output::printable(&format!("profile {}{place}: {outcome}", profile.name)))?;
    for (index, rule) in rules.iter().enumerate() {
        let holds = match rule.holds() {
            true => format!("holds: {}", wants(rule.rule)),
            false => {
                let misses: Vec<String> = rule.misses.iter().map(ToString::to_string).collect();
                format!("no: {}", misses.join("; "))
            }
        };
        let place = at_line(&rule.rule.place);
        output::line(&output::printable(&format!("  match {}{place} {holds}", index + 1)))?;
    }
    Ok(())
}

fn verdict(answer: &Answer) -> String {
    let Chosen { profile, by } = &answer.chosen;
    let now = format!("`{profile}`, by {by}");
    match &answer.recorded {
        None => format!("the session gets profile {now}"),
        Some(Recorded { profile: kept, by: then, exists, same }) => {
            let then = then.as_deref().unwrap_or("a rule that was not recorded");
            let gone = if *exists { "" } else { ", which the configuration has no more" };
            let first = format!("the session has profile `{kept}`{gone}, by {then}");
            match same {
                true => format!("{first}; the rules would choose it now, too: {now}"),
                false => format!("{first}, and keeps it: the rules would now choose {now}"),
            }
        }
    }
}
