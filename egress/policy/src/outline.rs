//! A rule, or what is asked for, in eight bytes.
//!
//! **Invariant:** an outline holds for all that its rule may hold for, so that two which do not meet
//! have nothing in common.

use crate::matcher::{Facts, Http};
use crate::model::Conditions;
use crate::request::Scheme;

/// What of a rule is seen without looking at the rule: most are ruled out by it, and a thousand of
/// these fit into the processor's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outline {
    methods: u16,
    schemes: u8,
    first_port: u16,
    last_port: u16,
}

impl Outline {
    pub const EVERYTHING: Outline =
        Outline { methods: u16::MAX, schemes: u8::MAX, first_port: 0, last_port: u16::MAX };

    /// Of a rule: everything that it may hold for.
    pub fn of_rule(conditions: &Conditions) -> Outline {
        let Conditions { methods, schemes, ports, .. } = conditions;
        let methods = methods.iter().map(|method| method_bit(method)).reduce(|a, b| a | b);
        let schemes = schemes.iter().map(|scheme| scheme_bit(*scheme)).reduce(|a, b| a | b);
        Outline {
            methods: methods.unwrap_or(u16::MAX),
            schemes: schemes.unwrap_or(u8::MAX),
            first_port: ports.iter().map(|range| *range.start()).min().unwrap_or(0),
            last_port: ports.iter().map(|range| *range.end()).max().unwrap_or(u16::MAX),
        }
    }

    /// Of what is asked for: what is not known is everything.
    pub fn of_facts(facts: &Facts<'_>) -> Outline {
        let methods = match facts.http {
            Http::Seen(request) if !request.method_is_overridden() => method_bit(request.method),
            _ => u16::MAX,
        };
        Outline {
            methods,
            schemes: facts.scheme.map_or(u8::MAX, scheme_bit),
            first_port: facts.port.unwrap_or(0),
            last_port: facts.port.unwrap_or(u16::MAX),
        }
    }

    pub fn meets(&self, other: &Outline) -> bool {
        self.methods & other.methods != 0
            && self.schemes & other.schemes != 0
            && self.first_port <= other.last_port
            && other.first_port <= self.last_port
    }
}

fn scheme_bit(scheme: Scheme) -> u8 {
    1 << scheme as u8
}

/// One for each method that is common, in any case, and one for all others.
fn method_bit(method: &str) -> u16 {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let place = METHODS.iter().position(|known| known.eq_ignore_ascii_case(method));
    1 << place.unwrap_or(METHODS.len())
}
