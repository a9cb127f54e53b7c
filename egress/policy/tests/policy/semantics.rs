//! What policies mean: defaults, layers, rank, addresses, and what is done on the way.

use egress_policy::{
    AddressRefused, Cause, Connection, Decision, InjectionForm, Layer, Scheme, Way,
};

use crate::support::{Session, allowed, denied, deployment, identity, ip, set};

const OPEN: &str = r#"
[[rule]]
id = "open"
action = "allow"
host = "**.example.com"
apex = true
"#;

fn tenant(text: &str) -> String {
    format!("name = \"t\"\nlayer = \"tenant\"\n{text}\n")
}

#[test]
fn without_a_policy_everything_is_refused() {
    let nothing = Session::new(&[]);
    let empty = Session::deployment("");
    let tenant_only = Session::new(&[&format!("{}[select]\ntenant = \"red\"\n{OPEN}", tenant(""))]);
    for session in [nothing, empty, tenant_only] {
        let denial = denied(session.get("https://example.com/"));
        let Cause::NotOpened { layer: Layer::Deployment, .. } = denial.cause else {
            panic!("{denial:?}")
        };
        assert!(!session.resolves("example.com"));
        assert!(matches!(
            session.connect(Scheme::Https, "example.com", 443),
            Connection::Refuse(_)
        ));
    }
}

#[test]
fn a_rule_that_opens_is_about_https_on_its_port_unless_it_says_more() {
    let session = Session::deployment(OPEN);
    allowed(session.get("https://example.com/"));
    allowed(session.get("wss://a.b.example.com/socket"));
    for url in ["http://example.com/", "https://example.com:8443/", "https://example.org/"] {
        denied(session.get(url));
    }
    assert!(matches!(session.connect(Scheme::Tcp, "example.com", 443), Connection::Refuse(_)));
}

#[test]
fn denial_wins_whatever_its_rank() {
    let closing =
        "[[rule]]\nid = \"shut\"\naction = \"deny\"\nhost = \"a.example.com\"\nreason = \"no\"\n";
    let orders = [format!("{OPEN}{closing}"), format!("{closing}{OPEN}")];
    for rules in orders {
        let session = Session::deployment(&format!("priority = 3\n{rules}"));
        allowed(session.get("https://b.example.com/"));
        let denial = denied(session.get("https://a.example.com/"));
        assert_eq!(denial.rule().map(|rule| rule.id()), Some("shut"));
        assert!(denial.for_model().ends_with(": no"), "{}", denial.for_model());
        assert!(denial.for_operator().contains("rule `shut` of the deployment policy `d`"));
        assert!(!session.resolves("a.example.com"));
    }
    // Also from a layer below, whatever its priority.
    let below = tenant("priority = -1000\nunmatched = \"inherit\"\n[select]\ntenant = \"red\"");
    let session = Session::new(&[&deployment(OPEN), &format!("{below}{closing}")]);
    denied(session.get("https://a.example.com/"));
    allowed(session.get("https://b.example.com/"));
}

#[test]
fn a_layer_takes_away_and_never_adds() {
    let narrow =
        "[[rule]]\nid = \"t\"\naction = \"allow\"\nhost = [\"a.example.com\", \"example.org\"]\n";
    let tenant = format!("{}{narrow}", tenant("[select]\ntenant = \"red\""));
    let session = Session::new(&[&deployment(OPEN), &tenant]);
    allowed(session.get("https://a.example.com/"));
    let denial = denied(session.get("https://b.example.com/"));
    assert!(matches!(denial.cause, Cause::NotOpened { layer: Layer::Tenant, .. }), "{denial:?}");
    denied(session.get("https://example.org/"));
    assert!(!session.resolves("b.example.com") && !session.resolves("example.org"));

    // Another tenant's session is not touched by it.
    let mut other = identity();
    other.tenant = "green".into();
    let session = Session::of(&set(&[&deployment(OPEN), &tenant]), other);
    allowed(session.get("https://b.example.com/"));
}

