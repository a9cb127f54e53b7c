//! What a decision costs, with policies of a given size. The clock is the caller's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use base_types::{AgentId, EnvironmentId, ProfileName, SessionId, TenantId};

use crate::{
    Decision, Destination, Engine, Identity, PolicyErrors, PolicySet, Request, Scheme, Setup,
    Source,
};

/// How rules are spread over hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each rule names a host of its own.
    ManyHosts,
    /// Half of them patterns, methods and paths, some of them denials for every host.
    Mixed,
    /// All about the same host, each with a path of its own.
    OneHost,
    /// Denials for every host by method and header: no index helps, and outlines do.
    Everywhere,
    /// As `Everywhere`, by header alone: each has to be looked at. The worst there is.
    Headers,
}

impl Shape {
    pub const ALL: [Shape; 5] =
        [Shape::ManyHosts, Shape::Mixed, Shape::OneHost, Shape::Everywhere, Shape::Headers];

    pub fn name(self) -> &'static str {
        match self {
            Shape::ManyHosts => "many hosts",
            Shape::Mixed => "mixed",
            Shape::OneHost => "one host",
            Shape::Everywhere => "everywhere",
            Shape::Headers => "headers",
        }
    }

    fn rule(self, number: usize) -> String {
        let host = format!("h{number}.example.com");
        match (self, number % 8) {
            (Shape::ManyHosts, _) => format!("action = \"allow\"\nhost = \"{host}\""),
            (Shape::OneHost, _) => {
                format!("action = \"allow\"\nhost = \"api.example.com\"\npath = \"/p{number}/**\"")
            }
            (Shape::Everywhere | Shape::Headers, 0) => {
                "action = \"allow\"\nhost = \"**.example.com\"".to_owned()
            }
            (Shape::Everywhere, _) => {
                format!("action = \"deny\"\nmethod = \"PUT\"\nheader = {{ h = \"{number}\" }}")
            }
            (Shape::Headers, _) => format!("action = \"deny\"\nheader = {{ h = \"{number}\" }}"),
            (Shape::Mixed, 0) => format!("action = \"allow\"\nhost = \"**.d{number}.example.com\""),
            (Shape::Mixed, 1) => format!(
                "action = \"deny\"\nhost = \"*.d{number}.example.com\"\nmethod = \"DELETE\""
            ),
            (Shape::Mixed, 2) => format!(
                "action = \"allow\"\nhost = \"{host}\"\npath = [\"/v*/items/**\", \"/health\"]"
            ),
            (Shape::Mixed, 3) => format!("action = \"deny\"\npath = \"/closed-{number}/**\""),
            (Shape::Mixed, 4) => {
                format!("action = \"limit\"\nhost = \"{host}\"\nrequests_per_minute = 60")
            }
            (Shape::Mixed, _) => format!("action = \"allow\"\nhost = \"{host}\"\nmethod = \"GET\""),
        }
    }

    /// A request that the rule of that number is about.
    fn target(self, number: usize) -> (String, String) {
        match self {
            Shape::ManyHosts | Shape::Mixed | Shape::Everywhere | Shape::Headers => {
                (format!("h{number}.example.com"), "/v1/items/42?page=3".to_owned())
            }
            Shape::OneHost => ("api.example.com".to_owned(), format!("/p{number}/items/42")),
        }
    }
}

/// An engine with that many rules, and whose session it is.
pub fn engine(shape: Shape, rules: usize) -> Result<(Arc<Engine>, Identity), PolicyErrors> {
    let mut text = String::from("name = \"measure\"\nlayer = \"deployment\"\n");
    for number in 0..rules {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "[[rule]]\nid = \"r{number}\"\n{}\n", shape.rule(number));
    }
    let set = PolicySet::compile(&[Source::new("measure.toml", text)], &Setup::default())?;
    let identity = Identity {
        environment: EnvironmentId::new("env_1"),
        tenant: TenantId::new("tenant"),
        agent: AgentId::new("agent_1"),
        session: SessionId::new("session_1"),
        profile: ProfileName::new("default"),
        metadata: BTreeMap::new(),
        agent_name: None,
        title: None,
    };
    Ok((set.engine_for(&identity), identity))
}

/// The time of each of `runs` decisions, reading host, path and headers included: what a gate pays
/// for a request.
pub fn decisions(
    shape: Shape,
    (engine, identity): (&Engine, &Identity),
    rules: usize,
    runs: usize,
    now: impl Fn() -> Duration,
) -> Vec<Duration> {
    let headers: [(&str, &[u8]); 4] = [
        ("user-agent", b"curl/8.5.0"),
        ("accept", b"*/*"),
        ("accept-encoding", b"gzip, br"),
        ("authorization", b"Bearer sinew-placeholder"),
    ];
    // Every fourth request is for a host or path that no rule is about.
    let targets: Vec<(String, String)> = (0..runs)
        .map(|run| shape.target(if run % 4 == 0 { rules + run } else { run % rules.max(1) }))
        .collect();
    let decide = |(host, target): &(String, String)| {
        let start = now();
        let destination = Destination::new(Scheme::Https, host, 443);
        let request = destination.and_then(|at| Request::new(at, "GET", target, headers));
        let decision = match &request {
            Ok(request) => engine.decide(identity, request),
            Err(malformed) => Engine::malformed(host, *malformed),
        };
        let took = now().saturating_sub(start);
        // Looked at, so that it is not optimised away.
        drop(std::hint::black_box::<Decision>(decision));
        took
    };
    targets.iter().map(decide).collect()
}
