//! Whether a rule holds: yes, no, or in doubt.
//!
//! Doubt is what is not known yet (a connection's requests), what servers read differently (a path
//! with `//`), and what could not be evaluated. Whether doubt counts is the effect's to say: never
//! for a rule that opens or adds, always for one that closes or narrows.

use std::ops::RangeInclusive;

use crate::expression::Scope;
use crate::glob::{Case, Glob, PathGlob};
use crate::host::{Host, HostPattern};
use crate::identity::Identity;
use crate::model::Conditions;
use crate::path::{PathDoubt, RequestPath};
use crate::request::{Destination, Request, Scheme, folds_to};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Yes,
    No,
    Unknown(Doubt),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("it depends on the request, which is not seen yet")]
    NotYet,
    #[error("a raw connection has no HTTP request")]
    NotHttp,
    #[error(transparent)]
    Path(PathDoubt),
    #[error("the query can be read in several ways")]
    Query,
    #[error("a header names another method")]
    MethodOverride,
    #[error("a header's name differs from the one meant only by `_`")]
    HeaderName,
    #[error("a header's value is not text")]
    HeaderValue,
    #[error("an entry stands there twice")]
    Twice,
    #[error("an entry is missing")]
    Missing,
    #[error("the expression looked at too much")]
    Budget,
    #[error("the expression's types do not fit")]
    Type,
    #[error("it depends on the address, which is not resolved yet")]
    Address,
}

/// What is known of a request at this moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub host: &'a Host,
    pub scheme: Option<Scheme>,
    pub port: Option<u16>,
    pub http: Http<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Http<'a> {
    Seen(&'a Request<'a>),
    NotYet,
    /// There will be none.
    None,
}

impl<'a> Facts<'a> {
    /// A name in a DNS question.
    pub fn of_host(host: &'a Host) -> Facts<'a> {
        Facts { host, scheme: None, port: None, http: Http::NotYet }
    }

    /// A connection before anything was sent on it.
    pub fn of_connection(destination: &'a Destination) -> Facts<'a> {
        let http = match destination.scheme {
            Scheme::Tcp => Http::None,
            Scheme::Https | Scheme::Http => Http::NotYet,
        };
        let Destination { scheme, host, port } = destination;
        Facts { host, scheme: Some(*scheme), port: Some(*port), http }
    }

    pub fn of_request(request: &'a Request<'a>) -> Facts<'a> {
        let Destination { scheme, host, port } = &request.destination;
        Facts { host, scheme: Some(*scheme), port: Some(*port), http: Http::Seen(request) }
    }
}

impl Doubt {
    /// Of two doubts, the one that may still go away.
    pub(crate) fn or(self, other: Doubt) -> Doubt {
        if other == Doubt::NotYet { other } else { self }
    }
}

impl Held {
    fn of(holds: bool) -> Held {
        if holds { Held::Yes } else { Held::No }
    }