#[test]
fn policies_of_one_layer_add_up_and_inheriting_needs_all_of_them() {
    let policy = |name: &str, host: &str, unmatched: &str| {
        format!(
            "name = \"{name}\"\nlayer = \"session\"\nunmatched = \"{unmatched}\"\n\
             [[rule]]\nid = \"r\"\naction = \"allow\"\nhost = \"{host}\"\n"
        )
    };
    let deployment = deployment(OPEN);
    let both = [policy("a", "a.example.com", "deny"), policy("b", "b.example.com", "deny")];
    let session = Session::new(&[&deployment, &both[0], &both[1]]);
    allowed(session.get("https://a.example.com/"));
    allowed(session.get("https://b.example.com/"));
    denied(session.get("https://c.example.com/"));
    let one = policy("b", "b.example.com", "inherit");
    let session = Session::new(&[&deployment, &both[0], &one]);
    denied(session.get("https://c.example.com/"));
    let session = Session::new(&[&deployment, &one]);
    allowed(session.get("https://c.example.com/"));
}

#[test]
fn a_title_closes_and_never_opens() {
    let text = "unmatched = \"inherit\"\n[select]\ntitle = \"risky*\"\n\
                [[rule]]\nid = \"t\"\naction = \"deny\"\nmethod = \"POST\"\n";
    let policy = format!("name = \"s\"\nlayer = \"session\"\n{text}");
    let set = set(&[&deployment(OPEN), &policy]);
    let session = |title: Option<&str>| {
        let mut identity = identity();
        identity.title = title.map(str::to_owned);
        Session::of(&set, identity)
    };
    allowed(session(Some("calm")).send("POST", "https://example.com/", &[]));
    denied(session(Some("risky business")).send("POST", "https://example.com/", &[]));
    // Not known yet: it may be one of these.
    denied(session(None).send("POST", "https://example.com/", &[]));
    allowed(session(None).get("https://example.com/"));
}

#[test]
fn asking_wins_over_allowing_and_only_a_yes_gives_the_permit() {
    let ask =
        "[[rule]]\nid = \"ask\"\naction = \"ask\"\nhost = \"example.com\"\nmethod = \"POST\"\n";
    let session = Session::deployment(&format!("{OPEN}{ask}"));
    allowed(session.get("https://example.com/"));
    let Decision::Ask(question) = session.send("POST", "https://example.com/", &[]) else {
        panic!()
    };
    assert_eq!(question.rule.id(), "ask");
    assert_eq!(question.confirmed().permit.destination().to_string(), "https://example.com");
}

#[test]
fn what_is_added_is_that_of_the_first_in_rank() {
    let inject = |secret: &str, header: &str| {
        format!(
            "[[rule]]\nid = \"{secret}\"\naction = \"inject\"\nhost = \"example.com\"\n\
             secret = \"{secret}\"\nadd_header = \"{header}\"\nvalue = \"Bearer {{secret}}\"\n"
        )
    };
    let wide =
        deployment(&format!("{OPEN}{}{}", inject("A", "Authorization"), inject("B", "X-Key")));
    let narrow = format!(
        "name = \"s\"\nlayer = \"session\"\nunmatched = \"inherit\"\n{}",
        inject("C", "authorization")
    );
    let session = Session::new(&[&wide, &narrow]);
    let allowance = allowed(session.get("https://example.com/"));
    let secrets: Vec<&str> =
        allowance.obligations.injections().map(|(_, what)| what.secret.as_str()).collect();
    assert_eq!(secrets, ["C", "B"]);
    let (_, first) = allowance.obligations.injections().next().unwrap();
    let InjectionForm::Header { name, before, after } = &first.form else { panic!() };
    assert_eq!((name.as_str(), before.as_str(), after.as_str()), ("authorization", "Bearer ", ""));
    // Not to hosts it does not name, and it opens nothing.
    assert!(allowed(session.get("https://a.example.com/")).obligations.is_empty());
    let alone = Session::deployment(&inject("A", "Authorization"));
    denied(alone.get("https://example.com/"));
}

