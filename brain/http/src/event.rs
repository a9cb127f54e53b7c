//! Sessions and their events, decoded. An event that we cannot read is an event of a kind we do
//! not know; only an answer that is no page at all is an error.

use std::collections::BTreeMap;

use base_types::{AgentId, EventId, SessionId, ThreadId, ToolUseId};
use brain_api::{
    BrainError, Confirmation, Event, EventKind, Page, Permission, SessionInfo, SessionStatus,
    StopReason, ToolUse, ToolUseKind,
};
use serde_json::Value;

use crate::answer::{garbage, printable};
use crate::fields::{self, Fields, body_text};

pub(crate) const LIST: &str = "list the session's events";
pub(crate) const RETRIEVE: &str = "retrieve the session";

/// A tool input larger than this is not built: as a tree it would cost many times its size.
const INPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Names are logged; those of the protocol are under 40 characters.
const NAME_CHARS_MAX: usize = 128;
/// Attached things that are named in a warning.
const UNSERVED_MAX: usize = 64;
/// Cursors are opaque, and go back in a URL.
const CURSOR_BYTES_MAX: usize = 4 * 1024;

pub(crate) fn decode_page(body: &[u8]) -> Result<Page, BrainError> {
    let text = body_text(body);
    let fields = Fields::parse(text.trim())
        .ok_or_else(|| garbage(LIST, "the answer is not a page of events"))?;
    let events = fields
        .array("data")
        .ok_or_else(|| garbage(LIST, "the answer's data is not a list of events"))?;
    let next = match fields.raw("next_page") {
        None => None,
        // To take a cursor we cannot read for the end would hide the rest of the history.
        Some(_) => Some(fields.text("next_page").filter(|next| next.len() <= CURSOR_BYTES_MAX))
            .map(|next| next.ok_or_else(|| garbage(LIST, "the answer's next_page is no cursor")))
            .transpose()?
            .filter(|next| !next.is_empty()),
    };
    Ok(Page { events: events.into_iter().map(decode_event).collect(), next })
}

/// One event of a page or of the stream.
pub(crate) fn decode_event(json: &str) -> Event {
    let Some(fields) = Fields::parse(json) else {
        return Event { id: None, name: String::new(), kind: EventKind::Other };
    };
    let name = fields.text("type").unwrap_or_default();
    let kind = kind(&name, &fields);
    if kind.is_none() {
        tracing::warn!(name = %printable(&name, NAME_CHARS_MAX), "an event lacks what it must have: ignored");
    }
    Event {
        id: fields.id("id").map(EventId::new),
        name: printable(&name, NAME_CHARS_MAX),
        kind: kind.unwrap_or(EventKind::Other),
    }
}

/// `None` for an event of a known name that lacks what makes it one.
fn kind(name: &str, fields: &Fields<'_>) -> Option<EventKind> {
    let call = |field| fields.id(field).map(ToolUseId::new);
    let thread = || fields.id("session_thread_id").map(ThreadId::new);
    Some(match name {
        "agent.tool_use" => EventKind::ToolUse(tool_use(ToolUseKind::Builtin, fields)?),
        "agent.custom_tool_use" => EventKind::ToolUse(tool_use(ToolUseKind::Custom, fields)?),
        "agent.mcp_tool_use" => EventKind::ToolUse(tool_use(ToolUseKind::Mcp, fields)?),
        "user.tool_result" | "agent.tool_result" => EventKind::Answered(call("tool_use_id")?),
        "user.custom_tool_result" => EventKind::Answered(call("custom_tool_use_id")?),
        "agent.mcp_tool_result" => EventKind::Answered(call("mcp_tool_use_id")?),
        "user.tool_confirmation" => EventKind::Confirmation(Confirmation {
            call: call("tool_use_id")?,
            allowed: fields.text("result").as_deref() == Some("allow"),
        }),
        "session.status_idle" => EventKind::StatusIdle(stop_reason(fields)),
        "session.status_running" => EventKind::StatusRunning,
        "session.status_terminated" => EventKind::StatusTerminated,
        "session.deleted" => EventKind::SessionDeleted,
        "session.updated" => EventKind::SessionUpdated,
        "session.thread_status_terminated" => EventKind::ThreadTerminated(thread()?),
        "user.interrupt" => EventKind::UserInterrupt { thread: thread() },
        "user.message" => EventKind::UserMessage,
        _ => EventKind::Other,
    })
}

fn tool_use(kind: ToolUseKind, fields: &Fields<'_>) -> Option<ToolUse> {
    let id = ToolUseId::new(fields.id("id")?);
    Some(ToolUse {
        input: input(fields, &id),
        id,
        kind,
        name: fields.id("name").unwrap_or_default(),
        permission: permission(fields),
        thread: fields.id("session_thread_id").map(ThreadId::new),
    })
}

