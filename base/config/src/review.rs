//! Rules that choose nothing: mistakes that no session will ever show.
//!
//! A rule is looked at beside each *one* before it; what several together leave nothing of is not
//! found. A profile that holds for every session is never reported: it is what the unforeseen
//! falls to.

use std::fmt;

use base_types::{ProfileName, TenantId};

use crate::credential::shown;
use crate::problem::Problem;
use crate::section::nearest;
use crate::types::{Config, Match, Profile, Tenancy};

/// A match that never decides, or a profile of which none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub profile: ProfileName,
    /// Counted from 1; `None` when it is the whole profile.
    pub number: Option<usize>,
    pub problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// An earlier rule takes every session that it holds for, wherever the file is used.
    Unreachable,
    /// No session of the environments served here can come to it.
    Unused,
}

impl FindingKind {
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Unreachable => "unreachable",
            FindingKind::Unused => "unused",
        }
    }
}

/// A rule with its address.
#[derive(Clone, Copy)]
struct Rule<'c> {
    profile: &'c Profile,
    number: usize,
    rule: &'c Match,
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "profile `{}`, match {}", shown(self.profile.name.as_str()), self.number)
    }
}

/// Why a rule takes no session of one environment.
enum Barrier<'c> {
    OtherEnvironment,
    /// Those for which the rest holds are of this tenant.
    Tenant(&'c str),
    Earlier(Rule<'c>),
}

/// Everything that is unreachable or unused, in the order of the file.
pub(crate) fn review(profiles: &[Profile], tenancies: &[Tenancy]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut earlier: Vec<Rule<'_>> = Vec::new();
    for profile in profiles {
        let before = findings.len();
        for (index, rule) in profile.matches.iter().enumerate() {
            let rule = Rule { profile, number: index + 1, rule };
            match unreachable(rule, &earlier).or_else(|| unused(rule, &earlier, tenancies)) {
                Some(finding) => findings.push(finding),
                None => earlier.push(rule),
            }
        }
        let of_profile = &findings[before..];
        if !profile.matches.is_empty() && of_profile.len() == profile.matches.len() {
            findings.push(whole_profile(profile, of_profile));
        }
    }
    findings
}

fn whole_profile(profile: &Profile, of_profile: &[Finding]) -> Finding {
    let served_elsewhere = of_profile.iter().any(|of| of.kind == FindingKind::Unused);
    let (kind, here) = match served_elsewhere {
        true => (FindingKind::Unused, " here"),
        false => (FindingKind::Unreachable, ""),
    };
    let what = format!(
        "profile `{}` is never chosen{here}: none of its matches decides",
        shown(profile.name.as_str())
    );
    let problem = Problem { place: profile.place.clone(), what, fix: None };
    Finding { kind, profile: profile.name.clone(), number: None, problem }
}

impl Rule<'_> {
    fn finding(self, kind: FindingKind, why: &str, fix: Option<String>) -> Finding {
        let problem =
            Problem { place: self.rule.place.clone(), what: format!("{self} {why}"), fix };
        let profile = self.profile.name.clone();
        Finding { kind, profile, number: Some(self.number), problem }
    }

    fn moved_before(self, other: Rule<'_>) -> String {
        match self.profile.name == other.profile.name {
            true => "remove it".to_owned(),
            false => format!(
                "put profile `{}` before `{}`, or remove the match",
                shown(self.profile.name.as_str()),
                shown(other.profile.name.as_str())
            ),
        }
    }
}

fn unreachable<'c>(rule: Rule<'c>, earlier: &[Rule<'c>]) -> Option<Finding> {
    let by = earlier.iter().find(|other| other.rule.covers(rule.rule))?;
    let why = format!("never decides: {by} before it holds for every session that it names");
    Some(rule.finding(FindingKind::Unreachable, &why, Some(rule.moved_before(*by))))
}

