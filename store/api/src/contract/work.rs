//! Promises about work items.

use base_types::{NodeId, WorkId};

use super::Place;
use super::fixture::*;
use crate::{Change, NewWork, Sealed, Store, WorkEnd, WorkPhase, WorkRecord};

/// A state of a work item and the changes that lead to it from a claim.
type WorkPath = (&'static str, fn(&WorkId) -> Vec<Change>);

const STATES: [WorkPath; 5] = [
    ("claiming", |_| vec![]),
    ("active", |work| vec![acked(work)]),
    ("beat open", |work| vec![acked(work), intended(work)]),
    ("beaten", |work| vec![acked(work), intended(work), beat(work)]),
    ("ended", |work| vec![acked(work), ended(work)]),
];

type WorkStep = (fn(&WorkId) -> Change, &'static [&'static str]);

/// Each step of a work item and the states it may follow. An intent may be repeated: a beat that
/// got no answer is tried again; and so may an acknowledgement: a restart goes on.
const STEPS: [WorkStep; 4] = [
    (acked, &["claiming", "active", "beat open", "beaten"]),
    (intended, &["active", "beat open", "beaten"]),
    (beat, &["beat open"]),
    (ended, &["claiming", "active", "beat open", "beaten"]),
];

fn acked(work: &WorkId) -> Change {
    Change::WorkAcked { work: work.clone() }
}

fn intended(work: &WorkId) -> Change {
    Change::BeatIntended { work: work.clone() }
}

fn beat(work: &WorkId) -> Change {
    let last = "2026-11-24T17:00:00.000001Z".into();
    Change::Beat { work: work.clone(), last, ttl_ms: Some(90_000) }
}

fn ended(work: &WorkId) -> Change {
    Change::WorkEnded { work: work.clone(), why: WorkEnd::LeaseLost }
}

/// Every state against every step, and each step against items that are not this session's.
pub async fn a_work_item_moves_only_forward(place: &dyn Place) {
    let store = place.open().await;
    let stranger = Owned::of(store.clone(), "session_other", "work_other").await;
    for (number, (state, path)) in STATES.into_iter().enumerate() {
        for (step_number, (step, allowed_from)) in STEPS.into_iter().enumerate() {
            let name = format!("{number}_{step_number}");
            let owned = Owned::of(store.clone(), &format!("session_{name}"), &name).await;
            owned.must(&path(&owned.work)).await;
            let before = owned.everything().await;
            let change = step(&owned.work);
            assert_refused(stranger.apply(std::slice::from_ref(&change)).await, change.name());
            assert_refused(owned.apply(&[step(&"work_none".into())]).await, change.name());
            let result = owned.apply(std::slice::from_ref(&change)).await;
            if allowed_from.contains(&state) {
                assert!(result.is_ok(), "{} after {state}: {result:?}", change.name());
            } else {
                assert_refused(result, change.name());
                assert_eq!(owned.everything().await, before, "{} after {state}", change.name());
            }
        }
    }
}

pub async fn a_claim_can_be_repeated(place: &dyn Place) {
    let store = place.open().await;
    let work = new_work("session_1", WORK);
    store.claim_work(&work).await.expect("claim work");
    let first = read(&*store).await;
    store.claim_work(&work).await.expect("claim work again");
    let second = read(&*store).await;
    assert_eq!(WorkRecord { claimed_at: second.claimed_at, ..first }, second);
    assert_eq!(second.phase, WorkPhase::Claiming);
    assert_eq!(second.token, work.token);
    let found = store.open_work(&NODE.into()).await.expect("list work");
    assert_eq!(found, vec![second]);
}

