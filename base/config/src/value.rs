//! Single values: from the file, a variable, a flag or a default, all checked alike.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base_types::{ByteSize, HumanDuration};
use toml::de::{DeTable, DeValue};

use crate::credential;
use crate::types::Entrypoint;

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Path,
    /// Any text of one line.
    Text,
    /// Something another system chose: one line, not empty.
    Id,
    /// Letters, digits, `.`, `_`, `-`.
    Name,
    Flag,
    Count {
        min: u64,
        max: u64,
    },
    Cpus {
        min_millis: u32,
        max_millis: u32,
    },
    Size {
        min: u64,
        max: u64,
    },
    Duration {
        min_ms: u64,
        max_ms: u64,
    },
    Choice(&'static [&'static str]),
    /// Texts by name.
    Map,
    /// As images are called: a name with `:` and `/` in it, too.
    Image,
    /// An absolute path inside a sandbox.
    GuestPath,
    /// `true`, `false`, or a program with its arguments.
    Entrypoint,
    /// Tables with keys of their own.
    Tables,
}

/// A value that fits its [`Kind`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Path(PathBuf),
    Text(String),
    Flag(bool),
    Count(u64),
    CpuMillis(u32),
    Size(ByteSize),
    Duration(Duration),
    Map(BTreeMap<String, String>),
    Entrypoint(Entrypoint),
}

/// A value as it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Raw<'a> {
    Toml(&'a DeValue<'a>),
    /// From outside the file, where everything is text.
    Text(&'a str),
    /// From a flag: paths need not be text.
    Path(&'a Path),
}

/// Why a value does not fit, and what would.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    pub what: String,
    pub fix: String,
}

/// Longest text accepted anywhere: far over any id, path or URL, far under what hurts.
const TEXT_BYTES_MAX: usize = 32 << 10;
/// Of a profile's, a worker's or an image's name.
const NAME_CHARS_MAX: usize = 128;
/// Words of an entrypoint, and their bytes together: what the guest agent takes.
const ENTRYPOINT_WORDS_MAX: usize = 256;
const ENTRYPOINT_BYTES_MAX: usize = 32 << 10;
/// Directories deep that a path inside a sandbox may lead, and its length: what a container takes.
const GUEST_PATH_DEPTH_MAX: usize = 64;
const GUEST_PATH_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;

fn misfit(what: impl Into<String>, fix: impl Into<String>) -> Misfit {
    Misfit { what: what.into(), fix: fix.into() }
}

impl Kind {
    pub(crate) fn read(self, raw: Raw<'_>) -> Result<Value, Misfit> {
        match self {
            Kind::Path => self.path(raw),
            Kind::Text => self.text(raw).map(|text| Value::Text(text.to_owned())),
            Kind::Id => match self.text(raw)? {
                "" => Err(misfit("is empty", "leave it out, or write a text")),
                text => Ok(Value::Text(text.to_owned())),
            },
            Kind::Name => self.name(raw),
            Kind::Flag => self.flag(raw),
            Kind::Count { min, max } => self.count(raw, min, max),
            Kind::Cpus { min_millis, max_millis } => self.cpus(raw, min_millis, max_millis),
            Kind::Size { min, max } => {
                let size: ByteSize = self.unit(raw)?;
                let [min, max] = [min, max].map(ByteSize);
                within(size, min, max)?;
                Ok(Value::Size(size))
            }
            Kind::Duration { min_ms, max_ms } => {
                let duration: HumanDuration = self.unit(raw)?;
                let [min, max] =
                    [min_ms, max_ms].map(|ms| HumanDuration(Duration::from_millis(ms)));
                within(duration, min, max)?;
                Ok(Value::Duration(duration.0))
            }
            Kind::Choice(choices) => {
                let text = self.text(raw)?;
                match choices.contains(&text) {
                    true => Ok(Value::Text(text.to_owned())),
                    false => Err(misfit("is not one of the choices", self.to_string())),
                }
            }
            Kind::Map => match raw {
                Raw::Toml(DeValue::Table(table)) => self.map(table),
                _ => Err(self.wrong_type(raw)),
            },
            Kind::Image => self.image(raw),
            Kind::GuestPath => self.guest_path(raw),
            Kind::Entrypoint => self.entrypoint(raw).map(Value::Entrypoint),
            Kind::Tables => Err(self.wrong_type(raw)),
        }
    }

