//! What holds for all policies and all requests.

use egress_policy::{
    Connection, Decision, Destination, Engine, Expression, Host, HostPattern, Identity, PathGlob,
    PolicySet, Request, RequestPath, Scheme, fuzz,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::{identity, ip, setup, sources};

const HOSTS: &[&str] = &["a.x", "b.x", "c.a.x", "x", "y", "d.c.a.x", "10.1.2.3", "9.9.9.9"];
const PATTERNS: &[&str] =
    &["a.x", "b.x", "*.x", "**.x", "*.a.x", "**.a.x", "**", "y", "10.1.2.3", "9.9.9.9"];
const TARGETS: &[&str] =
    &["/", "/p", "/p/q", "/P", "/p/", "/p/../q", "//p", "/r;s", "/p/q?k=v", "/p?k=w&k=v", "/z"];
const NETS: &[&str] = &["10.0.0.0/8", "10.1.0.0/16", "9.9.9.9", "0.0.0.0/0"];
const ADDRESSES: &[&str] = &["10.1.2.3", "10.2.0.1", "9.9.9.9", "8.8.8.8", "169.254.169.254"];
const ACTIONS: &[&str] =
    &["allow", "allow", "allow", "deny", "ask", "limit", "inject", "pass-through"];

/// Conditions that every action but `pass-through` takes.
fn http_condition() -> impl Strategy<Value = String> {
    select(
        &[
            "method = \"GET\"",
            "method = [\"POST\", \"PUT\"]",
            "path = \"/p/**\"",
            "path = [\"/p\", \"/*/q\"]",
            "path = \"/**\"",
            "query = { k = \"v\" }",
            "header = { h = \"1*\" }",
            "when = 'request.path == \"/p\" || session.metadata[\"team\"] == \"blue\"'",
            "when = 'session.metadata[\"none\"] == \"x\" || request.method == \"GET\"'",
        ][..],
    )
    .prop_map(str::to_owned)
}

/// Conditions on where it goes.
fn place_condition(action: &'static str) -> impl Strategy<Value = Vec<String>> {
    let hosts = proptest::collection::vec(select(PATTERNS), 1..3);
    let apex = any::<bool>();
    let scheme = select(&["", "scheme = \"http\"", "scheme = [\"https\", \"http\"]"][..]);
    let port = select(&["", "port = [443, 80]", "port = \"1-65535\""][..]);
    let net = proptest::option::of(select(NETS));
    (hosts, apex, scheme, port, net).prop_map(move |(hosts, apex, scheme, port, net)| {
        let hosts: Vec<&str> = match action {
            "inject" => {
                hosts.into_iter().map(|host| if host == "**" { "a.x" } else { host }).collect()
            }
            _ => hosts,
        };
        let mut lines =
            vec![format!("host = {hosts:?}"), format!("apex = {apex}"), port.to_owned()];
        if action != "pass-through" {
            lines.push(scheme.to_owned());
        }
        if let Some(net) = net
            && matches!(action, "allow" | "ask" | "pass-through" | "deny")
        {
            lines.push(format!("cidr = \"{net}\""));
        }
        lines
    })
}

/// The lines of a rule without its id.
fn rule() -> impl Strategy<Value = Vec<String>> {
    select(ACTIONS).prop_flat_map(|action| {
        let more = match action {
            "limit" => "concurrent = 3",
            "inject" => "secret = \"S\"\nadd_header = \"x-key\"",
            _ => "",
        };
        let conditions = proptest::collection::vec(http_condition(), 0..3);
        (place_condition(action), conditions).prop_map(move |(place, conditions)| {
            let mut lines = vec![format!("action = \"{action}\""), more.to_owned()];
            lines.extend(place);
            if action != "pass-through" {
                lines.extend(conditions);
            }
            without_repeated_keys(lines)
        })
    })
}

fn without_repeated_keys(lines: Vec<String>) -> Vec<String> {
    let mut keys = std::collections::BTreeSet::new();
    let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    lines.into_iter().filter(|line| line.is_empty() || keys.insert(key(line))).collect()
}

type Rules = Vec<Vec<String>>;

fn rules(most: usize) -> impl Strategy<Value = Rules> {
    proptest::collection::vec(rule(), 0..most)
}

fn policy(head: &str, rules: &Rules) -> String {
    let mut text = format!("{head}\n");
    for (number, lines) in rules.iter().enumerate() {
        text.push_str(&format!("[[rule]]\nid = \"r{number}\"\n{}\n", lines.join("\n")));
    }
    text
}

const DEPLOYMENT: &str = "name = \"d\"\nlayer = \"deployment\"";

/// The engine, unless the policies contradict themselves.
fn engine(texts: &[String]) -> Option<Engine> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let set = PolicySet::compile(&sources(&texts), &setup()).ok()?;
    Some(set.engine(&set.select(&identity())))
}

