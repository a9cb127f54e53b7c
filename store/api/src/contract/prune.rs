//! Promises about forgetting.

use base_types::Timestamp;

use super::Place;
use super::fixture::*;
use crate::{Change, LogEvent, Phase, SandboxState, Store, WorkEnd};

/// A cut-off after everything so far.
async fn after_now(store: &dyn Store) -> Timestamp {
    Timestamp(store.now().await.expect("read clock").0 + 1)
}

fn over() -> Change {
    Change::Phase(Phase::Ended { reason: "terminated".into() })
}

fn work_over(owned: &Owned) -> Change {
    Change::WorkEnded { work: owned.work.clone(), why: WorkEnd::Stopped }
}

pub async fn pruning_forgets_ended_sessions(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let call = new_call("toolu_1");
    let before = owned.store.now().await.expect("read clock");
    owned.must(&[received(&call), finished(&call), settled(&call)]).await;
    owned.must(&[Change::Sandbox(sandbox(1, SandboxState::Gone)), work_over(&owned), over()]).await;
    assert_eq!(owned.store.prune(before).await.expect("prune"), 0, "nothing is that old");
    assert!(owned.store.prune(after_now(&*owned.store).await).await.expect("prune") > 0);
    assert_eq!(owned.store.session(&owned.session).await.expect("read session"), None);
    assert_eq!(owned.store.call(&call.id).await.expect("read call"), None);
    assert_eq!(owned.store.work(&owned.work).await.expect("read work"), None);
    assert_eq!(owned.log().await, vec![]);
    assert_eq!(owned.store.prune(after_now(&*owned.store).await).await.expect("prune"), 0);

    // The brain may still offer the session; it is then a new one.
    let again = Owned::of(owned.store.clone(), "session_1", WORK).await;
    again.must(&[received(&new_call("toolu_1"))]).await;
}

/// What a restart would have to finish is kept however old it is.
pub async fn pruning_keeps_what_is_unfinished(place: &dyn Place) {
    let store = place.open().await;
    let names = ["received", "started", "finished", "work", "sandbox", "live"];
    let mut kept = Vec::new();
    for name in names {
        kept.push(Owned::of(store.clone(), name, name).await);
    }
    let [with_received, with_started, with_finished, with_work, with_sandbox, live] = &kept[..]
    else {
        unreachable!("as many as there are names")
    };
    let call = new_call("toolu_1");
    with_received.must(&[received(&call), work_over(with_received), over()]).await;
    let call = new_call("toolu_1");
    with_started.must(&[received(&call), started(&call), work_over(with_started), over()]).await;
    let call = new_call("toolu_1");
    with_finished.must(&[received(&call), finished(&call), work_over(with_finished), over()]).await;
    with_work.must(&[over()]).await;
    let stopped = Change::Sandbox(sandbox(1, SandboxState::Stopped));
    with_sandbox.must(&[stopped, work_over(with_sandbox), over()]).await;
    live.must(&[work_over(live), Change::Phase(Phase::Sleeping)]).await;

    store.prune(after_now(&*store).await).await.expect("prune");
    for owned in &kept {
        let record = store.session(&owned.session).await.expect("read session");
        assert!(record.is_some(), "{} is unfinished", owned.session);
    }
    for owned in [with_received, with_started, with_finished] {
        assert_eq!(store.open_calls(&owned.session).await.expect("list calls").len(), 1);
    }
}

pub async fn pruning_shortens_the_log_of_live_sessions(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let note = |text: &str| Change::Note(LogEvent::Warning { text: text.into() });
    let call = new_call("toolu_1");
    owned.must(&[note("old"), received(&call), finished(&call), settled(&call)]).await;
    let cut = after_now(&*owned.store).await;
    while owned.store.now().await.expect("read clock") < cut {
        tokio::task::yield_now().await;
    }
    owned.must(&[note("new")]).await;
    let whole = owned.log().await;
    let gone = owned.store.prune(cut).await.expect("prune");
    assert_eq!(gone, 4);
    assert_eq!(owned.log().await, whole[4..]);
    // The call itself answers a repeated event for as long as the session lives.
    assert_eq!(owned.call(&call.id).await.call, call);
    // Positions are not used again.
    owned.must(&[note("newer")]).await;
    assert!(owned.log().await.is_sorted_by(|a, b| a.seq < b.seq));
}
