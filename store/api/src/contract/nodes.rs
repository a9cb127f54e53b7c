//! Promises about nodes that share the store: who is alive, and who holds a session.

use std::sync::Arc;
use std::time::Duration;

use base_types::NodeId;

use super::Place;
use super::fixture::*;
use crate::{Change, NewWork, Owner, SandboxState, Store, StoreError, WorkEnd, WorkPhase};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3_600);
const OTHER: &str = "node-2";

const RACES: usize = 20;

fn offered_to(node: &str, session: &str, work: &str) -> NewWork {
    NewWork { node: node.into(), ..new_work(session, work) }
}

/// That neither an item nor the session is given to another node, and that nothing was written.
async fn assert_held(owned: &Owned, by: &str) {
    let before = owned.everything().await;
    let (store, session) = (&owned.store, owned.session.as_str());
    for work in [owned.work.as_str(), "work_new"] {
        let claimed = store.claim_work(&offered_to(OTHER, session, work)).await;
        assert_elsewhere(claimed, session, by);
    }
    let taken = store.take_session(&owned.session, &OTHER.into()).await;
    assert_elsewhere(taken.map(drop), session, by);
    assert_eq!(owned.everything().await, before);
    assert_eq!(store.work(&"work_new".into()).await.expect("read work"), None);
}

#[track_caller]
fn assert_elsewhere(result: Result<(), StoreError>, of: &str, by: &str) {
    match result {
        Err(StoreError::OwnedElsewhere { session, node }) => {
            assert_eq!((session.as_str(), node.as_str()), (of, by));
        }
        other => panic!("the session is {by}'s, was {other:?}"),
    }
}

async fn owner(owned: &Owned) -> Option<Owner> {
    owned.store.owner(&owned.session).await.expect("read owner")
}

fn work_over(owned: &Owned) -> Change {
    Change::WorkEnded { work: owned.work.clone(), why: WorkEnd::Stopped }
}

/// While a node is alive, its open items and its sandboxes each hold their session.
pub async fn a_living_node_keeps_its_sessions(place: &dyn Place) {
    let owned = Owned::new(place).await;
    owned.store.renew_node(&NODE.into(), LONG).await.expect("renew node");
    assert_held(&owned, NODE).await;
    let by_work = Owner { node: NODE.into(), alive: true, holds_volume: false };
    assert_eq!(owner(&owned).await, Some(by_work.clone()));

    for state in [SandboxState::Creating, SandboxState::Running, SandboxState::Stopped] {
        owned.must(&[Change::Sandbox(sandbox(1, state))]).await;
        assert_held(&owned, NODE).await;
    }
    owned.must(&[work_over(&owned)]).await;
    assert_held(&owned, NODE).await;
    assert_eq!(owner(&owned).await, Some(Owner { holds_volume: true, ..by_work }));

    // The node itself goes on: with another item, and after a restart as a new owner.
    let again = offered_to(NODE, owned.session.as_str(), "work_2");
    owned.store.claim_work(&again).await.expect("claim work");
    owned.store.take_session(&owned.session, &NODE.into()).await.expect("take session");
}

/// One that never said that it is alive, one whose time has run out, and one that ended in order.
pub async fn a_node_that_is_gone_lets_go(place: &dyn Place) {
    let store = place.open().await;
    let node = NodeId::new(NODE);
    for case in ["silent", "lapsed", "retired"] {
        let owned = Owned::of(store.clone(), case, case).await;
        owned.must(&[Change::Sandbox(sandbox(1, SandboxState::Running))]).await;
        match case {
            "lapsed" => {
                store.renew_node(&node, Duration::from_millis(1)).await.expect("renew node");
                let renewed = store.now().await.expect("read clock");
                while store.now().await.expect("read clock")
                    <= renewed.plus(Duration::from_millis(1))
                {
                    tokio::task::yield_now().await;
                }
            }
            "retired" => {
                store.renew_node(&node, LONG).await.expect("renew node");
                assert_held(&owned, NODE).await;
                store.retire_node(&node).await.expect("retire node");
                store.retire_node(&node).await.expect("retire a node that is gone");
            }
            _ => {}
        }
        let gone = Owner { node: node.clone(), alive: false, holds_volume: true };
        assert_eq!(owner(&owned).await, Some(gone), "{case}");
        let next = store.take_session(&owned.session, &OTHER.into()).await.expect("take session");
        assert!(next > owned.generation);
        store.renew_node(&OTHER.into(), LONG).await.expect("renew node");
        // It comes back, and the session is not its own any more.
        store.renew_node(&node, LONG).await.expect("renew node");
        let back = store.take_session(&owned.session, &node).await;
        assert_elsewhere(back.map(drop), case, OTHER);
        let write = owned.apply(&[Change::Sandbox(sandbox(1, SandboxState::Stopped))]).await;
        assert!(matches!(write, Err(StoreError::NotOwner { .. })), "{write:?}");
        store.retire_node(&node).await.expect("retire node");
        store.retire_node(&OTHER.into()).await.expect("retire node");
    }
    assert_eq!(store.owner(&"session_none".into()).await.expect("read owner"), None);
    store.claim_work(&new_work("untaken", "untaken")).await.expect("claim work");
    assert_eq!(store.owner(&"untaken".into()).await.expect("read owner"), None);
}

