//! What variables and flags lay over the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::keys::{KEYS, Section};
use crate::load::Overrides;
use crate::problem::{Place, Report};
use crate::section::{Table, nearest};
use crate::store::PASSWORD;
use crate::value::Raw;

/// The variables of a process. It cannot be printed: one of them may be a key.
pub(crate) struct Variables(BTreeMap<String, String>);

pub(crate) const CONFIG: &str = "SINEW_CONFIG";
pub(crate) const WORKER_ID: &str = "ANTHROPIC_WORKER_ID";

impl Variables {
    pub fn new(variables: BTreeMap<String, String>) -> Self {
        Self(variables)
    }

    /// An empty variable is one that is not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Sets what variables set of this table.
pub(crate) fn variables(table: &mut Table<'_>, variables: &Variables, report: &mut Report) {
    let section = table.section;
    if section == Section::Top
        && let Some(value) = variables.get(WORKER_ID)
    {
        table.set("worker_id", Raw::Text(value), Place::Variable(WORKER_ID.into()), report);
    }
    for key in section.keys() {
        let Some(name) = key.variable() else { continue };
        if let Some(value) = variables.get(&name) {
            table.set(key.name, Raw::Text(value), Place::Variable(name.clone()), report);
        }
    }
}

/// Sets what flags set of the top table.
pub(crate) fn flags(top: &mut Table<'_>, overrides: &Overrides, report: &mut Report) {
    let user = overrides.user.map(|user| user.to_string());
    fn path(path: &Option<PathBuf>) -> Option<Raw<'_>> {
        path.as_deref().map(Raw::Path)
    }
    let flags = [
        ("data", "--data", path(&overrides.data)),
        ("images", "--images", path(&overrides.images)),
        ("user", "--user", user.as_deref().map(Raw::Text)),
        ("worker_id", "--worker-id", overrides.worker_id.as_deref().map(Raw::Text)),
    ];
    for (key, flag, value) in flags {
        if let Some(value) = value {
            top.set(key, value, Place::Flag(flag), report);
        }
    }
}

/// A variable that almost has the name of one of ours sets nothing, which its author should know.
pub(crate) fn slips(variables: &Variables, report: &mut Report) {
    let known: Vec<String> = KEYS.iter().filter_map(|key| key.variable()).collect();
    let is_ours = |name: &&str| name.starts_with("SINEW_");
    for name in variables.names().filter(is_ours) {
        if name == CONFIG || name == PASSWORD || known.iter().any(|known| known == name) {
            continue;
        }
        let lower: Vec<String> = known.iter().map(|known| known.to_lowercase()).collect();
        if let Some(near) = nearest(name, lower.iter().map(String::as_str)) {
            let fix = format!("did you mean {}?", near.to_uppercase());
            report.warning(&Place::Variable(name.into()), "sets nothing", fix);
        }
    }
}