#[derive(Clone, Debug)]
struct Asked {
    scheme: Scheme,
    host: &'static str,
    port: u16,
    method: &'static str,
    target: &'static str,
    header: Option<&'static str>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let scheme = select(&[Scheme::Https, Scheme::Http][..]);
    let port = select(&[443, 80, 8443][..]);
    let method = select(&["GET", "POST", "DELETE"][..]);
    let header = proptest::option::of(select(&["1", "2"][..]));
    (scheme, select(HOSTS), port, method, select(TARGETS), header).prop_map(
        |(scheme, host, port, method, target, header)| Asked {
            scheme,
            host,
            port,
            method,
            target,
            header,
        },
    )
}

impl Asked {
    fn destination(&self) -> Destination {
        Destination::new(self.scheme, self.host, self.port).expect("a destination")
    }

    fn decide(&self, engine: &Engine, identity: &Identity) -> Decision {
        let headers = self.header.iter().map(|value| ("h", value.as_bytes()));
        let request = Request::new(self.destination(), self.method, self.target, headers);
        engine.decide(identity, &request.expect("a request"))
    }
}

/// Everything about a decision that can be seen.
fn seen(decision: Decision) -> String {
    let addresses = |allowance: &egress_policy::Allowance| {
        let admitted = ADDRESSES.iter().map(|text| allowance.permit.admit(ip(text)));
        let rules = allowance.obligations.rules();
        format!("{:?} {rules:?} {:?}", admitted.collect::<Vec<_>>(), allowance.rule)
    };
    match decision {
        Decision::Allow(allowance) => format!("allow {}", addresses(&allowance)),
        Decision::Ask(question) => {
            let asks = format!("{:?}", question.rule);
            format!("ask {asks} {}", addresses(&question.confirmed()))
        }
        Decision::Deny(denial) => format!("deny {}", denial.for_operator()),
    }
}

/// How much passes: nothing, after a question, at once; and to which addresses.
fn passes(decision: Decision) -> (u8, Vec<bool>) {
    let (strength, allowance) = match decision {
        Decision::Deny(_) => return (0, vec![false; ADDRESSES.len()]),
        Decision::Ask(question) => (1, question.confirmed()),
        Decision::Allow(allowance) => (2, allowance),
    };
    let admits = ADDRESSES.iter().map(|text| allowance.permit.admit(ip(text)).is_ok());
    (strength, admits.collect())
}

/// Per address, how much passes.
fn reached(decision: Decision) -> Vec<u8> {
    let (strength, admits) = passes(decision);
    admits.into_iter().map(|admits| if admits { strength } else { 0 }).collect()
}

