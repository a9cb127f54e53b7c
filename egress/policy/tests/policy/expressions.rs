//! Expressions: what they say, what is refused, and that nothing makes them expensive.

use std::time::{Duration, Instant};

use egress_policy::{Expression, fuzz};

use crate::support::{Session, deployment, identity, set};

/// A session in which that expression opens `example.com`.
#[track_caller]
fn when(expression: &str) -> Session {
    let rule = format!(
        "[[rule]]\nid = \"r\"\naction = \"allow\"\nhost = \"**.example.com\"\napex = true\n\
         when = '''{expression}'''\n"
    );
    Session::of(&set(&[&deployment(&rule)]), identity())
}

#[test]
fn expressions_say_what_they_say() {
    let url = "https://example.com/v1/items?a=1&b=two&c=x&c=y";
    let headers = [("Content-Type", "application/json"), ("x-n", "1"), ("x-n", "2")];
    for (expression, holds) in [
        ("true", true),
        ("!true || false", false),
        ("request.host == 'example.com'", true),
        ("request.port == 443 && request.port >= 1 && request.port < 444", true),
        ("request.port != 443", false),
        ("request.port > -1", true),
        ("request.scheme == \"https\"", true),
        ("request.method in [\"GET\", \"HEAD\"]", true),
        ("request.port in [80, 8080]", false),
        ("request.path.startsWith('/v1/')", true),
        ("request.path.endsWith('s') && request.path.contains('item')", true),
        ("request.path.matches('^/v[0-9]+/items$')", true),
        (r"request.path.matches(r'^/v\d+$')", false),
        ("size(request.path) == 9 && request.path.size() == 9", true),
        ("request.query['a'] == '1' && request.query.b == 'two'", true),
        ("request.query.c == 'x'", false),
        ("request.query.missing == 'x'", false),
        ("has(request.query.missing)", false),
        ("!has(request.query.missing)", true),
        ("'a' in request.query", true),
        ("request.headers['content-type'].contains('json')", true),
        ("request.headers['x-n'] == '1'", false),
        ("session.metadata.team == 'blue' && has(session.metadata.team)", true),
        ("session.metadata['missing'] == 'x' || true", true),
        ("false && session.metadata['missing'] == 'x'", false),
        ("session.metadata['missing'] == 'x' && true", false),
        ("!(session.metadata['missing'] == 'x')", false),
        ("session.tenant == 'red' ? session.id == 'session_1' : false", true),
        ("session.environment == 'env_1' && session.agent == 'agent_1'", true),
        ("session.profile == 'default'", true),
        ("'ABC'.lowerAscii() == 'abc'", true),
        ("'\\x41\\u00e9\\t' == 'Aé\\t'", true),
        ("'a' == 'a' == true", true),
    ] {
        if expression.ends_with("== true") {
            assert!(Expression::parse(expression).is_err(), "{expression}");
            continue;
        }
        let decision = when(expression).send("GET", url, &headers);
        assert_eq!(decision.verdict() == "allow", holds, "{expression}: {decision:?}");
    }
}

#[test]
fn doubt_in_an_expression_closes() {
    let open = "[[rule]]\nid = \"o\"\naction = \"allow\"\nhost = \"example.com\"\n";
    let shut = |when: &str| {
        let rule = format!("{open}[[rule]]\nid = \"d\"\naction = \"deny\"\nwhen = '''{when}'''\n");
        Session::deployment(&rule).get("https://example.com/a/../b").verdict()
    };
    assert_eq!(shut("request.path == '/nowhere'"), "deny");
    assert_eq!(shut("session.metadata['missing'] == 'x'"), "deny");
    assert_eq!(shut("has(session.metadata.missing)"), "allow");
    assert_eq!(shut("request.method == 'POST' && request.path == '/x'"), "allow");
}

/// Else a connection would be refused on which a request may pass.
#[test]
fn what_a_request_may_still_decide_is_left_open() {
    let session = when("session.metadata['missing'] == 'x' || request.method == 'GET'");
    assert_eq!(session.get("https://example.com/").verdict(), "allow");
    assert!(session.resolves("example.com"));
    let connection = session.connect(egress_policy::Scheme::Https, "example.com", 443);
    assert!(matches!(connection, egress_policy::Connection::Inspect), "{connection:?}");
    let hopeless = when("session.tenant == 'green' && request.method == 'GET'");
    assert!(!hopeless.resolves("example.com"));
}

