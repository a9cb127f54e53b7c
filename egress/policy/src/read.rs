//! From the text of a policy to its types. What is wrong with one rule by itself is found here;
//! what is wrong between rules, in `crate::conflicts`.

use std::collections::BTreeSet;

use base_config::Place;
use base_types::Chain;
use toml::de::{DeTable, DeValue};

use crate::address::Net;
use crate::expression::Expression;
use crate::glob::{Glob, PathGlob};
use crate::host::HostPattern;
use crate::identity::Select;
use crate::keys::{OPENING, Section};
use crate::model::{
    Action, Conditions, Effect, Injection, InjectionForm, Layer, Limits, Policy, Redaction, Rule,
    Signing, SigningScheme, Unmatched,
};
use crate::problem::{Report, Source};
use crate::request::{Scheme, is_token};
use crate::table::{Table, type_name};

/// Longest text of one policy.
const POLICY_BYTES_MAX: usize = 1 << 20;
const RULES_MAX: usize = 4096;

/// What a request's framing or route hangs on: no rule sets these.
const HEADERS_OF_THE_GATE: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "expect",
];

pub(crate) fn policy(source: &Source, report: &mut Report) -> Option<Policy> {
    let file = source.place(0..0);
    if source.text().len() > POLICY_BYTES_MAX {
        report.problem(&file, "the policy is larger than 1 MiB", "split it");
        return None;
    }
    let (document, errors) = DeTable::parse_recoverable(source.text());
    for error in &errors {
        let place = source.place(error.span().unwrap_or_default());
        report.syntax(&place, error.message().replace('\n', "; "));
    }
    let top = Table::read(source, Section::Top, document.get_ref(), file, report);
    let name = top.require("name", report);
    let layer = top.require("layer", report).and_then(|layer| layer_of(&layer));
    let unmatched = match top.text("unmatched").as_deref() {
        Some("inherit") => Unmatched::Inherit,
        _ => Unmatched::Deny,
    };
    let select = select(&top, report);
    let rules = rules(&top, report);
    let policy = Policy {
        name: name?,
        layer: layer?,
        priority: top.number("priority").and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        unmatched,
        select,
        rules,
        place: top.place_of("name").clone(),
    };
    check_layer(&policy, &top, report);
    Some(policy)
}

fn layer_of(name: &str) -> Option<Layer> {
    Layer::ALL.into_iter().find(|layer| layer.name() == name)
}

fn check_layer(policy: &Policy, top: &Table<'_>, report: &mut Report) {
    if policy.layer == Layer::Deployment && policy.unmatched == Unmatched::Inherit {
        let what = "there is nothing above the deployment's policies to inherit from";
        report.problem(top.place_of("unmatched"), what, "remove `unmatched`");
    }
    let missing = match policy.layer {
        Layer::Tenant => policy.select.tenant.is_empty().then_some("tenant"),
        Layer::Agent => policy.select.agent.is_empty().then_some("agent"),
        Layer::Deployment | Layer::Session => None,
    };
    if let Some(key) = missing {
        let what = format!("a policy of the layer `{key}` selects every {key}");
        let fix = format!("name it in [select] with `{key}`, or use another layer");
        report.problem(top.place_of("layer"), what, fix);
    }
    if !policy.select.by_free_text() {
        return;
    }
    let widens = |rule: &&Rule| matches!(rule.action.effect(), Effect::Opens | Effect::Adds);
    for rule in policy.rules.iter().filter(widens) {
        let what = format!(
            "rule `{}` opens or adds something for sessions with a certain title or agent name, \
             which anyone may choose",
            rule.id
        );
        report.problem(&rule.place, what, "select by agent id, metadata or tenant");
    }
}