    /// One "no" decides, and one doubt is doubt.
    fn and(self, other: impl FnOnce() -> Held) -> Held {
        match self {
            Held::No => Held::No,
            Held::Yes => other(),
            Held::Unknown(doubt) => match other() {
                Held::No => Held::No,
                Held::Yes => Held::Unknown(doubt),
                Held::Unknown(other) => Held::Unknown(doubt.or(other)),
            },
        }
    }
}

/// Everything but the addresses, which `address_held` looks at.
pub(crate) fn held(
    conditions: &Conditions,
    case: Case,
    facts: &Facts<'_>,
    identity: &Identity,
) -> Held {
    let place = scheme_held(&conditions.schemes, facts)
        .and(|| port_held(&conditions.ports, facts))
        .and(|| host_held(&conditions.hosts, facts.host));
    place.and(|| http_held(conditions, case, facts)).and(|| match &conditions.expression {
        Some(expression) => match expression.holds(Scope { facts, identity }) {
            // As with the other conditions on HTTP.
            Held::Unknown(Doubt::NotHttp) => Held::No,
            held => held,
        },
        None => Held::Yes,
    })
}

/// Whether the host lies in one of the rule's ranges; a name does so only once it is resolved.
pub(crate) fn address_held(conditions: &Conditions, host: &Host) -> Held {
    match host.address() {
        _ if conditions.nets.is_empty() => Held::Yes,
        Some(address) => Held::of(conditions.nets.iter().any(|net| net.contains(address))),
        None => Held::Unknown(Doubt::Address),
    }
}

fn scheme_held(schemes: &[Scheme], facts: &Facts<'_>) -> Held {
    match facts.scheme {
        _ if schemes.is_empty() => Held::Yes,
        Some(scheme) => Held::of(schemes.contains(&scheme)),
        None => Held::Unknown(Doubt::NotYet),
    }
}

fn port_held(ports: &[RangeInclusive<u16>], facts: &Facts<'_>) -> Held {
    match facts.port {
        _ if ports.is_empty() => Held::Yes,
        Some(port) => Held::of(ports.iter().any(|range| range.contains(&port))),
        None => Held::Unknown(Doubt::NotYet),
    }
}

fn host_held(hosts: &[HostPattern], host: &Host) -> Held {
    Held::of(hosts.is_empty() || hosts.iter().any(|pattern| pattern.matches(host)))
}

fn http_held(conditions: &Conditions, case: Case, facts: &Facts<'_>) -> Held {
    let Conditions { methods, paths, query, headers, .. } = conditions;
    if methods.is_empty() && paths.is_empty() && query.is_empty() && headers.is_empty() {
        return Held::Yes;
    }
    match facts.http {
        Http::Seen(request) => method_held(methods, case, request)
            .and(|| path_held(paths, case, request))
            .and(|| query_held(query, case, request))
            .and(|| headers_held(headers, request)),
        Http::NotYet => Held::Unknown(Doubt::NotYet),
        // An operator who opens a raw connection gives up looking into it; the compiler says so.
        Http::None => Held::No,
    }
}

fn method_held(methods: &[String], case: Case, request: &Request<'_>) -> Held {
    match methods.is_empty() {
        true => Held::Yes,
        false if request.method_is_overridden() => Held::Unknown(Doubt::MethodOverride),
        false => Held::of(methods.iter().any(|method| same(request.method, method, case))),
    }
}

fn path_held(paths: &[PathGlob], case: Case, request: &Request<'_>) -> Held {
    match &request.path {
        _ if paths.is_empty() => Held::Yes,
        RequestPath::Clear(path) => Held::of(paths.iter().any(|glob| glob.matches(path, case))),
        RequestPath::Doubtful(doubt) => Held::Unknown(Doubt::Path(*doubt)),
    }
}

fn query_held(query: &[(String, Glob)], case: Case, request: &Request<'_>) -> Held {
    if query.is_empty() {
        return Held::Yes;
    }
    let Some(parameters) = request.parameters() else { return Held::Unknown(Doubt::Query) };
    let holds = |(wanted, glob): &(String, Glob)| {
        let values = parameters.iter().filter(|(name, _)| same(name, wanted, case));
        agreed(values.map(|(_, value)| glob.matches(value)))
    };
    query.iter().map(holds).fold(Held::Yes, |held, next| held.and(|| next))
}

fn same(name: &str, wanted: &str, case: Case) -> bool {
    match case {
        Case::Exact => name == wanted,
        Case::Folded => name.eq_ignore_ascii_case(wanted),
    }
}

/// Several entries of one name that do not agree are in doubt.
fn agreed(mut holds: impl Iterator<Item = bool>) -> Held {
    let Some(first) = holds.next() else { return Held::No };
    match holds.all(|other| other == first) {
        true => Held::of(first),
        false => Held::Unknown(Doubt::Twice),
    }
}

fn headers_held(headers: &[(String, Glob)], request: &Request<'_>) -> Held {
    headers
        .iter()
        .fold(Held::Yes, |held, (wanted, glob)| held.and(|| header_held(wanted, glob, request)))
}

fn header_held(wanted: &str, glob: &Glob, request: &Request<'_>) -> Held {
    let named = || request.headers.iter().filter(|(name, _)| folds_to(name, wanted));
    if named().any(|(name, _)| !name.eq_ignore_ascii_case(wanted)) {
        return Held::Unknown(Doubt::HeaderName);
    }
    if named().any(|(_, value)| std::str::from_utf8(value).is_err()) {
        return Held::Unknown(Doubt::HeaderValue);
    }
    agreed(
        named().map(|(_, value)| {
            std::str::from_utf8(value).is_ok_and(|value| glob.matches(value.trim()))
        }),
    )
}
