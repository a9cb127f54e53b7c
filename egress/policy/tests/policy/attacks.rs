//! Every way around a rule that we know of, as a table: what is sent, and what must become of it.

use egress_policy::{Cause, Connection, Destination, Engine, Host, HostError, Request, Scheme};

use crate::support::{Session, allowed, denied};

fn session() -> Session {
    Session::deployment(
        r#"
[[rule]]
id = "host"
action = "allow"
host = ["good.example", "bücher.example", "1.2.3.4", "127.0.0.1"]
[[rule]]
id = "host-http"
action = "allow"
scheme = "http"
host = "good.example"
[[rule]]
id = "paths"
action = "allow"
host = "api.example"
method = "GET"
path = ["/public/**", "/a b"]
[[rule]]
id = "open-api"
action = "allow"
host = "open.example"
[[rule]]
id = "closed"
action = "deny"
host = "open.example"
path = "/admin/**"
[[rule]]
id = "no-delete"
action = "deny"
host = "open.example"
method = "DELETE"
[[rule]]
id = "evil"
action = "deny"
host = "**.evil.example"
apex = true
[[rule]]
id = "below-evil"
action = "allow"
host = "**.example"
port = 9443
"#,
    )
}

#[test]
fn the_same_host_in_other_clothes_is_the_same_host() {
    let session = session();
    for host in [
        "good.example",
        "GOOD.EXAMPLE",
        "good.example.",
        "good。example",
        "good．example",
        "ｇｏｏｄ.example",
        "go\u{ad}od.example",
        "good.example:443",
        "xn--bcher-kva.example",
        "XN--BCHER-KVA.example",
        "bücher.example",
        "BÜCHER。example。",
        "1.2.3.4",
        "1.2.3.4.",
        "0x1.2.3.4",
        "0x01020304",
        "16909060",
        "0100401404",
        "1.2.772",
        "1.131844",
        "[::ffff:1.2.3.4]",
        "[::FFFF:102:304]",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "１２７.0.0.1",
    ] {
        let decision = session.get(&format!("https://{host}/"));
        assert_eq!(decision.verdict(), "allow", "{host}: {decision:?}");
    }
}

#[test]
fn a_denied_host_is_denied_in_all_its_clothes() {
    let session = session();
    for host in ["evil.example", "EVIL.example", "evil.example.", "x.evil.example", "evil。example"]
    {
        let denial = denied(session.get(&format!("https://{host}:9443/")));
        assert!(matches!(denial.cause, Cause::Closed { .. }), "{host}: {denial:?}");
    }
    allowed(session.get("https://notevil.example:9443/"));
}

const LOOKALIKES: &[&str] = &[
    "",
    ".",
    "..",
    "good.example..",
    ".good.example",
    "good..example",
    "good.example.evil.test",
    "evilgood.example",
    "good.example@evil.test",
    "user:pass@good.example",
    "good.example:443@evil.test",
    "evil.test:443:good.example",
    "good.example%00.evil.test",
    "good.example%2eevil.test",
    "good.example\\.evil.test",
    "good.example/evil",
    "good.example#evil",
    "good.example evil.test",
    "good.example\tevil",
    "good.example\r\nHost: evil.test",
    "good.example\0",
    "gооd.example",
    "xn--",
    "xn--a.example",
    "xn--zzzzzzzzzzzz.example",
    "good.example,evil.test",
    "*.example",
    "good.example:0",
    "good.example:",
    "good.example:+443",
    "good.example: 443",
    "good.example:0443",
    "good.example:443443",
    "good.example:65979",
    "good.example:443:443",
    "good.example:８０",
    "1.2.3.4.5",
    "1.2.3.256",
    "1.2.3.0x",
    "0x100000000",
    "4294967296",
    "09.2.3.4",
    "1..2",
    "1.2.3.4x",
    "::1",
    "::ffff:1.2.3.4",
    "[::1",
    "::1]",
    "[::1]]",
    "[1.2.3.4]",
    "[::ffff:1.2.3.4%25eth0]",
    "[fe80::1%eth0]",
    "[::1.2.3.4]",
    "[64:ff9b::1.2.3.4]",
    "[2002:102:304::]",
    "[]",
    "[good.example]",
    "-",
    "a_b",
];

#[test]
fn what_only_looks_like_the_host_is_refused() {
    let session = session();
    for authority in LOOKALIKES {
        let decision = session.get(&format!("https://{authority}/"));
        // A slash or question mark ends the authority.
        let still_good = *authority == "good.example/evil";
        assert_eq!(decision.verdict() == "allow", still_good, "{authority:?}: {decision:?}");
    }
    let long = format!("{}good.example", "a.".repeat(4000));
    assert!(matches!(Host::parse(&long), Err(HostError::TooLong)));
    assert!(Host::parse(&format!("{}.example", "a".repeat(64))).is_err());
}

