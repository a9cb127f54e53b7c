//! Entry points for fuzzers: each takes any bytes and must return. What is checked besides is
//! stated in each.

use std::collections::BTreeMap;

use base_types::{AgentId, EnvironmentId, ProfileName, SessionId, TenantId};

use crate::{
    Destination, Expression, Host, Identity, PathGlob, PolicySet, Request, RequestPath, Scheme,
    Setup, Source,
};

/// Bytes as text, the way a policy or a request reaches this crate.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reading a policy, and deciding by it where it is right.
pub fn policy(bytes: &[u8]) {
    let sources = [Source::new("fuzz.toml", text(bytes))];
    if let Ok(set) = PolicySet::compile(&sources, &Setup::default()) {
        request_with(&set, b"example.com\0/a/b?c=d\0x: y");
    }
}

/// A host reads as itself again.
pub fn host(bytes: &[u8]) {
    if let Ok(host) = Host::parse(&text(bytes)) {
        assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host));
    }
}

/// A path's canonical form reads as the same path.
pub fn path(bytes: &[u8]) {
    let raw = text(bytes);
    let path = RequestPath::parse(&raw);
    if let Some(canonical) = path.canonical() {
        assert_eq!(RequestPath::parse(&canonical), path);
    }
    let _ = PathGlob::parse(&raw).map(|glob| glob.matches(&raw, crate::Case::Folded));
}

pub fn expression(bytes: &[u8]) {
    let _ = Expression::parse(&text(bytes));
}

/// A request under a policy that looks at everything. Parts are separated by NUL: authority,
/// target, then headers.
pub fn request(bytes: &[u8]) {
    const POLICY: &str = r#"
        name = "fuzz"
        layer = "deployment"
        [[rule]]
        id = "open"
        action = "allow"
        scheme = ["https", "http"]
        host = ["**.example.com", "10.0.0.1"]
        port = "1-65535"
        path = ["/a/**", "/*/x"]
        query = { c = "d*" }
        header = { x = "y" }
        when = 'request.path.matches("^/[a-z]+") || request.headers["x"] in ["y", "z"]'
        [[rule]]
        id = "shut"
        action = "deny"
        path = "/a/**/b*"
        when = 'request.query["c"].size() > 3 && has(session.metadata.team)'
    "#;
    let sources = [Source::new("fuzz.toml", POLICY)];
    if let Ok(set) = PolicySet::compile(&sources, &Setup::default()) {
        request_with(&set, bytes);
    }
}

fn request_with(set: &PolicySet, bytes: &[u8]) {
    let identity = identity();
    let engine = set.engine_for(&identity);
    let parts: Vec<String> = bytes.split(|byte| *byte == 0).map(text).collect();
    let [authority, target, headers @ ..] = parts.as_slice() else { return };
    let Ok(destination) = Destination::of_authority(Scheme::Https, authority) else { return };
    let headers = headers.iter().filter_map(|header| header.split_once(": "));
    let headers = headers.map(|(name, value)| (name, value.as_bytes()));
    let _ = engine.could_allow(&identity, &destination.host);
    let _ = engine.connect(&identity, &destination);
    if let Ok(request) = Request::new(destination, "GET", target, headers) {
        let _ = engine.decide(&identity, &request);
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        environment: EnvironmentId::new("env"),
        tenant: TenantId::new("tenant"),
        agent: AgentId::new("agent"),
        session: SessionId::new("session"),
        profile: ProfileName::new("default"),
        metadata: BTreeMap::new(),
        agent_name: None,
        title: None,
    }
}
