//! What a policy says, in types: layers, rules, their conditions and what they do.

use std::fmt;
use std::ops::RangeInclusive;

use base_config::Place;
use base_types::ByteSize;

use crate::address::Net;
use crate::expression::Expression;
use crate::glob::{Glob, PathGlob};
use crate::host::HostPattern;
use crate::identity::Select;
use crate::request::Scheme;

/// From the widest to the narrowest. A narrower layer can only take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    Deployment,
    Tenant,
    Agent,
    Session,
}

/// What becomes of a request that no rule of a layer opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    Deny,
    /// The layers above decide. Not for the deployment's, above which there is none.
    Inherit,
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub name: String,
    pub layer: Layer,
    /// Among the policies of a layer, the higher one speaks first.
    pub priority: i32,
    pub unmatched: Unmatched,
    pub select: Select,
    pub rules: Vec<Rule>,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub id: String,
    pub place: Place,
    pub conditions: Conditions,
    pub action: Action,
    /// The operator's words for whoever is refused.
    pub reason: Option<String>,
}

/// All that are given must hold; of a list, one.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub schemes: Vec<Scheme>,
    pub hosts: Vec<HostPattern>,
    pub ports: Vec<RangeInclusive<u16>>,
    pub nets: Vec<Net>,
    pub methods: Vec<String>,
    pub paths: Vec<PathGlob>,
    pub query: Vec<(String, Glob)>,
    pub headers: Vec<(String, Glob)>,
    pub expression: Option<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Ask,
    PassThrough,
    Route { service: String },
    Inject(Injection),
    Sign(Signing),
    Middleware { name: String },
    Limit(Limits),
    Redact(Redaction),
}

/// How a rule moves the line between what passes and what does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Lets through what it holds for.
    Opens,
    /// Keeps out what it holds for.
    Closes,
    /// Gives a request that passes something it did not have.
    Adds,
    /// Takes something from a request that passes.
    Narrows,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    pub secret: String,
    pub form: InjectionForm,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InjectionForm {
    /// The secret's placeholder, wherever the request carries it.
    Placeholder,
    /// A header of its own, over what the request says there.
    Header { name: String, before: String, after: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signing {
    pub secret: String,
    pub scheme: SigningScheme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningScheme {
    SigV4,
    Hmac,
    OAuth2,
    MutualTls,
}

/// `None` is no limit of this rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub requests_per_minute: Option<u32>,
    pub concurrent: Option<u32>,
    /// Of one request.
    pub body: Option<ByteSize>,
    /// Of all requests of the session that the rule holds for.
    pub bytes_up: Option<ByteSize>,
    pub bytes_down: Option<ByteSize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redaction {
    /// Removed from the response, lower case.
    pub headers: Vec<String>,
    /// Texts that are blacked out in the response's body.
    pub texts: Vec<String>,
}

impl Layer {
    pub const ALL: [Layer; 4] = [Layer::Deployment, Layer::Tenant, Layer::Agent, Layer::Session];

    pub fn name(self) -> &'static str {
        match self {
            Layer::Deployment => "deployment",
            Layer::Tenant => "tenant",
            Layer::Agent => "agent",
            Layer::Session => "session",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Action {
    pub fn name(&self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Ask => "ask",
            Action::PassThrough => "pass-through",
            Action::Route { .. } => "route",
            Action::Inject(_) => "inject",
            Action::Sign(_) => "sign",
            Action::Middleware { .. } => "middleware",
            Action::Limit(_) => "limit",
            Action::Redact(_) => "redact",
        }
    }

    pub fn effect(&self) -> Effect {
        match self {
            Action::Allow | Action::Ask | Action::PassThrough | Action::Route { .. } => {
                Effect::Opens
            }
            Action::Deny => Effect::Closes,
            Action::Inject(_) | Action::Sign(_) | Action::Middleware { .. } => Effect::Adds,
            Action::Limit(_) | Action::Redact(_) => Effect::Narrows,
        }
    }

    /// The secret it gives away.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Action::Inject(Injection { secret, .. }) | Action::Sign(Signing { secret, .. }) => {
                Some(secret)
            }
            _ => None,
        }
    }
}

impl Effect {
    /// Whether doubt counts as "holds": where holding means less.
    pub fn applies_in_doubt(self) -> bool {
        match self {
            Effect::Opens | Effect::Adds => false,
            Effect::Closes | Effect::Narrows => true,
        }
    }
}

impl Conditions {
    /// Whether it looks at anything that is seen only inside HTTP.
    pub fn needs_http(&self) -> bool {
        !self.methods.is_empty()
            || !self.paths.is_empty()
            || !self.query.is_empty()
            || !self.headers.is_empty()
            || self.expression.as_ref().is_some_and(Expression::needs_http)
    }

    /// Whether every request that the other one holds for, it holds for too; `false` when unsure.
    pub fn cover(&self, other: &Conditions) -> bool {
        fn wider<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            let covered = |one: &T| wide.iter().any(|all| covers(all, one));
            wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(covered))
        }
        let ports = |all: &RangeInclusive<u16>, one: &RangeInclusive<u16>| {
            all.contains(one.start()) && all.contains(one.end())
        };
        wider(&self.schemes, &other.schemes, PartialEq::eq)
            && wider(&self.hosts, &other.hosts, HostPattern::covers)
            && wider(&self.ports, &other.ports, ports)
            && wider(&self.nets, &other.nets, Net::covers)
            && wider(&self.methods, &other.methods, PartialEq::eq)
            && wider(&self.paths, &other.paths, PathGlob::covers)
            && self.query.iter().all(|condition| other.query.contains(condition))
            && self.headers.iter().all(|condition| other.headers.contains(condition))
            && (self.expression.is_none() || self.expression == other.expression)
    }

    /// Whether some connection may be meant by both.
    pub fn may_meet(&self, other: &Conditions) -> bool {
        fn share<T>(a: &[T], b: &[T], meet: impl Fn(&T, &T) -> bool) -> bool {
            a.is_empty() || b.is_empty() || a.iter().any(|a| b.iter().any(|b| meet(a, b)))
        }
        let ports = |a: &RangeInclusive<u16>, b: &RangeInclusive<u16>| {
            a.start() <= b.end() && b.start() <= a.end()
        };
        share(&self.schemes, &other.schemes, PartialEq::eq)
            && share(&self.hosts, &other.hosts, HostPattern::overlaps)
            && share(&self.ports, &other.ports, ports)
            && share(&self.methods, &other.methods, PartialEq::eq)
    }
}
