//! A session's events as lines a person can follow, with the time of every call.

use std::collections::BTreeMap;
use std::time::Duration;

use base_types::SessionId;
use serde_json::Value;

use crate::brain_client::{EventCursor, event_micros};
use crate::output::{duration, one_line};

const INPUT_WIDTH: usize = 78;
const OUTPUT_LINES: usize = 4;
const OUTPUT_WIDTH: usize = 78;

/// One session that the demo follows.
pub struct Watched {
    pub letter: char,
    pub script: &'static str,
    pub session: SessionId,
    pub cursor: EventCursor,
    /// The turn has ended.
    pub over: bool,
    pub calls: BTreeMap<String, Call>,
    began_us: Option<i64>,
}

/// A call as the brain saw it.
pub struct Call {
    tool: String,
    asked_us: i64,
    /// Every result that came for it: exactly one, if all is well.
    pub results: Vec<Answer>,
}

pub struct Answer {
    pub took: Duration,
}

impl Watched {
    pub fn new(letter: char, script: &'static str, session: SessionId) -> Self {
        Self {
            letter,
            script,
            session,
            cursor: EventCursor::default(),
            over: false,
            calls: BTreeMap::new(),
            began_us: None,
        }
    }

    pub fn open_calls(&self) -> Vec<&str> {
        let open = self.calls.iter().filter(|(_, call)| call.results.is_empty());
        open.map(|(id, _)| id.as_str()).collect()
    }

    pub fn times(&self) -> Vec<Duration> {
        self.calls.values().flat_map(|call| call.results.iter().map(|answer| answer.took)).collect()
    }

    /// Takes an event in; returns what to print of it.
    pub fn take(&mut self, event: &Value) -> Vec<String> {
        let at_us = event_micros(event).unwrap_or_default();
        let began_us = *self.began_us.get_or_insert(at_us);
        let since = Duration::from_micros(at_us.saturating_sub(began_us).max(0) as u64);
        let head = format!("[{} {:>6.2}s]", self.letter, since.as_secs_f64());
        let text = |event: &Value| -> String {
            let blocks = event["content"].as_array().into_iter().flatten();
            blocks.filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
        };
        match event["type"].as_str().unwrap_or_default() {
            "agent.message" => vec![format!("{head} {}", one_line(&text(event), 100))],
            "agent.tool_use" => {
                let (id, tool) = (string(event, "id"), string(event, "name"));
                let input = one_line(&what_of(&event["input"]), INPUT_WIDTH);
                let line = format!("{head}   {tool:<5} {input}");
                self.calls.insert(id, Call { tool, asked_us: at_us, results: Vec::new() });
                vec![line]
            }
            "user.tool_result" => self.result(&head, event, at_us, &text(event)),
            "session.status_idle" => {
                let reason = event["stop_reason"]["type"].as_str().unwrap_or_default();
                self.over = reason != "requires_action";
                Vec::new()
            }
            "session.error" => vec![format!("{head} ERROR {}", one_line(&event.to_string(), 200))],
            _ => Vec::new(),
        }
    }

    fn result(&mut self, head: &str, event: &Value, at_us: i64, text: &str) -> Vec<String> {
        let Some(call) = self.calls.get_mut(event["tool_use_id"].as_str().unwrap_or_default())
        else {
            return vec![format!("{head} a result for a call that nobody made")];
        };
        let took = Duration::from_micros(at_us.saturating_sub(call.asked_us).max(0) as u64);
        call.results.push(Answer { took });
        let mark = if event["is_error"] == true { "error" } else { "ok" };
        let mut lines = vec![format!("{head}   {:<5} {mark} in {}", call.tool, duration(took))];
        let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let skipped = all.len().saturating_sub(OUTPUT_LINES);
        if skipped > 0 {
            lines.push(format!("{:>13} … {skipped} lines", "|"));
        }
        let shown = all.iter().skip(skipped);
        lines.extend(shown.map(|line| format!("{:>13} {}", "|", one_line(line, OUTPUT_WIDTH))));
        lines
    }
}

fn string(event: &Value, key: &str) -> String {
    event[key].as_str().unwrap_or_default().to_owned()
}

/// The part of an input that says what the call is about.
fn what_of(input: &Value) -> String {
    let keys = ["command", "file_path", "pattern"];
    let what = keys.iter().find_map(|key| input[*key].as_str());
    what.map_or_else(
        || input.to_string(),
        |what| what.split_whitespace().collect::<Vec<_>>().join(" "),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_and_its_result_make_two_lines_and_a_time() {
        let mut watched = Watched::new('A', "x", SessionId::from("s"));
        let at = |second: u32| format!("2026-01-01T00:00:{second:02}.000000Z");
        let asked = json!({
            "type": "agent.tool_use", "id": "t1", "name": "bash", "processed_at": at(1),
            "input": {"command": "echo\n  hi"},
        });
        assert_eq!(watched.take(&asked), ["[A   0.00s]   bash  echo hi"]);
        assert_eq!(watched.open_calls(), ["t1"]);
        let answered = json!({
            "type": "user.tool_result", "tool_use_id": "t1", "processed_at": at(3),
            "is_error": false, "content": [{"type": "text", "text": "1\n2\n3\n4\n5\n6"}],
        });
        let lines = watched.take(&answered);
        assert_eq!(lines[0], "[A   2.00s]   bash  ok in 2.00s");
        assert!(
            lines[1].contains("2 lines") && lines.last().unwrap().ends_with("| 6"),
            "{lines:?}"
        );
        assert!(watched.open_calls().is_empty());
        let idle =
            |kind: &str| json!({"type": "session.status_idle", "stop_reason": {"type": kind}});
        watched.take(&idle("requires_action"));
        assert!(!watched.over);
        watched.take(&idle("end_turn"));
        assert!(watched.over);
    }
}
