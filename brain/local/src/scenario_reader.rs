//! Reads a scenario text with the place of everything, so that all mistakes are told at once.

use std::ops::Range;
use std::time::Duration;

use regex::Regex;
use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::scenario::{
    CallSpec, Expectation, MAX_CALLS_IN_STEP, MAX_SCENARIO_BYTES, MAX_STEPS, MAX_WAIT, Mistake,
    Mistakes, Step,
};

const ROOT_KEYS: &[&str] = &["description", "step"];
const CALL_KEYS: &[&str] =
    &["tool", "input", "permission", "custom", "thread", "awaited", "expect"];
const EXPECT_KEYS: &[&str] =
    &["contains", "not_contains", "regex", "equals", "is_error", "has_block"];
const STEP_KEYS: &[&str] = &[
    "say",
    "think",
    "call",
    "wait_ms",
    "wait_for_user",
    "expect_interrupt",
    "emit",
    "end_turn",
    "end_thread",
    "terminate",
];

type Item<'a> = Spanned<DeValue<'a>>;

pub(crate) fn read(text: &str) -> Result<(Vec<Step>, String), Mistakes> {
    let mut reader = Reader { text, mistakes: Vec::new() };
    if text.len() > MAX_SCENARIO_BYTES {
        reader.mistake(0..0, format!("the text is longer than {MAX_SCENARIO_BYTES} bytes"));
        return Err(Mistakes(reader.mistakes));
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        reader.mistake(error.span().unwrap_or(0..0), error.message().to_owned());
    }
    // What could not be parsed would only add mistakes that are not there.
    let found = if errors.is_empty() { reader.root(table.get_ref()) } else { Default::default() };
    if reader.mistakes.is_empty() {
        return Ok(found);
    }
    reader.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
    Err(Mistakes(reader.mistakes))
}

