//! JSON of the brain, read leniently: a field of the wrong type is an absent field, an unknown
//! one is skipped without being built, and nesting costs no stack.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::config::ID_BYTES_MAX;

/// Every field of every object this crate reads. What is not here is never kept, so that an
/// object of a million fields costs nothing.
const READ: [&str; 42] = [
    "agent",
    "current_state",
    "custom_tool_use_id",
    "data",
    "depth",
    "details",
    "environment_id",
    "error",
    "error_code",
    "evaluated_permission",
    "event_ids",
    "file_id",
    "id",
    "input",
    "last_heartbeat",
    "lease_extended",
    "mcp_tool_use_id",
    "memory_store_id",
    "message",
    "metadata",
    "mount_path",
    "name",
    "next_page",
    "pending",
    "request_id",
    "resources",
    "result",
    "secret",
    "session_thread_id",
    "sessions_token",
    "skill_id",
    "skills",
    "state",
    "status",
    "stop_reason",
    "title",
    "tool_use_id",
    "ttl_seconds",
    "type",
    "url",
    "version",
    "workers_polling",
];

/// The fields of one object, unread.
pub(crate) struct Fields<'a>(Vec<(&'static str, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// `None` for anything but one whole JSON object.
    pub fn parse(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// The field's JSON. `null` counts as absent, as it does for the official clients.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        debug_assert!(READ.contains(&name), "{name} is not in READ");
        let (_, raw) = self.0.iter().find(|(field, _)| *field == name)?;
        Some(raw.get()).filter(|json| *json != "null")
    }

    pub fn text(&self, name: &str) -> Option<String> {
        lenient(self.raw(name)?)
    }

    /// An id, or a name used like one: neither empty nor too long to store.
    pub fn id(&self, name: &str) -> Option<String> {
        self.text(name).filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX)
    }

    pub fn object(&self, name: &str) -> Option<Fields<'a>> {
        Fields::parse(self.raw(name)?)
    }

    /// `None` for what is no array, or one longer than any of the protocol.
    pub fn array(&self, name: &str) -> Option<Vec<&'a str>> {
        let items: Items<'a> = serde_json::from_str(self.raw(name)?).ok()?;
        Some(items.0.into_iter().map(RawValue::get).collect())
    }

    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        lenient(self.raw(name)?)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields: Vec<(&'static str, &'de RawValue)> = Vec::new();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    let Some(name) = READ.iter().find(|name| **name == key) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    // A field given twice has no meaning we could act on.
                    if fields.iter().any(|(field, _)| field == name) {
                        return Err(de::Error::duplicate_field(name));
                    }
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// More items than any array of the protocol holds: a page has 1,000 events at most.
const ARRAY_ITEMS_MAX: usize = 10_000;

/// The items of an array, unread.
struct Items<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {ARRAY_ITEMS_MAX} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<'de>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == ARRAY_ITEMS_MAX {
                        return Err(de::Error::invalid_length(items.len() + 1, &self));
                    }
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_seq(Array)
    }
}

/// A body as text: without a byte order mark, and with U+FFFD for what is not UTF-8.
pub(crate) fn body_text(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    String::from_utf8_lossy(bytes)
}

/// Any JSON value, as deep as the parser goes.
pub(crate) fn value(json: &str) -> Option<Value> {
    lenient(json)
}

fn lenient<T: DeserializeOwned>(json: &str) -> Option<T> {
    match serde_json::from_str(json) {
        Ok(value) => Some(value),
        Err(_) => serde_json::from_str(&mend_surrogates(json)?).ok(),
    }
}

/// Replaces escapes of half a surrogate pair by that of U+FFFD. JavaScript writes them, and Rust
/// strings cannot hold them. `None` when there is nothing to mend.
fn mend_surrogates(json: &str) -> Option<String> {
    let mut mended = String::with_capacity(json.len());
    let mut changed = false;
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        mended.push_str(before);
        let taken = match (code_unit(escape), escape.get(6..).and_then(code_unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => {
                mended.push_str("\\ufffd");
                changed = true;
                rest = &escape[6..];
                continue;
            }
            // A backslash and the character it escapes, which may be of several bytes.
            _ => escape.chars().take(2).map(char::len_utf8).sum(),
        };
        mended.push_str(&escape[..taken]);
        rest = &escape[taken..];
    }
    mended.push_str(rest);
    changed.then_some(mended)
}

/// The UTF-16 unit that a text beginning with `\uXXXX` escapes.
fn code_unit(text: &str) -> Option<u16> {
    let hex = text.strip_prefix("\\u")?.get(..4)?;
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        for (json, expected) in [
            (r#""a\ud800b""#, "a\u{fffd}b"),
            (r#""\udc00\ud83d\ude00\ud83d""#, "\u{fffd}\u{1f600}\u{fffd}"),
            (r#""\\ud800 \ud800""#, "\\ud800 \u{fffd}"),
        ] {
            assert_eq!(lenient::<String>(json).as_deref(), Some(expected), "{json}");
        }
        assert_eq!(lenient::<String>(r#""\ud8""#), None);
    }

    #[test]
    fn fields_of_a_wrong_type_are_absent_and_unknown_ones_do_not_matter() {
        let fields = Fields::parse(r#"{"id":7,"name":null,"x":[[[]]],"type":"t"}"#).unwrap();
        assert_eq!(fields.text("id"), None);
        assert_eq!(fields.raw("name"), None);
        assert_eq!(fields.text("type").as_deref(), Some("t"));
        for bad in ["", "null", "[]", "{", r#"{"id":1,"id":2}"#, "{} {}"] {
            assert!(Fields::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = format!(
            r#"{{"x":{}{},"input":{}{},"type":"t"}}"#,
            "[".repeat(200_000),
            "]".repeat(200_000),
            "[".repeat(200_000),
            "]".repeat(200_000)
        );
        let fields = Fields::parse(&deep).unwrap();
        assert_eq!(fields.text("type").as_deref(), Some("t"));
        assert_eq!(fields.read::<Value>("input"), None);
    }

    proptest! {
        #[test]
        fn mending_never_panics(text in r#"(\\u[dD][89abcdef0-7]{0,3}|\\|"|é|x){0,20}"#) {
            let _mended = mend_surrogates(&text);
        }
    }
}
