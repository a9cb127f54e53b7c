//! Who asks: the session as the control plane knows it, and which sessions a policy is for.
//!
//! **Invariant:** nothing a guest or a model says is in an [`Identity`]; its title and its agent's
//! name, which anyone may choose, can only put a policy *on* a session that opens nothing.

use std::collections::BTreeMap;

use base_types::{AgentId, EnvironmentId, ProfileName, SessionId, TenantId};

use crate::glob::Glob;

/// A session whose identity could not be fetched has none, and does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub environment: EnvironmentId,
    pub tenant: TenantId,
    pub agent: AgentId,
    pub session: SessionId,
    pub profile: ProfileName,
    pub metadata: BTreeMap<String, String>,
    pub agent_name: Option<String>,
    pub title: Option<String>,
}

/// Which sessions a policy is for: everything that is named must be so, each in one of its ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    pub environment: Vec<String>,
    pub tenant: Vec<String>,
    pub agent: Vec<String>,
    pub session: Vec<String>,
    pub profile: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub agent_name: Vec<Glob>,
    pub title: Vec<Glob>,
}

impl Select {
    pub fn holds(&self, identity: &Identity) -> bool {
        fn one_of(named: &[String], is: &str) -> bool {
            named.is_empty() || named.iter().any(|named| named == is)
        }
        // A name that is not known yet may be one of these: the policy is on, as it opens nothing.
        fn like(named: &[Glob], is: Option<&String>) -> bool {
            named.is_empty() || is.is_none_or(|is| named.iter().any(|glob| glob.matches(is)))
        }
        one_of(&self.environment, identity.environment.as_str())
            && one_of(&self.tenant, identity.tenant.as_str())
            && one_of(&self.agent, identity.agent.as_str())
            && one_of(&self.session, identity.session.as_str())
            && one_of(&self.profile, identity.profile.as_str())
            && self.metadata.iter().all(|(key, value)| identity.metadata.get(key) == Some(value))
            && like(&self.agent_name, identity.agent_name.as_ref())
            && like(&self.title, identity.title.as_ref())
    }

    /// Whether it looks at what anyone may choose.
    pub fn by_free_text(&self) -> bool {
        !self.agent_name.is_empty() || !self.title.is_empty()
    }

    /// Whether it holds for every session that the other one holds for.
    pub fn covers(&self, other: &Select) -> bool {
        fn wider(wide: &[String], narrow: &[String]) -> bool {
            wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|name| wide.contains(name)))
        }
        fn wider_text(wide: &[Glob], narrow: &[Glob]) -> bool {
            wide.is_empty() || wide == narrow
        }
        wider(&self.environment, &other.environment)
            && wider(&self.tenant, &other.tenant)
            && wider(&self.agent, &other.agent)
            && wider(&self.session, &other.session)
            && wider(&self.profile, &other.profile)
            && self.metadata.iter().all(|(key, value)| other.metadata.get(key) == Some(value))
            && wider_text(&self.agent_name, &other.agent_name)
            && wider_text(&self.title, &other.title)
    }

    /// Whether there may be a session that both hold for.
    pub fn overlaps(&self, other: &Select) -> bool {
        fn share(a: &[String], b: &[String]) -> bool {
            a.is_empty() || b.is_empty() || a.iter().any(|name| b.contains(name))
        }
        share(&self.environment, &other.environment)
            && share(&self.tenant, &other.tenant)
            && share(&self.agent, &other.agent)
            && share(&self.session, &other.session)
            && share(&self.profile, &other.profile)
            && self
                .metadata
                .iter()
                .all(|(key, value)| other.metadata.get(key).is_none_or(|theirs| theirs == value))
    }
}