    fn text<'a>(self, raw: Raw<'a>) -> Result<&'a str, Misfit> {
        let text = match raw {
            Raw::Toml(DeValue::String(text)) => text.as_ref(),
            Raw::Text(text) => text,
            Raw::Path(path) => path.to_str().ok_or_else(|| self.wrong_type(raw))?,
            Raw::Toml(_) => return Err(self.wrong_type(raw)),
        };
        one_line(text)?;
        Ok(text)
    }

    fn path(self, raw: Raw<'_>) -> Result<Value, Misfit> {
        if let Raw::Path(path) = raw
            && path.to_str().is_none()
        {
            return Ok(Value::Path(path.to_owned()));
        }
        match self.text(raw)? {
            "" => Err(misfit("is empty", "write a path")),
            text if text.starts_with('~') => {
                Err(misfit("begins with `~`, which only a shell knows", "write the path out"))
            }
            text => Ok(Value::Path(text.into())),
        }
    }

    fn image(self, raw: Raw<'_>) -> Result<Value, Misfit> {
        let text = self.text(raw)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
        match text.len() <= NAME_CHARS_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(fits)
        {
            true => Ok(Value::Text(text.to_owned())),
            false => Err(misfit(
                "is not an image's name",
                "use letters, digits and `._:/-`, at most 128, and a letter or digit in front",
            )),
        }
    }

    fn guest_path(self, raw: Raw<'_>) -> Result<Value, Misfit> {
        let text = self.text(raw)?;
        if !text.starts_with('/') {
            return Err(misfit("is not an absolute path", self.to_string()));
        }
        let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
        if names.contains(&"..") {
            return Err(misfit("leads upwards", "write the path without `..`"));
        }
        let too_long = text.len() > GUEST_PATH_BYTES_MAX
            || names.len() > GUEST_PATH_DEPTH_MAX
            || names.iter().any(|name| name.len() > NAME_BYTES_MAX);
        match too_long {
            true => Err(misfit("is too long for a path", "write a shorter one")),
            false => Ok(Value::Text(text.to_owned())),
        }
    }

    fn entrypoint(self, raw: Raw<'_>) -> Result<Entrypoint, Misfit> {
        let array = match raw {
            Raw::Toml(DeValue::Array(array)) => array,
            _ => match self.flag(raw)? {
                Value::Flag(true) => return Ok(Entrypoint::OfImage),
                _ => return Ok(Entrypoint::None),
            },
        };
        let mut words = Vec::new();
        for word in array.iter() {
            let DeValue::String(word) = word.get_ref() else {
                let what = format!("has a word that is {}", type_name(word.get_ref()));
                return Err(misfit(what, "every word is a text"));
            };
            one_line_or_more(word)?;
            words.push(word.to_string());
        }
        if words.first().is_none_or(String::is_empty) {
            return Err(misfit("names no program", self.to_string()));
        }
        let bytes: usize = words.iter().map(String::len).sum();
        match words.len() > ENTRYPOINT_WORDS_MAX || bytes > ENTRYPOINT_BYTES_MAX {
            true => Err(misfit("is too long", "put it into a script in the image")),
            false => Ok(Entrypoint::Command(words)),
        }
    }

    fn name(self, raw: Raw<'_>) -> Result<Value, Misfit> {
        let text = self.text(raw)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match !text.is_empty()
            && text.len() <= NAME_CHARS_MAX
            && text.chars().all(fits)
            && !text.starts_with('.')
        {
            true => Ok(Value::Text(text.to_owned())),
            false => Err(misfit(
                "is not a name",
                "use letters, digits, `.`, `_` and `-`, at most 128, and no `.` in front",
            )),
        }
    }

    fn flag(self, raw: Raw<'_>) -> Result<Value, Misfit> {
        match raw {
            Raw::Toml(DeValue::Boolean(flag)) => Ok(Value::Flag(*flag)),
            Raw::Text("true") => Ok(Value::Flag(true)),
            Raw::Text("false") => Ok(Value::Flag(false)),
            _ => Err(self.wrong_type(raw)),
        }
    }

    fn count(self, raw: Raw<'_>, min: u64, max: u64) -> Result<Value, Misfit> {
        let number = match raw {
            Raw::Toml(DeValue::Integer(number)) => {
                i128::from_str_radix(number.as_str(), number.radix()).ok()
            }
            Raw::Text(text) => text.parse().ok(),
            _ => None,
        };
        let number = number.ok_or_else(|| self.wrong_type(raw))?;
        match u64::try_from(number) {
            Ok(count) if (min..=max).contains(&count) => Ok(Value::Count(count)),
            _ => Err(out_of_range(&number, &min, &max)),
        }
    }

    fn cpus(self, raw: Raw<'_>, min: u32, max: u32) -> Result<Value, Misfit> {
        let text: Cow<'_, str> = match raw {
            Raw::Toml(DeValue::Integer(number)) if number.radix() == 10 => number.as_str().into(),
            Raw::Toml(DeValue::Float(number)) => number.as_str().into(),
            Raw::Text(text) => text.into(),
            _ => return Err(self.wrong_type(raw)),
        };
        let cpus: f64 = text.parse().map_err(|_| self.wrong_type(raw))?;
        let millis = (cpus * 1_000.0).round();
        if !(f64::from(min)..=f64::from(max)).contains(&millis) {
            let [min, max] = [min, max].map(|millis| f64::from(millis) / 1_000.0);
            return Err(out_of_range(&text, &min, &max));
        }
        Ok(Value::CpuMillis(millis as u32))
    }

    fn unit<T: std::str::FromStr<Err = base_types::ParseUnitError>>(
        self,
        raw: Raw<'_>,
    ) -> Result<T, Misfit> {
        let text = match raw {
            Raw::Toml(DeValue::Integer(_) | DeValue::Float(_)) => {
                return Err(misfit("has no unit", self.to_string()));
            }
            _ => self.text(raw)?,
        };
        text.parse().map_err(|_| misfit(format!("`{text}` cannot be read"), self.to_string()))
    }

    fn map(self, table: &DeTable<'_>) -> Result<Value, Misfit> {
        let mut map = BTreeMap::new();
        for (name, value) in table {
            let DeValue::String(text) = value.get_ref() else {
                let name = credential::shown(name.get_ref());
                let what = format!("`{name}` is {}", type_name(value.get_ref()));
                return Err(misfit(what, "every value in it is a text"));
            };
            one_line_or_more(text)?;
            map.insert(name.get_ref().to_string(), text.to_string());
        }
        Ok(Value::Map(map))
    }

    fn wrong_type(self, raw: Raw<'_>) -> Misfit {
        let found = match raw {
            Raw::Toml(value) => type_name(value),
            Raw::Text(_) => "a text",
            Raw::Path(_) => "a path",
        };
        misfit(format!("is {found}"), self.to_string())
    }
}

