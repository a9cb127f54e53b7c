//! One table of the file: its keys checked against [`crate::KEYS`], and read with their defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base_types::ByteSize;
use toml::de::{DeTable, DeValue};

use crate::credential;
use crate::document::Document;
use crate::keys::{self, Fallback, Section};
use crate::problem::{Place, Report};
use crate::types::Entrypoint;
use crate::value::{Kind, Raw, Value, type_name};

/// A table whose keys have been checked.
pub(crate) struct Table<'a> {
    pub section: Section,
    pub place: Place,
    entries: BTreeMap<&'static str, Entry>,
    /// Tables inside this one, by the section they belong to.
    tables: Vec<(Section, &'a DeTable<'a>, Place)>,
    /// A credential stands in it, which has been reported.
    pub holds_a_credential: bool,
}

struct Entry {
    place: Place,
    /// `None`: it was set to something wrong, which has been reported.
    value: Option<Value>,
}

impl<'a> Table<'a> {
    /// A table that sets nothing.
    pub fn empty(section: Section, place: Place) -> Table<'a> {
        Table {
            section,
            place,
            entries: BTreeMap::new(),
            tables: Vec::new(),
            holds_a_credential: false,
        }
    }

    pub fn read(
        document: &Document,
        section: Section,
        table: &'a DeTable<'a>,
        place: Place,
        report: &mut Report,
    ) -> Table<'a> {
        let mut read = Table::empty(section, place);
        for (name, value) in table {
            let place = document.place(name.span());
            let name = name.get_ref().as_ref();
            if let Some(inner) = inner_section(section, name) {
                read.read_tables(document, (inner, value.get_ref(), place), report);
            } else if let Some(key) = section.keys().find(|key| key.name == name) {
                let place = document.place(value.span());
                read.set(key.name, Raw::Toml(value.get_ref()), place, report);
                if let Some(Entry { value: Some(Value::Path(path)), .. }) =
                    read.entries.get_mut(key.name)
                {
                    *path = document.folder().join(&*path);
                }
            } else {
                read.holds_a_credential |= is_for_a_credential(section, name);
                unknown(section, name, &place, report);
            }
        }
        read
    }

    fn read_tables(
        &mut self,
        document: &Document,
        (inner, value, place): (Section, &'a DeValue<'a>, Place),
        report: &mut Report,
    ) {
        let many = inner.header().starts_with("[[");
        match value {
            DeValue::Table(table) if !many => self.tables.push((inner, table, place)),
            DeValue::Array(array) if many => {
                for element in array.iter() {
                    let place = document.place(element.span());
                    match element.get_ref() {
                        DeValue::Table(table) => self.tables.push((inner, table, place)),
                        other => {
                            let what = format!("is {}, not a table", type_name(other));
                            report.problem(&place, what, format!("write {}", inner.header()));
                        }
                    }
                }
            }
            other => {
                let what = format!("`{}` is {}", header_name(inner), type_name(other));
                report.problem(&place, what, format!("write {}", inner.header()));
            }
        }
    }

    /// Sets a key, over what was set before.
    pub fn set(&mut self, name: &str, raw: Raw<'_>, place: Place, report: &mut Report) {
        let key = keys::find(self.section, name);
        let value = match key.kind.read(raw) {
            Ok(value) => Some(value),
            Err(misfit) => {
                // A variable's own name is its place already.
                let what = match place {
                    Place::At { .. } => format!("`{}` {}", key.name, misfit.what),
                    _ => misfit.what,
                };
                report.problem(&place, what, misfit.fix);
                None
            }
        };
        self.entries.insert(key.name, Entry { place, value });
    }

    /// The tables of that section inside this one, in the order of the file.
    pub fn tables(&self, section: Section) -> impl Iterator<Item = (&'a DeTable<'a>, &Place)> {
        self.tables
            .iter()
            .filter(move |(of, ..)| *of == section)
            .map(|(_, table, place)| (*table, place))
    }

    pub fn is_set(&self, name: &'static str) -> bool {
        self.entries.contains_key(name)
    }

    /// Where the key was set, or else the table.
    pub fn place_of(&self, name: &'static str) -> &Place {
        self.entries.get(name).map_or(&self.place, |entry| &entry.place)
    }

    /// What was set, if it was and was right.
    pub fn get<T: FromValue>(&self, name: &'static str) -> Option<T> {
        let key = keys::find(self.section, name);
        self.entries.get(key.name)?.value.clone().and_then(T::from_value)
    }

    /// What was set, or the default of a key that has one. A wrong value reads as the default: it
    /// has been reported, and the configuration is refused.
    pub fn get_or_default<T: FromValue>(&self, name: &'static str) -> T {
        if let Some(value) = self.get(name) {
            return value;
        }
        let key = keys::find(self.section, name);
        let Fallback::Is(text) = key.default else { unreachable!("{name} has no fixed default") };
        match key.kind.read(Raw::Text(text)).ok().and_then(T::from_value) {
            Some(value) => value,
            // A test reads every default.
            None => unreachable!("the default of {name} is not one of its values"),
        }
    }

    /// What was set; reports a missing one, unless it may stand in a line that cannot be read.
    pub fn require<T: FromValue>(&self, name: &'static str, report: &mut Report) -> Option<T> {
        if !self.is_set(name) && !report.has_syntax_errors() {
            let what = format!("{} without `{name}`", self.section.header());
            report.problem(&self.place, what, format!("set {name} to {}", self.kind_of(name)));
        }
        self.get(name)
    }

    fn kind_of(&self, name: &str) -> Kind {
        keys::find(self.section, name).kind
    }
}