fn select(top: &Table<'_>, report: &mut Report) -> Select {
    let Some(value) = top.tables("select").next() else { return Select::default() };
    let place = top.source.place(value.span());
    let DeValue::Table(table) = value.get_ref() else {
        let what = format!("`select` is {}", type_name(value.get_ref()));
        report.problem(&place, what, "write [select]");
        return Select::default();
    };
    let table = Table::read(top.source, Section::Select, table, place, report);
    let texts = |name| table.list(name).iter().map(|(text, _)| text.clone()).collect();
    let globs = |name| table.list(name).iter().map(|(text, _)| Glob::new(text)).collect();
    let metadata = table.entries("metadata").iter();
    Select {
        environment: texts("environment"),
        tenant: texts("tenant"),
        agent: texts("agent"),
        session: texts("session"),
        profile: texts("profile"),
        metadata: metadata.map(|(key, value, _)| (key.clone(), value.clone())).collect(),
        agent_name: globs("agent_name"),
        title: globs("title"),
    }
}

fn rules(top: &Table<'_>, report: &mut Report) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut ids = BTreeSet::new();
    for value in top.tables("rule") {
        let DeValue::Array(array) = value.get_ref() else {
            let what = format!("`rule` is {}", type_name(value.get_ref()));
            report.problem(&top.source.place(value.span()), what, "write [[rule]]");
            continue;
        };
        if array.len() > RULES_MAX {
            let what = format!("the policy has more than {RULES_MAX} rules");
            report.problem(&top.source.place(value.span()), what, "split it");
            continue;
        }
        for element in array.iter() {
            let place = top.source.place(element.span());
            let DeValue::Table(table) = element.get_ref() else {
                let what = format!("is {}, not a table", type_name(element.get_ref()));
                report.problem(&place, what, "write [[rule]]");
                continue;
            };
            let table = Table::read(top.source, Section::Rule, table, place, report);
            let Some(rule) = rule(&table, report) else { continue };
            if !ids.insert(rule.id.clone()) {
                let what = format!("rule `{}` stands in the policy twice", rule.id);
                report.problem(table.place_of("id"), what, "rename one of them");
            }
            rules.push(rule);
        }
    }
    rules
}

fn rule(table: &Table<'_>, report: &mut Report) -> Option<Rule> {
    let id = table.require("id", report);
    let action_name = table.require("action", report)?;
    check_keys(table, &action_name, report);
    let action = action(table, &action_name, report);
    let effect = match &action {
        Some(action) => action.effect(),
        None if OPENING.contains(&action_name.as_str()) => Effect::Opens,
        None => Effect::Closes,
    };
    let conditions = conditions(table, effect, report);
    let rule = Rule {
        id: id?,
        place: table.place_of("id").clone(),
        conditions,
        action: action?,
        reason: table.text("reason"),
    };
    check_rule(&rule, table, report);
    Some(rule)
}

/// A key that this action does not take would be ignored: it is refused.
fn check_keys(table: &Table<'_>, action: &str, report: &mut Report) {
    for (name, place) in table.set() {
        let key = Section::Rule.keys().find(|key| key.name == name);
        if let Some(key) = key.filter(|key| !key.takes(action)) {
            let what = format!("`{name}` does not belong to a rule with the action `{action}`");
            report.problem(place, what, format!("it is for {}", key.actions.join(", ")));
        }
    }
}

fn conditions(table: &Table<'_>, effect: Effect, report: &mut Report) -> Conditions {
    let is_narrow_by_default = matches!(effect, Effect::Opens | Effect::Adds);
    let mut schemes: Vec<Scheme> = read_each(table, "scheme", report, |text| {
        Scheme::parse(text)
            .ok_or_else(|| "is not a scheme: there are `https`, `http` and `tcp`".to_owned())
    });
    if !table.is_set("scheme") && is_narrow_by_default {
        schemes.push(Scheme::Https);
    }
    schemes.sort();
    schemes.dedup();
    let mut ports = table.port_ranges();
    if !table.is_set("port") && is_narrow_by_default {
        let own = schemes.iter().filter_map(|scheme| scheme.default_port());
        ports.extend(own.map(|port| port..=port));
    }
    let apex = table.flag("apex");
    Conditions {
        schemes,
        hosts: read_each(table, "host", report, |text| {
            HostPattern::parse(text, apex).map_err(|error| Chain(&error).to_string())
        }),
        ports,
        nets: read_each(table, "cidr", report, |text| {
            Net::parse(text).map_err(|error| error.to_string())
        }),
        methods: read_each(table, "method", report, |text| match is_token(text) {
            true => Ok(text.to_owned()),
            false => Err(format!("`{}` is not an HTTP method", text.escape_debug())),
        }),
        paths: read_each(table, "path", report, |text| {
            PathGlob::parse(text).map_err(|error| format!("`{}` {error}", text.escape_debug()))
        }),
        query: globs(table, "query", report),
        headers: globs(table, "header", report),
        expression: expression(table, report),
    }
}

