//! Promises about large, odd and extreme values.

use base_types::Epoch;

use super::Place;
use super::fixture::*;
use crate::{
    CallEnd, CallState, Change, ID_BYTES_MAX, NewCall, PAGE_BYTES_MAX, Phase, SandboxState,
    StoreError, WorkPhase,
};

const LARGE_BYTES: usize = 16 << 20;

pub async fn a_large_body_comes_back_whole(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let body: Vec<u8> = (0..LARGE_BYTES).map(|n| (n * 31 % 251) as u8).collect();
    let input = serde_json::json!({"content": "x".repeat(LARGE_BYTES)});
    let call = NewCall { input, ..new_call("toolu_1") };
    let finish = Change::CallFinished { call: call.id.clone(), end: end(&body) };
    owned.must(&[received(&call), started(&call), finish]).await;
    let record = place.open().await.call(&call.id).await.expect("read call");
    let record = record.expect("the call is known");
    assert!(record.call == call, "the input differs");
    let CallState::Finished { end, .. } = record.state else { panic!("the call is finished") };
    assert!(end.body == body, "the body differs");
}

pub async fn pages_end_by_size(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let body = vec![b'x'; PAGE_BYTES_MAX / 4];
    for n in 0..6 {
        let call = new_call(&format!("toolu_{n}"));
        let finish = Change::CallFinished { call: call.id.clone(), end: end(&body) };
        owned.must(&[received(&call), finish]).await;
    }
    let first = owned.store.calls(&owned.session, None, 1_000).await.expect("list calls");
    assert_eq!(first.len(), 4);
    let after = first.last().map(|record| record.seq);
    let second = owned.store.calls(&owned.session, after, 1_000).await.expect("list calls");
    assert_eq!(second.len(), 2);
}

/// Ids, names and texts come from the brain and from guests; the store neither reads nor mends
/// them.
pub async fn any_text_comes_back_the_same(place: &dyn Place) {
    let texts = [
        "",
        "plain",
        "zażółć gęślą jaźń",
        "👩‍👩‍👧‍👦 e\u{301} \u{202e}rtl",
        "'; DROP TABLE calls; --",
        "line\nbreak\ttab\r\u{1}\u{7f}\u{ffff}",
        "$1 ?1 :name \\ \" % _ {}",
    ];
    let store = place.open().await;
    for (number, text) in texts.into_iter().enumerate() {
        let owned = Owned::of(store.clone(), &format!("s{text}"), &format!("w{text}")).await;
        let call = NewCall {
            tool: text.into(),
            thread: Some(text.into()),
            // A NUL is legal in JSON, if nowhere else.
            input: serde_json::json!({ text: [text, "a\u{0}b", null, 1.5, u64::MAX, {"": text}] }),
            ..new_call(&format!("t{text}"))
        };
        let call_end = CallEnd { summary: text.into(), exit_code: None, ..end(text.as_bytes()) };
        let finish = Change::CallFinished { call: call.id.clone(), end: call_end.clone() };
        let phase = Phase::Failed { reason: text.into() };
        owned.must(&[received(&call), finish, Change::Phase(phase.clone())]).await;
        let record = owned.call(&call.id).await;
        assert_eq!(record.call, call, "text {number}");
        let CallState::Finished { end, .. } = record.state else { panic!("the call is finished") };
        assert_eq!(end, call_end);
        let found = store.call_for(&owned.session, &call.tool_use).await.expect("read call");
        assert!(found.is_some());
        let session = store.session(&owned.session).await.expect("read session");
        let session = session.expect("the session is known");
        assert_eq!((session.id, session.phase), (owned.session.clone(), phase));
    }
}

/// A NUL is a character like any other to SQLite, and none to PostgreSQL; an index of either has
/// its own limit. Both stores answer the same.
pub async fn what_not_every_database_holds_is_refused_or_mended(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let call = new_call("toolu_1");
    let call_end = CallEnd { summary: "a\0b".into(), ..end(b"a\0b") };
    let finish = Change::CallFinished { call: call.id.clone(), end: call_end };
    let failed = Phase::Failed { reason: "no\0image".into() };
    owned.must(&[received(&call), finish, Change::Phase(failed)]).await;
    let CallState::Finished { end, .. } = owned.call(&call.id).await.state else {
        panic!("the call is finished")
    };
    assert_eq!((end.summary.as_str(), end.body.as_slice()), ("a\u{fffd}b", &b"a\0b"[..]));
    let session = owned.store.session(&owned.session).await.expect("read session");
    let phase = session.expect("the session is known").phase;
    assert_eq!(phase, Phase::Failed { reason: "no\u{fffd}image".into() });

    let before = owned.everything().await;
    let long = "x".repeat(ID_BYTES_MAX + 1);
    for id in ["a\0b", &long] {
        assert_refused(owned.store.claim_work(&new_work(id, "work_2")).await, "claim work");
        assert_refused(owned.store.claim_work(&new_work("session_2", id)).await, "claim work");
        let result = owned.apply(&[received(&new_call(id))]).await;
        assert!(matches!(result, Err(StoreError::Refused { .. })), "{result:?}");
    }
    let asked = owned.store.session(&"a\0b".into()).await;
    assert!(matches!(asked, Err(StoreError::Refused { .. })), "{asked:?}");
    assert_eq!(owned.store.session(&long.as_str().into()).await.expect("read session"), None);
    assert_eq!(owned.everything().await, before);
    let longest = "y".repeat(ID_BYTES_MAX);
    let longest = Owned::of(owned.store.clone(), &longest, &longest).await;
    longest.must(&[received(&new_call(&"z".repeat(ID_BYTES_MAX)))]).await;
}

pub async fn numbers_keep_their_range(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let work = owned.work.clone();
    let ttl_ms = Some(i64::MAX as u64);
    owned
        .must(&[
            Change::WorkAcked { work: work.clone() },
            Change::BeatIntended { work: work.clone() },
            Change::Beat { work: work.clone(), last: String::new(), ttl_ms },
        ])
        .await;
    let WorkPhase::Active { last_beat, ttl_ms: kept, .. } = owned.work().await.phase else {
        panic!("the item is active")
    };
    assert_eq!((last_beat.as_deref(), kept), (Some(""), ttl_ms));

    for (exit_code, refused) in [(i32::MIN, u16::MAX), (i32::MAX, 0)] {
        let call = new_call(&exit_code.to_string());
        let call_end = CallEnd { exit_code: Some(exit_code), ..end(b"") };
        owned
            .must(&[
                received(&call),
                Change::CallStarted { call: call.id.clone(), epoch: Some(Epoch(u32::MAX.into())) },
                Change::CallFinished { call: call.id.clone(), end: call_end.clone() },
                Change::CallSettled { call: call.id.clone(), refused: Some(refused) },
            ])
            .await;
        let record = owned.call(&call.id).await;
        let CallState::Settled { end, refused: kept, .. } = record.state else {
            panic!("the call is settled")
        };
        assert_eq!((end, kept), (call_end, Some(refused)));
    }

    // What the database could not hold is refused, not wrapped.
    let intended = Change::BeatIntended { work: work.clone() };
    let beat = Change::Beat { work, last: "2".into(), ttl_ms: Some(u64::MAX) };
    assert_refused(owned.apply(&[intended, beat]).await, "beat");
    let call = new_call("toolu_1");
    let start = Change::CallStarted { call: call.id.clone(), epoch: Some(Epoch(u64::MAX)) };
    assert_refused(owned.apply(&[received(&call), start]).await, "call started");
    owned.must(&[Change::Sandbox(sandbox(u64::MAX, SandboxState::Running))]).await;
}