#[test]
fn all_limits_and_redactions_apply() {
    let rules = r#"
[[rule]]
id = "l1"
action = "limit"
host = "**"
requests_per_minute = 10
[[rule]]
id = "l2"
action = "limit"
host = "example.com"
path = "/upload/**"
body = "1MiB"
[[rule]]
id = "r"
action = "redact"
host = "example.com"
response_header = "Set-Cookie"
"#;
    let session = Session::deployment(&format!("{OPEN}{rules}"));
    let ids = |url: &str| {
        let allowance = allowed(session.get(url));
        let rules = allowance.obligations.rules().iter();
        rules.map(|rule| rule.id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("https://example.com/upload/x"), ["l1", "l2", "r"]);
    assert_eq!(ids("https://example.com/"), ["l1", "r"]);
    // In doubt, a limit applies.
    assert_eq!(ids("https://example.com//upload/x"), ["l1", "l2", "r"]);
    assert_eq!(ids("https://a.example.com/"), ["l1"]);
}

#[test]
fn private_addresses_must_be_named_by_the_deployment() {
    let session = Session::deployment(OPEN);
    let permit = allowed(session.get("https://example.com/")).permit;
    assert_eq!(permit.admit(ip("93.184.216.34")).unwrap().address().port(), 443);
    for address in ["10.0.0.1", "127.0.0.1", "::1", "fe80::1", "::ffff:192.168.0.1", "100.64.0.1"] {
        let refused = permit.admit(ip(address)).unwrap_err();
        assert!(matches!(refused, AddressRefused::Special { .. }), "{address}: {refused}");
    }
    let refused = permit.admit(ip("169.254.169.254")).unwrap_err();
    assert!(matches!(refused, AddressRefused::Metadata { .. }));
    assert!(matches!(permit.admit(ip("0.0.0.0")), Err(AddressRefused::Never { .. })));

    let private = "[[rule]]\nid = \"p\"\naction = \"allow\"\nhost = \"db.example.org\"\ncidr = \"10.1.0.0/16\"\n";
    let session = Session::deployment(private);
    let permit = allowed(session.get("https://db.example.org/")).permit;
    assert!(permit.admit(ip("10.1.2.3")).is_ok());
    assert!(permit.admit(ip("::ffff:10.1.2.3")).is_ok());
    for address in ["10.2.0.1", "8.8.8.8", "192.168.0.1"] {
        assert!(permit.admit(ip(address)).is_err(), "{address}");
    }
    // Everything names nothing, and a tenant cannot name what the deployment did not.
    let all = private.replace("10.1.0.0/16", "0.0.0.0/0");
    let permit = allowed(Session::deployment(&all).get("https://db.example.org/")).permit;
    assert!(permit.admit(ip("10.1.2.3")).is_err() && permit.admit(ip("8.8.8.8")).is_ok());
    let open = private.replace("cidr = \"10.1.0.0/16\"\n", "");
    let tenant = format!("{}{private}", tenant("[select]\ntenant = \"red\""));
    let session = Session::new(&[&deployment(&open), &tenant]);
    let permit = allowed(session.get("https://db.example.org/")).permit;
    assert!(permit.admit(ip("10.1.2.3")).is_err());
}

#[test]
fn addresses_are_opened_by_themselves_or_by_range_only() {
    let session = Session::deployment(
        "[[rule]]\nid = \"names\"\naction = \"allow\"\nhost = \"**\"\n\
         [[rule]]\nid = \"one\"\naction = \"allow\"\nhost = [\"192.168.1.1\", \"169.254.169.254\"]\n\
         [[rule]]\nid = \"range\"\naction = \"allow\"\ncidr = [\"203.0.113.0/24\", \"9.9.9.0/24\"]\n",
    );
    for url in ["https://192.168.1.1/", "https://203.0.113.7/", "https://0xcb007107/"] {
        allowed(session.get(url));
    }
    let permit = allowed(session.get("https://169.254.169.254/")).permit;
    assert!(permit.admit(ip("169.254.169.254")).is_ok());
    let other = permit.admit(ip("9.9.9.9")).unwrap_err();
    assert!(matches!(other, AddressRefused::OtherAddress { .. }));
    for url in ["https://8.8.8.8/", "https://192.168.1.2/", "https://[::1]/"] {
        denied(session.get(url));
    }
    // A range without a host is for addresses: a name that leads there is not opened by it.
    let session =
        Session::deployment("[[rule]]\nid = \"r\"\naction = \"allow\"\ncidr = \"9.9.9.0/24\"\n");
    allowed(session.get("https://9.9.9.9/"));
    denied(session.get("https://leads-there.example/"));
    assert!(!session.resolves("leads-there.example"));
}

#[test]
fn a_denied_range_is_closed_for_names_that_lead_there() {
    let closed = "[[rule]]\nid = \"range\"\naction = \"deny\"\ncidr = \"9.9.0.0/16\"\n\
                  [[rule]]\nid = \"for-post\"\naction = \"deny\"\ncidr = \"8.8.0.0/16\"\nmethod = \"POST\"\n\
                  [[rule]]\nid = \"ips\"\naction = \"allow\"\ncidr = \"0.0.0.0/0\"\n";
    let session = Session::deployment(&format!("{OPEN}{closed}"));
    let permit = allowed(session.get("https://example.com/")).permit;
    let refused = permit.admit(ip("9.9.9.9")).unwrap_err();
    assert!(refused.to_string().contains("rule `range`"), "{refused}");
    assert!(permit.admit(ip("8.8.8.8")).is_ok());
    let permit = allowed(session.send("POST", "https://example.com/", &[])).permit;
    assert!(permit.admit(ip("8.8.8.8")).is_err());
    let denial = denied(session.get("https://9.9.9.9/"));
    assert_eq!(denial.rule().map(|rule| rule.id()), Some("range"));
    denied(session.send("POST", "https://8.8.8.8/", &[]));
    allowed(session.get("https://8.8.8.8/"));
}

#[test]
fn raw_connections_are_opened_by_host_and_port() {
    let session = Session::deployment(
        "[[rule]]\nid = \"pg\"\naction = \"allow\"\nscheme = \"tcp\"\nhost = \"db.example.com\"\nport = 5432\n\
         [[rule]]\nid = \"d\"\naction = \"deny\"\npath = \"/admin/**\"\n",
    );
    let Connection::Opaque(allowance) = session.connect(Scheme::Tcp, "db.example.com", 5432) else {
        panic!()
    };
    assert_eq!(allowance.permit.admit(ip("9.9.9.9")).unwrap().address().port(), 5432);
    for (scheme, host, port) in [
        (Scheme::Tcp, "db.example.com", 22),
        (Scheme::Tcp, "example.com", 5432),
        (Scheme::Https, "db.example.com", 5432),
    ] {
        assert!(
            matches!(session.connect(scheme, host, port), Connection::Refuse(_)),
            "{host}:{port}"
        );
    }
    assert!(session.resolves("db.example.com") && !session.resolves("example.com"));
}

#[test]
fn pass_through_takes_effect_only_where_nothing_must_be_looked_into() {
    let pass = "[[rule]]\nid = \"pin\"\naction = \"pass-through\"\nhost = \"pin.example.com\"\n";
    let session = Session::deployment(&format!("{OPEN}{pass}"));
    let Connection::Opaque(allowance) = session.connect(Scheme::Https, "pin.example.com", 443)
    else {
        panic!()
    };
    assert_eq!(allowance.permit.way(), &Way::Internet);
    let inspected = |session: &Session, host| {
        matches!(session.connect(Scheme::Https, host, 443), Connection::Inspect)
    };
    assert!(inspected(&session, "a.example.com"));
    // A tenant that opens by path makes looking necessary.
    let by_path = format!(
        "{}[[rule]]\nid = \"p\"\naction = \"allow\"\nhost = \"pin.example.com\"\npath = \"/a/**\"\n",
        tenant("[select]\ntenant = \"red\"")
    );
    let session = Session::new(&[&deployment(pass), &by_path]);
    assert!(inspected(&session, "pin.example.com"));
    allowed(session.get("https://pin.example.com/a/b"));
    denied(session.get("https://pin.example.com/b"));
}

#[test]
fn a_route_leads_to_the_service_and_to_no_address() {
    let session = Session::deployment(
        "[[rule]]\nid = \"api\"\naction = \"route\"\nhost = \"api.internal\"\nservice = \"billing\"\n",
    );
    let permit = allowed(session.get("https://api.internal/x")).permit;
    assert_eq!(permit.way(), &Way::Service("billing".to_owned()));
    assert_eq!(permit.admit(ip("9.9.9.9")), Err(AddressRefused::Service));
}

#[test]
fn dns_answers_only_for_names_that_some_request_may_reach() {
    let session = Session::deployment(
        "[[rule]]\nid = \"a\"\naction = \"allow\"\nhost = \"*.example.com\"\nmethod = \"GET\"\npath = \"/x\"\n\
         [[rule]]\nid = \"d\"\naction = \"deny\"\nhost = \"secret.example.com\"\n\
         [[rule]]\nid = \"e\"\naction = \"deny\"\nhost = \"partly.example.com\"\npath = \"/x\"\n",
    );
    for (host, resolves) in [
        ("www.example.com", true),
        ("WWW.Example.COM.", true),
        ("partly.example.com", true),
        ("secret.example.com", false),
        ("example.com", false),
        ("a.b.example.com", false),
        ("dGhlIHNlY3JldA.exfil.example.org", false),
    ] {
        assert_eq!(session.resolves(host), resolves, "{host}");
    }
}

#[test]
fn every_condition_of_a_rule_must_hold() {
    let session = Session::deployment(
        r#"
[[rule]]
id = "all"
action = "allow"
scheme = ["https", "http"]
host = "example.com"
port = [443, "8000-8010"]
method = ["GET", "HEAD"]
path = "/v1/**"
query = { key = "a*" }
header = { Accept = "application/*" }
when = 'session.metadata["team"] == "blue"'
"#,
    );
    let json = [("accept", "application/json")];
    allowed(session.send("GET", "http://example.com:8005/v1/x?key=abc", &json));
    allowed(session.send("HEAD", "https://example.com/v1?other=1&key=a", &json));
    for (method, url, headers) in [
        ("POST", "https://example.com/v1/x?key=a", &json[..]),
        ("GET", "https://example.com:8011/v1/x?key=a", &json[..]),
        ("GET", "https://example.com/v2/x?key=a", &json[..]),
        ("GET", "https://example.com/v1/x?key=b", &json[..]),
        ("GET", "https://example.com/v1/x", &json[..]),
        ("GET", "https://example.com/v1/x?key=a", &[][..]),
        ("GET", "https://example.com/v1/x?key=a", &[("accept", "text/html")][..]),
    ] {
        denied(session.send(method, url, headers));
    }
    let mut other = identity();
    other.metadata.clear();
    let set = set(&[&deployment(
        "[[rule]]\nid = \"a\"\naction = \"allow\"\nhost = \"example.com\"\nwhen = 'session.metadata[\"team\"] == \"blue\"'",
    )]);
    let denial = denied(Session::of(&set, other).get("https://example.com/"));
    assert!(denial.for_operator().contains("an entry is missing"), "{}", denial.for_operator());
}

#[test]
fn every_rule_says_what_speaks_against_it() {
    use egress_policy::{Destination, Outcome, Request};
    let session = Session::deployment(
        "[[rule]]\nid = \"a\"\naction = \"allow\"\nhost = \"example.com\"\nmethod = \"PUT\"\npath = \"/x\"\n\
         [[rule]]\nid = \"b\"\naction = \"allow\"\nhost = \"*.com\"\n\
         [[rule]]\nid = \"c\"\naction = \"deny\"\ncidr = \"9.9.9.9\"\n\
         [[rule]]\nid = \"d\"\naction = \"deny\"\nwhen = 'session.metadata[\"none\"] == \"\"'\n",
    );
    let destination = Destination::new(Scheme::Https, "example.com", 443).unwrap();
    let request = Request::new(destination, "GET", "/y", []).unwrap();
    let considered = session.engine.explain(&session.identity, &request);
    let outcomes: Vec<(&str, Outcome)> =
        considered.iter().map(|one| (one.rule.id(), one.outcome.clone())).collect();
    let in_doubt = Outcome::InDoubt { why: "an entry is missing".to_owned(), counts: true };
    assert_eq!(
        outcomes,
        [
            ("a", Outcome::Misses(vec!["method", "path"])),
            ("b", Outcome::Holds),
            ("c", Outcome::HoldsInRange),
            ("d", in_doubt),
        ]
    );
}

#[test]
fn an_engine_takes_selections_of_its_own_set_only() {
    let one = set(&[&deployment(OPEN)]);
    let mut setup = crate::support::setup();
    setup.revision = egress_policy::Revision(2);
    let sources = crate::support::sources(&[&deployment(OPEN)]);
    let two = egress_policy::PolicySet::compile(&sources, &setup).unwrap();
    let identity = identity();
    let engine = two.engine(&one.select(&identity));
    let session = Session { engine: engine.into(), identity: identity.clone() };
    denied(session.get("https://example.com/"));
    let session = Session { engine: two.engine_for(&identity), identity };
    assert_eq!(allowed(session.get("https://example.com/")).permit.revision().0, 2);
}
