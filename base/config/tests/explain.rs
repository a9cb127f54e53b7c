//! Why a session gets its profile, as an operator reads it.

use std::collections::BTreeMap;
use std::fs;

use base_config::{
    Config, Explanation, Outcome, Overrides, Place, SessionFacts, Sources,
    load_without_environments,
};
use base_types::{AgentId, EnvironmentId, TenantId};

const FILE: &str = r#"
[[profile]]
name = "big"
[[profile.match]]
tenant = "blue"
metadata = { size = "big", stage = "live" }
[[profile.match]]
agent = "agent_blue"
environment = "env_1"

[[profile]]
name = "all-of-blue"
[[profile.match]]
tenant = "blue"
"#;

fn config() -> Config {
    let folder = tempfile::tempdir().expect("make a folder");
    fs::write(folder.path().join("sinew.toml"), FILE).expect("write the file");
    let overrides = Overrides { data: Some(folder.path().to_owned()), ..Overrides::default() };
    load_without_environments(&Sources::new(overrides, [], true)).expect("the file is right")
}

/// A session by its own values.
struct Session {
    environment: EnvironmentId,
    agent: Option<AgentId>,
    tenant: TenantId,
    metadata: BTreeMap<String, String>,
}

impl Session {
    fn new(environment: &str, agent: Option<&str>, tenant: &str, meta: &[(&str, &str)]) -> Session {
        Session {
            environment: environment.into(),
            agent: agent.map(AgentId::from),
            tenant: tenant.into(),
            metadata: meta.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        }
    }

    fn facts(&self) -> SessionFacts<'_> {
        SessionFacts {
            environment: &self.environment,
            agent: self.agent.as_ref(),
            tenant: &self.tenant,
            metadata: &self.metadata,
        }
    }
}

/// One line for each profile and match.
fn lines(explanation: &Explanation<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for profile in &explanation.profiles {
        lines.push(format!("{} {}", profile.profile.name, profile.outcome.name()));
        for rule in &profile.rules {
            let misses: Vec<String> = rule.misses.iter().map(ToString::to_string).collect();
            lines.push(if rule.holds() { "holds".to_owned() } else { misses.join("; ") });
        }
    }
    lines
}

#[test]
fn every_match_says_whether_it_holds_and_why_not() {
    let config = config();
    let session = Session::new("env_2", None, "blue", &[("size", "small")]);
    assert_eq!(
        lines(&config.explain(&session.facts())),
        [
            "big no_match",
            "metadata `size` is `small`, not `big`; there is no metadata `stage`; it must be `live`",
            "environment is `env_2`, not `env_1`; there is no agent; it must be `agent_blue`",
            "all-of-blue chosen",
            "holds",
            "default late",
        ]
    );
    let session = Session::new("env_1", Some("agent_blue"), "red", &[]);
    assert_eq!(
        lines(&config.explain(&session.facts())),
        [
            "big chosen",
            "tenant is `red`, not `blue`; there is no metadata `size`; it must be `big`; there is \
             no metadata `stage`; it must be `live`",
            "holds",
            "all-of-blue no_match",
            "tenant is `red`, not `blue`",
            "default late",
        ]
    );
}

#[test]
fn a_profile_that_holds_and_comes_later_is_told_from_one_that_does_not_hold() {
    let config = config();
    let session = Session::new("env_1", Some("agent_blue"), "blue", &[]);
    let explanation = config.explain(&session.facts());
    let outcomes: Vec<Outcome> = explanation.profiles.iter().map(|of| of.outcome).collect();
    assert_eq!(outcomes, [Outcome::Chosen, Outcome::Late, Outcome::Late]);
    assert_eq!(explanation.chosen.by, "profile `big`, match 2");
}

/// Every combination of what the rules look at, and of values that they do not name.
#[test]
fn what_is_explained_is_what_is_chosen() {
    let config = config();
    let sizes: [&[(&str, &str)]; 4] = [
        &[],
        &[("size", "big")],
        &[("size", "big"), ("stage", "live")],
        &[("size", "big"), ("stage", "test")],
    ];
    let mut chosen = BTreeMap::new();
    for environment in ["env_1", "env_2"] {
        for agent in [None, Some("agent_blue"), Some("other")] {
            for tenant in ["blue", "red"] {
                for metadata in sizes {
                    let session = Session::new(environment, agent, tenant, metadata);
                    let explanation = config.explain(&session.facts());
                    assert_eq!(explanation.chosen, config.choose(&session.facts()));
                    let (first, rest): (Vec<_>, Vec<_>) = explanation
                        .profiles
                        .iter()
                        .partition(|profile| profile.outcome == Outcome::Chosen);
                    assert_eq!(first.len(), 1);
                    assert_eq!(first[0].profile, explanation.chosen.profile);
                    let holds = |of: &&base_config::ProfileVerdict<'_>| {
                        of.rules.is_empty() || of.rules.iter().any(|rule| rule.holds())
                    };
                    assert!(first.iter().all(holds));
                    for profile in &rest {
                        assert_eq!(holds(profile), profile.outcome == Outcome::Late);
                    }
                    *chosen.entry(first[0].profile.name.to_string()).or_insert(0) += 1;
                }
            }
        }
    }
    assert_eq!(chosen.len(), 3, "each profile is chosen for some: {chosen:?}");
}

#[test]
fn rules_and_profiles_say_where_they_are_written() {
    let config = config();
    let line = |place: &Place| match place {
        Place::At { line, .. } => Some(*line),
        _ => None,
    };
    let profiles: Vec<_> = config.profiles.iter().map(|profile| line(&profile.place)).collect();
    assert_eq!(profiles, [Some(2), Some(11), None]);
    let rules: Vec<_> = config.profiles[0].matches.iter().map(|rule| line(&rule.place)).collect();
    assert_eq!(rules, [Some(4), Some(7)]);
}

#[test]
fn what_a_session_brings_is_shortened_and_a_key_in_it_hidden() {
    let config = config();
    let long = "x".repeat(1_000);
    let session = Session::new("e", Some("sk-ant-oat01-never"), "t\n\u{1b}[2J", &[("size", &long)]);
    let text = lines(&config.explain(&session.facts())).join("\n");
    assert!(!text.contains("never") && text.contains("agent is `(hidden)`"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains(&"x".repeat(100)), "{text}");
}