fn one_line(text: &str) -> Result<(), Misfit> {
    one_line_or_more(text)?;
    match text.chars().any(char::is_control) {
        true => Err(misfit("contains a control character", "write it in one line")),
        false => Ok(()),
    }
}

fn one_line_or_more(text: &str) -> Result<(), Misfit> {
    if credential::looks_like_one(text) {
        let fix = "name a file or a variable that holds it, with `key_file` or `key_env` of an \
                   [[environment]]";
        return Err(misfit("looks like a key; keys do not stand in the configuration", fix));
    }
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(misfit("is not UTF-8", ""));
    }
    if text.contains('\0') {
        return Err(misfit("contains a NUL character", ""));
    }
    match text.len() > TEXT_BYTES_MAX {
        true => Err(misfit(format!("is longer than {TEXT_BYTES_MAX} bytes"), "")),
        false => Ok(()),
    }
}

fn within<T: PartialOrd + fmt::Display>(value: T, min: T, max: T) -> Result<(), Misfit> {
    match value >= min && value <= max {
        true => Ok(()),
        false => Err(out_of_range(&value, &min, &max)),
    }
}

fn out_of_range(
    value: &dyn fmt::Display,
    min: &dyn fmt::Display,
    max: &dyn fmt::Display,
) -> Misfit {
    misfit(format!("{value} is out of range"), format!("from {min} to {max}"))
}

pub(crate) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a flag",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// What to write, as an operator reads it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Path => f.write_str("a path, like \"/var/lib/sinew\""),
            Kind::Text | Kind::Id => f.write_str("a text"),
            Kind::Name => f.write_str("a name"),
            Kind::Flag => f.write_str("`true` or `false`"),
            Kind::Count { min, max } => write!(f, "a whole number from {min} to {max}"),
            Kind::Cpus { .. } => f.write_str("a number, like 0.5 or 2"),
            Kind::Size { .. } => {
                f.write_str("a size: a whole number with a unit, like \"512MiB\" or \"2GiB\"")
            }
            Kind::Duration { .. } => f.write_str(
                "a duration: a whole number with a unit, like \"90s\", \"10min\" or \"7d\"",
            ),
            Kind::Choice(choices) => {
                let quoted: Vec<String> = choices.iter().map(|c| format!("\"{c}\"")).collect();
                f.write_str(&quoted.join(" or "))
            }
            Kind::Map => f.write_str("a table of texts, like { NAME = \"value\" }"),
            Kind::Image => f.write_str("an image's name"),
            Kind::GuestPath => {
                f.write_str("an absolute path inside the sandbox, like \"/srv/app\"")
            }
            Kind::Entrypoint => {
                f.write_str("`true`, `false`, or words, like [\"redis-server\", \"--save\", \"\"]")
            }
            Kind::Tables => f.write_str("tables"),
        }
    }
}
