//! What is wrong with a policy is told, all of it, each with its place and what to do.

use std::collections::BTreeMap;

use base_config::Problem;
use egress_policy::{HostPattern, KEYS, Machinery, PolicySet, SecretBinding, Setup, reference};

use crate::support::{deployment, setup, sources};

fn told(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn problems_with(texts: &[&str], setup: &Setup) -> Vec<String> {
    match PolicySet::compile(&sources(texts), setup) {
        Err(errors) => told(&errors.problems),
        Ok(set) => panic!("accepted, with the warnings {:?}", told(set.warnings())),
    }
}

#[track_caller]
fn warnings(texts: &[&str]) -> Vec<String> {
    let set = PolicySet::compile(&sources(texts), &setup());
    told(set.unwrap_or_else(|errors| panic!("{errors}")).warnings())
}

/// One rule of a deployment policy, the first line of which is line 3.
#[track_caller]
fn rule_is_refused(rule: &str, what: &str) {
    let text = deployment(&format!("[[rule]]\nid = \"r\"\n{rule}\n"));
    let problems = problems_with(&[&text], &setup());
    assert!(problems.iter().any(|problem| problem.contains(what)), "{rule}: {problems:?}");
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let text = r#"name = "p"
layer = "deploiment"
prioriti = 1
[[rule]]
id = "a b"
action = "allow"
host = ["good.example", "*x.example", "[fe80::1%1]"]
port = [443, 0]
[[rule]]
action = "deny"
path = "x"
when = "request.hots == 'a'"
[[rule]]
id = "c"
action = "alow"
"#;
    let problems = problems_with(&[text], &setup());
    for (line, column, what) in [
        (2, 9, "`layer` is not one of the choices"),
        (3, 1, "did you mean `priority`?"),
        (5, 6, "`id` is not a name"),
        (7, 25, "`*` stands for whole labels"),
        (7, 39, "IPv6 zone"),
        (8, 14, "`port` is no port"),
        (9, 1, "[[rule]] without `id`"),
        (11, 8, "does not begin with `/`"),
        (12, 8, "`request.hots`"),
        (15, 10, "`action` is not one of the choices"),
    ] {
        let place = format!("p0.toml:{line}:{column}: ");
        let found = problems.iter().any(|told| told.starts_with(&place) && told.contains(what));
        assert!(found, "{place}{what}\n{}", problems.join("\n"));
    }
    assert_eq!(problems.len(), 10, "{problems:#?}");
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let problems = problems_with(&["name = \"a\"\nlayer = deployment\n[[rule\n"], &setup());
    assert!(problems[0].starts_with("p0.toml:2:"), "{problems:?}");
    let big = format!("# {}", "x".repeat(2 << 20));
    assert!(problems_with(&[&big], &setup())[0].contains("larger than 1 MiB"));
}

#[test]
fn rules_that_do_not_say_what_they_mean_are_refused() {
    for (rule, what) in [
        ("action = \"allow\"", "opens every host"),
        ("action = \"allow\"\nhost = []", "empty list"),
        ("action = \"allow\"\nhost = \"*\"", "`**` is every name"),
        ("action = \"allow\"\nhost = \"a.*.example\"", "only at the front"),
        ("action = \"allow\"\nhost = \"**.1.2.3.4\"", "no names below it"),
        ("action = \"allow\"\nhost = \"http://a.example\"", "no host has"),
        (
            "action = \"allow\"\nhost = \"a.example\"\ncidr = \"10.0.0.1/8\"",
            "the range is 10.0.0.0/8",
        ),
        ("action = \"allow\"\nhost = \"a.example\"\nsecret = \"S\"", "does not belong to a rule"),
        ("action = \"allow\"\nhost = \"a.example\"\nreason = \"x\"", "does not belong to a rule"),
        ("action = \"allow\"\nhost = \"a.example\"\npath = \"/a/../b\"", "`.` or `..`"),
        ("action = \"allow\"\nhost = \"a.example\"\npath = \"/a%20b\"", "compared decoded"),
        ("action = \"allow\"\nhost = \"a.example\"\npath = \"/a**\"", "beside other characters"),
        ("action = \"allow\"\nhost = \"a.example\"\nmethod = \"GET \"", "not an HTTP method"),
        (
            "action = \"allow\"\nhost = \"a.example\"\nheader = { \"a b\" = \"c\" }",
            "name of a header",
        ),
        ("action = \"allow\"\nhost = \"a.example\"\nscheme = \"ftp\"", "is not a scheme"),
        ("action = \"allow\"\nhost = \"a.example\"\nscheme = \"tcp\"", "to no port"),
        (
            "action = \"allow\"\nhost = \"a.example\"\nscheme = \"tcp\"\nport = 1\npath = \"/\"",
            "by what only HTTP has",
        ),
        ("action = \"pass-through\"\nhost = \"a.example\"\npath = \"/\"", "does not belong"),
        ("action = \"pass-through\"\nhost = \"a.example\"\nscheme = \"http\"", "is not TLS"),
        ("action = \"route\"\nhost = \"a.example\"", "without `service`"),
        ("action = \"inject\"\nhost = \"a.example\"", "without `secret`"),
        ("action = \"inject\"\nsecret = \"S\"", "gives a secret to every host"),
        ("action = \"inject\"\nsecret = \"S\"\nhost = \"**\"", "gives a secret to every host"),
        (
            "action = \"inject\"\nsecret = \"S\"\nhost = \"a.example\"\nscheme = \"tcp\"\nport = 1",
            "to a raw connection",
        ),
        (
            "action = \"inject\"\nsecret = \"S\"\nhost = \"a.example\"\nadd_header = \"Host\"",
            "the gate itself writes `host`",
        ),
        (
            "action = \"inject\"\nsecret = \"S\"\nhost = \"a.example\"\nvalue = \"{secret}\"",
            "there is no `add_header`",
        ),
        ("action = \"limit\"", "limits nothing"),
        ("action = \"limit\"\nbody = \"0B\"", "not a size above zero"),
        ("action = \"redact\"", "redacts nothing"),
        ("action = \"deny\"\nquery = {}", "is empty"),
    ] {
        rule_is_refused(rule, what);
    }
}

#[test]
fn a_secret_written_into_a_policy_is_not_repeated() {
    let text = deployment(
        "[[rule]]\nid = \"r\"\naction = \"inject\"\nsecret = \"S\"\nhost = \"a.example\"\n\
         add_header = \"authorization\"\nvalue = \"Bearer ghp_never_print_this\"\n",
    );
    let problems = problems_with(&[&text], &setup());
    assert!(problems.iter().any(|problem| problem.contains("exactly once")), "{problems:?}");
    assert!(!problems.iter().any(|problem| problem.contains("never_print")), "{problems:?}");
}

#[test]
fn layers_say_whom_they_are_for() {
    let policy = |text: &str| problems_with(&[text], &setup()).join("\n");
    assert!(policy("name = \"a\"\nlayer = \"tenant\"").contains("selects every tenant"));
    assert!(policy("name = \"a\"\nlayer = \"agent\"").contains("selects every agent"));
    assert!(policy(&deployment("unmatched = \"inherit\"")).contains("nothing above"));
    let by_title = "name = \"a\"\nlayer = \"session\"\n[select]\ntitle = \"x\"\n\
                    [[rule]]\nid = \"r\"\naction = \"allow\"\nhost = \"a.example\"\n";
    assert!(policy(by_title).contains("anyone may choose"));
    let by_name = by_title.replace("title", "agent_name").replace("session", "deployment");
    assert!(policy(&by_name).contains("anyone may choose"));
    let twice = problems_with(&[&deployment(""), &deployment("")], &setup());
    assert!(twice[0].contains("another policy `d`"), "{twice:?}");
    let ids = "[[rule]]\nid = \"r\"\naction = \"deny\"\n";
    assert!(policy(&deployment(&format!("{ids}{ids}"))).contains("stands in the policy twice"));
}

#[test]
fn an_action_whose_machinery_is_missing_is_refused_with_the_reason() {
    let nothing = Setup { machinery: Machinery::default(), ..setup() };
    for (rule, what) in [
        ("action = \"ask\"\nhost = \"a.example\"", "hold a request until a person answers"),
        (
            "action = \"sign\"\nhost = \"a.example\"\nsecret = \"S\"\nsign_with = \"hmac\"",
            "sign requests",
        ),
        ("action = \"route\"\nhost = \"a.example\"\nservice = \"s\"", "reach private services"),
        ("action = \"middleware\"\nhost = \"a.example\"\nhandler = \"m\"", "run code"),
        ("action = \"redact\"\nhost = \"a.example\"\nresponse_text = \"x\"", "black out texts"),
    ] {
        let text = deployment(&format!("[[rule]]\nid = \"r\"\n{rule}\n"));
        let problems = problems_with(&[&text], &nothing);
        assert!(problems.len() == 1 && problems[0].contains(what), "{rule}: {problems:?}");
        assert!(problems[0].starts_with("p0.toml:4:6: "), "{problems:?}");
        PolicySet::compile(&sources(&[&text]), &setup()).unwrap();
    }
}

#[test]
fn secrets_go_only_where_they_are_bound() {
    let inject = |secret: &str, host: &str, more: &str| {
        deployment(&format!(
            "[[rule]]\nid = \"o\"\naction = \"allow\"\nscheme = [\"https\", \"http\"]\nhost = \"**\"\n\
             [[rule]]\nid = \"r\"\naction = \"inject\"\nsecret = \"{secret}\"\nhost = \"{host}\"\n{more}"
        ))
    };
    let bound = |hosts: &[&str], plain_http| SecretBinding {
        hosts: hosts.iter().map(|host| HostPattern::parse(host, false).unwrap()).collect(),
        plain_http,
    };
    let secrets = BTreeMap::from([
        ("GITHUB_TOKEN".to_owned(), bound(&["api.github.com", "**.ghe.example"], false)),
        ("LOOSE".to_owned(), bound(&[], false)),
        ("LOCAL".to_owned(), bound(&["api.local.example"], true)),
    ]);
    let setup = Setup { secrets: Some(secrets), ..setup() };
    let http = "scheme = \"http\"\n";
    for (text, what) in [
        (inject("GITHUB_TOKE", "api.github.com", ""), "did you mean `GITHUB_TOKEN`?"),
        (inject("LOOSE", "a.example", ""), "bound to no host"),
        (inject("GITHUB_TOKEN", "evil.example", ""), "where it is not bound"),
        (inject("GITHUB_TOKEN", "**.github.com", ""), "where it is not bound"),
        (inject("GITHUB_TOKEN", "api.github.com", http), "over plain HTTP"),
    ] {
        let problems = problems_with(&[&text], &setup);
        assert!(problems.len() == 1 && problems[0].contains(what), "{what}: {problems:?}");
    }
    for text in [
        inject("GITHUB_TOKEN", "api.github.com", ""),
        inject("GITHUB_TOKEN", "*.x.ghe.example", ""),
        inject("LOCAL", "api.local.example", http),
    ] {
        PolicySet::compile(&sources(&[&text]), &setup).unwrap();
    }
    // Where secrets are not known, plain HTTP is at least warned of.
    let warned = warnings(&[&inject("GITHUB_TOKEN", "api.github.com", http)]);
    assert!(warned[0].contains("over plain HTTP"), "{warned:?}");
}

#[test]
fn rules_that_contradict_each_other_are_refused() {
    let pass = "[[rule]]\nid = \"pass\"\naction = \"pass-through\"\nhost = \"**.example.com\"\n";
    for other in [
        "action = \"deny\"\nhost = \"a.example.com\"\npath = \"/x\"",
        "action = \"deny\"\nmethod = \"DELETE\"",
        "action = \"inject\"\nhost = \"a.example.com\"\nsecret = \"S\"",
        "action = \"ask\"\nhost = \"a.example.com\"\nmethod = \"POST\"",
        "action = \"redact\"\nresponse_header = \"set-cookie\"",
        "action = \"limit\"\nbody = \"1MiB\"",
    ] {
        let text = deployment(&format!("{pass}[[rule]]\nid = \"r\"\n{other}\n"));
        let problems = problems_with(&[&text], &setup());
        assert!(problems[0].contains("has to look into"), "{other}: {problems:?}");
    }
    let fine =
        "[[rule]]\nid = \"r\"\naction = \"limit\"\nhost = \"a.example.com\"\nconcurrent = 3\n";
    assert_eq!(warnings(&[&deployment(&format!("{pass}{fine}"))]), [""; 0]);

    let adds = |name: &str, priority: i32| {
        format!(
            "name = \"{name}\"\nlayer = \"deployment\"\npriority = {priority}\n\
             [[rule]]\nid = \"o\"\naction = \"allow\"\nhost = \"a.example\"\n\
             [[rule]]\nid = \"r\"\naction = \"inject\"\nhost = \"a.example\"\nsecret = \"{name}\"\n\
             add_header = \"authorization\"\n"
        )
    };
    let problems = problems_with(&[&adds("A", 0), &adds("B", 0)], &setup());
    assert!(problems[0].starts_with("p1.toml:9:6: "), "{problems:?}");
    assert!(problems[0].contains("neither has priority"), "{problems:?}");
    PolicySet::compile(&sources(&[&adds("A", 0), &adds("B", 1)]), &setup()).unwrap();
}

#[test]
fn rules_that_never_decide_are_warnings() {
    let open = "[[rule]]\nid = \"open\"\naction = \"allow\"\nhost = \"**.example.com\"\n";
    for (rules, what) in [
        (
            "[[rule]]\nid = \"x\"\naction = \"deny\"\nhost = \"**.example.com\"\n".to_owned(),
            "rule `open` never does anything: rule `x` denies",
        ),
        (
            "[[rule]]\nid = \"x\"\naction = \"allow\"\nhost = \"a.example.com\"\npath = \"/b/**\"\n"
                .to_owned(),
            "rule `x` never decides: rule `open` before it",
        ),
        (
            "[[rule]]\nid = \"x\"\naction = \"limit\"\nhost = \"a.example.org\"\nconcurrent = 1\n"
                .to_owned(),
            "no rule opens its hosts",
        ),
        (
            "[[rule]]\nid = \"x\"\naction = \"allow\"\nhost = \"**.net\"\n".to_owned(),
            "whole top-level domain",
        ),
        (
            "[[rule]]\nid = \"x\"\naction = \"allow\"\nhost = \"db.example\"\ncidr = \"169.254.0.0/16\"\n"
                .to_owned(),
            "hand out credentials",
        ),
        (
            "[[rule]]\nid = \"x\"\naction = \"allow\"\nscheme = \"tcp\"\nport = 443\nhost = \"a.example.com\"\n\
             [[rule]]\nid = \"y\"\naction = \"deny\"\nhost = \"a.example.com\"\npath = \"/x\"\n"
                .to_owned(),
            "denies nothing on them",
        ),
    ] {
        let warned = warnings(&[&deployment(&format!("{open}{rules}"))]);
        assert!(warned.len() == 1 && warned[0].contains(what), "{what}: {warned:?}");
        assert!(warned[0].starts_with("p0.toml:"), "{warned:?}");
    }
    let fine = "[[rule]]\nid = \"x\"\naction = \"deny\"\nhost = \"a.example.com\"\n";
    assert_eq!(warnings(&[&deployment(&format!("{open}{fine}"))]), [""; 0]);
    let opens_nothing = "name = \"s\"\nlayer = \"session\"\n[[rule]]\nid = \"x\"\naction = \"deny\"\nmethod = \"PUT\"\n";
    let warned = warnings(&[&deployment(open), opens_nothing]);
    assert!(warned.len() == 1 && warned[0].contains("opens nothing"), "{warned:?}");
}

#[test]
fn the_reference_has_a_row_for_every_key() {
    let page = reference();
    for key in KEYS {
        assert!(page.contains(&format!("| `{}` |", key.name)), "{}", key.name);
    }
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let example = example.expect("the page has an example");
    let set = PolicySet::compile(&sources(&[example]), &Setup::default());
    assert_eq!(told(set.unwrap().warnings()), [""; 0]);
}
