//! Which profile a session gets. A pure function of the configuration and the session.
//!
//! The first profile whose match holds, in the order of the file; a profile without any match
//! holds for every session; after all of them comes `default`, which always exists. Agent *names*
//! and titles are not looked at: anyone may choose those, and a profile carries the tier.

use std::collections::BTreeMap;

use base_types::{AgentId, EnvironmentId, TenantId};

use crate::types::{Config, Match, Profile};

pub const DEFAULT_PROFILE: &str = "default";

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts<'a> {
    pub environment: &'a EnvironmentId,
    pub agent: Option<&'a AgentId>,
    pub tenant: &'a TenantId,
    pub metadata: &'a BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<'c> {
    pub profile: &'c Profile,
    /// Which rule chose it, for the reader: "profile `big`, match 2".
    pub by: String,
}

impl Config {
    pub fn choose(&self, facts: &SessionFacts<'_>) -> Chosen<'_> {
        for profile in &self.profiles {
            if profile.matches.is_empty() {
                let by = format!("profile `{}`, which matches every session", profile.name);
                return Chosen { profile, by };
            }
            let number = profile.matches.iter().position(|rule| rule.holds(facts));
            if let Some(number) = number {
                let by = format!("profile `{}`, match {}", profile.name, number + 1);
                return Chosen { profile, by };
            }
        }
        unreachable!("the last profile is `default`, which matches every session")
    }

    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name.as_str() == name)
    }
}

impl Match {
    /// Whether everything that is named is so.
    pub fn holds(&self, facts: &SessionFacts<'_>) -> bool {
        self.misses(facts).is_empty()
    }
}
