//! Short ways to write policies, sessions and requests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base_types::{AgentId, EnvironmentId, ProfileName, SessionId, TenantId};
use egress_policy::{
    Allowance, Connection, Decision, Denial, Destination, Engine, Identity, Machinery, PolicySet,
    Request, Revision, Scheme, Setup, Source,
};

pub const EVERY_MACHINE: Machinery =
    Machinery { ask: true, sign: true, route: true, middleware: true, redact_texts: true };

pub fn setup() -> Setup {
    Setup { revision: Revision(1), machinery: EVERY_MACHINE, secrets: None }
}

/// Policies with these texts, called `p0.toml` and so on.
pub fn sources(texts: &[&str]) -> Vec<Source> {
    let named = texts.iter().enumerate();
    named.map(|(number, text)| Source::new(format!("p{number}.toml"), *text)).collect()
}

#[track_caller]
pub fn set(texts: &[&str]) -> PolicySet {
    PolicySet::compile(&sources(texts), &setup()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A deployment policy with these rules.
pub fn deployment(rules: &str) -> String {
    format!("name = \"d\"\nlayer = \"deployment\"\n{rules}")
}

pub fn identity() -> Identity {
    Identity {
        environment: EnvironmentId::new("env_1"),
        tenant: TenantId::new("red"),
        agent: AgentId::new("agent_1"),
        session: SessionId::new("session_1"),
        profile: ProfileName::new("default"),
        metadata: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        agent_name: Some("helper".to_owned()),
        title: Some("a title".to_owned()),
    }
}

/// The engine of one session, and what it says of requests.
pub struct Session {
    pub engine: Arc<Engine>,
    pub identity: Identity,
}

impl Session {
    #[track_caller]
    pub fn new(texts: &[&str]) -> Session {
        Session::of(&set(texts), identity())
    }

    pub fn of(set: &PolicySet, identity: Identity) -> Session {
        Session { engine: set.engine_for(&identity), identity }
    }

    #[track_caller]
    pub fn deployment(rules: &str) -> Session {
        Session::new(&[&deployment(rules)])
    }

    pub fn send(&self, method: &str, url: &str, headers: &[(&str, &str)]) -> Decision {
        let (scheme, rest) = url.split_once("://").expect("a scheme");
        let scheme = Scheme::parse(scheme).expect("a known scheme");
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let destination = match Destination::of_authority(scheme, authority) {
            Ok(destination) => destination,
            Err(malformed) => return Engine::malformed(url, malformed),
        };
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        match Request::new(destination, method, target, headers) {
            Ok(request) => self.engine.decide(&self.identity, &request),
            Err(malformed) => Engine::malformed(url, malformed),
        }
    }

    pub fn get(&self, url: &str) -> Decision {
        self.send("GET", url, &[])
    }

    pub fn connect(&self, scheme: Scheme, host: &str, port: u16) -> Connection {
        let destination = Destination::new(scheme, host, port).expect("a destination");
        self.engine.connect(&self.identity, &destination)
    }

    pub fn resolves(&self, host: &str) -> bool {
        let host = egress_policy::Host::parse(host).expect("a host");
        self.engine.could_allow(&self.identity, &host).is_ok()
    }
}

#[track_caller]
pub fn allowed(decision: Decision) -> Allowance {
    match decision {
        Decision::Allow(allowance) => allowance,
        Decision::Ask(question) => panic!("asked by {}", question.rule),
        Decision::Deny(denial) => panic!("denied: {}", denial.for_operator()),
    }
}

#[track_caller]
pub fn denied(decision: Decision) -> Denial {
    match decision {
        Decision::Deny(denial) => denial,
        Decision::Ask(question) => panic!("asked by {}", question.rule),
        Decision::Allow(allowance) => panic!("allowed by {}", allowance.rule),
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
