//! What the engine answers: the verdict, the rule that decided, why, and what is to be done on the
//! way.

use std::fmt;
use std::sync::Arc;

use crate::matcher::Doubt;
use crate::model::{Action, Injection, Layer, Limits, Redaction, Rule, Signing};
use crate::permit::{AddressRefused, Permit};
use crate::request::{Destination, Malformed};

/// A rule with its address: the policy and the layer that it stands in.
#[derive(Clone)]
pub struct RuleRef(Arc<Placed>);

#[derive(Debug)]
pub(crate) struct Placed {
    pub policy: String,
    pub layer: Layer,
    pub rule: Rule,
}

#[derive(Debug)]
#[must_use]
pub enum Decision {
    Allow(Allowance),
    /// A person is asked; only their yes gives the permit.
    Ask(Question),
    Deny(Denial),
}

#[derive(Debug)]
pub struct Allowance {
    pub permit: Permit,
    pub obligations: Obligations,
    /// The first rule, in the order of rank, that opens it.
    pub rule: RuleRef,
}

#[derive(Debug)]
pub struct Question {
    allowance: Allowance,
    /// The rule that asks.
    pub rule: RuleRef,
}

/// What the gate does to a request that passes, each by the rules that say so, first in rank first.
#[derive(Clone, Debug, Default)]
pub struct Obligations {
    rules: Vec<RuleRef>,
}

#[derive(Clone, Debug)]
pub struct Denial {
    pub cause: Cause,
    /// What was asked for, as far as it could be read.
    pub asked_for: String,
}

#[derive(Clone, Debug)]
pub enum Cause {
    /// A rule closes it, in doubt or without.
    Closed {
        rule: RuleRef,
        doubt: Option<Doubt>,
    },
    /// No rule of a layer opens it. One might have, but for a doubt.
    NotOpened {
        layer: Layer,
        but_for: Option<(RuleRef, Doubt)>,
    },
    /// The address that it names.
    Address(AddressRefused),
    Malformed(Malformed),
}

/// What becomes of a connection before anything was sent on it.
#[derive(Debug)]
#[must_use]
pub enum Connection {
    /// Nothing that may come on it can pass.
    Refuse(Denial),
    /// HTTP, with each request decided by itself.
    Inspect,
    /// Not looked into: a raw connection, or TLS that a rule passes through.
    Opaque(Allowance),
    /// As `Opaque`, once a person has said yes.
    Ask(Question),
}

impl RuleRef {
    pub(crate) fn new(policy: &str, layer: Layer, rule: Rule) -> RuleRef {
        RuleRef(Arc::new(Placed { policy: policy.to_owned(), layer, rule }))
    }

    pub fn id(&self) -> &str {
        &self.0.rule.id
    }

    pub fn policy(&self) -> &str {
        &self.0.policy
    }

    pub fn layer(&self) -> Layer {
        self.0.layer
    }

    pub fn rule(&self) -> &Rule {
        &self.0.rule
    }
}

impl PartialEq for RuleRef {
    fn eq(&self, other: &RuleRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.layer(), self.policy(), self.id())
                == (other.layer(), other.policy(), other.id())
    }
}