/// The brain offers an item again when a lease ran out: another node takes it, with a new token
/// and nothing left of the old lease.
pub async fn an_item_offered_again_starts_over(place: &dyn Place) {
    let owned = Owned::new(place).await;
    owned.must(&[acked(&owned.work), intended(&owned.work), beat(&owned.work)]).await;
    let again = NewWork {
        node: NodeId::new("node-2"),
        token: Some(Sealed(vec![9])),
        ..new_work("session_1", WORK)
    };
    owned.store.claim_work(&again).await.expect("claim work");
    let record = owned.work().await;
    assert_eq!(record.phase, WorkPhase::Claiming);
    assert_eq!(record.node, again.node);
    assert_eq!(record.token, again.token);
    assert_eq!(owned.store.open_work(&NODE.into()).await.expect("list work"), vec![]);
    assert_eq!(owned.store.open_work(&again.node).await.expect("list work"), vec![record]);

    owned.must(&[acked(&owned.work)]).await;
    let WorkPhase::Active { last_beat, last_beat_at, ttl_ms, beat_open } = owned.work().await.phase
    else {
        panic!("the item is active")
    };
    assert_eq!((last_beat, last_beat_at, ttl_ms, beat_open), (None, None, None, false));

    owned.must(&[ended(&owned.work)]).await;
    let without_token = NewWork { token: None, ..again };
    owned.store.claim_work(&without_token).await.expect("claim work");
    assert_eq!(owned.work().await.phase, WorkPhase::Claiming);
    assert_eq!(owned.work().await.token, None);
}

pub async fn an_item_belongs_to_one_session(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let before = owned.work().await;
    let stolen = new_work("session_2", WORK);
    assert_refused(owned.store.claim_work(&stolen).await, "claim work");
    assert_eq!(owned.work().await, before);
    assert_eq!(owned.store.session(&"session_2".into()).await.expect("read session"), None);
}

/// What a restart must know: a beat left, and whether it arrived is not known.
pub async fn a_beat_without_answer_stays_open(place: &dyn Place) {
    let owned = Owned::new(place).await;
    owned.must(&[acked(&owned.work), intended(&owned.work)]).await;
    let reopened = place.open().await;
    let [record] = &reopened.open_work(&NODE.into()).await.expect("list work")[..] else {
        panic!("one open item")
    };
    let never =
        WorkPhase::Active { last_beat: None, last_beat_at: None, ttl_ms: None, beat_open: true };
    assert_eq!(record.phase, never);

    owned.must(&[beat(&owned.work)]).await;
    owned.must(&[intended(&owned.work)]).await;
    // Going on with an item forgets nothing of its lease.
    owned.must(&[acked(&owned.work)]).await;
    let WorkPhase::Active { last_beat, last_beat_at, ttl_ms, beat_open } = owned.work().await.phase
    else {
        panic!("the item is active")
    };
    assert_eq!(last_beat.as_deref(), Some("2026-11-24T17:00:00.000001Z"));
    assert!(last_beat_at.is_some());
    assert_eq!(ttl_ms, Some(90_000));
    assert!(beat_open);
}

pub async fn an_ended_item_keeps_no_token(place: &dyn Place) {
    let owned = Owned::new(place).await;
    assert!(owned.work().await.token.is_some());
    let ends = [
        WorkEnd::Stopped,
        WorkEnd::StopRequested,
        WorkEnd::LeaseLost,
        WorkEnd::Refused,
        WorkEnd::NotRun,
    ];
    for why in ends {
        owned.store.claim_work(&new_work("session_1", WORK)).await.expect("claim work");
        owned.must(&[Change::WorkEnded { work: owned.work.clone(), why }]).await;
        let record = owned.work().await;
        assert_eq!(record.token, None);
        let WorkPhase::Ended { at, why: kept } = record.phase else { panic!("the item is ended") };
        assert_eq!(kept, why);
        assert!(at >= record.claimed_at);
    }
}

pub async fn a_restart_finds_the_nodes_open_work(place: &dyn Place) {
    let store = place.open().await;
    let first = Owned::of(store.clone(), "session_1", "work_1").await;
    let second = Owned::of(store.clone(), "session_2", "work_2").await;
    let over = Owned::of(store.clone(), "session_3", "work_3").await;
    let elsewhere = NewWork { node: "node-2".into(), ..new_work("session_4", "work_4") };
    store.claim_work(&elsewhere).await.expect("claim work");
    second.must(&[acked(&second.work)]).await;
    over.must(&[acked(&over.work), ended(&over.work)]).await;
    drop(store);
    let found = place.open().await.open_work(&NODE.into()).await.expect("list work");
    assert_eq!(found, vec![first.work().await, second.work().await]);
}

async fn read(store: &dyn Store) -> WorkRecord {
    store.work(&WORK.into()).await.expect("read work").expect("the item is known")
}
