//! Promises about tool calls.

use base_types::CallId;

use super::Place;
use super::fixture::*;
use crate::{CallEnd, CallState, Change, NewCall, StoreError};

/// A state of a call and the changes that lead to it.
type CallPath = (&'static str, fn(&NewCall) -> Vec<Change>);

const STATES: [CallPath; 7] = [
    ("unknown", |_| vec![]),
    ("received", |call| vec![received(call)]),
    ("started", |call| vec![received(call), started(call)]),
    ("finished without running", |call| vec![received(call), finished(call)]),
    ("finished", |call| vec![received(call), started(call), finished(call)]),
    ("shortened", |call| vec![received(call), started(call), finished(call), shortened(call)]),
    ("settled", |call| vec![received(call), started(call), finished(call), settled(call)]),
];

type CallStep = (fn(&NewCall) -> Change, &'static [&'static str]);

/// Each step of a call and the states it may follow.
const STEPS: [CallStep; 5] = [
    (received, &["unknown"]),
    (started, &["received"]),
    (finished, &["received", "started"]),
    (shortened, &["finished", "finished without running"]),
    (settled, &["finished", "finished without running", "shortened"]),
];

/// Every state against every step: what fits is recorded, the rest is refused and changes nothing.
pub async fn a_call_moves_only_forward(place: &dyn Place) {
    let owned = Owned::new(place).await;
    for (state, path) in STATES {
        for (step, allowed_from) in STEPS {
            let call = new_call(CallId::generate().as_str());
            owned.must(&path(&call)).await;
            let before = owned.everything().await;
            let change = step(&call);
            let result = owned.apply(std::slice::from_ref(&change)).await;
            if allowed_from.contains(&state) {
                assert!(result.is_ok(), "{} after {state}: {result:?}", change.name());
                assert_ne!(owned.everything().await, before, "{} after {state}", change.name());
            } else {
                assert_refused(result, change.name());
                assert_eq!(owned.everything().await, before, "{} after {state}", change.name());
            }
        }
    }
}

pub async fn a_result_is_kept_byte_for_byte(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let call = new_call("toolu_1");
    let every_byte: Vec<u8> = (0..=255).collect();
    let end = CallEnd {
        body: every_byte.clone(),
        is_error: true,
        summary: "killed by signal 9".into(),
        exit_code: Some(-1),
    };
    let finish = Change::CallFinished { call: call.id.clone(), end: end.clone() };
    owned.must(&[received(&call), started(&call)]).await;
    owned.must(&[finish]).await;
    let record = owned.call(&call.id).await;
    assert_eq!(record.call, call);
    assert!(record.started.is_some_and(|started| started.at >= record.received_at));
    let CallState::Finished { at, end: kept } = record.state else {
        panic!("finished, not {:?}", record.state)
    };
    assert_eq!(kept, end);

    owned.must(&[shortened(&call)]).await;
    let refused = Change::CallSettled { call: call.id.clone(), refused: Some(404) };
    owned.must(&[refused]).await;
    let CallState::Settled { at: settled_at, end: kept, refused } =
        owned.call(&call.id).await.state
    else {
        panic!("the call is settled")
    };
    assert_eq!(kept, CallEnd { body: b"short".to_vec(), ..end });
    assert_eq!(refused, Some(404));
    assert!(settled_at >= at);
}

/// A second call for a tool use would run it twice.
pub async fn a_tool_use_is_received_once(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let call = new_call("toolu_1");
    owned.must(&[received(&call)]).await;
    assert_refused(owned.apply(&[received(&new_call("toolu_1"))]).await, "call received");
    let same_id = NewCall { id: call.id.clone(), ..new_call("toolu_2") };
    assert_refused(owned.apply(&[received(&same_id)]).await, "call received");
    let found = owned.store.call_for(&owned.session, &"toolu_1".into()).await.expect("read call");
    assert_eq!(found.map(|record| record.call), Some(call));
    let none = owned.store.call_for(&owned.session, &"toolu_2".into()).await.expect("read call");
    assert_eq!(none, None);

    // Tool uses are named by the brain, per session.
    let other = Owned::of(owned.store.clone(), "session_2", "work_2").await;
    other.must(&[received(&new_call("toolu_1"))]).await;
}

pub async fn a_call_of_another_session_is_out_of_reach(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let other = Owned::of(owned.store.clone(), "session_2", "work_2").await;
    let call = new_call("toolu_1");
    owned.must(&[received(&call)]).await;
    let before = owned.everything().await;
    assert_refused(other.apply(&[received(&call)]).await, "call received");
    assert_refused(other.apply(&[started(&call)]).await, "call started");
    assert_refused(other.apply(&[finished(&call)]).await, "call finished");
    owned.must(&[finished(&call)]).await;
    assert_refused(other.apply(&[shortened(&call)]).await, "call shortened");
    assert_refused(other.apply(&[settled(&call)]).await, "call settled");
    assert_ne!(owned.everything().await, before);
    assert_eq!(other.log().await, vec![]);
    let elsewhere = owned.store.call_for(&other.session, &"toolu_1".into()).await;
    assert_eq!(elsewhere.expect("read call"), None);
}

pub async fn calls_come_in_the_order_they_were_received(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let calls: Vec<NewCall> = (0..7).map(|n| new_call(&format!("toolu_{n}"))).collect();
    // Some in one batch, some alone, and none in the order of their ids.
    owned.must(&[received(&calls[0]), received(&calls[1]), received(&calls[2])]).await;
    for call in &calls[3..] {
        owned.must(&[received(call)]).await;
    }
    owned.must(&[started(&calls[5]), finished(&calls[5]), started(&calls[0])]).await;

    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = owned.store.calls(&owned.session, after, 3).await.expect("list calls");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 3);
        after = Some(last.seq);
        listed.extend(page);
    }
    assert!(listed.is_sorted_by(|a, b| a.seq < b.seq));
    let listed: Vec<NewCall> = listed.into_iter().map(|record| record.call).collect();
    assert_eq!(listed, calls);
    let beyond = owned.store.calls(&owned.session, Some(u64::MAX), 3).await.expect("list calls");
    assert_eq!(beyond, vec![]);
}

pub async fn open_calls_are_those_not_settled(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let calls: Vec<NewCall> = (0..STATES.len()).map(|n| new_call(&format!("toolu_{n}"))).collect();
    for (call, (_, path)) in calls.iter().zip(STATES) {
        owned.must(&path(call)).await;
    }
    let open = owned.store.open_calls(&owned.session).await.expect("list open calls");
    let open: Vec<NewCall> = open.into_iter().map(|record| record.call).collect();
    assert_eq!(open, calls[1..=5]);
}

/// The refused change stands between accepted ones; none of them may be seen afterwards.
pub async fn a_batch_is_all_or_nothing(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let known = new_call("toolu_0");
    owned.must(&[received(&known)]).await;
    let before = owned.everything().await;
    let call = new_call("toolu_1");
    let batch = [
        Change::WorkAcked { work: owned.work.clone() },
        identified(&identity()),
        received(&call),
        started(&call),
        settled(&known),
        finished(&call),
    ];
    assert_refused(owned.apply(&batch).await, "call settled");
    assert_eq!(owned.everything().await, before);
    assert_eq!(owned.store.call(&call.id).await.expect("read call"), None);

    let stale = base_types::Generation(owned.generation.0 + 1);
    let result = owned.store.apply(&owned.session, stale, &batch[..3]).await;
    assert!(matches!(result, Err(StoreError::NotOwner { .. })), "{result:?}");
    assert_eq!(owned.everything().await, before);
    owned.must(&batch[..4]).await;
}
