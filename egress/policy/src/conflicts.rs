//! What is wrong between rules, and between rules and secrets.
//!
//! An error is what would not do what it says: a secret that may not go where a rule sends it, two
//! policies of one rank that add the same thing, TLS that is to be passed through and looked into.
//! A warning is what never decides. Rules are compared one with one: what several together leave
//! nothing of is not found, and nothing is reported that could decide.

use crate::decide::adds_the_same;
use crate::host::{Host, HostPattern};
use crate::index::Index;
use crate::model::{Action, Effect, Layer, Policy, Rule, Unmatched};
use crate::outline::Outline;
use crate::problem::Report;
use crate::request::Scheme;
use crate::set::{SecretBinding, Setup};
use crate::table::nearest;

/// A rule with its policy.
#[derive(Clone, Copy)]
struct In<'p> {
    policy: &'p Policy,
    rule: &'p Rule,
    /// In which order the rules were read.
    number: usize,
}

impl<'p> In<'p> {
    fn effect(self) -> Effect {
        self.rule.action.effect()
    }

    /// As another policy names it.
    fn named(self, from: &Policy) -> String {
        match from.name == self.policy.name {
            true => format!("rule `{}`", self.rule.id),
            false => format!("rule `{}` of policy `{}`", self.rule.id, self.policy.name),
        }
    }

    /// Whether some session may have both.
    fn meets(self, other: In<'p>) -> bool {
        self.policy.select.overlaps(&other.policy.select)
            && self.rule.conditions.may_meet(&other.rule.conditions)
    }

    /// Whether it holds for all that the other one holds for, in every session of the other one.
    fn covers(self, other: In<'p>) -> bool {
        self.rule.conditions.cover(&other.rule.conditions)
            && self.policy.select.covers(&other.policy.select)
    }
}

pub(crate) fn check(policies: &[Policy], setup: &Setup, report: &mut Report) {
    let rules = policies.iter().flat_map(|policy| policy.rules.iter().map(move |r| (policy, r)));
    let rules: Vec<In<'_>> =
        rules.enumerate().map(|(number, (policy, rule))| In { policy, rule, number }).collect();
    policies.iter().for_each(|policy| check_opens_something(policy, report));
    let mut index = Index::default();
    rules.iter().for_each(|one| index.add(&one.rule.conditions));
    for one in &rules {
        check_secret(*one, setup, report);
        check_shadowed(*one, &rules, &index, report);
        match one.effect() {
            Effect::Opens if one.rule.action == Action::PassThrough => {
                check_pass_through(*one, &rules, report);
            }
            Effect::Opens => check_raw(*one, &rules, report),
            Effect::Adds => {
                check_added_twice(*one, &rules, report);
                check_is_opened(*one, &rules, report);
            }
            Effect::Narrows => check_is_opened(*one, &rules, report),
            Effect::Closes => {}
        }
    }
}

fn check_opens_something(policy: &Policy, report: &mut Report) {
    let opens = policy.rules.iter().any(|rule| rule.action.effect() == Effect::Opens);
    if opens || policy.layer == Layer::Deployment || policy.unmatched == Unmatched::Inherit {
        return;
    }
    let what = format!(
        "policy `{}` opens nothing, so that its sessions reach nothing unless another {} policy \
         opens it",
        policy.name, policy.layer
    );
    let fix = "if it should only take away, set unmatched = \"inherit\"";
    report.warning(&policy.place, what, fix);
}

fn check_secret(one: In<'_>, setup: &Setup, report: &mut Report) {
    let Some(secret) = one.rule.action.secret() else { return };
    let In { rule, .. } = one;
    let over_http = rule.conditions.schemes.contains(&Scheme::Http);
    let Some(secrets) = &setup.secrets else {
        if over_http {
            let what = format!("rule `{}` sends secret `{secret}` over plain HTTP", rule.id);
            let fix = "leave out `http`, unless the secret's binding says that it may";
            report.warning(&rule.place, what, fix);
        }
        return;
    };
    let Some(binding) = secrets.get(secret) else {
        let what = format!("rule `{}`: there is no secret `{secret}`", rule.id);
        let fix = match nearest(secret, secrets.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "set it first".to_owned(),
        };
        return report.problem(&rule.place, what, fix);
    };
    if over_http && !binding.plain_http {
        let what = format!("rule `{}` sends secret `{secret}` over plain HTTP", rule.id);
        report.problem(&rule.place, what, "leave out `http`: the secret is bound to https");
    }
    check_binding(one, secret, binding, report);
}

fn check_binding(one: In<'_>, secret: &str, binding: &SecretBinding, report: &mut Report) {
    let In { rule, .. } = one;
    if binding.hosts.is_empty() {
        let what = format!("rule `{}`: secret `{secret}` is bound to no host", rule.id);
        return report.problem(&rule.place, what, "bind it to the hosts it is for");
    }
    let is_bound = |host: &&HostPattern| binding.hosts.iter().any(|bound| bound.covers(host));
    for host in rule.conditions.hosts.iter().filter(|host| !is_bound(host)) {
        let bound: Vec<String> = binding.hosts.iter().map(ToString::to_string).collect();
        let what =
            format!("rule `{}` sends secret `{secret}` to {host}, where it is not bound", rule.id);
        report.problem(&rule.place, what, format!("it is bound to {}", bound.join(", ")));
    }
}