/// The section that a name inside a section opens.
fn inner_section(section: Section, name: &str) -> Option<Section> {
    match (section, name) {
        (Section::Top, "environment") => Some(Section::Environment),
        (Section::Top, "profile") => Some(Section::Profile),
        (Section::Top, "limits") => Some(Section::Limits),
        (Section::Top, "pool") => Some(Section::Pool),
        (Section::Top, "store") => Some(Section::Store),
        (Section::Profile, "match") => Some(Section::Match),
        _ => None,
    }
}

fn header_name(section: Section) -> &'static str {
    section.header().trim_matches(['[', ']'])
}

/// Names under which people put the key itself.
const KEY_NAMES: [&str; 6] = ["key", "api_key", "environment_key", "token", "secret", "password"];

fn is_for_a_credential(section: Section, name: &str) -> bool {
    matches!(section, Section::Environment | Section::Store) && KEY_NAMES.contains(&name)
}

fn unknown(section: Section, name: &str, place: &Place, report: &mut Report) {
    if is_for_a_credential(section, name) {
        let what = format!("`{name}`: a credential does not stand in this file");
        let fix = match section {
            Section::Store => {
                "put it in a file of mode 0600 and name that with `password_file`, or set \
                 SINEW_STORE_PASSWORD; if this file was shared, change the password"
            }
            _ => {
                "put it in a file of mode 0600 and name that with `key_file`, or name a \
                 variable with `key_env`; if this file was shared, replace the key"
            }
        };
        return report.problem(place, what, fix);
    }
    let what = format!("`{}` is not a key of {}", credential::shown(name), section.header());
    report.problem(place, what, suggestion(section, name));
}

fn suggestion(section: Section, name: &str) -> String {
    let inner = ["environment", "profile", "limits", "pool", "store", "match"];
    let inner = inner.into_iter().filter(|name| inner_section(section, name).is_some());
    let here = section.keys().map(|key| key.name).chain(inner);
    if let Some(near) = nearest(name, here) {
        return format!("did you mean `{near}`?");
    }
    let elsewhere = keys::KEYS.iter().find(|key| key.name == name);
    match elsewhere {
        Some(key) => format!("it belongs to {}", key.section.header()),
        None => String::new(),
    }
}

/// The known name that is most likely meant, if one is near enough.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let distance = |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), known);
    // A third of the letters wrong is still a slip; more is another word.
    let allowed = (name.chars().count() / 3).clamp(1, 4);
    known
        .map(|known| (distance(known), known))
        .filter(|(far, _)| *far <= allowed)
        .min()
        .map(|(_, known)| known)
}

/// A type that some [`Value`] is.
pub(crate) trait FromValue: Sized {
    fn from_value(value: Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($variant:ident => $type:ty),* $(,)?) => { $(
        impl FromValue for $type {
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }
        }
    )* };
}

from_value! {
    Path => PathBuf,
    Text => String,
    Flag => bool,
    Size => ByteSize,
    Duration => Duration,
    Map => BTreeMap<String, String>,
    Entrypoint => Entrypoint,
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Count(count) => u32::try_from(count).ok(),
            Value::CpuMillis(millis) => Some(millis),
            _ => None,
        }
    }
}
