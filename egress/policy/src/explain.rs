//! Why a request is decided as it is: every rule of the session, and what speaks against it.

use crate::decide::Engine;
use crate::decision::RuleRef;
use crate::glob::Case;
use crate::identity::Identity;
use crate::matcher::{Facts, Held, address_held, held};
use crate::model::Conditions;
use crate::request::Request;

/// One rule beside one request.
#[derive(Clone, Debug)]
pub struct Considered {
    pub rule: RuleRef,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Holds,
    /// It holds for the addresses in its ranges, which the host's name may lead to.
    HoldsInRange,
    /// These keys speak against it.
    Misses(Vec<&'static str>),
    /// It depends on something that cannot be told; whether that counts is its effect's to say.
    InDoubt {
        why: String,
        counts: bool,
    },
}

impl Engine {
    /// Every rule, first in rank first.
    pub fn explain(&self, identity: &Identity, request: &Request<'_>) -> Vec<Considered> {
        let facts = Facts::of_request(request);
        let consider = |rule: &RuleRef| {
            let outcome = outcome(rule, &facts, identity);
            Considered { rule: rule.clone(), outcome }
        };
        self.rules().iter().map(consider).collect()
    }
}

fn outcome(rule: &RuleRef, facts: &Facts<'_>, identity: &Identity) -> Outcome {
    let conditions = &rule.rule().conditions;
    let counts = rule.rule().action.effect().applies_in_doubt();
    let case = if counts { Case::Folded } else { Case::Exact };
    let held = |conditions: &Conditions| held(conditions, case, facts, identity);
    let address = address_held(conditions, facts.host);
    match (held(conditions), address) {
        (Held::Yes, Held::Yes) => Outcome::Holds,
        (Held::Yes, Held::Unknown(_)) => Outcome::HoldsInRange,
        (Held::Unknown(doubt), Held::Yes | Held::Unknown(_)) => {
            Outcome::InDoubt { why: doubt.to_string(), counts }
        }
        (_, Held::No) | (Held::No, _) => {
            let parts = parts(conditions);
            let missed = parts.iter().filter(|(_, part)| held(part) == Held::No);
            let mut misses: Vec<&'static str> = missed.map(|(key, _)| *key).collect();
            if address == Held::No {
                misses.push("cidr");
            }
            Outcome::Misses(misses)
        }
    }
}

/// Each condition by itself, with its key.
fn parts(conditions: &Conditions) -> [(&'static str, Conditions); 8] {
    let Conditions { schemes, hosts, ports, nets: _, methods, paths, query, headers, expression } =
        conditions.clone();
    let none = Conditions::default;
    [
        ("scheme", Conditions { schemes, ..none() }),
        ("host", Conditions { hosts, ..none() }),
        ("port", Conditions { ports, ..none() }),
        ("method", Conditions { methods, ..none() }),
        ("path", Conditions { paths, ..none() }),
        ("query", Conditions { query, ..none() }),
        ("header", Conditions { headers, ..none() }),
        ("when", Conditions { expression, ..none() }),
    ]
}