/// Reads every entry of a list, each with its own problem.
fn read_each<T>(
    table: &Table<'_>,
    name: &str,
    report: &mut Report,
    read: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut values = Vec::new();
    for (text, place) in table.list(name) {
        match read(text) {
            Ok(value) => values.push(value),
            Err(what) => report.problem(place, format!("`{name}`: {what}"), ""),
        }
    }
    values
}

fn globs(table: &Table<'_>, name: &str, report: &mut Report) -> Vec<(String, Glob)> {
    let mut globs = Vec::new();
    for (key, value, place) in table.entries(name) {
        let key = match name {
            "header" if !is_token(key) => {
                let what = format!("`{}` is not the name of a header", key.escape_debug());
                report.problem(place, what, "");
                continue;
            }
            "header" => key.to_ascii_lowercase(),
            _ => key.clone(),
        };
        globs.push((key, Glob::new(value)));
    }
    globs
}

fn expression(table: &Table<'_>, report: &mut Report) -> Option<Expression> {
    let text = table.text("when")?;
    Expression::parse(&text)
        .map_err(|error| report.problem(table.place_of("when"), format!("`when`: {error}"), ""))
        .ok()
}

fn action(table: &Table<'_>, name: &str, report: &mut Report) -> Option<Action> {
    Some(match name {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        "ask" => Action::Ask,
        "pass-through" => Action::PassThrough,
        "route" => Action::Route { service: table.require("service", report)? },
        "inject" => {
            let secret = table.require("secret", report);
            let form = injection_form(table, report);
            Action::Inject(Injection { secret: secret?, form: form? })
        }
        "sign" => {
            let secret = table.require("secret", report);
            let scheme = match table.require("sign_with", report)?.as_str() {
                "sigv4" => SigningScheme::SigV4,
                "hmac" => SigningScheme::Hmac,
                "oauth2" => SigningScheme::OAuth2,
                _ => SigningScheme::MutualTls,
            };
            Action::Sign(Signing { secret: secret?, scheme })
        }
        "middleware" => Action::Middleware { name: table.require("handler", report)? },
        "limit" => Action::Limit(limits(table, report)?),
        "redact" => Action::Redact(redaction(table, report)?),
        _ => return None,
    })
}

fn injection_form(table: &Table<'_>, report: &mut Report) -> Option<InjectionForm> {
    const SECRET: &str = "{secret}";
    let Some(header) = table.text("add_header") else {
        if table.is_set("value") {
            let what = "`value` says how a header is written, and there is no `add_header`";
            report.problem(table.place_of("value"), what, "name the header with `add_header`");
        }
        return Some(InjectionForm::Placeholder);
    };
    let name = header.to_ascii_lowercase();
    if HEADERS_OF_THE_GATE.contains(&name.as_str()) {
        let what = format!("`add_header`: the gate itself writes `{name}`");
        report.problem(table.place_of("add_header"), what, "use another header");
    }
    let value = table.text("value").unwrap_or_else(|| SECRET.to_owned());
    let parts = value.split_once(SECRET).filter(|(_, after)| !after.contains(SECRET));
    let Some((before, after)) = parts else {
        // The value is not shown: somebody may have written the secret itself.
        let what = "`value` does not hold `{secret}` exactly once";
        let fix = "write it like \"Bearer {secret}\"; the secret itself never stands in a policy";
        report.problem(table.place_of("value"), what, fix);
        return None;
    };
    Some(InjectionForm::Header { name, before: before.to_owned(), after: after.to_owned() })
}

