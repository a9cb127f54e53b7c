//! The engine: the policies of one session, and its answers.
//!
//! Of the rules that hold, *deny* wins over *ask* and *ask* over *allow*, whatever their rank. A
//! request passes when a rule of the deployment opens it, and one of every other layer that does
//! not leave unmatched requests to those above. Rank says only which rule is named, and which of
//! two that add the same thing does so.
//!
//! **Invariant:** this is the one place where a [`Permit`] is made, and it is made after the
//! verdict.

use std::sync::Arc;

use crate::address::Net;
use crate::decision::{
    Allowance, Cause, Connection, Decision, Denial, Obligations, Question, RuleRef,
};
use crate::glob::Case;
use crate::host::{Host, HostPattern};
use crate::identity::Identity;
use crate::index::Index;
use crate::matcher::{Doubt, Facts, Held, Http, address_held, held};
use crate::model::{Action, Conditions, Effect, InjectionForm, Layer};
use crate::outline::Outline;
use crate::path::RequestPath;
use crate::permit::{Guard, Permit, Way};
use crate::request::{Destination, Malformed, Request, Scheme};
use crate::set::Revision;

const LAYERS: usize = Layer::ALL.len();

#[derive(Debug)]
pub struct Engine {
    revision: Revision,
    /// First in rank first.
    rules: Vec<RuleRef>,
    index: Option<Index>,
    /// Layers in which a request must be opened.
    closed: [bool; LAYERS],
    /// Ranges that are closed whatever else is asked for.
    closed_ranges: Arc<[(Net, RuleRef)]>,
}