/// Nothing of the session is left on a living node, so another may have it.
pub async fn a_node_without_a_place_lets_go(place: &dyn Place) {
    let store = place.open().await;
    store.renew_node(&NODE.into(), LONG).await.expect("renew node");
    for case in ["no sandbox", "gone"] {
        let owned = Owned::of(store.clone(), case, case).await;
        if case == "gone" {
            owned.must(&[Change::Sandbox(sandbox(1, SandboxState::Gone))]).await;
        }
        owned.must(&[work_over(&owned)]).await;
        let free = Owner { node: NODE.into(), alive: true, holds_volume: false };
        assert_eq!(owner(&owned).await, Some(free), "{case}");
        let next = offered_to(OTHER, case, &format!("next {case}"));
        store.claim_work(&next).await.expect("claim work");
        store.take_session(&owned.session, &OTHER.into()).await.expect("take session");
        let write = owned.apply(&[]).await;
        assert!(matches!(write, Err(StoreError::NotOwner { .. })), "{write:?}");
    }
}

/// What an offered item leads to: the claim, then the session.
async fn win(store: Arc<dyn Store>, work: NewWork) -> Option<NodeId> {
    match store.claim_work(&work).await {
        Ok(()) => {}
        Err(StoreError::OwnedElsewhere { .. }) => return None,
        Err(error) => panic!("{error:?}"),
    }
    match store.take_session(&work.session, &work.node).await {
        Ok(_) => Some(work.node),
        Err(StoreError::OwnedElsewhere { .. }) => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Two nodes, each with the store open for itself, are offered a session at the same moment: one
/// has it, whether they were offered the same item or two, and whether the session is new or was
/// a dead node's.
pub async fn racing_nodes_leave_one_holder(place: &dyn Place) {
    let (first, second) = (place.open().await, place.open().await);
    let nodes = ["racer-1", "racer-2"];
    for node in nodes {
        first.renew_node(&node.into(), LONG).await.expect("renew node");
    }
    for race in 0..RACES {
        let session = format!("session_{race}");
        if race % 2 == 0 {
            Owned::of(first.clone(), &session, &format!("dead {race}")).await;
        }
        let item = |node: &str| match race % 4 {
            0 | 1 => format!("item {race}"),
            _ => format!("item {race} of {node}"),
        };
        let [one, two] = nodes.map(|node| offered_to(node, &session, &item(node)));
        let racers =
            [tokio::spawn(win(first.clone(), one)), tokio::spawn(win(second.clone(), two))];
        let mut winners = Vec::new();
        for racer in racers {
            winners.extend(racer.await.expect("the racer ends"));
        }
        assert_eq!(winners.len(), 1, "race {race}: {winners:?}");
        let owner = first.owner(&session.as_str().into()).await.expect("read owner");
        assert_eq!(owner.map(|owner| owner.node), winners.pop(), "race {race}");
    }
}

/// Nobody else would end them, and with them open the session could never be forgotten.
pub async fn items_of_a_node_that_is_gone_end(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let mine = offered_to(OTHER, owned.session.as_str(), "work_2");
    owned.store.claim_work(&mine).await.expect("claim work");
    let left = owned.work().await;
    assert!(matches!(left.phase, WorkPhase::Ended { why: WorkEnd::LeaseLost, .. }), "{left:?}");
    assert_eq!(left.token, None);
    let open = owned.store.open_work(&OTHER.into()).await.expect("list work");
    assert_eq!(open.iter().map(|work| &work.id).collect::<Vec<_>>(), [&mine.id]);
    // A node's own older items are its own affair.
    let more = offered_to(OTHER, owned.session.as_str(), "work_3");
    owned.store.claim_work(&more).await.expect("claim work");
    assert_eq!(owned.store.open_work(&OTHER.into()).await.expect("list work").len(), 2);
}