/// The input as it came. One that cannot be built becomes `null`, which no tool takes for an
/// input: the call is answered with an error instead of being left open.
fn input(fields: &Fields<'_>, call: &ToolUseId) -> Value {
    let Some(json) = fields.raw("input") else { return Value::Null };
    let built = (json.len() <= INPUT_BYTES_MAX).then(|| fields::value(json)).flatten();
    built.unwrap_or_else(|| {
        tracing::warn!(%call, bytes = json.len(), "a tool input is too large or too deep: taken as null");
        Value::Null
    })
}

/// Absent is an allowance, as the protocol has it; anything but a known word is a question.
fn permission(fields: &Fields<'_>) -> Permission {
    if fields.raw("evaluated_permission").is_none() {
        return Permission::Allow;
    }
    match fields.text("evaluated_permission").as_deref() {
        Some("allow") => Permission::Allow,
        Some("deny") => Permission::Deny,
        _ => Permission::Ask,
    }
}

fn stop_reason(fields: &Fields<'_>) -> StopReason {
    let Some(reason) = fields.object("stop_reason") else {
        return StopReason::TurnOver { reason: "unknown".to_owned() };
    };
    match reason.text("type").as_deref() {
        Some("requires_action") => StopReason::RequiresAction {
            calls: reason.read::<Vec<Value>>("event_ids").map(ids).unwrap_or_default(),
        },
        other => {
            StopReason::TurnOver { reason: printable(other.unwrap_or("unknown"), NAME_CHARS_MAX) }
        }
    }
}

fn ids(values: Vec<Value>) -> Vec<ToolUseId> {
    values.iter().filter_map(Value::as_str).map(ToolUseId::from).collect()
}

pub(crate) fn decode_session(body: &[u8], id: &SessionId) -> Result<SessionInfo, BrainError> {
    let text = body_text(body);
    let fields = Fields::parse(text.trim())
        .ok_or_else(|| garbage(RETRIEVE, "the answer is not a session"))?;
    let agent = fields.object("agent");
    let word = |name| agent.as_ref().and_then(|agent| agent.id(name));
    Ok(SessionInfo {
        id: id.clone(),
        status: match fields.text("status").as_deref() {
            Some("idle") => SessionStatus::Idle,
            Some("running") => SessionStatus::Running,
            Some("rescheduling") => SessionStatus::Rescheduling,
            Some("terminated") => SessionStatus::Terminated,
            _ => SessionStatus::Unknown,
        },
        agent: word("id").or_else(|| fields.id("agent")).map(AgentId::new),
        agent_version: agent.as_ref().and_then(|agent| agent.read("version")),
        agent_name: word("name"),
        title: fields.text("title"),
        metadata: metadata(&fields),
        unserved: unserved(agent.as_ref(), &fields),
    })
}

/// Values that are no text match no rule, so they are left out.
fn metadata(fields: &Fields<'_>) -> BTreeMap<String, String> {
    let pairs: BTreeMap<String, Value> = fields.read("metadata").unwrap_or_default();
    let text = |value| match value {
        Value::String(text) => Some(text),
        _ => None,
    };
    pairs.into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect()
}

