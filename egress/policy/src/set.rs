//! All policies of an installation, checked together; and the engine for one session's part.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use base_config::Problem;

use crate::conflicts;
use crate::decide::Engine;
use crate::decision::RuleRef;
use crate::host::HostPattern;
use crate::identity::Identity;
use crate::model::{Action, Layer, Policy, Redaction, Unmatched};
use crate::problem::{PolicyErrors, Report, Source};
use crate::read;

/// More policies than this are refused: checking them compares each with each.
const POLICIES_MAX: usize = 2_000;
/// Rules of all policies together.
const RULES_MAX: usize = 20_000;

/// Counts the versions of an installation's policies, upwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a gate can do. An action that needs more is refused when policies are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machinery {
    /// Hold a request until a person answers.
    pub ask: bool,
    /// Sign requests.
    pub sign: bool,
    /// Reach private services through a connector.
    pub route: bool,
    /// Run the operator's code.
    pub middleware: bool,
    /// Black out texts while a response streams.
    pub redact_texts: bool,
}

/// Where a secret may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretBinding {
    pub hosts: Vec<HostPattern>,
    pub plain_http: bool,
}

/// Against what policies are checked.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub revision: Revision,
    pub machinery: Machinery,
    /// The secrets there are. `None`: not known here, so that nothing is said about them.
    pub secrets: Option<BTreeMap<String, SecretBinding>>,
}

#[derive(Debug)]
pub struct PolicySet {
    revision: Revision,
    policies: Vec<Placed>,
    warnings: Vec<Problem>,
}

#[derive(Debug)]
struct Placed {
    policy: Policy,
    rules: Vec<RuleRef>,
}

/// Which policies are for a session. Sessions with the same one share an engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selection {
    revision: Revision,
    policies: Box<[u32]>,
}

impl PolicySet {
    /// Reads and checks them all; with one mistake in one of them, none is taken.
    pub fn compile(sources: &[Source], setup: &Setup) -> Result<PolicySet, PolicyErrors> {
        let mut report = Report::default();
        if sources.len() > POLICIES_MAX {
            let what = format!("there are more than {POLICIES_MAX} policies");
            report.problem(&base_config::Place::Nowhere, what, "put rules together");
        }
        // What is beyond is not read: the set is refused already.
        let sources = sources.get(..POLICIES_MAX).unwrap_or(sources);
        let policies: Vec<Policy> =
            sources.iter().filter_map(|source| read::policy(source, &mut report)).collect();
        check_names(&policies, &mut report);
        policies.iter().for_each(|policy| check_machinery(policy, setup, &mut report));
        let rules: usize = policies.iter().map(|policy| policy.rules.len()).sum();
        match rules > RULES_MAX {
            true => {
                let what = format!("there are more than {RULES_MAX} rules");
                report.problem(&base_config::Place::Nowhere, what, "put rules together");
            }
            false => conflicts::check(&policies, setup, &mut report),
        }
        let (policies, warnings) = report.into_result(policies)?;
        Ok(PolicySet { revision: setup.revision, policies: in_rank(policies), warnings })
    }

    /// What is right and yet looks like a slip.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Every policy, first in rank first.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().map(|placed| &placed.policy)
    }

    /// The policies that are for that session.
    pub fn select(&self, identity: &Identity) -> Selection {
        let policies = self.policies.iter().zip(0..);
        let policies = policies.filter(|(placed, _)| placed.policy.select.holds(identity));
        Selection { revision: self.revision, policies: policies.map(|(_, place)| place).collect() }
    }

    /// The engine for a selection of this set. Another set's opens nothing.
    pub fn engine(&self, selection: &Selection) -> Engine {
        let is_own = selection.revision == self.revision;
        let places = selection.policies.iter().filter(|_| is_own);
        let selected: Vec<&Placed> =
            places.filter_map(|place| self.policies.get(*place as usize)).collect();
        let mut closed = [true, false, false, false];
        for placed in &selected {
            closed[placed.policy.layer.place()] |= placed.policy.unmatched == Unmatched::Deny;
        }
        let rules = selected.iter().flat_map(|placed| placed.rules.iter().cloned()).collect();
        Engine::new(self.revision, rules, closed)
    }

    pub fn engine_for(&self, identity: &Identity) -> Arc<Engine> {
        Arc::new(self.engine(&self.select(identity)))
    }
}

/// The narrower layer first, then the higher priority, then the name. Rules keep their order.
fn in_rank(mut policies: Vec<Policy>) -> Vec<Placed> {
    policies.sort_by(|a, b| {
        let rank = |policy: &Policy| (std::cmp::Reverse(policy.layer), -policy.priority);
        rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))
    });
    let placed = |policy: Policy| {
        let rules = policy.rules.iter().cloned();
        let rules = rules.map(|rule| RuleRef::new(&policy.name, policy.layer, rule)).collect();
        Placed { policy, rules }
    };
    policies.into_iter().map(placed).collect()
}

fn check_names(policies: &[Policy], report: &mut Report) {
    let mut names = BTreeSet::new();
    for policy in policies {
        if !names.insert(policy.name.as_str()) {
            let what = format!("there is another policy `{}`", policy.name);
            report.problem(&policy.place, what, "rename one of them");
        }
    }
}

/// An action that the gate cannot carry out is refused, never ignored.
fn check_machinery(policy: &Policy, setup: &Setup, report: &mut Report) {
    let Machinery { ask, sign, route, middleware, redact_texts } = setup.machinery;
    for rule in &policy.rules {
        let missing = match &rule.action {
            Action::Ask if !ask => "hold a request until a person answers",
            Action::Sign(_) if !sign => "sign requests",
            Action::Route { .. } if !route => "reach private services",
            Action::Middleware { .. } if !middleware => "run code of the operator's",
            Action::Redact(Redaction { texts, .. }) if !texts.is_empty() && !redact_texts => {
                "black out texts in a response's body"
            }
            _ => continue,
        };
        let what = format!(
            "rule `{}`: this version's gate cannot {missing}, so the action `{}` would do nothing",
            rule.id,
            rule.action.name()
        );
        report.problem(&rule.place, what, "remove the rule");
    }
}

impl Layer {
    pub(crate) fn place(self) -> usize {
        self as usize
    }
}
