//! Promises about the log.

use base_types::Epoch;

use super::Place;
use super::fixture::*;
use crate::{
    Change, LOG_INPUT_CHARS_MAX, LogEvent, NewCall, Phase, SandboxState, TerminalAction, WorkEnd,
};

pub async fn the_log_tells_what_happened_in_order(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let call = new_call("toolu_1");
    let work = owned.work.clone();
    let changes = [
        Change::WorkAcked { work: work.clone() },
        Change::BeatIntended { work: work.clone() },
        Change::Beat { work: work.clone(), last: "1".into(), ttl_ms: None },
        identified(&identity()),
        Change::Phase(Phase::Failed { reason: "no image".into() }),
        Change::Sandbox(sandbox(1, SandboxState::Running)),
        received(&call),
        started(&call),
        finished(&call),
        shortened(&call),
        Change::CallSettled { call: call.id.clone(), refused: Some(400) },
        Change::WorkEnded { work, why: WorkEnd::StopRequested },
    ];
    let notes = [
        LogEvent::CallHeld { tool_use: "toolu_2".into(), tool: "bash".into() },
        LogEvent::CallNotRun {
            tool_use: "toolu_3".into(),
            tool: "bash".into(),
            why: "denied".into(),
        },
        LogEvent::Interrupted { cancelled: vec!["toolu_2".into()] },
        LogEvent::BrainTrouble { what: "503".into() },
        LogEvent::OperatorExec { argv: vec!["ls".into()], exit_code: Some(2) },
        LogEvent::OperatorTerminal {
            name: "main".into(),
            uid: 1000,
            root: true,
            action: TerminalAction::Ended { exit_code: 3 },
        },
        LogEvent::Warning { text: "zażółć".into() },
    ];
    owned.must(&changes[..5]).await;
    owned.must(&changes[5..]).await;
    let notes: Vec<Change> = notes.into_iter().map(Change::Note).collect();
    owned.must(&notes).await;

    let log = owned.log().await;
    let expected: Vec<LogEvent> =
        changes.iter().chain(&notes).filter_map(Change::log_event).collect();
    assert_eq!(expected.len(), changes.len() - 2 + notes.len(), "heartbeats are not logged");
    assert_eq!(log.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), expected);
    assert!(log.is_sorted_by(|a, b| a.seq < b.seq && a.at <= b.at));
    let called = LogEvent::CallStarted { call: call.id, epoch: Some(Epoch::FIRST) };
    assert!(expected.contains(&called));
}

pub async fn the_log_is_read_in_pages(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let note = |n: u32| Change::Note(LogEvent::Warning { text: n.to_string() });
    for batch in 0..5 {
        owned.must(&[note(3 * batch), note(3 * batch + 1), note(3 * batch + 2)]).await;
    }
    let whole = owned.log().await;
    assert_eq!(whole.len(), 15);
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map(|entry: &crate::LogEntry| entry.seq);
        let page = owned.store.log(&owned.session, after, 4).await.expect("read log");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 4);
        paged.extend(page);
    }
    assert_eq!(paged, whole);

    // A follower asks from where it is, and gets only what is new.
    let last = whole.last().map(|entry| entry.seq);
    let none = owned.store.log(&owned.session, last, 4).await.expect("read log");
    assert_eq!(none, vec![]);
    owned.must(&[note(15)]).await;
    let new = owned.store.log(&owned.session, last, u32::MAX).await.expect("read log");
    assert_eq!(new.len(), 1);
    let other = Owned::of(owned.store.clone(), "session_2", "work_2").await;
    assert_eq!(other.log().await, vec![]);
}

pub async fn the_log_bounds_inputs(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let input = serde_json::json!({"command": "ż".repeat(10_000)});
    let call = NewCall { input, ..new_call("toolu_1") };
    owned.must(&[received(&call)]).await;
    let log = owned.log().await;
    let [LogEvent::CallReceived { input, .. }] =
        &log.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>()[..]
    else {
        panic!("one line, not {log:?}")
    };
    assert_eq!(input.chars().count(), LOG_INPUT_CHARS_MAX + 1);
    assert!(input.ends_with('…'));
    assert_eq!(owned.call(&call.id).await.call, call);
}