fn no_more(after: &(u8, Vec<bool>), before: &(u8, Vec<bool>)) -> bool {
    after.0 <= before.0 && after.1.iter().zip(&before.1).all(|(after, before)| after <= before)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_changes_no_answer(
        rules in rules(12), below in rules(4), asked in proptest::collection::vec(asked(), 1..12),
    ) {
        let texts = [
            policy(DEPLOYMENT, &rules),
            policy("name = \"s\"\nlayer = \"session\"\nunmatched = \"inherit\"", &below),
        ];
        let (Some(indexed), Some(linear)) = (engine(&texts), engine(&texts)) else { return Ok(()) };
        let linear = linear.without_index();
        let identity = identity();
        for asked in asked {
            let (a, b) = (asked.decide(&indexed, &identity), asked.decide(&linear, &identity));
            prop_assert_eq!(seen(a), seen(b));
            let destination = asked.destination();
            let dns = |engine: &Engine| engine.could_allow(&identity, &destination.host).is_ok();
            prop_assert_eq!(dns(&indexed), dns(&linear));
            let connect = |engine: &Engine| format!("{:?}", engine.connect(&identity, &destination));
            prop_assert_eq!(connect(&indexed), connect(&linear));
        }
    }

    #[test]
    fn a_denial_more_never_lets_more_through(
        rules in rules(8), extra in rule(), at in any::<prop::sample::Index>(),
        asked in proptest::collection::vec(asked(), 1..12),
    ) {
        let mut closing = extra;
        closing[0] = "action = \"deny\"".to_owned();
        closing[1] = String::new();
        let mut more = rules.clone();
        more.insert(at.index(rules.len() + 1), closing);
        let before = engine(&[policy(DEPLOYMENT, &rules)]);
        let after = engine(&[policy(DEPLOYMENT, &more)]);
        let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
        let identity = identity();
        for asked in asked {
            let [b, a] = [&before, &after].map(|engine| passes(asked.decide(engine, &identity)));
            prop_assert!(no_more(&a, &b), "{:?}: {:?} after {:?}", asked, a, b);
            let host = asked.destination().host;
            let [b, a] = [&before, &after].map(|e| e.could_allow(&identity, &host).is_ok());
            prop_assert!(a <= b);
        }
    }

    #[test]
    fn a_condition_more_on_what_opens_never_lets_more_through(
        rules in rules(8), which in any::<prop::sample::Index>(), condition in http_condition(),
        asked in proptest::collection::vec(asked(), 1..12),
    ) {
        let opens = |lines: &Vec<String>| ["\"allow\"", "\"inject\""].iter().any(|a| lines[0].ends_with(a));
        let opening: Vec<usize> = (0..rules.len()).filter(|at| opens(&rules[*at])).collect();
        if opening.is_empty() {
            return Ok(());
        }
        let mut narrower = rules.clone();
        let lines = &mut narrower[opening[which.index(opening.len())]];
        lines.push(condition);
        *lines = without_repeated_keys(std::mem::take(lines));
        let before = engine(&[policy(DEPLOYMENT, &rules)]);
        let after = engine(&[policy(DEPLOYMENT, &narrower)]);
        let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
        let identity = identity();
        for asked in asked {
            let [b, a] = [&before, &after].map(|engine| passes(asked.decide(engine, &identity)));
            prop_assert!(no_more(&a, &b), "{:?}: {:?} after {:?}", asked, a, b);
        }
    }

    #[test]
    fn a_narrower_selector_on_what_opens_never_lets_more_through(
        rules in rules(6), other in rules(4),
        selector in select(&["agent = \"agent_1\"", "agent = \"another\"", "metadata = { team = \"red\" }"][..]),
        asked in proptest::collection::vec(asked(), 1..8),
    ) {
        let opening = |lines: &Vec<String>| !["\"deny\"", "\"ask\"", "\"limit\""].iter().any(|a| lines[0].ends_with(a));
        let rules: Rules = rules.into_iter().filter(opening).collect();
        let narrower = format!("name = \"n\"\nlayer = \"deployment\"\npriority = 1\n[select]\n{selector}");
        let wide = policy("name = \"n\"\nlayer = \"deployment\"\npriority = 1", &rules);
        let other = policy(DEPLOYMENT, &other);
        let before = engine(&[other.clone(), wide]);
        let after = engine(&[other, policy(&narrower, &rules)]);
        let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
        let identity = identity();
        for asked in asked {
            let [b, a] = [&before, &after].map(|engine| passes(asked.decide(engine, &identity)));
            prop_assert!(no_more(&a, &b), "{:?}: {:?} after {:?}", asked, a, b);
        }
    }

    #[test]
    fn a_layer_more_never_lets_more_through(
        rules in rules(8), below in rules(6), inherits in any::<bool>(),
        asked in proptest::collection::vec(asked(), 1..12),
    ) {
        let unmatched = if inherits { "inherit" } else { "deny" };
        let head = format!("name = \"t\"\nlayer = \"session\"\nunmatched = \"{unmatched}\"");
        let above = policy(DEPLOYMENT, &rules);
        let before = engine(std::slice::from_ref(&above));
        let after = engine(&[above, policy(&head, &below)]);
        let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
        let identity = identity();
        for asked in asked {
            let [b, a] = [&before, &after].map(|engine| passes(asked.decide(engine, &identity)));
            prop_assert!(no_more(&a, &b), "{:?}: {:?} after {:?}", asked, a, b);
        }
    }

    /// Else a request that may pass would die on its name or its connection.
    #[test]
    fn what_passes_may_be_resolved_and_connected_to(rules in rules(8), below in rules(4), asked in asked()) {
        let texts = [policy(DEPLOYMENT, &rules), policy("name = \"s\"\nlayer = \"session\"", &below)];
        let Some(engine) = engine(&texts) else { return Ok(()) };
        let identity = identity();
        if matches!(asked.decide(&engine, &identity), Decision::Deny(_)) {
            return Ok(());
        }
        let destination = asked.destination();
        prop_assert!(engine.could_allow(&identity, &destination.host).is_ok());
        let connection = engine.connect(&identity, &destination);
        prop_assert!(!matches!(connection, Connection::Refuse(_)), "{:?}", connection);
    }

    /// What goes through unseen could have passed whatever was sent.
    #[test]
    fn what_is_not_looked_into_would_have_passed_anyway(
        rules in rules(3), below in rules(3), asked in proptest::collection::vec(asked(), 1..12),
    ) {
        let pass = vec!["action = \"pass-through\"".to_owned(), "host = \"**.x\"".to_owned()];
        let rules: Rules = rules.into_iter().chain([pass]).collect();
        let texts = [policy(DEPLOYMENT, &rules), policy("name = \"s\"\nlayer = \"session\"", &below)];
        let Some(engine) = engine(&texts) else { return Ok(()) };
        let identity = identity();
        for asked in asked {
            let asked = Asked { scheme: Scheme::Https, port: 443, ..asked };
            if let Connection::Opaque(_) = engine.connect(&identity, &asked.destination()) {
                let decision = asked.decide(&engine, &identity);
                prop_assert_eq!(decision.verdict(), "allow", "{:?}", decision);
            }
        }
    }

    /// What is said never to decide does not: without it, the same passes to the same addresses.
    #[test]
    fn no_rule_that_decides_is_reported(
        rules in rules(6), again in any::<prop::sample::Index>(), condition in http_condition(),
        net in proptest::option::of(select(NETS)), asked in proptest::collection::vec(asked(), 1..16),
    ) {
        // A rule once more, narrower: chance alone makes few rules that never decide.
        let mut rules = rules;
        if !rules.is_empty() {
            let mut lines = rules[again.index(rules.len())].clone();
            if !lines[0].contains("pass-through") {
                lines.push(condition);
            }
            if let Some(net) = net
                && ["allow", "ask", "deny"].iter().any(|action| lines[0].contains(action))
            {
                lines.push(format!("cidr = \"{net}\""));
            }
            rules.push(without_repeated_keys(lines));
        }
        let whole = policy(DEPLOYMENT, &rules);
        let Ok(set) = PolicySet::compile(&sources(&[&whole]), &setup()) else { return Ok(()) };
        let reported = set.warnings().iter().filter(|warning| warning.what.contains(" never d"));
        let Some(name) = reported.clone().next().and_then(|first| first.what.split('`').nth(1)) else {
            return Ok(());
        };
        let without: Rules = rules
            .iter()
            .enumerate()
            .map(|(number, lines)| match format!("r{number}") == name {
                // In its place, so that the others keep their names.
                true => vec!["action = \"limit\"".to_owned(), "concurrent = 9".to_owned()],
                false => lines.clone(),
            })
            .collect();
        let (Some(before), Some(after)) = (engine(&[whole]), engine(&[policy(DEPLOYMENT, &without)]))
        else {
            return Ok(());
        };
        let identity = identity();
        for asked in asked {
            let [b, a] = [&before, &after].map(|engine| reached(asked.decide(engine, &identity)));
            prop_assert_eq!(b, a, "{} {:?}", name, asked);
        }
    }

    #[test]
    fn a_host_in_its_one_form_stays_as_it_is(text in any_host()) {
        if let Ok(host) = Host::parse(&text) {
            let form = host.to_string();
            prop_assert_eq!(Host::parse(&form), Ok(host));
            prop_assert!(form.is_ascii() && form == form.to_ascii_lowercase());
        }
    }

    #[test]
    fn a_path_in_its_one_form_stays_as_it_is(text in any_path()) {
        let path = RequestPath::parse(&text);
        if let (RequestPath::Clear(clear), Some(form)) = (&path, path.canonical()) {
            prop_assert!(clear.starts_with('/') && !clear.contains("//"));
            prop_assert!(!clear.split('/').any(|segment| segment == "." || segment == ".."));
            let again = RequestPath::parse(&form);
            prop_assert_eq!(&again, &path);
            prop_assert_eq!(again.canonical(), Some(form));
        }
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in any_policy(), bytes in any::<Vec<u8>>(), more in any::<String>()) {
        fuzz::policy(text.as_bytes());
        for bytes in [bytes.as_slice(), more.as_bytes(), text.as_bytes()] {
            fuzz::policy(bytes);
            fuzz::host(bytes);
            fuzz::path(bytes);
            fuzz::expression(bytes);
            fuzz::request(bytes);
        }
        let _ = PathGlob::parse(&more);
        let _ = Expression::parse(&format!("request.path.matches({more:?})"));
    }
}