/// The rules that hold, or may.
#[derive(Default)]
struct Tally<'e> {
    denied: Option<(&'e RuleRef, Option<Doubt>)>,
    /// Some rule may deny or ask, depending on what is not seen yet.
    may_hinder: bool,
    asked: Option<&'e RuleRef>,
    opened: [Vec<&'e RuleRef>; LAYERS],
    may_open: [bool; LAYERS],
    but_for: [Option<(&'e RuleRef, Doubt)>; LAYERS],
    obliges: Vec<&'e RuleRef>,
    /// Some rule that adds or narrows may hold, depending on what is not seen yet.
    may_oblige: bool,
    closed_ranges: Vec<(Net, RuleRef)>,
}

impl Engine {
    pub(crate) fn new(revision: Revision, rules: Vec<RuleRef>, closed: [bool; LAYERS]) -> Engine {
        let mut index = Index::default();
        let mut closed_ranges = Vec::new();
        for rule in &rules {
            let conditions = &rule.rule().conditions;
            if closes_ranges_only(rule) {
                index.skip();
                closed_ranges.extend(conditions.nets.iter().map(|net| (*net, rule.clone())));
            } else {
                index.add(conditions);
            }
        }
        let closed_ranges = closed_ranges.into();
        Engine { revision, rules, index: Some(index), closed, closed_ranges }
    }

    /// The same engine, asking every rule every time: what the index is compared with.
    #[must_use]
    pub fn without_index(mut self) -> Engine {
        self.index = None;
        self
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The rules for this session, first in rank first.
    pub fn rules(&self) -> &[RuleRef] {
        &self.rules
    }

    /// What becomes of a request.
    pub fn decide(&self, identity: &Identity, request: &Request<'_>) -> Decision {
        let tally = self.tally(identity, &Facts::of_request(request));
        let asked_for = || format!("{} {}", request.method, request.destination);
        if let Some(cause) = self.refusal(&tally, |_| false) {
            return Decision::Deny(Denial { cause, asked_for: asked_for() });
        }
        self.decision(&tally, &request.destination, asked_for)
    }

    /// What becomes of a connection before anything was sent on it.
    pub fn connect(&self, identity: &Identity, destination: &Destination) -> Connection {
        let tally = self.tally(identity, &Facts::of_connection(destination));
        let asked_for = || destination.to_string();
        let is_raw = destination.scheme == Scheme::Tcp;
        let may = |layer: Layer| !is_raw && tally.may_open[layer.place()];
        if let Some(cause) = self.refusal(&tally, may) {
            return Connection::Refuse(Denial { cause, asked_for: asked_for() });
        }
        if !is_raw && !self.passes_through(&tally) {
            return match self.literal_refusal(destination, &tally) {
                Some(cause) => Connection::Refuse(Denial { cause, asked_for: asked_for() }),
                None => Connection::Inspect,
            };
        }
        match self.decision(&tally, destination, asked_for) {
            Decision::Allow(allowance) => Connection::Opaque(allowance),
            Decision::Ask(question) => Connection::Ask(question),
            Decision::Deny(denial) => Connection::Refuse(denial),
        }
    }

    /// Whether DNS may answer for a name: some request to it could pass.
    pub fn could_allow(&self, identity: &Identity, host: &Host) -> Result<(), Denial> {
        let tally = self.tally(identity, &Facts::of_host(host));
        match self.refusal(&tally, |layer| tally.may_open[layer.place()]) {
            Some(cause) => Err(Denial { cause, asked_for: host.to_string() }),
            None => Ok(()),
        }
    }

    /// The refusal of what could not even be read, so that it has the form of all others.
    pub fn malformed(asked_for: &str, malformed: Malformed) -> Decision {
        /// What a guest wrote is shown shortened and without what steers a terminal.
        const SHOWN_CHARS_MAX: usize = 100;
        let asked_for = asked_for.chars().take(SHOWN_CHARS_MAX);
        let asked_for = asked_for.flat_map(char::escape_debug).collect();
        Decision::Deny(Denial { cause: Cause::Malformed(malformed), asked_for })
    }

    fn candidates(&self, facts: &Facts<'_>) -> Vec<u32> {
        let Some(index) = &self.index else { return (0..).take(self.rules.len()).collect() };
        let path = match facts.http {
            Http::Seen(Request { path: RequestPath::Clear(path), .. }) => Some(&**path),
            _ => None,
        };
        index.candidates(facts.host, path, Outline::of_facts(facts))
    }

    fn tally<'e>(&'e self, identity: &Identity, facts: &Facts<'_>) -> Tally<'e> {
        let mut tally = Tally::default();
        if let Some(address) = facts.host.address() {
            let closed = self.closed_ranges.iter().find(|(net, _)| net.contains(address));
            tally.denied = closed.map(|(_, rule)| (rule, None));
        }
        let places = self.candidates(facts).into_iter();
        for rule in places.filter_map(|place| self.rules.get(place as usize)) {
            tally.count(rule, facts, identity);
        }
        tally
    }

    /// Why nothing passes. `may` says of a layer that a rule may open it later.
    fn refusal(&self, tally: &Tally<'_>, may: impl Fn(Layer) -> bool) -> Option<Cause> {
        if let Some((rule, doubt)) = tally.denied {
            return Some(Cause::Closed { rule: rule.clone(), doubt });
        }
        let shut = Layer::ALL.into_iter().find(|layer| {
            let place = layer.place();
            self.closed[place] && tally.opened[place].is_empty() && !may(*layer)
        })?;
        let but_for = tally.but_for[shut.place()];
        Some(Cause::NotOpened {
            layer: shut,
            but_for: but_for.map(|(rule, doubt)| (rule.clone(), doubt)),
        })
    }

    /// Whether TLS may go through unseen: nothing that may hold needs to look inside.
    fn passes_through(&self, tally: &Tally<'_>) -> bool {
        let is_pass_through = |rule: &&RuleRef| rule.rule().action == Action::PassThrough;
        let wanted = tally.opened.iter().flatten().any(is_pass_through);
        let all_open = Layer::ALL
            .into_iter()
            .all(|layer| !self.closed[layer.place()] || !tally.opened[layer.place()].is_empty());
        let unseen = |rule: &&&RuleRef| match &rule.rule().action {
            Action::Limit(limits) => limits.body.is_none(),
            _ => false,
        };
        let obliges_unseen = tally.obliges.iter().all(|rule| unseen(&rule));
        wanted && all_open && obliges_unseen && !tally.may_hinder && !tally.may_oblige
    }

    /// The one place where permits are made: every closed layer is open, and nothing denies.
    fn decision(
        &self,
        tally: &Tally<'_>,
        destination: &Destination,
        asked_for: impl FnOnce() -> String,
    ) -> Decision {
        let guard = self.guard(tally, destination);
        let routed = tally.opened.iter().flatten().find_map(|rule| match &rule.rule().action {
            Action::Route { service } => Some(service.clone()),
            _ => None,
        });
        let way = routed.map_or(Way::Internet, Way::Service);
        if let (Way::Internet, Some(literal)) = (&way, guard.literal)
            && let Err(refused) = guard.check(literal)
        {
            return Decision::Deny(Denial {
                cause: Cause::Address(refused),
                asked_for: asked_for(),
            });
        }
        let narrowest = tally.opened.iter().rev().find_map(|rules| rules.first());
        let Some(rule) = narrowest.map(|rule| (*rule).clone()) else {
            let cause = Cause::NotOpened { layer: Layer::Deployment, but_for: None };
            return Decision::Deny(Denial { cause, asked_for: asked_for() });
        };
        let permit = Permit::new(destination.clone(), way, self.revision, guard);
        let allowance = Allowance { permit, obligations: obligations(&tally.obliges), rule };
        match tally.asked {
            Some(asking) => Decision::Ask(Question::new(allowance, asking.clone())),
            None => Decision::Allow(allowance),
        }
    }

    fn literal_refusal(&self, destination: &Destination, tally: &Tally<'_>) -> Option<Cause> {
        let guard = self.guard(tally, destination);
        // With a rule that may open later, its ranges are not known to be missing yet.
        if tally.may_open.contains(&true) {
            return None;
        }
        let literal = guard.literal?;
        guard.check(literal).err().map(Cause::Address)
    }

    fn guard(&self, tally: &Tally<'_>, destination: &Destination) -> Guard {
        let [deployment, ..] = &tally.opened;
        let nets = |rules: &[&RuleRef]| -> Vec<Net> {
            rules.iter().flat_map(|rule| rule.rule().conditions.nets.iter().copied()).collect()
        };
        let restricted = |rules: &&Vec<&RuleRef>| {
            let has_nets = |rule: &&RuleRef| !rule.rule().conditions.nets.is_empty();
            !rules.is_empty() && rules.iter().all(has_nets)
        };
        let literal = destination.literal();
        let exact = HostPattern::Exact(destination.host.clone());
        Guard {
            literal,
            literal_is_named: literal.is_some()
                && deployment.iter().any(|rule| rule.rule().conditions.hosts.contains(&exact)),
            within: tally.opened.iter().filter(restricted).map(|rules| nets(rules)).collect(),
            named: nets(deployment),
            closed: tally.closed_ranges.clone(),
            always_closed: Arc::clone(&self.closed_ranges),
        }
    }
}

impl<'e> Tally<'e> {
    fn count(&mut self, rule: &'e RuleRef, facts: &Facts<'_>, identity: &Identity) {
        let conditions = &rule.rule().conditions;
        let action = &rule.rule().action;
        let effect = action.effect();
        let case = if effect.applies_in_doubt() { Case::Folded } else { Case::Exact };
        let holds = held(conditions, case, facts, identity);
        match (effect, holds) {
            (_, Held::No) => {}
            (Effect::Closes, holds) => self.count_closing(rule, facts, holds),
            (Effect::Opens, holds) => self.count_opening(rule, facts, holds),
            (Effect::Adds | Effect::Narrows, Held::Yes) => self.obliges.push(rule),
            (Effect::Adds | Effect::Narrows, Held::Unknown(Doubt::NotYet)) => {
                self.may_oblige = true;
            }
            (Effect::Narrows, Held::Unknown(_)) => self.obliges.push(rule),
            // A secret does not go where it is in doubt that it belongs.
            (Effect::Adds, Held::Unknown(_)) => {}
        }
    }

    fn count_closing(&mut self, rule: &'e RuleRef, facts: &Facts<'_>, holds: Held) {
        let doubt = match holds {
            Held::No => return,
            Held::Unknown(Doubt::NotYet) => {
                self.may_hinder = true;
                return;
            }
            Held::Unknown(doubt) => Some(doubt),
            Held::Yes => None,
        };
        let conditions = &rule.rule().conditions;
        match address_held(conditions, facts.host) {
            Held::No => {}
            Held::Yes => {
                self.denied.get_or_insert((rule, doubt));
            }
            // Decided when the name is resolved: the permit carries the ranges.
            Held::Unknown(_) if closes_ranges_only(rule) => {}
            Held::Unknown(_) => {
                let ranges = conditions.nets.iter().map(|net| (*net, rule.clone()));
                self.closed_ranges.extend(ranges);
            }
        }
    }

    fn count_opening(&mut self, rule: &'e RuleRef, facts: &Facts<'_>, holds: Held) {
        let conditions = &rule.rule().conditions;
        // Without a host, its ranges are for addresses; a name opens them when a rule names it.
        let by_range_only = conditions.hosts.is_empty() && facts.host.address().is_none();
        if by_range_only || address_held(conditions, facts.host) == Held::No {
            return;
        }
        let layer = rule.layer().place();
        match holds {
            Held::No => {}
            Held::Unknown(Doubt::NotYet) => {
                self.may_open[layer] = true;
                self.may_hinder |= rule.rule().action == Action::Ask;
            }
            Held::Unknown(doubt) => {
                self.but_for[layer].get_or_insert((rule, doubt));
                if rule.rule().action == Action::Ask {
                    self.asked.get_or_insert(rule);
                }
            }
            Held::Yes => {
                self.opened[layer].push(rule);
                if rule.rule().action == Action::Ask {
                    self.asked.get_or_insert(rule);
                }
            }
        }
    }
}

/// A rule that denies ranges and looks at nothing else.
fn closes_ranges_only(rule: &RuleRef) -> bool {
    let Conditions { schemes, hosts, ports, nets, .. } = &rule.rule().conditions;
    let looks_at_more =
        rule.rule().conditions.needs_http() || rule.rule().conditions.expression.is_some();
    rule.rule().action == Action::Deny
        && !nets.is_empty()
        && schemes.is_empty()
        && hosts.is_empty()
        && ports.is_empty()
        && !looks_at_more
}

/// Of two rules that add the same thing, the first in rank does.
fn obligations(rules: &[&RuleRef]) -> Obligations {
    let mut kept: Vec<RuleRef> = Vec::with_capacity(rules.len());
    for rule in rules {
        let adds_again = |other: &RuleRef| adds_the_same(&other.rule().action, &rule.rule().action);
        if !kept.iter().any(adds_again) {
            kept.push((*rule).clone());
        }
    }
    Obligations::new(kept)
}

pub(crate) fn adds_the_same(a: &Action, b: &Action) -> bool {
    match (a, b) {
        (Action::Inject(a), Action::Inject(b)) => match (&a.form, &b.form) {
            (InjectionForm::Header { name, .. }, InjectionForm::Header { name: other, .. }) => {
                name == other
            }
            (InjectionForm::Placeholder, InjectionForm::Placeholder) => a.secret == b.secret,
            _ => false,
        },
        (Action::Sign(_), Action::Sign(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Report, Source};
    use crate::{fuzz, read};

    /// An engine of rules that nobody compared with each other.
    fn unchecked(rules: &str) -> Engine {
        let text = format!("name = \"d\"\nlayer = \"deployment\"\n{rules}");
        let policy = read::policy(&Source::new("d.toml", text), &mut Report::default()).unwrap();
        let rules = policy.rules.into_iter();
        let rules = rules.map(|rule| RuleRef::new("d", Layer::Deployment, rule)).collect();
        Engine::new(Revision::default(), rules, [true, false, false, false])
    }

    /// The checks refuse such policies; the engine does not count on it.
    #[test]
    fn what_must_be_looked_into_is_intercepted_whatever_passes_it_through() {
        const PASS: &str =
            "[[rule]]\nid = \"p\"\naction = \"pass-through\"\nhost = \"a.example\"\n";
        let destination = Destination::new(Scheme::Https, "a.example", 443).unwrap();
        let connect = |more: &str| {
            let engine = unchecked(&format!("{PASS}[[rule]]\nid = \"r\"\n{more}\n"));
            engine.connect(&fuzz::identity(), &destination)
        };
        for more in [
            "action = \"ask\"\nhost = \"a.example\"\nmethod = \"POST\"",
            "action = \"deny\"\npath = \"/x\"",
            "action = \"deny\"\nwhen = 'request.path == \"/x\"'",
            "action = \"inject\"\nhost = \"a.example\"\nsecret = \"S\"",
            "action = \"inject\"\nhost = \"a.example\"\nsecret = \"S\"\npath = \"/x\"",
            "action = \"redact\"\nresponse_header = \"x\"",
            "action = \"limit\"\nbody = \"1B\"",
            "action = \"limit\"\npath = \"/x\"\nconcurrent = 1",
        ] {
            let connection = connect(more);
            assert!(matches!(connection, Connection::Inspect), "{more}: {connection:?}");
        }
        for more in
            ["action = \"limit\"\nconcurrent = 1", "action = \"deny\"\nhost = \"b.example\""]
        {
            let connection = connect(more);
            assert!(matches!(connection, Connection::Opaque(_)), "{more}: {connection:?}");
        }
        let asks = connect("action = \"ask\"\nhost = \"a.example\"");
        assert!(matches!(asks, Connection::Ask(_)), "{asks:?}");
        let denies = connect("action = \"deny\"\nhost = \"a.example\"");
        assert!(matches!(denies, Connection::Refuse(_)), "{denies:?}");
    }
}