struct Reader<'t> {
    text: &'t str,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn mistake(&mut self, span: Range<usize>, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.mistakes.push(Mistake { line, column, message });
    }

    fn root(&mut self, table: &DeTable<'_>) -> (Vec<Step>, String) {
        self.known_keys(table, ROOT_KEYS);
        let description = match get(table, "description") {
            Some(item) => self.text(item).unwrap_or_default(),
            None => String::new(),
        };
        let Some(steps) = get(table, "step") else {
            self.mistake(0..0, "there is no [[step]]".to_owned());
            return Default::default();
        };
        let Some(items) = self.tables(steps, MAX_STEPS) else { return Default::default() };
        let steps = items.into_iter().filter_map(|(span, table)| self.step(span, table)).collect();
        (steps, description)
    }

    fn step(&mut self, span: Range<usize>, table: &DeTable<'_>) -> Option<Step> {
        self.known_keys(table, STEP_KEYS);
        let known = |key: &&&str| get(table, key).is_some();
        let present: Vec<&str> = STEP_KEYS.iter().filter(known).copied().collect();
        let [key] = present.as_slice() else {
            let message = match present.is_empty() {
                true => format!("a step needs one of {}", STEP_KEYS.join(", ")),
                false => format!("a step does one thing; this one has {}", present.join(" and ")),
            };
            self.mistake(span, message);
            return None;
        };
        let item = get(table, key)?;
        match *key {
            "say" => self.text(item).map(Step::Say),
            "think" => self.is_true(item).then_some(Step::Think),
            "call" => self.calls(item),
            "wait_ms" => self.wait(item),
            "wait_for_user" => self.is_true(item).then_some(Step::WaitForUser),
            "expect_interrupt" => self.is_true(item).then_some(Step::ExpectInterrupt),
            "emit" => self.event(item),
            "end_turn" => self.text(item).map(Step::EndTurn),
            "end_thread" => self.text(item).map(Step::EndThread),
            _ => self.is_true(item).then_some(Step::Terminate),
        }
    }

    fn calls(&mut self, item: &Item<'_>) -> Option<Step> {
        let tables = self.tables(item, MAX_CALLS_IN_STEP)?;
        let found: Vec<_> =
            tables.into_iter().filter_map(|(span, table)| self.call(span, table)).collect();
        Some(Step::Calls(found))
    }

    fn call(&mut self, span: Range<usize>, table: &DeTable<'_>) -> Option<CallSpec> {
        self.known_keys(table, CALL_KEYS);
        let tool = match get(table, "tool") {
            Some(item) => self.text(item),
            None => {
                self.mistake(span, "a call needs a tool".to_owned());
                None
            }
        };
        let input = match get(table, "input") {
            Some(item) => self.json(item)?,
            None => Value::Object(Map::new()),
        };
        let expect = match get(table, "expect") {
            Some(item) => self.expectation(item)?,
            None => Expectation::default(),
        };
        let permission = get(table, "permission").and_then(|item| self.text(item));
        let thread = get(table, "thread").and_then(|item| self.text(item));
        let custom = get(table, "custom").and_then(|item| self.boolean(item)).unwrap_or(false);
        let awaited = get(table, "awaited").and_then(|item| self.boolean(item)).unwrap_or(true);
        if custom && permission.is_some() {
            self.mistake(span_of(table, "permission"), "a custom tool has no permission".into());
        }
        Some(CallSpec { tool: tool?, input, permission, custom, thread, awaited, expect })
    }

    fn expectation(&mut self, item: &Item<'_>) -> Option<Expectation> {
        let Some(table) = item.get_ref().as_table() else {
            self.wrong_type(item, "a table");
            return None;
        };
        self.known_keys(table, EXPECT_KEYS);
        let mut expect = Expectation::default();
        for (key, list) in
            [("contains", &mut expect.contains), ("not_contains", &mut expect.not_contains)]
        {
            if let Some(item) = get(table, key) {
                *list = self.texts(item).into_iter().map(|(_, text)| text).collect();
            }
        }
        for (span, pattern) in get(table, "regex").map(|i| self.texts(i)).unwrap_or_default() {
            match Regex::new(&pattern) {
                Ok(regex) => expect.regex.push(regex),
                Err(error) => self.mistake(span, format!("not a regular expression: {error}")),
            }
        }
        expect.equals = get(table, "equals").and_then(|item| self.text(item));
        expect.is_error = get(table, "is_error").and_then(|item| self.boolean(item));
        expect.has_block = get(table, "has_block").and_then(|item| self.text(item));
        Some(expect)
    }

    fn wait(&mut self, item: &Item<'_>) -> Option<Step> {
        let value = self.json(item)?;
        let limit = MAX_WAIT.as_millis() as u64;
        match value.as_u64().filter(|ms| *ms <= limit) {
            Some(ms) => Some(Step::Wait(Duration::from_millis(ms))),
            None => {
                self.mistake(item.span(), format!("expected milliseconds from 0 to {limit}"));
                None
            }
        }
    }

    fn event(&mut self, item: &Item<'_>) -> Option<Step> {
        let text = self.text(item)?;
        match serde_json::from_str::<Value>(&text) {
            Ok(event) if event["type"].is_string() => Some(Step::Emit(event)),
            Ok(_) => {
                self.mistake(item.span(), "an event is an object with a type".to_owned());
                None
            }
            Err(error) => {
                self.mistake(item.span(), format!("not JSON: {error}"));
                None
            }
        }
    }

    fn known_keys(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let message = format!("unknown key {:?}; known: {}", key.get_ref(), known.join(", "));
            self.mistake(key.span(), message);
        }
    }

    fn tables<'i, 'a>(
        &mut self,
        item: &'i Item<'a>,
        limit: usize,
    ) -> Option<Vec<(Range<usize>, &'i DeTable<'a>)>> {
        let Some(items) = item.get_ref().as_array() else {
            self.wrong_type(item, "a list of tables");
            return None;
        };
        if items.is_empty() || items.len() > limit {
            self.mistake(item.span(), format!("expected 1 to {limit} tables"));
            return None;
        }
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push((item.span(), table)),
                None => self.wrong_type(item, "a table"),
            }
        }
        Some(tables)
    }

    fn texts(&mut self, item: &Item<'_>) -> Vec<(Range<usize>, String)> {
        match item.get_ref().as_array() {
            Some(items) => {
                items.iter().filter_map(|item| Some((item.span(), self.text(item)?))).collect()
            }
            None => self.text(item).map(|text| (item.span(), text)).into_iter().collect(),
        }
    }

    fn text(&mut self, item: &Item<'_>) -> Option<String> {
        let text = item.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong_type(item, "a text");
        }
        text
    }

    fn boolean(&mut self, item: &Item<'_>) -> Option<bool> {
        let value = item.get_ref().as_bool();
        if value.is_none() {
            self.wrong_type(item, "true or false");
        }
        value
    }

    fn is_true(&mut self, item: &Item<'_>) -> bool {
        let value = item.get_ref().as_bool() == Some(true);
        if !value {
            self.wrong_type(item, "true");
        }
        value
    }

    fn wrong_type(&mut self, item: &Item<'_>, expected: &str) {
        let message = format!("expected {expected}, found {}", item.get_ref().type_str());
        self.mistake(item.span(), message);
    }

    fn json(&mut self, item: &Item<'_>) -> Option<Value> {
        let value = match item.get_ref() {
            DeValue::String(text) => Some(Value::String(text.to_string())),
            DeValue::Boolean(value) => Some(Value::Bool(*value)),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::from)
            }
            DeValue::Float(number) => {
                number.as_str().parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number)
            }
            DeValue::Datetime(_) => None,
            DeValue::Array(items) => {
                return items.iter().map(|item| self.json(item)).collect::<Option<_>>();
            }
            DeValue::Table(table) => {
                let mut map = Map::new();
                for (key, item) in table.iter() {
                    map.insert(key.get_ref().to_string(), self.json(item)?);
                }
                return Some(Value::Object(map));
            }
        };
        if value.is_none() {
            self.wrong_type(item, "something JSON can hold");
        }
        value
    }
}

