//! One table of a policy's file: its keys checked against [`crate::KEYS`], its values read.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use base_config::Place;
use base_types::ByteSize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::keys::{Key, Kind, Section};
use crate::problem::{Report, Source};

/// Longest text accepted anywhere.
const TEXT_BYTES_MAX: usize = 8 << 10;
const NAME_BYTES_MAX: usize = 64;
/// Entries of one list or table of texts.
const ENTRIES_MAX: usize = 1024;

pub(crate) struct Table<'s> {
    pub source: &'s Source,
    pub section: Section,
    pub place: Place,
    entries: BTreeMap<&'static str, Entry>,
    tables: Vec<(&'s str, &'s Spanned<DeValue<'s>>)>,
}

struct Entry {
    place: Place,
    /// `None`: it was set to something wrong, which has been reported.
    value: Option<Value>,
}

#[derive(Clone)]
enum Value {
    Text(String),
    Texts(Vec<(String, Place)>),
    Ports(Vec<RangeInclusive<u16>>),
    Flag(bool),
    Number(i64),
    Size(ByteSize),
    Map(Vec<(String, String, Place)>),
}

type Misfit = (Place, String);

impl<'s> Table<'s> {
    pub fn read(
        source: &'s Source,
        section: Section,
        table: &'s DeTable<'s>,
        place: Place,
        report: &mut Report,
    ) -> Table<'s> {
        let mut read =
            Table { source, section, place, entries: BTreeMap::new(), tables: Vec::new() };
        for (name, value) in table {
            let name_place = source.place(name.span());
            let name = name.get_ref().as_ref();
            match section.keys().find(|key| key.name == name) {
                Some(Key { kind: Kind::Tables, .. }) => read.tables.push((name, value)),
                Some(key) => {
                    let place = source.place(value.span());
                    let value = read.value(key, value).map_err(|(place, what)| {
                        let fix = format!("write {}", key.kind);
                        report.problem(&place, format!("`{name}` {what}"), fix);
                    });
                    read.entries.insert(key.name, Entry { place, value: value.ok() });
                }
                None => unknown(section, name, &name_place, report),
            }
        }
        read
    }

    fn value(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, Misfit> {
        let wrong = |what: &str| (self.source.place(value.span()), what.to_owned());
        let text = |checked: fn(&str) -> Result<(), &'static str>| match value.get_ref() {
            DeValue::String(text) => {
                one_line(text).and_then(|()| checked(text)).map_err(wrong)?;
                Ok(Value::Text(text.to_string()))
            }
            other => Err(wrong(&format!("is {}", type_name(other)))),
        };
        match key.kind {
            Kind::Name => text(is_name),
            Kind::Text => match key.name {
                // Expressions may be laid out over several lines.
                "when" => match value.get_ref() {
                    DeValue::String(text) => Ok(Value::Text(text.to_string())),
                    other => Err(wrong(&format!("is {}", type_name(other)))),
                },
                _ => text(|_| Ok(())),
            },
            Kind::Choice(choices) => match text(|_| Ok(()))? {
                Value::Text(text) if choices.contains(&text.as_str()) => Ok(Value::Text(text)),
                _ => Err(wrong("is not one of the choices")),
            },
            Kind::Flag => match value.get_ref() {
                DeValue::Boolean(flag) => Ok(Value::Flag(*flag)),
                other => Err(wrong(&format!("is {}", type_name(other)))),
            },
            Kind::Number { min, max } => match whole_number(value.get_ref()) {
                Some(number) if (min..=max).contains(&number) => Ok(Value::Number(number)),
                Some(_) => Err(wrong("is out of range")),
                None => Err(wrong(&format!("is {}", type_name(value.get_ref())))),
            },
            Kind::Size => match text(|_| Ok(()))? {
                Value::Text(text) => match text.parse::<ByteSize>() {
                    Ok(size) if size.bytes() > 0 => Ok(Value::Size(size)),
                    _ => Err(wrong("is not a size above zero")),
                },
                _ => Err(wrong("is not a size")),
            },
            Kind::Texts => self.texts(value).map(Value::Texts),
            Kind::Ports => self.ports(value).map(Value::Ports),
            Kind::Map => self.map(value).map(Value::Map),
            Kind::Tables => Err(wrong("is a table")),
        }
    }

    fn elements<'v>(
        &self,
        value: &'v Spanned<DeValue<'v>>,
    ) -> Result<Vec<&'v Spanned<DeValue<'v>>>, Misfit> {
        let DeValue::Array(array) = value.get_ref() else { return Ok(vec![value]) };
        let wrong = |what: &str| Err((self.source.place(value.span()), what.to_owned()));
        match array.len() {
            0 => wrong("is an empty list, which would hold for nothing: leave it out"),
            count if count > ENTRIES_MAX => wrong(&format!("has more than {ENTRIES_MAX} entries")),
            _ => Ok(array.iter().collect()),
        }
    }

    fn texts(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(String, Place)>, Misfit> {
        let mut texts = Vec::new();
        for element in self.elements(value)? {
            let place = self.source.place(element.span());
            match element.get_ref() {
                DeValue::String(text) => match one_line(text) {
                    Ok(()) if text.is_empty() => return Err((place, "is empty".to_owned())),
                    Ok(()) => texts.push((text.to_string(), place)),
                    Err(what) => return Err((place, what.to_owned())),
                },
                other => return Err((place, format!("is {}", type_name(other)))),
            }
        }
        Ok(texts)
    }

    fn ports(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<RangeInclusive<u16>>, Misfit> {
        let mut ports = Vec::new();
        for element in self.elements(value)? {
            let range = match element.get_ref() {
                DeValue::String(text) => match text.split_once('-') {
                    Some((from, to)) => port(from).zip(port(to)),
                    None => port(text).map(|port| (port, port)),
                },
                other => whole_number(other)
                    .and_then(|number| u16::try_from(number).ok())
                    .map(|port| (port, port)),
            };
            match range {
                Some((from, to)) if from > 0 && from <= to => ports.push(from..=to),
                _ => {
                    let place = self.source.place(element.span());
                    return Err((place, "is no port from 1 to 65535 and no range".to_owned()));
                }
            }
        }
        Ok(ports)
    }

    fn map(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(String, String, Place)>, Misfit> {
        let wrong = |what: String| (self.source.place(value.span()), what);
        let DeValue::Table(table) = value.get_ref() else {
            return Err(wrong(format!("is {}", type_name(value.get_ref()))));
        };
        if table.is_empty() || table.len() > ENTRIES_MAX {
            return Err(wrong(format!("is empty or has more than {ENTRIES_MAX} entries")));
        }
        let mut entries = Vec::new();
        for (name, value) in table {
            let place = self.source.place(name.span());
            match value.get_ref() {
                DeValue::String(text) => {
                    one_line(text).map_err(|what| (place.clone(), what.to_owned()))?;
                    entries.push((name.get_ref().to_string(), text.to_string(), place));
                }
                other => return Err((place, format!("has {} in it", type_name(other)))),
            }
        }
        Ok(entries)
    }

    /// The values of a name that opens tables.
    pub fn tables(&self, name: &str) -> impl Iterator<Item = &'s Spanned<DeValue<'s>>> {
        let tables = self.tables.iter().filter(move |(of, _)| *of == name);
        tables.map(|(_, value)| *value)
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Where the key was set, or else the table.
    pub fn place_of(&self, name: &str) -> &Place {
        self.entries.get(name).map_or(&self.place, |entry| &entry.place)
    }

    /// The keys that were set, with their places.
    pub fn set(&self) -> impl Iterator<Item = (&'static str, &Place)> {
        self.entries.iter().map(|(name, entry)| (*name, &entry.place))
    }

    /// What was set; reports a missing one, unless it may stand in a line that cannot be read.
    pub fn require(&self, name: &'static str, report: &mut Report) -> Option<String> {
        if !self.is_set(name) && !report.has_syntax_errors() {
            let what = format!("{} without `{name}`", self.section.header());
            let kind = self.section.keys().find(|key| key.name == name).map(|key| key.kind);
            let fix = kind.map_or(String::new(), |kind| format!("set {name} to {kind}"));
            report.problem(&self.place, what, fix);
        }
        self.text(name)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.entries.get(name)?.value.as_ref()
    }

    pub fn text(&self, name: &str) -> Option<String> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    pub fn list(&self, name: &str) -> &[(String, Place)] {
        match self.get(name) {
            Some(Value::Texts(texts)) => texts,
            _ => &[],
        }
    }

    pub fn port_ranges(&self) -> Vec<RangeInclusive<u16>> {
        match self.get("port") {
            Some(Value::Ports(ports)) => ports.clone(),
            _ => Vec::new(),
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Flag(true)))
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    pub fn size(&self, name: &str) -> Option<ByteSize> {
        match self.get(name) {
            Some(Value::Size(size)) => Some(*size),
            _ => None,
        }
    }

    pub fn entries(&self, name: &str) -> &[(String, String, Place)] {
        match self.get(name) {
            Some(Value::Map(entries)) => entries,
            _ => &[],
        }
    }
}

fn whole_number(value: &DeValue<'_>) -> Option<i64> {
    match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn one_line(text: &str) -> Result<(), &'static str> {
    match text {
        text if text.len() > TEXT_BYTES_MAX => Err("is too long"),
        text if text.chars().any(char::is_control) => Err("has a control character"),
        _ => Ok(()),
    }
}

fn is_name(text: &str) -> Result<(), &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(fits) {
        true => Ok(()),
        false => Err("is not a name of at most 64 letters"),
    }
}

pub(crate) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a flag",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn unknown(section: Section, name: &str, place: &Place, report: &mut Report) {
    let what = format!("`{}` is not a key of {}", name.escape_debug(), section.header());
    let fix = match nearest(name, section.keys().map(|key| key.name)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => match crate::KEYS.iter().find(|key| key.name == name) {
            Some(key) => format!("it belongs to {}", key.section.header()),
            None => String::new(),
        },
    };
    report.problem(place, what, fix);
}

/// The known name that is most likely meant, if one is near enough.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // Comparing takes the product of both lengths; no key is longer.
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let distance =
        |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
    // A third of the letters wrong is still a slip; more is another word.
    let allowed = (name.chars().count() / 3).clamp(1, 4);
    let near = known.map(|known| (distance(known), known)).filter(|(far, _)| *far <= allowed);
    near.min().map(|(_, known)| known)
}
