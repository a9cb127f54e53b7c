//! Why a session gets its profile: every profile and every match in the order they are tried, each
//! with what speaks against it.
//!
//! **Invariant:** what is explained is what [`Config::choose`] does; both ask [`Match::misses`].

use std::fmt;

use base_types::{AgentId, EnvironmentId, TenantId};

use crate::choose::{Chosen, SessionFacts};
use crate::credential::shown;
use crate::types::{Config, Match, Profile};

/// How a session's profile is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<'c> {
    pub chosen: Chosen<'c>,
    /// All of them, in the order they are tried.
    pub profiles: Vec<ProfileVerdict<'c>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileVerdict<'c> {
    pub profile: &'c Profile,
    pub outcome: Outcome,
    /// Its matches in their order; none where the profile holds for every session.
    pub rules: Vec<RuleVerdict<'c>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Chosen,
    /// It holds for the session, and one before it was chosen.
    Late,
    /// None of its matches holds.
    NoMatch,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Chosen => "chosen",
            Outcome::Late => "late",
            Outcome::NoMatch => "no_match",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleVerdict<'c> {
    pub rule: &'c Match,
    /// What the rule names and the session is not; it holds where there is nothing.
    pub misses: Vec<Miss>,
}

/// One thing that a rule names and a session is not. `is` is `None` where the session has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    Environment { wanted: EnvironmentId, is: EnvironmentId },
    Agent { wanted: AgentId, is: Option<AgentId> },
    Tenant { wanted: TenantId, is: TenantId },
    Metadata { key: String, wanted: String, is: Option<String> },
}

impl Config {
    /// Every profile and match, whether it holds for that session, and why not.
    pub fn explain(&self, facts: &SessionFacts<'_>) -> Explanation<'_> {
        let chosen = self.choose(facts);
        let profiles = self.profiles.iter();
        let profiles = profiles.map(|profile| verdict(profile, chosen.profile, facts)).collect();
        Explanation { chosen, profiles }
    }
}

fn verdict<'c>(
    profile: &'c Profile,
    chosen: &Profile,
    facts: &SessionFacts<'_>,
) -> ProfileVerdict<'c> {
    let rule = |rule: &'c Match| RuleVerdict { rule, misses: rule.misses(facts) };
    let rules: Vec<RuleVerdict<'_>> = profile.matches.iter().map(rule).collect();
    let holds = rules.is_empty() || rules.iter().any(RuleVerdict::holds);
    let outcome = match holds {
        _ if profile.name == chosen.name => Outcome::Chosen,
        true => Outcome::Late,
        false => Outcome::NoMatch,
    };
    ProfileVerdict { profile, outcome, rules }
}

impl RuleVerdict<'_> {
    pub fn holds(&self) -> bool {
        self.misses.is_empty()
    }
}

impl Match {
    /// What it names and the session is not.
    pub fn misses(&self, facts: &SessionFacts<'_>) -> Vec<Miss> {
        let mut misses = Vec::new();
        if let Some(wanted) = &self.environment
            && wanted != facts.environment
        {
            let is = facts.environment.clone();
            misses.push(Miss::Environment { wanted: wanted.clone(), is });
        }
        if let Some(wanted) = &self.agent
            && Some(wanted) != facts.agent
        {
            misses.push(Miss::Agent { wanted: wanted.clone(), is: facts.agent.cloned() });
        }
        if let Some(wanted) = &self.tenant
            && wanted != facts.tenant
        {
            misses.push(Miss::Tenant { wanted: wanted.clone(), is: facts.tenant.clone() });
        }
        let differs = |(key, wanted): (&String, &String)| {
            let is = facts.metadata.get(key);
            let miss =
                || Miss::Metadata { key: key.clone(), wanted: wanted.clone(), is: is.cloned() };
            (is != Some(wanted)).then(miss)
        };
        misses.extend(self.metadata.iter().filter_map(differs));
        misses
    }
}

impl Miss {
    /// What it is about: `environment`, `agent`, `tenant`, `metadata`.
    pub fn subject(&self) -> &'static str {
        match self {
            Miss::Environment { .. } => "environment",
            Miss::Agent { .. } => "agent",
            Miss::Tenant { .. } => "tenant",
            Miss::Metadata { .. } => "metadata",
        }
    }

    /// What the rule names, and what the session has instead.
    pub fn wanted_and_is(&self) -> (&str, Option<&str>) {
        match self {
            Miss::Environment { wanted, is } => (wanted.as_str(), Some(is.as_str())),
            Miss::Agent { wanted, is } => (wanted.as_str(), is.as_ref().map(AgentId::as_str)),
            Miss::Tenant { wanted, is } => (wanted.as_str(), Some(is.as_str())),
            Miss::Metadata { wanted, is, .. } => (wanted, is.as_deref()),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, is) = self.wanted_and_is();
        let wanted = shown(wanted);
        let subject = match self {
            Miss::Metadata { key, .. } => format!("metadata `{}`", shown(key)),
            _ => self.subject().to_owned(),
        };
        match is {
            Some(is) => write!(f, "{subject} is `{}`, not `{wanted}`", shown(is)),
            None => write!(f, "there is no {subject}; it must be `{wanted}`"),
        }
    }
}