fn get<'i, 'a>(table: &'i DeTable<'a>, key: &str) -> Option<&'i Item<'a>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, item)| item)
}

fn span_of(table: &DeTable<'_>, key: &str) -> Range<usize> {
    get(table, key).map_or(0..0, |item| item.span())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn places(text: &str) -> Vec<(usize, usize)> {
        let mistakes = read(text).unwrap_err();
        mistakes.0.iter().map(|mistake| (mistake.line, mistake.column)).collect()
    }

    #[test]
    fn a_scenario_reads_as_written() {
        let text = r#"
            description = "d"
            [[step]]
            say = "hello"
            [[step]]
            [[step.call]]
            tool = "bash"
            input = { command = "true", timeout_ms = 5, deep = [1.5, { a = false }] }
            expect = { contains = ["a", "b"], regex = "^a", is_error = false }
            [[step.call]]
            tool = "lookup"
            custom = true
            thread = "t"
            [[step]]
            wait_ms = 0x10
            [[step]]
            emit = '{"type": "x"}'
            [[step]]
            end_turn = "end_turn"
        "#;
        let (steps, description) = read(text).unwrap();
        assert_eq!(description, "d");
        assert_eq!(steps.len(), 5);
        let Step::Calls(calls) = &steps[1] else { panic!("{:?}", steps[1]) };
        let deep = json!({"command": "true", "timeout_ms": 5, "deep": [1.5, {"a": false}]});
        assert_eq!(calls[0].input, deep);
        assert_eq!(calls[0].expect.contains, ["a", "b"]);
        assert!(calls[1].custom);
        assert!(matches!(&steps[2], Step::Wait(wait) if wait.as_millis() == 16));
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_places() {
        let text = concat!(
            "colour = 1\n",
            "[[step]]\n",
            "say = 5\n",
            "[[step]]\n",
            "say = 'a'\n",
            "think = true\n",
            "[[step]]\n",
            "[[step.call]]\n",
            "input = { when = 2020-01-01 }\n",
            "[[step]]\n",
            "[[step.call]]\n",
            "tool = 'x'\n",
            "expect = { regex = '(', is_eror = true }\n",
            "[[step]]\n",
            "emit = 'no'\n",
            "[[step]]\n",
            "wait_ms = -1\n",
        );
        let expected =
            [(1, 1), (3, 7), (4, 1), (8, 1), (9, 18), (13, 20), (13, 25), (15, 8), (17, 11)];
        assert_eq!(places(text), expected, "{}", read(text).unwrap_err());
    }

    #[test]
    fn broken_toml_is_reported_with_its_places() {
        let mistakes = read("[[step]]\nsay = \n[[step]]\nsay == 1\n").unwrap_err();
        assert!(mistakes.0.iter().any(|mistake| mistake.line == 2), "{mistakes}");
        assert!(mistakes.0.iter().any(|mistake| mistake.line == 4), "{mistakes}");
        assert_eq!(places(""), [(1, 1)]);
    }
}
