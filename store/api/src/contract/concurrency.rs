//! Promises that hold when several tasks use the store at once.

use base_types::{Generation, NodeId};

use super::Place;
use super::fixture::*;
use crate::{Change, LogEvent, StoreError};

/// Enough to make orders differ, few enough to be quick with a sync for each.
const RACERS: usize = 8;
const ROUNDS: usize = 10;

/// Nodes take one session from each other and write to it. Generations are never given twice,
/// and only the last one can still write.
pub async fn racing_owners_leave_one_writer(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..RACERS {
        let (store, session) = (owned.store.clone(), owned.session.clone());
        racers.spawn(async move {
            let node = NodeId::new(format!("racer-{racer}"));
            let generation = store.take_session(&session, &node).await.expect("take session");
            let note = Change::Note(LogEvent::Warning { text: generation.to_string() });
            match store.apply(&session, generation, &[note]).await {
                Ok(()) => (generation, node, true),
                Err(StoreError::NotOwner { .. }) => (generation, node, false),
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let mut results = racers.join_all().await;
    results.sort();
    assert!(results.is_sorted_by(|a, b| a.0 < b.0), "a generation was given twice");
    let (last, node, wrote) = results.last().expect("there are racers");
    assert!(wrote, "the last owner can write");
    let record = owned.store.session(&owned.session).await.expect("read session");
    let record = record.expect("the session is known");
    assert_eq!((record.generation, record.owner.as_ref()), (*last, Some(node)));

    // A write that was acknowledged happened before the next owner's.
    let log = owned.log().await;
    assert_eq!(log.len(), results.iter().filter(|(_, _, wrote)| *wrote).count());
    let writers: Vec<u64> = log
        .iter()
        .map(|entry| match &entry.event {
            LogEvent::Warning { text } => text.parse().expect("a generation"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(writers.is_sorted());
}

/// Sessions of one node write at the same time; each batch arrives, and in its session's order.
pub async fn racing_batches_lose_nothing(place: &dyn Place) {
    let store = place.open().await;
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..RACERS {
        let store = store.clone();
        racers.spawn(async move {
            let name = format!("session_{racer}");
            let owned = Owned::of(store, &name, &name).await;
            let mut calls = Vec::new();
            for round in 0..ROUNDS {
                let call = new_call(&format!("toolu_{round}"));
                owned.must(&[received(&call), started(&call)]).await;
                owned.must(&[finished(&call)]).await;
                calls.push(call);
            }
            (owned, calls)
        });
    }
    for (owned, calls) in racers.join_all().await {
        let kept = owned.store.calls(&owned.session, None, 1_000).await.expect("list calls");
        let kept: Vec<_> = kept.into_iter().map(|record| record.call).collect();
        assert_eq!(kept, calls);
        assert_eq!(owned.log().await.len(), 3 * ROUNDS);
    }
}

/// Batches that are written at the same moment, in one transaction or not: one that is refused, or
/// whose owner has changed, takes nothing with it, and nothing of it stays.
pub async fn racing_batches_have_their_own_answers(place: &dyn Place) {
    let store = place.open().await;
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..2 * RACERS {
        let name = format!("session_{racer}");
        let owned = Owned::of(store.clone(), &name, &name).await;
        racers.spawn(async move {
            let call = new_call("toolu_1");
            for round in 0..ROUNDS {
                let text = format!("{round}");
                let note = Change::Note(LogEvent::Warning { text: text.clone() });
                match (racer + round) % 3 {
                    0 => owned.must(&[note]).await,
                    // The second change does not follow from anything.
                    1 => assert_refused(owned.apply(&[note, settled(&call)]).await, "call settled"),
                    _ => {
                        let old = Generation(owned.generation.0 - 1);
                        let done = owned.store.apply(&owned.session, old, &[note]).await;
                        assert!(matches!(done, Err(StoreError::NotOwner { .. })), "{done:?}");
                    }
                }
            }
            (racer, owned)
        });
    }
    for (racer, owned) in racers.join_all().await {
        let kept: Vec<LogEvent> = owned.log().await.into_iter().map(|entry| entry.event).collect();
        let good = (0..ROUNDS).filter(|round| (racer + round) % 3 == 0);
        let expected = good.map(|round| LogEvent::Warning { text: round.to_string() });
        assert_eq!(kept, expected.collect::<Vec<_>>());
    }
}

/// A reader sees a batch as soon as its writer was told that it is done, and never half of one.
pub async fn readers_see_what_was_acknowledged(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let (written, mut watch) = tokio::sync::watch::channel(0);
    let reader = async {
        while watch.changed().await.is_ok() {
            let acknowledged = *watch.borrow_and_update();
            let calls = owned.store.calls(&owned.session, None, 1_000).await.expect("list calls");
            assert!(calls.len() >= acknowledged, "{} of {acknowledged}", calls.len());
            assert!(calls.iter().all(|record| record.started.is_some()), "half a batch");
        }
    };
    let writer = async {
        // Moved in, so that the reader ends with the writer.
        let written = written;
        for round in 0..ROUNDS * 2 {
            let call = new_call(&format!("toolu_{round}"));
            owned.must(&[received(&call), started(&call)]).await;
            written.send_replace(round + 1);
        }
    };
    tokio::join!(reader, writer);
}