fn unused<'c>(rule: Rule<'c>, earlier: &[Rule<'c>], tenancies: &'c [Tenancy]) -> Option<Finding> {
    let barriers: Option<Vec<(&Tenancy, Barrier<'_>)>> = tenancies
        .iter()
        .map(|tenancy| Some((tenancy, barrier(rule.rule, earlier, tenancy)?)))
        .collect();
    let mut barriers = barriers?;
    if barriers.is_empty() {
        return None;
    }
    barriers.retain(|(_, barrier)| !matches!(barrier, Barrier::OtherEnvironment));
    let finding = |why: String, fix| Some(rule.finding(FindingKind::Unused, &why, fix));
    let Some((tenancy, barrier)) = barriers.first() else {
        let named = rule.rule.environment.as_ref().map_or("", |environment| environment.as_str());
        let known = tenancies.iter().map(|tenancy| tenancy.environment.as_str());
        let why = format!("never decides here: environment `{}` is not served", shown(named));
        return finding(why, nearest(named, known).map(did_you_mean));
    };
    let by_order = barriers.iter().find_map(|(_, barrier)| match barrier {
        Barrier::Earlier(by) => Some(*by),
        _ => None,
    });
    match (by_order, barrier) {
        (Some(by), _) => {
            let why = format!("never decides here: {by} before it takes its sessions");
            finding(why, Some(rule.moved_before(by)))
        }
        (None, Barrier::Tenant(tenant)) => {
            let named = rule.rule.tenant.as_ref().map_or("", TenantId::as_str);
            let (environment, is) = (tenancy.environment.as_str(), *tenant);
            let why = match barriers.len() {
                1 => format!(
                    "never decides here: such sessions of environment `{}` are of tenant `{}`, \
                     not `{}`",
                    shown(environment),
                    shown(is),
                    shown(named)
                ),
                _ => format!(
                    "never decides here: no environment gives such sessions tenant `{}`",
                    shown(named)
                ),
            };
            let given = barriers.iter().filter_map(|(_, barrier)| match barrier {
                Barrier::Tenant(tenant) => Some(*tenant),
                _ => None,
            });
            finding(why, nearest(named, given).map(did_you_mean))
        }
        (None, _) => None,
    }
}

fn did_you_mean(near: &str) -> String {
    format!("did you mean `{near}`?")
}

/// Why that rule takes no session of that environment, if it takes none.
fn barrier<'c>(rule: &'c Match, earlier: &[Rule<'c>], tenancy: &'c Tenancy) -> Option<Barrier<'c>> {
    if rule.environment.as_ref().is_some_and(|named| *named != tenancy.environment) {
        return Some(Barrier::OtherEnvironment);
    }
    let known = tenant_of(rule, tenancy);
    if let (Some(named), Some(known)) = (&rule.tenant, known)
        && named.as_str() != known
    {
        return Some(Barrier::Tenant(known));
    }
    // The rule as it reads for this environment's sessions, with all that is known of them.
    let here = Match {
        environment: Some(tenancy.environment.clone()),
        tenant: known.map(TenantId::from).or_else(|| rule.tenant.clone()),
        ..rule.clone()
    };
    earlier.iter().find(|other| other.rule.covers(&here)).map(|other| Barrier::Earlier(*other))
}

/// The tenant of every session of that environment that the rule's metadata holds for, where they
/// all have the same.
fn tenant_of<'c>(rule: &'c Match, tenancy: &'c Tenancy) -> Option<&'c str> {
    let Some(key) = &tenancy.metadata_key else { return Some(tenancy.tenant.as_str()) };
    match rule.metadata.get(key)?.as_str() {
        "" => Some(tenancy.tenant.as_str()),
        named => Some(named),
    }
}

impl Match {
    /// Whether it holds for every session that the other one holds for: all that it names, the
    /// other names too.
    fn covers(&self, other: &Match) -> bool {
        fn named<T: PartialEq>(wide: &Option<T>, narrow: &Option<T>) -> bool {
            wide.is_none() || wide == narrow
        }
        named(&self.environment, &other.environment)
            && named(&self.agent, &other.agent)
            && named(&self.tenant, &other.tenant)
            && self.metadata.iter().all(|(key, value)| other.metadata.get(key) == Some(value))
    }
}

impl Config {
    /// Rules that choose nothing. Each is among [`Config::warnings`] too.
    pub fn review(&self) -> Vec<Finding> {
        review(&self.profiles, &self.tenancies)
    }
}