#[test]
fn a_path_that_servers_read_differently_opens_nothing() {
    let session = session();
    for path in ["/public/x", "/public", "/public/%78", "/a%20b", "/public/%C3%A9", "/public/x%3Fy"]
    {
        allowed(session.get(&format!("https://api.example{path}")));
    }
    for path in [
        "/public/../admin",
        "/public/./x",
        "/public/..",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/%252e%252e/admin",
        "/public/%%32%65%%32%65/admin",
        "/public/..%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public/..;/admin",
        "/public/;x/../admin",
        "/public/x;y=1",
        "/public%2fx",
        "/public%2Fx",
        "//public/x",
        "/public//x",
        "/public/x%00",
        "/public/x%0d%0aHost:%20evil",
        "/public/%c0%ae%c0%ae/admin",
        "/public/%e0%80%af",
        "/public/%",
        "/public/%2",
        "/public/%zz",
        "/public/%u002e",
        "/public/é",
        "/publicx",
        "/Public/x",
        "/admin",
        "/",
        "",
        "?x=/public/x",
        "/public/x#/../admin",
        "/public/x y",
        "/public/x\r\nX: y",
    ] {
        let decision = session.get(&format!("https://api.example{path}"));
        assert_eq!(decision.verdict(), "deny", "{path:?}: {decision:?}");
    }
    denied(session.get(&format!("https://api.example/public/{}", "a".repeat(20_000))));
    let denial = denied(session.get("https://api.example/public/../admin"));
    assert!(denial.for_model().contains("`..`"), "{}", denial.for_model());
}

#[test]
fn a_path_that_servers_read_differently_is_closed_where_a_path_is() {
    let session = session();
    for path in ["/", "/x", "/administrator", "/x?y=/admin/"] {
        allowed(session.get(&format!("https://open.example{path}")));
    }
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/Admin/x",
        "/ADMIN",
        "/%61dmin",
        "/x/../admin",
        "//admin",
        "/./admin",
        "/x/..;/admin",
        "/%2e/admin",
        "/admin%2fx",
        "/%2561dmin",
        "\\admin",
        "/;/admin",
    ] {
        let decision = session.get(&format!("https://open.example{path}"));
        assert_eq!(decision.verdict(), "deny", "{path:?}: {decision:?}");
    }
    // A rule that does not look at the path does not mind.
    allowed(session.get("https://good.example//x/../y;z"));
}

#[test]
fn methods_are_what_they_are() {
    let session = session();
    for method in ["POST", "get", "GET ", "G ET", "", "GET\r\n", "DELETE"] {
        let decision = session.send(method, "https://api.example/public/x", &[]);
        assert_eq!(decision.verdict(), "deny", "{method:?}");
    }
    for method in ["DELETE", "delete", "Delete"] {
        denied(session.send(method, "https://open.example/x", &[]));
    }
    for header in ["X-HTTP-Method-Override", "x-http-method", "X_Method_Override"] {
        for url in ["https://api.example/public/x", "https://open.example/x"] {
            let denial = denied(session.send("GET", url, &[(header, "DELETE")]));
            assert!(denial.for_operator().contains("another method"), "{}", denial.for_operator());
        }
    }
}

#[test]
fn nothing_in_a_header_ends_a_line() {
    let session = session();
    let url = "https://good.example/";
    allowed(session.send("GET", url, &[("x-a", "a\tb"), ("x-b", "é"), ("x-c", "")]));
    for (name, value) in [
        ("x", "a\r\nHost: evil"),
        ("x", "a\nb"),
        ("x", "a\0"),
        ("x", "a\u{7f}"),
        ("x y", "a"),
        ("x:", "a"),
        ("", "a"),
        ("x\r\n", "a"),
        ("Content-Length ", "1"),
        (":authority", "evil.test"),
        ("x\u{e9}", "a"),
    ] {
        let denial = denied(session.send("GET", url, &[(name, value)]));
        assert!(matches!(denial.cause, Cause::Malformed(_)), "{name:?} {value:?}");
    }
    let many = vec![("x", "y"); 300];
    denied(session.send("GET", url, &many));
}

#[test]
fn the_host_header_is_where_the_request_goes() {
    let session = session();
    let url = "https://good.example/";
    for host in ["good.example", "GOOD.example.", "good.example:443", "good。example"] {
        allowed(session.send("GET", url, &[("Host", host)]));
    }
    for headers in [
        &[("Host", "evil.test")][..],
        &[("hOST", "good.example:8443")][..],
        &[("Host", "good.example:80")][..],
        &[("Host", "user@good.example")][..],
        &[("Host", "good.example, evil.test")][..],
        &[("Host", "")][..],
        &[("Host", "good.example"), ("Host", "good.example")][..],
        &[("Host", "good.example"), ("host", "evil.test")][..],
        &[("Host", "evil.test"), ("host", "good.example")][..],
    ] {
        let denial = denied(session.send("GET", url, headers));
        assert!(matches!(denial.cause, Cause::Malformed(_)), "{headers:?}: {denial:?}");
    }
}

