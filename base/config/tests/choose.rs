//! Which profile a session gets.

use std::collections::BTreeMap;
use std::fs;

use base_config::{Config, Overrides, SessionFacts, Sources, load_without_environments};

const FILE: &str = r#"
[[profile]]
name = "blue"
[[profile.match]]
tenant = "blue"
metadata = { size = "big", stage = "live" }
[[profile.match]]
agent = "agent_blue"

[[profile]]
name = "env"
[[profile.match]]
environment = "env_1"

[[profile]]
name = "late"
[[profile.match]]
environment = "env_1"
agent = "agent_blue"
"#;

fn config(file: &str) -> Config {
    let folder = tempfile::tempdir().expect("make a folder");
    fs::write(folder.path().join("sinew.toml"), file).expect("write the file");
    let overrides = Overrides { data: Some(folder.path().to_owned()), ..Overrides::default() };
    load_without_environments(&Sources::new(overrides, [], true)).expect("the file is right")
}

#[track_caller]
fn check(
    config: &Config,
    (environment, agent, tenant): (&str, Option<&str>, &str),
    metadata: &[(&str, &str)],
    (profile, by): (&str, &str),
) {
    let metadata: BTreeMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let agent = agent.map(Into::into);
    let chosen = config.choose(&SessionFacts {
        environment: &environment.into(),
        agent: agent.as_ref(),
        tenant: &tenant.into(),
        metadata: &metadata,
    });
    assert_eq!((chosen.profile.name.as_str(), chosen.by.as_str()), (profile, by));
}

#[test]
fn the_first_match_in_the_order_of_the_file_wins() {
    let config = config(FILE);
    let live = [("size", "big"), ("stage", "live"), ("more", "x")];
    let first = ("blue", "profile `blue`, match 1");
    check(&config, ("env_1", None, "blue"), &live, first);
    check(&config, ("env_2", Some("any"), "blue"), &live, first);
    check(&config, ("env_2", Some("agent_blue"), "red"), &[], ("blue", "profile `blue`, match 2"));
    check(&config, ("env_1", Some("agent_red"), "red"), &live, ("env", "profile `env`, match 1"));
}

#[test]
fn everything_that_a_match_names_must_be_so() {
    let config = config(FILE);
    let default = ("default", "profile `default`, which matches every session");
    check(&config, ("env_2", None, "blue"), &[("size", "big")], default);
    check(&config, ("env_2", None, "blue"), &[("size", "big"), ("stage", "test")], default);
    check(&config, ("env_2", None, "red"), &[("size", "big"), ("stage", "live")], default);
    check(&config, ("ENV_1", None, "red"), &[], default);
    check(&config, ("env_2", Some(""), "red"), &[], default);
}

#[test]
fn a_profile_without_a_match_takes_the_rest() {
    let rest = config(&format!("{FILE}\n[[profile]]\nname = \"rest\"\n"));
    let by = ("rest", "profile `rest`, which matches every session");
    check(&rest, ("env_2", None, "red"), &[], by);
    let own = config(&format!("{FILE}\n[[profile]]\nname = \"default\"\npids = 77\n"));
    let by = ("default", "profile `default`, which matches every session");
    check(&own, ("env_2", None, "red"), &[], by);
    assert_eq!(own.profile("default").map(|profile| profile.pids), Some(77));
    assert_eq!(own.profiles.len(), 4);
    assert_eq!(own.profile("none"), None);
}
