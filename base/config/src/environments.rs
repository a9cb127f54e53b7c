//! The queues of work: from the file, and the one that the official worker's variables name.

use std::net::IpAddr;
use std::path::PathBuf;

use base_types::{EnvironmentId, Secret, TenantId};

use crate::credential::{self, KeyError};
use crate::document::Document;
use crate::keys::Section;
use crate::layers::Variables;
use crate::problem::{Place, Report};
use crate::section::Table;
use crate::types::{Environment, Tenancy};

const ID: &str = "ANTHROPIC_ENVIRONMENT_ID";
const KEY: &str = "ANTHROPIC_ENVIRONMENT_KEY";
const BASE_URL: &str = "ANTHROPIC_BASE_URL";

/// An environment whose key has not been read.
pub(crate) struct Draft {
    pub id: String,
    place: Place,
    key: Key,
    base_url: String,
    base_url_is_set: bool,
    base_url_place: Place,
    allow_plain_http: bool,
    ca_file: Option<(PathBuf, Place)>,
    tenant: Option<String>,
    tenant_metadata_key: Option<String>,
    concurrency: u32,
}

/// Where a key is read from.
enum Key {
    /// Nobody said. The official worker's variables may yet.
    Missing,
    /// What was said is wrong and has been reported.
    Wrong,
    File(PathBuf, Place),
    Variable(String, Place),
}

pub(crate) fn read(
    document: &Document,
    top: &Table<'_>,
    variables: &Variables,
    report: &mut Report,
) -> Vec<Draft> {
    let mut drafts: Vec<Draft> = Vec::new();
    for (table, place) in top.tables(Section::Environment) {
        let table = Table::read(document, Section::Environment, table, place.clone(), report);
        let Some(draft) = Draft::of(&table, report) else { continue };
        if drafts.iter().any(|other| other.id == draft.id) {
            let what = format!("environment `{}` stands in the file twice", draft.id);
            report.problem(table.place_of("id"), what, "remove one of them");
        }
        drafts.push(draft);
    }
    overlay(&mut drafts, variables, report);
    for draft in &drafts {
        check_base_url(draft, report);
    }
    drafts
}

impl Draft {
    fn of(table: &Table<'_>, report: &mut Report) -> Option<Draft> {
        let key = Key::of(table, report);
        let id = table.require("id", report)?;
        Some(Draft::with(table, id, key))
    }

    fn with(table: &Table<'_>, id: String, key: Key) -> Draft {
        Draft {
            id,
            place: table.place.clone(),
            key,
            base_url: table.get_or_default("base_url"),
            base_url_is_set: table.is_set("base_url"),
            base_url_place: table.place_of("base_url").clone(),
            allow_plain_http: table.get_or_default("allow_plain_http"),
            ca_file: table.get("ca_file").map(|path| (path, table.place_of("ca_file").clone())),
            tenant: table.get("tenant"),
            tenant_metadata_key: table.get("tenant_metadata_key"),
            concurrency: table.get_or_default("concurrency"),
        }
    }

    pub fn tenancy(&self) -> Tenancy {
        let tenant = self.tenant.as_ref().unwrap_or(&self.id);
        Tenancy {
            environment: EnvironmentId::new(self.id.clone()),
            tenant: TenantId::new(tenant.clone()),
            metadata_key: self.tenant_metadata_key.clone(),
        }
    }

    /// Reads the key. Reports why it cannot be.
    pub fn open(self, variables: &Variables, report: &mut Report) -> Option<Environment> {
        if let Some((file, place)) = &self.ca_file
            && let Err(error) = std::fs::File::open(file)
        {
            let what = format!("`ca_file` {} cannot be read ({error})", file.display());
            report.problem(place, what, "");
        }
        let key = self.key.read(&self.id, &self.place, variables, report)?;
        let key_file = match self.key {
            Key::File(path, _) => Some(path),
            _ => None,
        };
        let tenant = self.tenant.unwrap_or_else(|| self.id.clone());
        Some(Environment {
            id: EnvironmentId::new(self.id),
            key,
            key_file,
            base_url: self.base_url,
            allow_plain_http: self.allow_plain_http,
            ca_file: self.ca_file.map(|(file, _)| file),
            tenant: TenantId::new(tenant),
            tenant_metadata_key: self.tenant_metadata_key,
            concurrency: self.concurrency,
        })
    }
}