impl Eq for RuleRef {}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}` of the {} policy `{}`", self.id(), self.layer(), self.policy())
    }
}

impl fmt::Debug for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.layer(), self.policy(), self.id())
    }
}

impl Decision {
    /// For logs and metrics.
    pub fn verdict(&self) -> &'static str {
        match self {
            Decision::Allow(_) => "allow",
            Decision::Ask(_) => "ask",
            Decision::Deny(_) => "deny",
        }
    }

    /// The rule that decided, where one did.
    pub fn rule(&self) -> Option<&RuleRef> {
        match self {
            Decision::Allow(allowance) => Some(&allowance.rule),
            Decision::Ask(question) => Some(&question.rule),
            Decision::Deny(denial) => denial.rule(),
        }
    }
}

impl Question {
    pub(crate) fn new(allowance: Allowance, rule: RuleRef) -> Question {
        Question { allowance, rule }
    }

    pub fn destination(&self) -> &Destination {
        self.allowance.permit.destination()
    }

    /// A person has said yes.
    pub fn confirmed(self) -> Allowance {
        self.allowance
    }
}

impl Denial {
    /// The rule that decided, where one did.
    pub fn rule(&self) -> Option<&RuleRef> {
        match &self.cause {
            Cause::Closed { rule, .. } | Cause::Address(AddressRefused::Closed { rule, .. }) => {
                Some(rule)
            }
            Cause::NotOpened { .. } | Cause::Address(_) | Cause::Malformed(_) => None,
        }
    }

    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match &self.cause {
            Cause::Closed { .. } => "closed-by-rule",
            Cause::NotOpened { .. } => "not-opened",
            Cause::Address(_) => "address-refused",
            Cause::Malformed(_) => "malformed",
        }
    }

    /// For whoever runs the installation: names rule, policy and layer.
    pub fn for_operator(&self) -> String {
        let asked = &self.asked_for;
        match &self.cause {
            Cause::Closed { rule, doubt } => {
                let mut text = format!("{asked}: closed by {rule}");
                if let Some(doubt) = doubt {
                    text.push_str(&format!(", in doubt: {doubt}"));
                }
                with_reason(text, rule)
            }
            Cause::NotOpened { layer, but_for: Some((rule, doubt)) } => {
                format!("{asked}: no {layer} rule opens it; {rule} does not: {doubt}")
            }
            Cause::NotOpened { layer, but_for: None } => {
                format!("{asked}: no {layer} rule opens it")
            }
            Cause::Address(refused) => format!("{asked}: {refused}"),
            Cause::Malformed(malformed) => format!("{asked}: {malformed}"),
        }
    }

    /// For the model: what it can act on, without the installation's rules.
    pub fn for_model(&self) -> String {
        let asked = &self.asked_for;
        match &self.cause {
            Cause::Closed { rule, doubt: None } => {
                with_reason(format!("{asked} is denied by the network policy"), rule)
            }
            Cause::Closed { rule, doubt: Some(doubt) } => {
                with_reason(format!("{asked} is denied by the network policy, as {doubt}"), rule)
            }
            Cause::NotOpened { but_for: Some((_, doubt)), .. } => {
                format!("{asked} is not allowed by the network policy, as {doubt}")
            }
            Cause::NotOpened { but_for: None, .. } => {
                format!("{asked} is not allowed by the network policy")
            }
            Cause::Address(_) => {
                format!("{asked} is not allowed by the network policy: its address is closed")
            }
            Cause::Malformed(malformed) => format!("{asked} cannot be sent: {malformed}"),
        }
    }
}

fn with_reason(text: String, rule: &RuleRef) -> String {
    match &rule.rule().reason {
        Some(reason) => format!("{text}: {reason}"),
        None => text,
    }
}

impl Obligations {
    pub(crate) fn new(rules: Vec<RuleRef>) -> Obligations {
        Obligations { rules }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules themselves, first in rank first.
    pub fn rules(&self) -> &[RuleRef] {
        &self.rules
    }

    fn each<'o, T>(
        &'o self,
        of: impl Fn(&'o Action) -> Option<T> + 'o,
    ) -> impl Iterator<Item = (&'o RuleRef, T)> {
        self.rules.iter().filter_map(move |rule| Some((rule, of(&rule.rule().action)?)))
    }

    pub fn injections(&self) -> impl Iterator<Item = (&RuleRef, &Injection)> {
        self.each(|action| match action {
            Action::Inject(injection) => Some(injection),
            _ => None,
        })
    }

    pub fn signatures(&self) -> impl Iterator<Item = (&RuleRef, &Signing)> {
        self.each(|action| match action {
            Action::Sign(signing) => Some(signing),
            _ => None,
        })
    }

    pub fn middleware(&self) -> impl Iterator<Item = (&RuleRef, &str)> {
        self.each(|action| match action {
            Action::Middleware { name } => Some(name.as_str()),
            _ => None,
        })
    }

    /// Every one of them holds.
    pub fn limits(&self) -> impl Iterator<Item = (&RuleRef, &Limits)> {
        self.each(|action| match action {
            Action::Limit(limits) => Some(limits),
            _ => None,
        })
    }

    pub fn redactions(&self) -> impl Iterator<Item = (&RuleRef, &Redaction)> {
        self.each(|action| match action {
            Action::Redact(redaction) => Some(redaction),
            _ => None,
        })
    }
}
