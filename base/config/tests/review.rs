//! Rules that choose nothing are found, and no others.

use std::collections::BTreeMap;
use std::fs;

use base_config::{
    Config, FindingKind, Overrides, SessionFacts, Sources, load_without_environments,
};
use base_types::{AgentId, EnvironmentId, TenantId};

fn config(file: &str) -> Config {
    let folder = tempfile::tempdir().expect("make a folder");
    fs::write(folder.path().join("sinew.toml"), file).expect("write the file");
    let overrides = Overrides { data: Some(folder.path().to_owned()), ..Overrides::default() };
    load_without_environments(&Sources::new(overrides, [], true))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// Two environments: one with a tenant of its own, one whose sessions name theirs.
const ENVIRONMENTS: &str = r#"
[[environment]]
id = "env_1"
key_env = "K"
tenant = "blue"
[[environment]]
id = "env_2"
key_env = "K"
tenant_metadata_key = "team"
"#;

/// Profiles `a`, `b`, ... with one rule each.
fn profiles(rules: &[&str]) -> String {
    let profile = |(name, rule): (char, &&str)| {
        format!("[[profile]]\nname = \"{name}\"\n[[profile.match]]\n{rule}\n")
    };
    ('a'..).zip(rules).map(profile).collect()
}

/// What is said of the matches; each is followed by the same about its profile.
#[track_caller]
fn check(file: &str, expected: &[(FindingKind, &str)]) {
    let config = config(file);
    let findings = config.review();
    let texts: Vec<(FindingKind, String)> = findings
        .iter()
        .filter(|finding| finding.number.is_some())
        .map(|finding| {
            let fix =
                finding.problem.fix.as_deref().map_or(String::new(), |fix| format!(": {fix}"));
            (finding.kind, format!("{}{fix}", finding.problem.what))
        })
        .collect();
    let expected: Vec<_> =
        expected.iter().map(|(kind, text)| (*kind, (*text).to_owned())).collect();
    assert_eq!(texts, expected);
    assert!(findings.iter().all(|finding| config.warnings.contains(&finding.problem)));
}

#[test]
fn a_rule_behind_a_wider_one_is_unreachable() {
    let file = profiles(&["agent = \"x\"", "agent = \"x\"\nmetadata = { size = \"big\" }"]);
    check(
        &file,
        &[(
            FindingKind::Unreachable,
            "profile `b`, match 1 never decides: profile `a`, match 1 before it holds for every \
             session that it names: put profile `b` before `a`, or remove the match",
        )],
    );
    let whole = config(&file).review().into_iter().find(|finding| finding.number.is_none());
    let whole = whole.expect("the profile has no other match");
    assert_eq!((whole.profile.as_str(), whole.kind), ("b", FindingKind::Unreachable));
}

#[test]
fn a_second_match_of_a_profile_may_say_nothing_new() {
    let file = "[[profile]]\nname = \"a\"\n[[profile.match]]\nagent = \"x\"\n[[profile.match]]\n\
                agent = \"x\"\ntenant = \"t\"\n";
    check(
        file,
        &[(
            FindingKind::Unreachable,
            "profile `a`, match 2 never decides: profile `a`, match 1 before it holds for every \
             session that it names: remove it",
        )],
    );
    assert!(config(file).review().iter().all(|finding| finding.number.is_some()));
}

#[test]
fn rules_that_can_hold_are_not_reported() {
    for rules in [
        &["agent = \"x\"", "agent = \"y\"", "tenant = \"blue\""][..],
        &["agent = \"x\"\ntenant = \"blue\"", "agent = \"x\""],
        &["metadata = { a = \"1\" }", "metadata = { a = \"2\" }", "metadata = { b = \"1\" }"],
        &["environment = \"env_1\"", "environment = \"env_2\"\ntenant = \"red\""],
        &["environment = \"env_2\"\nmetadata = { team = \"red\" }\ntenant = \"red\""],
        &["environment = \"env_2\"\nmetadata = { team = \"\" }\ntenant = \"env_2\""],
    ] {
        check(&profiles(rules), &[]);
        check(&format!("{ENVIRONMENTS}{}", profiles(rules)), &[]);
    }
    check("", &[]);
}

#[test]
fn what_no_environment_served_here_gives_is_unused() {
    let unused = |rules: &[&str], text: &str| {
        check(&format!("{ENVIRONMENTS}{}", profiles(rules)), &[(FindingKind::Unused, text)]);
    };
    unused(
        &["environment = \"env1\""],
        "profile `a`, match 1 never decides here: environment `env1` is not served: did you mean \
         `env_1`?",
    );
    unused(
        &["environment = \"env_1\"\ntenant = \"blu\""],
        "profile `a`, match 1 never decides here: such sessions of environment `env_1` are of \
         tenant `blue`, not `blu`: did you mean `blue`?",
    );
    unused(
        &["metadata = { team = \"red\" }\ntenant = \"violet\""],
        "profile `a`, match 1 never decides here: no environment gives such sessions tenant \
         `violet`",
    );
}

#[test]
fn an_order_that_leaves_nothing_in_any_environment_is_unused() {
    let rules = ["environment = \"env_1\"", "environment = \"env_2\"", "agent = \"x\""];
    check(
        &format!("{ENVIRONMENTS}{}", profiles(&rules)),
        &[(
            FindingKind::Unused,
            "profile `c`, match 1 never decides here: profile `a`, match 1 before it takes its \
             sessions: put profile `c` before `a`, or remove the match",
        )],
    );
    // The tenant of env_1 is known without the rule naming it.
    let rules = ["tenant = \"blue\"", "environment = \"env_1\"\nagent = \"x\""];
    check(
        &format!("{ENVIRONMENTS}{}", profiles(&rules)),
        &[(
            FindingKind::Unused,
            "profile `b`, match 1 never decides here: profile `a`, match 1 before it takes its \
             sessions: put profile `b` before `a`, or remove the match",
        )],
    );
}

const VALUES: [&str; 3] = ["", "1", "2"];

/// Whether a session of [`ENVIRONMENTS`] exists whose profile that rule decides, by trying all.
fn decides(config: &Config, profile: &str, number: usize) -> bool {
    let by = format!("profile `{profile}`, match {number}");
    let sessions = VALUES.iter().flat_map(|agent| {
        VALUES.iter().flat_map(move |team| VALUES.map(move |size| (*agent, *team, size)))
    });
    sessions.into_iter().any(|(agent, team, size)| {
        ["env_1", "env_2"].into_iter().any(|environment| {
            let mut metadata = BTreeMap::from([("size".to_owned(), size.to_owned())]);
            metadata.insert("team".to_owned(), team.to_owned());
            let tenant = match (environment, team) {
                ("env_1", _) => "blue",
                ("env_2", "") => "env_2",
                (_, team) => team,
            };
            let chosen = config.choose(&SessionFacts {
                environment: &EnvironmentId::from(environment),
                agent: Some(&AgentId::from(agent)).filter(|agent| !agent.as_str().is_empty()),
                tenant: &TenantId::from(tenant),
                metadata: &metadata,
            });
            chosen.by == by
        })
    })
}

/// A rule that is reported decides nothing, whatever the rules are.
#[test]
fn no_rule_that_decides_is_ever_reported() {
    let parts: Vec<String> = ["environment = \"env_1\"", "environment = \"env_2\""]
        .into_iter()
        .map(str::to_owned)
        .chain(["blue", "env_2", "1"].map(|tenant| format!("tenant = \"{tenant}\"")))
        .chain(["agent = \"1\"".to_owned(), "metadata = { size = \"1\" }".to_owned()])
        .chain(["metadata = { team = \"1\" }", "metadata = { team = \"\" }"].map(str::to_owned))
        .collect();
    let key = |part: &str| part.split(' ').next().map(str::to_owned);
    let mut rules = parts.clone();
    for (index, one) in parts.iter().enumerate() {
        let others = parts[index + 1..].iter().filter(|other| key(other) != key(one));
        rules.extend(others.map(|other| format!("{one}\n{other}")));
    }
    let (mut reported, mut tried) = (0, 0);
    for (index, first) in rules.iter().enumerate() {
        for second in rules.iter().skip(index % 3).step_by(3) {
            let config = config(&format!("{ENVIRONMENTS}{}", profiles(&[first, second])));
            for finding in config.review() {
                let number = finding.number.unwrap_or(1);
                let name = finding.profile.as_str();
                assert!(!decides(&config, name, number), "{first}\n--\n{second}\n{finding:?}");
                reported += 1;
            }
            tried += 1;
        }
    }
    assert!(reported > 50 && tried > 300, "{reported} of {tried}");
}