fn any_host() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,40}",
        "[a-zA-Z0-9.\\-_:。０-９Ａ-Ｚ]{0,30}",
        "(0x|0)?[0-9a-f]{1,9}(\\.(0x|0)?[0-9a-f]{1,4}){0,4}\\.?",
        "\\[[0-9a-f:.%]{0,40}\\]",
        "xn--[a-z0-9\\-]{0,20}(\\.example)?",
    ]
}

fn any_path() -> impl Strategy<Value = String> {
    prop_oneof!["/\\PC{0,60}", "(/|%2[0-9a-fA-F]|%[0-9a-f]{2}|\\.|;|[a-z%@+]){0,30}", ".{0,30}"]
}

/// A policy with something in it that does not belong.
fn any_policy() -> impl Strategy<Value = String> {
    (rules(4), any::<prop::sample::Index>(), "\\PC{0,6}", 0_usize..20).prop_map(
        |(rules, at, text, cut)| {
            let whole = policy(DEPLOYMENT, &rules);
            let mut chars: Vec<char> = whole.chars().collect();
            let from = at.index(chars.len());
            let to = (from + cut).min(chars.len());
            chars.splice(from..to, text.chars());
            chars.into_iter().collect()
        },
    )
}

#[test]
fn patterns_cover_and_overlap_as_hosts_say() {
    let patterns = PATTERNS.iter().chain(&["*.y", "**.c.a.x", "c.a.x"]);
    let patterns: Vec<HostPattern> = patterns
        .flat_map(|text| [false, true].map(|apex| HostPattern::parse(text, apex).expect(text)))
        .collect();
    let hosts =
        HOSTS.iter().chain(&["e.d.c.a.x", "f.y", "g.b.x", "h.a.x", "h.c.a.x", "i.h.x", "i.h.y"]);
    let hosts: Vec<Host> = hosts.map(|text| Host::parse(text).expect(text)).collect();
    for a in &patterns {
        for b in &patterns {
            let both = hosts.iter().any(|host| a.matches(host) && b.matches(host));
            let only_b = hosts.iter().any(|host| !a.matches(host) && b.matches(host));
            assert_eq!(a.overlaps(b), both, "{a:?} {b:?}");
            assert_eq!(a.covers(b), !only_b, "{a:?} {b:?}");
        }
    }
}

/// Else the properties above would hold of nothing.
#[test]
fn random_policies_are_mostly_taken_and_decide_in_every_way() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, TestRunner};

    const RUNS: usize = 300;
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let identity = identity();
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..RUNS {
        let mut draw = |most| rules(most).new_tree(&mut runner).expect("rules").current();
        let texts = [
            policy(DEPLOYMENT, &draw(8)),
            policy("name = \"s\"\nlayer = \"session\"\nunmatched = \"inherit\"", &draw(4)),
        ];
        let Some(engine) = engine(&texts) else {
            *counts.entry("refused").or_insert(0) += 1;
            continue;
        };
        for _ in 0..10 {
            let asked = asked().new_tree(&mut runner).expect("a request").current();
            *counts.entry(asked.decide(&engine, &identity).verdict()).or_insert(0) += 1;
            if let Connection::Opaque(_) = engine.connect(&identity, &asked.destination()) {
                *counts.entry("opaque").or_insert(0) += 1;
            }
        }
    }
    let count = |what| counts.get(what).copied().unwrap_or(0);
    assert!(count("refused") < RUNS / 2, "{counts:?}");
    for what in ["allow", "deny", "ask", "opaque"] {
        assert!(count(what) >= 10, "{counts:?}");
    }
}