impl Key {
    fn of(table: &Table<'_>, report: &mut Report) -> Key {
        let place = |name| table.place_of(name).clone();
        match (table.is_set("key_file"), table.is_set("key_env")) {
            (true, true) => {
                let fix = "keep one of them";
                report.problem(&place("key_env"), "both `key_file` and `key_env` are set", fix);
                Key::Wrong
            }
            (false, false) if table.holds_a_credential => Key::Wrong,
            (false, false) => Key::Missing,
            (true, false) => {
                table.get("key_file").map_or(Key::Wrong, |path| Key::File(path, place("key_file")))
            }
            (false, true) => table
                .get("key_env")
                .map_or(Key::Wrong, |name| Key::Variable(name, place("key_env"))),
        }
    }

    fn read(
        &self,
        id: &str,
        environment: &Place,
        variables: &Variables,
        report: &mut Report,
    ) -> Option<Secret> {
        match self {
            Key::Wrong => None,
            // It may stand in a line that cannot be read.
            Key::Missing if report.has_syntax_errors() => None,
            Key::Missing => {
                let fix = match environment {
                    Place::Variable(_) => format!("set {KEY}"),
                    _ => "set `key_file` or `key_env`".to_owned(),
                };
                report.problem(environment, format!("environment `{id}` has no key"), fix);
                None
            }
            Key::File(path, place) => match credential::read_file(path) {
                Ok(key) => Some(key),
                Err(error) => {
                    let what = format!("key file {} {error}", path.display());
                    let fix = match error {
                        KeyError::Open(_) => format!("chmod 600 {}", path.display()),
                        _ => String::new(),
                    };
                    report.problem(place, what, fix);
                    None
                }
            },
            Key::Variable(name, place) => {
                let Some(text) = variables.get(name) else {
                    let what = format!("variable {name} is not set");
                    report.problem(place, what, format!("set {name} to the environment key"));
                    return None;
                };
                let key = credential::parse(text);
                if let Err(error) = &key {
                    report.problem(place, format!("variable {name} {error}"), "");
                }
                key.ok()
            }
        }
    }
}

/// Lays the official worker's variables over the environments of the file. An id that stands in
/// the file gets the variables' key and base URL; another one is an environment of its own.
fn overlay(drafts: &mut Vec<Draft>, variables: &Variables, report: &mut Report) {
    let place = |name: &str| Place::Variable(name.to_owned());
    let has_key = variables.get(KEY).is_some();
    let id = variables.get(ID);
    if id.is_none() && has_key && !drafts.iter().any(Draft::uses_the_workers_key) {
        let fix = format!("set {ID} too, or name the variable with `key_env`");
        report.problem(&place(KEY), format!("is set without {ID}"), fix);
    }
    if let Some(url) = variables.get(BASE_URL) {
        for draft in drafts.iter_mut() {
            if !draft.base_url_is_set || Some(draft.id.as_str()) == id {
                draft.base_url = url.to_owned();
                draft.base_url_place = place(BASE_URL);
            }
        }
    }
    let Some(id) = id else { return };
    let key = match has_key {
        true => Key::Variable(KEY.to_owned(), place(KEY)),
        false => Key::Missing,
    };
    match drafts.iter_mut().find(|draft| draft.id == id) {
        Some(draft) if has_key => draft.key = key,
        Some(_) => {}
        None => drafts.push(of_variables(id, key, variables)),
    }
}

impl Draft {
    fn uses_the_workers_key(&self) -> bool {
        matches!(&self.key, Key::Variable(name, _) if name == KEY)
    }
}

fn of_variables(id: &str, key: Key, variables: &Variables) -> Draft {
    let empty = Table::empty(Section::Environment, Place::Variable(ID.to_owned()));
    let mut draft = Draft::with(&empty, id.to_owned(), key);
    if let Some(url) = variables.get(BASE_URL) {
        draft.base_url = url.to_owned();
        draft.base_url_place = Place::Variable(BASE_URL.to_owned());
    }
    draft
}

/// No message shows the URL: a user and a password may stand in it.
fn check_base_url(draft: &Draft, report: &mut Report) {
    let mut problem = |what: &str, fix: &str| {
        report.problem(&draft.base_url_place, format!("the base URL {what}"), fix);
    };
    let example = "write it like https://brain.example.com/prefix";
    let Ok(uri) = draft.base_url.parse::<http::Uri>() else {
        return problem("is not a URL", example);
    };
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return problem("has no scheme or no host", example);
    };
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if has_user || uri.query().is_some() || draft.base_url.contains('#') {
        return problem("has a user, a query or a fragment", example);
    }
    match scheme {
        "https" => {}
        "http" if draft.allow_plain_http || is_loopback(host) => {}
        "http" => problem(
            "sends the environment key readable to another host",
            "use https, or set `allow_plain_http = true` for this environment",
        ),
        _ => problem("is neither https nor http", example),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
