//! Sandbox shapes and the rules that choose them.

use std::collections::BTreeMap;
use std::time::Duration;

use base_types::{AgentId, EnvironmentId, ProfileName, TenantId};

use crate::choose::DEFAULT_PROFILE;
use crate::credential;
use crate::document::Document;
use crate::keys::Section;
use crate::problem::{Place, Report};
use crate::section::Table;
use crate::types::{Match, Pool, Profile, Tier, ToolsAs};

pub(crate) fn read(
    document: &Document,
    top: &Table<'_>,
    pool: &Pool,
    report: &mut Report,
) -> Vec<Profile> {
    let mut profiles: Vec<Profile> = Vec::new();
    for (table, place) in top.tables(Section::Profile) {
        let table = Table::read(document, Section::Profile, table, place.clone(), report);
        let matches = matches(document, &table, report);
        check(&table, pool, report);
        let Some(name) = table.require::<String>("name", report) else { continue };
        let place = table.place_of("name");
        if profiles.iter().any(|other| other.name.as_str() == name) {
            let what = format!("profile `{name}` stands in the file twice");
            report.problem(place, what, "remove or rename one of them");
        } else if let Some(other) = profiles.iter().find(|other| other.matches.is_empty()) {
            let what = format!(
                "profile `{name}` is never chosen: profile `{}` before it matches every session",
                other.name
            );
            report.problem(place, what, "put the one without [[profile.match]] last");
        }
        if name == DEFAULT_PROFILE && table.tables(Section::Match).next().is_some() {
            let what = "profile `default` is what no other profile's match holds for; it has none";
            report.problem(place, what, "remove its [[profile.match]], or rename it");
        }
        profiles.push(profile(&table, ProfileName::new(name), matches));
    }
    if !profiles.iter().any(|profile| profile.name.as_str() == DEFAULT_PROFILE) {
        profiles.push(built_in());
    }
    profiles
}

/// The profile of an installation that configures none.
pub(crate) fn built_in() -> Profile {
    let empty = Table::empty(Section::Profile, Place::Nowhere);
    profile(&empty, ProfileName::new(DEFAULT_PROFILE), Vec::new())
}

fn profile(table: &Table<'_>, name: ProfileName, matches: Vec<Match>) -> Profile {
    Profile {
        name,
        place: table.place.clone(),
        matches,
        tier: match table.get_or_default::<String>("tier").as_str() {
            "container" => Tier::Container,
            other => unreachable!("the key's choices do not include {other}"),
        },
        image: table.get_or_default("image"),
        cpu_millis: table.get_or_default("cpus"),
        memory: table.get_or_default("memory"),
        pids: table.get_or_default("pids"),
        disk: table.get_or_default("disk"),
        tools_as: table.get::<String>("tools_as").map(|who| match who.as_str() {
            "user" => ToolsAs::User,
            "root" => ToolsAs::Root,
            other => unreachable!("the key's choices do not include {other}"),
        }),
        workdir: table.get("workdir"),
        entrypoint: table.get_or_default("entrypoint"),
        env: table.get("env").unwrap_or_default(),
        bash_timeout: table.get_or_default("bash_timeout"),
        bash_timeout_max: table.get_or_default("bash_timeout_max"),
        tool_timeout: table.get_or_default("tool_timeout"),
        keep_running: table.get_or_default("keep_running"),
        retain: table.get_or_default("retain"),
    }
}

fn matches(document: &Document, profile: &Table<'_>, report: &mut Report) -> Vec<Match> {
    let mut matches = Vec::new();
    for (table, place) in profile.tables(Section::Match) {
        let table = Table::read(document, Section::Match, table, place.clone(), report);
        let metadata: Option<BTreeMap<String, String>> = table.get("metadata");
        // A wrong value counts as one: it has been reported.
        let names_metadata =
            table.is_set("metadata") && metadata.as_ref().is_none_or(|map| !map.is_empty());
        let names_more =
            ["environment", "agent", "tenant"].into_iter().any(|name| table.is_set(name));
        if !names_metadata && !names_more {
            let fix = "name `environment`, `agent`, `tenant` or `metadata`; a profile for every \
                       session has no [[profile.match]]";
            report.problem(&table.place, "[[profile.match]] names nothing", fix);
        }
        matches.push(Match {
            place: place.clone(),
            environment: table.get::<String>("environment").map(EnvironmentId::new),
            agent: table.get::<String>("agent").map(AgentId::new),
            tenant: table.get::<String>("tenant").map(TenantId::new),
            metadata: metadata.unwrap_or_default(),
        });
    }
    matches
}

fn check(table: &Table<'_>, pool: &Pool, report: &mut Report) {
    let mut at_most = |low: &'static str, high: &'static str| {
        let [small, large] = [low, high].map(|name| table.get_or_default::<Duration>(name));
        if small > large {
            let [small, large] = [small, large].map(base_types::HumanDuration);
            let what = format!("`{low}` ({small}) is longer than `{high}` ({large})");
            let name = if table.is_set(low) { low } else { high };
            report.problem(table.place_of(name), what, format!("shorten it, or set `{high}`"));
        }
    };
    at_most("bash_timeout", "bash_timeout_max");
    at_most("keep_running", "retain");

    let disk: base_types::ByteSize = table.get_or_default("disk");
    let Pool { max, .. } = *pool;
    if disk > max {
        let what = format!("`disk` ({disk}) is larger than the pool may become ({max})");
        report.problem(table.place_of("disk"), what, "make it smaller, or set `max` of [pool]");
    }
    check_env(table, report);
}

/// Names that a guest must not have: the control plane's own.
const RESERVED: [&str; 2] = ["ANTHROPIC_", "SINEW_"];

fn check_env(table: &Table<'_>, report: &mut Report) {
    let place = table.place_of("env");
    for name in table.get::<BTreeMap<String, String>>("env").unwrap_or_default().into_keys() {
        let shown = credential::shown(&name);
        if let Some(prefix) = RESERVED.into_iter().find(|prefix| name.starts_with(prefix)) {
            let what = format!("variable `{shown}` of `env`: {prefix}* does not enter a sandbox");
            report.problem(place, what, "credentials of the control plane stay outside it");
        } else if !is_variable_name(&name) {
            let what = format!("`{shown}` of `env` is not a variable's name");
            report.problem(place, what, "use letters, digits and `_`, and no digit in front");
        }
    }
}

fn is_variable_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit())
}