#[test]
fn the_end_of_a_body_is_said_once() {
    let session = session();
    let url = "https://good.example/";
    for headers in [
        &[("Content-Length", "5")][..],
        &[("Content-Length", "5"), ("content-length", "5")][..],
        &[("Transfer-Encoding", "Chunked")][..],
    ] {
        allowed(session.send("POST", url, headers));
    }
    for headers in [
        &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")][..],
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")][..],
        &[("Content-Length", "5"), ("Content-Length", "6")][..],
        &[("Content-Length", "+5")][..],
        &[("Content-Length", "5, 5")][..],
        &[("Content-Length", "0x5")][..],
        &[("Content-Length", "")][..],
        &[("Content_Length", "5")][..],
        &[("Transfer_Encoding", "chunked")][..],
        &[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")][..],
        &[("Transfer-Encoding", "chunked, identity")][..],
        &[("Transfer-Encoding", "xchunked")][..],
        &[("Transfer-Encoding", "\tchunked")][..],
    ] {
        let denial = denied(session.send("POST", url, headers));
        assert!(matches!(denial.cause, Cause::Malformed(_)), "{headers:?}: {denial:?}");
    }
}

const TWICE: &str = r#"
[[rule]]
id = "open"
action = "allow"
host = "a.example"
header = { "x-mode" = "read" }
[[rule]]
id = "query"
action = "allow"
host = "b.example"
query = { mode = "read" }
[[rule]]
id = "all"
action = "allow"
host = "c.example"
[[rule]]
id = "shut"
action = "deny"
host = "c.example"
header = { "x-mode" = "write" }
[[rule]]
id = "shut-query"
action = "deny"
host = "c.example"
query = { mode = "write" }
"#;

#[test]
fn a_condition_on_a_header_is_not_fooled_by_two_of_them() {
    let session = Session::deployment(TWICE);
    let (a, c) = ("https://a.example/", "https://c.example/");
    allowed(session.send("GET", a, &[("X-Mode", "read")]));
    allowed(session.send("GET", a, &[("x-mode", " read "), ("x-mode", "read")]));
    for headers in [
        &[("x-mode", "write")][..],
        &[("x-mode", "read"), ("X-MODE", "write")][..],
        &[("x_mode", "read")][..],
        &[("x-mode", "read"), ("x_mode", "write")][..],
        &[("x-mode", "read,write")][..],
        &[][..],
    ] {
        denied(session.send("GET", a, headers));
    }
    allowed(session.send("GET", c, &[("x-mode", "read")]));
    for headers in [
        &[("X-Mode", "write")][..],
        &[("x-mode", "read"), ("x-mode", "write")][..],
        &[("x_mode", "write")][..],
    ] {
        denied(session.send("GET", c, headers));
    }
}

#[test]
fn a_condition_on_a_parameter_is_not_fooled_by_its_spelling() {
    let session = Session::deployment(TWICE);
    for (query, allow) in [
        ("mode=read", true),
        ("mode=%72ead", true),
        ("x=1&mode=read&mode=read", true),
        ("mode=read&mode=write", false),
        ("mode=write&mode=read", false),
        ("Mode=read", false),
        ("mode=read;mode=write", false),
        ("mode[]=read", false),
        ("mode=%zz", false),
        ("mode=%ff", false),
        ("", false),
    ] {
        let decision = session.get(&format!("https://b.example/?{query}"));
        assert_eq!(decision.verdict() == "allow", allow, "{query}");
    }
    for (query, allow) in [
        ("mode=read", true),
        ("", true),
        ("mode=write", false),
        ("MODE=write", false),
        ("%6dode=writ%65", false),
        ("mode=read&mode=write", false),
        ("mode=read;mode=write", false),
        ("mode=%zz", false),
    ] {
        let decision = session.get(&format!("https://c.example/?{query}"));
        assert_eq!(decision.verdict() == "allow", allow, "{query}");
    }
}

#[test]
fn a_destination_is_refused_also_before_anything_is_sent() {
    let session = session();
    for (host, port) in [("evil.example", 9443), ("good.example", 22), ("8.8.8.8", 443)] {
        for scheme in Scheme::ALL {
            let connection = session.connect(scheme, host, port);
            assert!(matches!(connection, Connection::Refuse(_)), "{scheme:?} {host}:{port}");
        }
    }
    assert!(matches!(session.connect(Scheme::Https, "good.example", 443), Connection::Inspect));
    assert!(matches!(session.connect(Scheme::Http, "good.example", 80), Connection::Inspect));
}

#[test]
fn what_a_guest_wrote_is_shown_shortened_and_harmless() {
    let wrong = format!("https://\u{1b}[2J{}", "x".repeat(10_000));
    let denial = denied(Engine::malformed(&wrong, egress_policy::Malformed::Port));
    for text in [denial.for_operator(), denial.for_model()] {
        assert!(text.len() < 300 && !text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn raw_connections_carry_no_request() {
    let destination = Destination::new(Scheme::Tcp, "good.example", 5432).unwrap();
    assert!(Request::new(destination, "GET", "/", []).is_err());
}
