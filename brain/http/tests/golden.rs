//! The recorded exchanges of the official workers with a brain, read and re-made.

mod support;

use brain_api::{
    Block, Brain, BrainErrorKind, EventKind, ExpectedBeat, SendCredential, StopReason, StreamItem,
    ToolResult, ToolResultKind,
};
use futures::StreamExt;
use serde_json::Value;
use support::{Reply, ScriptedBrain, answer, event_stream};

const RESULTS: &str = include_str!("fixtures/results.jsonl");
const FRAMES: &str = include_str!("fixtures/frames.jsonl");
const ANSWERS: &str = include_str!("fixtures/answers.jsonl");

fn result_of(body: &Value) -> ToolResult {
    let event = &body["events"][0];
    let custom = event["type"] == "user.custom_tool_result";
    let id = if custom { &event["custom_tool_use_id"] } else { &event["tool_use_id"] };
    let blocks = event["content"].as_array().unwrap();
    ToolResult {
        call: id.as_str().unwrap().into(),
        kind: if custom { ToolResultKind::Custom } else { ToolResultKind::Builtin },
        is_error: event["is_error"].as_bool().unwrap(),
        content: blocks.iter().map(|b| Block::text(b["text"].as_str().unwrap())).collect(),
    }
}

#[tokio::test]
async fn results_are_encoded_byte_for_byte_as_recorded() {
    let session = support::client_at("http://127.0.0.1:1").session(&"s".into(), None);
    let mut compared = 0;
    for line in RESULTS.lines() {
        let result = result_of(&serde_json::from_str(line).unwrap());
        assert_eq!(String::from_utf8(session.encode(&result)).unwrap(), line);
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
}

/// One word for each kind, with what decides about a call.
fn summary(kind: &EventKind) -> String {
    match kind {
        EventKind::ToolUse(call) => {
            let thread = call.thread.as_ref().map(|t| format!(" in {t}")).unwrap_or_default();
            format!("{:?} {} {:?}{thread}", call.kind, call.name, call.permission)
        }
        EventKind::Confirmation(c) => format!("confirmation {} {}", c.call, c.allowed),
        EventKind::Answered(call) => format!("answered {call}"),
        EventKind::StatusIdle(StopReason::TurnOver { reason }) => format!("over: {reason}"),
        EventKind::StatusIdle(StopReason::RequiresAction { calls }) => {
            format!("requires {calls:?}")
        }
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn recorded_frames_are_read() {
    let frames: Vec<String> =
        FRAMES.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (errors, frames): (Vec<String>, Vec<String>) =
        frames.into_iter().partition(|frame| frame.starts_with("event: error"));
    let body = frames.concat() + &errors.concat();
    let brain = ScriptedBrain::start([event_stream(body.as_bytes(), false)]).await;
    let session = brain.client().session(&"s".into(), None);
    let mut items: Vec<_> = session.stream().await.unwrap().collect().await;

    assert_eq!(errors.len(), 1);
    let error = items.pop().unwrap().unwrap_err();
    assert!(error.detail.contains("overloaded_error: x"), "{error}");
    let mut summaries = String::new();
    for item in items {
        let StreamItem::Event(event) = item.unwrap() else { panic!("no ping was recorded") };
        assert!(event.id.is_some(), "{event:?}");
        summaries.push_str(&format!("{}: {}\n", event.name, summary(&event.kind)));
    }
    assert_eq!(summaries, include_str!("fixtures/frames.expected"));
}

#[tokio::test]
async fn recorded_answers_are_read() {
    let mut read = 0;
    for line in ANSWERS.lines() {
        let recorded: Value = serde_json::from_str(line).unwrap();
        let status = recorded["status"].as_u64().unwrap() as u16;
        let body = recorded["body"].as_str().unwrap();
        check(recorded["route"].as_str().unwrap(), status, body).await;
        read += 1;
    }
    assert!(read > 20, "{read}");
}

async fn check(route: &str, status: u16, body: &str) {
    let replies: Vec<Reply> = vec![answer(status, body); 3];
    let brain = ScriptedBrain::start(replies).await;
    let client = brain.client();
    let work = "work_000000000000000000000001".into();
    let session = client.session(&"sesn_000000000000000000000001".into(), None);
    let error = match (route, status) {
        ("poll", 200 | 204) => {
            let item = client.poll().await.unwrap();
            assert_eq!(item.is_some(), body.len() > 10, "{body}");
            let Some(item) = item else { return };
            assert_eq!(item.id, work);
            let is_session = body.contains(r#""type": "session""#);
            assert_eq!(item.session.is_some(), is_session, "{body}");
            let token = item.token.map(|token| token.0.expose().to_owned());
            let expected = (!body.contains(r#""secret": null"#)).then_some("sk-ant-sesstok-FAKE");
            assert_eq!(token.as_deref(), expected, "{body}");
            return;
        }
        ("heartbeat", 200) => {
            let beat = client.heartbeat(&work, None, &ExpectedBeat::None).await.unwrap();
            assert!(body.contains(&format!("\"{}\"", beat.last)), "{body}");
            assert_eq!(beat.asks_to_stop(), body.contains("stopping"), "{body}");
            return;
        }
        ("session", 200) => {
            let info = session.retrieve().await.unwrap();
            assert_eq!(info.unserved.is_empty(), !body.contains("skill_id"), "{body}");
            return;
        }
        ("events", 200) => {
            let page = session.events(None).await.unwrap();
            let other = page.events.iter().filter(|e| e.kind == EventKind::Other).count();
            assert_eq!(other, 0, "{body}");
            assert_eq!(page.next.is_none(), body.contains(r#""next_page": null"#), "{body}");
            return;
        }
        ("poll", _) => client.poll().await.map(drop),
        ("ack", _) => client.ack(&work).await,
        ("heartbeat", _) => client.heartbeat(&work, None, &ExpectedBeat::None).await.map(drop),
        ("stop", _) => client.stop(&work, None).await,
        ("send", _) => session.send(b"{}", SendCredential::Item).await,
        _ => panic!("{route} {status}"),
    };
    let kind = error.err().map(|error| error.kind);
    let expected = match (route, status) {
        (_, 200) => None,
        ("heartbeat", 412) => Some(BrainErrorKind::LeaseLost),
        (_, 400) => Some(BrainErrorKind::Fatal { status }),
        (_, 401) => Some(BrainErrorKind::Unauthorized { status }),
        (_, 404) => Some(BrainErrorKind::NotFound),
        (_, 409 | 429) => Some(BrainErrorKind::Transient { retry_after: None }),
        _ => panic!("{route} {status}"),
    };
    assert_eq!(kind, expected, "{route} {status}");
}