fn unserved(agent: Option<&Fields<'_>>, session: &Fields<'_>) -> Vec<String> {
    let skills = agent.and_then(|agent| agent.array("skills")).unwrap_or_default();
    let resources = session.array("resources").unwrap_or_default();
    let named = |kind: String, thing: Option<Fields<'_>>| {
        // A repository's `url` may hold a token: it is not among the names.
        let name = ["name", "mount_path", "skill_id", "file_id", "memory_store_id", "id"];
        let name = name.iter().find_map(|field| thing.as_ref()?.id(field));
        printable(&format!("{kind}: {}", name.unwrap_or_default()), NAME_CHARS_MAX)
    };
    let skills = skills.into_iter().map(|json| named("skill".to_owned(), Fields::parse(json)));
    let resources = resources.into_iter().map(|json| {
        let thing = Fields::parse(json);
        let kind = thing.as_ref().and_then(|thing| thing.id("type"));
        named(kind.unwrap_or_else(|| "resource".to_owned()), thing)
    });
    skills.chain(resources).take(UNSERVED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn kind_of(event: Value) -> EventKind {
        decode_event(&event.to_string()).kind
    }

    #[test]
    fn a_permission_we_do_not_know_is_a_question() {
        for (value, expected) in [
            (json!("allow"), Permission::Allow),
            (json!(null), Permission::Allow),
            (json!("deny"), Permission::Deny),
            (json!("ask"), Permission::Ask),
            (json!("ALLOW"), Permission::Ask),
            (json!("maybe"), Permission::Ask),
            (json!(true), Permission::Ask),
            (json!({"type": "allow"}), Permission::Ask),
        ] {
            let event = json!({"type": "agent.tool_use", "id": "e", "name": "bash", "input": {},
                "evaluated_permission": value});
            let EventKind::ToolUse(call) = kind_of(event) else { panic!("{value}") };
            assert_eq!(call.permission, expected, "{value}");
        }
    }

    #[test]
    fn only_the_word_allow_is_an_allowance() {
        for (result, allowed) in [
            (json!("allow"), true),
            (json!("deny"), false),
            (json!("Allow"), false),
            (json!(1), false),
        ] {
            let event =
                json!({"type": "user.tool_confirmation", "tool_use_id": "c", "result": result});
            let expected = Confirmation { call: "c".into(), allowed };
            assert_eq!(kind_of(event), EventKind::Confirmation(expected));
        }
    }

    #[test]
    fn an_event_without_what_makes_it_one_is_other() {
        for event in [
            json!({"type": "agent.tool_use", "name": "bash"}),
            json!({"type": "agent.tool_use", "id": "", "name": "bash"}),
            json!({"type": "agent.tool_use", "id": "x".repeat(600), "name": "bash"}),
            json!({"type": "user.tool_result", "tool_use_id": 7}),
            json!({"type": "session.thread_status_terminated"}),
            json!({"type": "agent.brand_new_event", "foo": 1}),
            json!({"type": 7}),
            json!({}),
            json!([]),
            json!(null),
        ] {
            assert_eq!(kind_of(event.clone()), EventKind::Other, "{event}");
        }
        assert_eq!(decode_event("not json").kind, EventKind::Other);
    }

    #[test]
    fn idle_ends_the_turn_unless_something_is_required() {
        let idle =
            |reason: Value| kind_of(json!({"type": "session.status_idle", "stop_reason": reason}));
        let required = StopReason::RequiresAction { calls: vec!["a".into(), "b".into()] };
        assert_eq!(
            idle(json!({"type": "requires_action", "event_ids": ["a", 7, "b"]})),
            EventKind::StatusIdle(required)
        );
        for (reason, name) in [
            (json!({"type": "some_new_reason"}), "some_new_reason"),
            (json!(null), "unknown"),
            (json!("x"), "unknown"),
        ] {
            let over = StopReason::TurnOver { reason: name.to_owned() };
            assert_eq!(idle(reason), EventKind::StatusIdle(over));
        }
    }

    #[test]
    fn an_input_that_cannot_be_built_leaves_a_call_to_answer() {
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        let large = format!("\"{}\"", "x".repeat(INPUT_BYTES_MAX));
        for (input, expected) in [
            (deep, Value::Null),
            (large, Value::Null),
            (r#""a\ud800""#.to_owned(), json!("a\u{fffd}")),
            ("[1]".to_owned(), json!([1])),
        ] {
            let event =
                format!(r#"{{"type":"agent.tool_use","id":"e","name":"n","input":{input}}}"#);
            let EventKind::ToolUse(call) = decode_event(&event).kind else { panic!("no call") };
            assert_eq!(call.input, expected);
        }
    }

    #[test]
    fn a_page_is_read_with_strange_events_and_refused_without_a_list_or_a_cursor() {
        let page =
            decode_page(br#"{"data":[{"type":"user.message"},7,{"type":"x"}],"next_page":"3"}"#);
        let page = page.unwrap();
        assert_eq!((page.events.len(), page.next.as_deref()), (3, Some("3")));
        for end in
            [r#"{"data":[]}"#, r#"{"data":[],"next_page":null}"#, r#"{"data":[],"next_page":""}"#]
        {
            assert_eq!(decode_page(end.as_bytes()).unwrap().next, None);
        }
        let bad: [&[u8]; 6] =
            [b"", b"null", b"[]", b"{}", br#"{"data":{}}"#, br#"{"data":[],"next_page":3}"#];
        for bad in bad {
            assert!(decode_page(bad).unwrap_err().is_transient());
        }
        let many = format!(r#"{{"data":[{}1]}}"#, "1,".repeat(20_000));
        assert!(decode_page(many.as_bytes()).is_err());
    }

    #[test]
    fn a_session_is_read_from_little_and_from_much() {
        let id = SessionId::new("sesn_1");
        let least = decode_session(b"{}", &id).unwrap();
        assert_eq!((least.id.as_str(), least.status), ("sesn_1", SessionStatus::Unknown));
        let full = json!({
            "id": "other", "status": "running", "title": "t",
            "metadata": {"team": "a", "n": 5},
            "agent": {"id": "agent_1", "version": 3, "name": "n", "skills": [{"skill_id": "xlsx"}]},
            "resources": [
                {"type": "memory_store", "memory_store_id": "m", "name": "notes"},
                {"type": "github_repository", "id": "r", "url": "https://tok@example.com/r"},
                7,
            ],
        });
        let full = decode_session(full.to_string().as_bytes(), &id).unwrap();
        assert_eq!(full.id, id);
        assert_eq!(full.agent_version, Some(3));
        assert_eq!(full.metadata, BTreeMap::from([("team".to_owned(), "a".to_owned())]));
        assert_eq!(
            full.unserved,
            ["skill: xlsx", "memory_store: notes", "github_repository: r", "resource:"]
        );
        assert!(decode_session(b"[]", &id).unwrap_err().is_transient());
    }

    proptest! {
        #[test]
        fn no_body_makes_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzz_bodies(&bytes);
        }

        #[test]
        fn no_text_makes_a_decoder_panic(text in r#"[{}\[\]":,a-z\\ud8_.0-9]{0,80}"#) {
            crate::fuzz_bodies(text.as_bytes());
        }
    }
}