fn limits(table: &Table<'_>, report: &mut Report) -> Option<Limits> {
    let count = |name| table.number(name).and_then(|number| u32::try_from(number).ok());
    let limits = Limits {
        requests_per_minute: count("requests_per_minute"),
        concurrent: count("concurrent"),
        body: table.size("body"),
        bytes_up: table.size("bytes_up"),
        bytes_down: table.size("bytes_down"),
    };
    let names = ["requests_per_minute", "concurrent", "body", "bytes_up", "bytes_down"];
    if !names.into_iter().any(|name| table.is_set(name)) {
        report.problem(
            &table.place,
            "the rule limits nothing",
            format!("set {}", names.join(", ")),
        );
        return None;
    }
    Some(limits)
}

fn redaction(table: &Table<'_>, report: &mut Report) -> Option<Redaction> {
    let headers = read_each(table, "response_header", report, |text| match is_token(text) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("`{}` is not the name of a header", text.escape_debug())),
    });
    let texts: Vec<String> = read_each(table, "response_text", report, |text| Ok(text.to_owned()));
    if !table.is_set("response_header") && !table.is_set("response_text") {
        let fix = "set response_header or response_text";
        report.problem(&table.place, "the rule redacts nothing", fix);
        return None;
    }
    Some(Redaction { headers, texts })
}

/// What does not fit together inside one rule.
fn check_rule(rule: &Rule, table: &Table<'_>, report: &mut Report) {
    let Rule { conditions, action, .. } = rule;
    let effect = action.effect();
    let id = &rule.id;
    if effect == Effect::Opens && !table.is_set("host") && !table.is_set("cidr") {
        let what = format!("rule `{id}` opens every host");
        let fix = "name hosts with `host` (every name is \"**\") or ranges with `cidr`";
        report.problem(&rule.place, what, fix);
    }
    if matches!(action, Action::Route { .. }) && !table.is_set("host") {
        let what = format!("rule `{id}` leads to a private service under no name");
        report.problem(&rule.place, what, "name it with `host`");
    }
    let has_tcp = table.is_set("scheme") && conditions.schemes.contains(&Scheme::Tcp);
    if has_tcp && effect == Effect::Opens && !table.is_set("port") {
        let what = format!("rule `{id}` opens raw connections to no port");
        report.problem(table.place_of("scheme"), what, "name it with `port`, like port = 5432");
    }
    if has_tcp && effect == Effect::Opens && conditions.needs_http() {
        let what = format!("rule `{id}` opens raw connections by what only HTTP has");
        let fix = "leave out `tcp`, or method, path, query, header and `when`";
        report.problem(table.place_of("scheme"), what, fix);
    }
    if has_tcp && effect == Effect::Adds {
        let what = format!("rule `{id}` cannot add anything to a raw connection");
        report.problem(table.place_of("scheme"), what, "leave out `tcp`");
    }
    if matches!(action, Action::PassThrough) && conditions.schemes != [Scheme::Https] {
        let what = format!("rule `{id}` passes through what is not TLS");
        report.problem(table.place_of("scheme"), what, "leave out `scheme`");
    }
    check_secret(rule, table, report);
    if effect == Effect::Opens {
        conditions.nets.iter().filter(|net| net.holds_metadata()).for_each(|net| {
            let what = format!(
                "rule `{id}`: {net} holds addresses where clouds hand out credentials; they stay \
                 closed"
            );
            report.warning(table.place_of("cidr"), what, "");
        });
        broad_patterns(rule, table.place_of("host"), report);
    }
}

fn broad_patterns(rule: &Rule, place: &Place, report: &mut Report) {
    for pattern in &rule.conditions.hosts {
        let is_top_level = pattern.parent().is_some_and(|parent| !parent.as_str().contains('.'));
        if is_top_level {
            let what = format!("rule `{}`: {pattern} is a whole top-level domain", rule.id);
            report.warning(place, what, "");
        }
    }
}

fn check_secret(rule: &Rule, table: &Table<'_>, report: &mut Report) {
    if rule.action.secret().is_none() {
        return;
    }
    let every = rule.conditions.hosts.iter().any(|host| matches!(host, HostPattern::EveryName));
    if every || !table.is_set("host") {
        let what = format!("rule `{}` gives a secret to every host", rule.id);
        report.problem(table.place_of("host"), what, "name the hosts it is for with `host`");
    }
}