#[test]
fn wrong_expressions_are_refused_with_their_place() {
    for (expression, what, column) in [
        ("", "ends too early", 1),
        ("1", "a truth value is expected here, not a number", 1),
        ("true &&", "ends too early", 8),
        ("true & false", "`&` means nothing here", 6),
        ("request", "there are request.scheme", 1),
        ("request.host", "a truth value is expected here, not a text", 1),
        ("request.hots == 'a'", "`request.hots`", 1),
        ("session.title == 'a'", "anyone may choose", 1),
        ("session.agent_name == 'a'", "anyone may choose", 1),
        ("agent == 'a'", "`agent` is nothing known", 1),
        ("request.host == 1", "a text is expected here, not a number", 17),
        ("request.host < 'a'", "only numbers have an order", 1),
        ("request.port in ['a']", "a text is expected here, not a number", 1),
        ("request.port in [1, 'a']", "not both", 21),
        ("request.port in []", "empty list", 17),
        ("request.port in request.host", "`in` needs a list", 17),
        ("request.query == 'a'", "cannot stand here", 1),
        ("[1] == [1]", "cannot stand here", 1),
        ("request.path.foo('a')", "a text has no `foo`", 14),
        ("request.path.matches(request.host)", "written out", 22),
        ("request.path.matches('(')", "regular expression is wrong", 22),
        ("request.path.matches('(a{1000}){1000}')", "wrong or too large", 22),
        ("'a", "has no end", 1),
        ("r'a", "has no end", 1),
        ("'\\q' == 'a'", "is no escape", 1),
        ("'\\ud800' == 'a'", "is no character", 1),
        ("99999999999999999999 == 1", "fits 64 bits", 1),
        ("1.5 == 1", "not a whole number", 1),
        ("(true", "`)` is expected", 6),
        ("true true", "nothing is expected here any more", 6),
        ("has(request.path)", "`has` needs an entry", 5),
        ("é", "means nothing here", 1),
        ("true ? 'a' : 1", "a text is expected here", 14),
    ] {
        let error = Expression::parse(expression).expect_err(expression);
        assert!(error.what.contains(what), "{expression}: {error}");
        assert_eq!(error.column, column, "{expression}: {error}");
    }
}

#[test]
fn no_size_and_no_depth_gets_through() {
    let deep = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
    assert!(Expression::parse(&deep(20)).is_ok());
    for expression in [
        deep(33),
        deep(1900),
        format!("{}true", "!".repeat(1000)),
        vec!["true"; 300].join(" && "),
        vec!["true"; 400].join(" || "),
        format!("request.port in [{}]", vec!["1"; 300].join(",")),
        format!("'a'{} == 'a'", ".lowerAscii()".repeat(200)),
        format!("true {}", "? true : true ".repeat(100)),
        format!("'{}' == 'a'", "a".repeat(5000)),
        format!("'a'.matches('{}')", "a".repeat(600)),
        "-".repeat(4000),
        "[".repeat(4000),
        "request.".repeat(500),
    ] {
        assert!(Expression::parse(&expression).is_err(), "{}", &expression[..40]);
    }
    // What may nest deepest of all that gets through is evaluated without trouble.
    let mut nested = "true".to_owned();
    for _ in 0..30 {
        let next = format!("({nested} && true)");
        if Expression::parse(&next).is_err() {
            break;
        }
        nested = next;
    }
    assert_eq!(when(&nested).get("https://example.com/").verdict(), "allow");
}

#[test]
fn an_evaluation_has_a_budget() {
    let path = format!("/{}", "a".repeat(15_000));
    let url = format!("https://example.com{path}");
    // One look at the path is within it, ten regular expressions over it are not.
    let one = "request.path.matches('(a|aa)+$')";
    let session = when(one);
    let start = Instant::now();
    assert_eq!(session.get(&url).verdict(), "allow");
    let many = [one; 10].join(" && ");
    let decision = when(&many).get(&url);
    let denial = crate::support::denied(decision);
    assert!(denial.for_operator().contains("looked at too much"), "{}", denial.for_operator());
    // Generous: what it guards against takes minutes.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn fuzzers_entry_points_return() {
    for bytes in
        [&b""[..], b"\0\0\0", b"name = \"a\"\nlayer", b"example.com\0/a/%2e\0x: y", b"[::1]"]
    {
        fuzz::policy(bytes);
        fuzz::host(bytes);
        fuzz::path(bytes);
        fuzz::expression(bytes);
        fuzz::request(bytes);
    }
}