/// A host of the rule's. What covers the rule holds for this one too.
fn one_host(rule: &Rule) -> Option<Host> {
    match rule.conditions.hosts.first() {
        Some(HostPattern::Exact(host)) => Some(host.clone()),
        Some(HostPattern::EveryName) => Host::parse("some.host").ok(),
        Some(HostPattern::OneBelow { parent, .. } | HostPattern::Below { parent, .. }) => {
            Host::parse(&format!("x.{}", parent.as_str())).ok()
        }
        None => None,
    }
}

fn check_shadowed(one: In<'_>, rules: &[In<'_>], index: &Index, report: &mut Report) {
    let host = one_host(one.rule);
    let places = match &host {
        Some(host) => index.candidates(host, None, Outline::EVERYTHING),
        None => index.for_every_host().to_vec(),
    };
    let near: Vec<In<'_>> =
        places.iter().filter_map(|place| rules.get(*place as usize).copied()).collect();
    if one.effect() != Effect::Closes {
        let closed = |by: &&In<'_>| by.effect() == Effect::Closes && by.covers(one);
        if let Some(by) = near.iter().find(closed) {
            let what = format!(
                "rule `{}` never does anything: {} denies all that it is about",
                one.rule.id,
                by.named(one.policy)
            );
            return report.warning(
                &one.rule.place,
                what,
                "remove one of them, or narrow the denial",
            );
        }
    }
    // A range does not only bound what a rule opens: it names what is not the internet.
    let names_as_much = |by: &In<'_>| {
        let (by, one) = (&by.rule.conditions.nets, &one.rule.conditions.nets);
        by.is_empty() == one.is_empty() && one.iter().all(|net| by.contains(net))
    };
    let does_the_same = |by: &In<'_>| match one.effect() {
        Effect::Opens => by.rule.action == one.rule.action && names_as_much(by),
        Effect::Closes => by.rule.action == one.rule.action,
        Effect::Adds => adds_the_same(&by.rule.action, &one.rule.action),
        Effect::Narrows => false,
    };
    let before = |by: &&In<'_>| {
        by.number < one.number
            && std::ptr::eq(by.policy, one.policy)
            && does_the_same(by)
            && by.covers(one)
    };
    if let Some(by) = near.iter().find(before) {
        let what = format!(
            "rule `{}` never decides: {} before it does the same for all that it is about",
            one.rule.id,
            by.named(one.policy)
        );
        report.warning(&one.rule.place, what, "remove it");
    }
}

fn check_pass_through(one: In<'_>, rules: &[In<'_>], report: &mut Report) {
    let looks_inside = |other: &&In<'_>| match other.effect() {
        Effect::Opens => other.rule.action == Action::Ask && other.rule.conditions.needs_http(),
        Effect::Closes => other.rule.conditions.needs_http(),
        Effect::Adds => true,
        Effect::Narrows => match &other.rule.action {
            Action::Limit(limits) => limits.body.is_some() || other.rule.conditions.needs_http(),
            _ => true,
        },
    };
    if let Some(other) = rules.iter().find(|other| looks_inside(other) && one.meets(**other)) {
        let what = format!(
            "rule `{}` passes through what {} has to look into, so it would be intercepted after \
             all",
            one.rule.id,
            other.named(one.policy)
        );
        report.problem(&one.rule.place, what, "give one of them other hosts");
    }
}

fn check_raw(one: In<'_>, rules: &[In<'_>], report: &mut Report) {
    if !one.rule.conditions.schemes.contains(&Scheme::Tcp) {
        return;
    }
    let unseen = |other: &&In<'_>| {
        other.effect() == Effect::Closes
            && other.rule.conditions.needs_http()
            && !other.rule.conditions.hosts.is_empty()
            && one.meets(**other)
    };
    if let Some(other) = rules.iter().find(unseen) {
        let what = format!(
            "rule `{}` opens raw connections, which are not looked into: {} denies nothing on \
             them",
            one.rule.id,
            other.named(one.policy)
        );
        report.warning(&one.rule.place, what, "give it other hosts or ports");
    }
}

fn check_added_twice(one: In<'_>, rules: &[In<'_>], report: &mut Report) {
    let same_rank = |other: &&In<'_>| {
        other.number < one.number
            && other.policy.name != one.policy.name
            && other.policy.layer == one.policy.layer
            && other.policy.priority == one.policy.priority
            && adds_the_same(&other.rule.action, &one.rule.action)
            && one.meets(**other)
    };
    if let Some(other) = rules.iter().find(same_rank) {
        let what = format!(
            "rule `{}` and {} add the same to the same requests, and neither has priority",
            one.rule.id,
            other.named(one.policy)
        );
        report.problem(&one.rule.place, what, "give one of the policies a higher `priority`");
    }
}

fn check_is_opened(one: In<'_>, rules: &[In<'_>], report: &mut Report) {
    let opens = |other: &In<'_>| other.effect() == Effect::Opens && one.meets(*other);
    if !rules.iter().any(opens) {
        let what = format!("rule `{}` never does anything: no rule opens its hosts", one.rule.id);
        report.warning(&one.rule.place, what, "open them, or remove it");
    }
}
