//! Promises about sessions: who owns one, what is fixed, what a list and a restart show.

use base_types::{CallId, Epoch, Generation, NodeId, SandboxId, WorkId};

use super::fixture::*;
use super::{Damage, Place};
use crate::{
    Change, Identity, LogEvent, NewWork, Phase, SandboxRecord, SandboxState, SessionFilter,
    SessionRecord, StoreError, Untold, WorkEnd,
};

pub async fn a_claim_makes_the_session(place: &dyn Place) {
    let store = place.open().await;
    let none = store.session(&"session_1".into()).await.expect("read session");
    assert_eq!(none, None);
    store.claim_work(&new_work("session_1", WORK)).await.expect("claim work");
    let record = store.session(&"session_1".into()).await.expect("read session");
    let record = record.expect("the session is known");
    let expected = SessionRecord {
        id: "session_1".into(),
        environment: ENVIRONMENT.into(),
        owner: None,
        generation: Generation(0),
        phase: Phase::Claimed,
        identity: None,
        sandbox: None,
        ..record.clone()
    };
    assert_eq!(record, expected);

    // A later item of the session changes nothing of what is known about it.
    let owned = Owned::of(store, "session_1", WORK).await;
    owned.must(&[identified(&identity()), Change::Phase(Phase::Sleeping)]).await;
    owned.store.claim_work(&new_work("session_1", "work_2")).await.expect("claim work");
    let again = owned.store.session(&owned.session).await.expect("read session");
    let again = again.expect("the session is known");
    assert_eq!((again.phase, again.identity), (Phase::Sleeping, Some(identity())));
    assert_eq!((again.owner, again.generation), (Some(NODE.into()), owned.generation));
}

pub async fn a_session_has_one_environment(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let before = owned.everything().await;
    let offered = NewWork { environment: "env_2".into(), ..new_work("session_1", "work_2") };
    match owned.store.claim_work(&offered).await {
        Err(StoreError::WrongEnvironment { session, known, offered }) => {
            assert_eq!(session, owned.session);
            assert_eq!((known.as_str(), offered.as_str()), (ENVIRONMENT, "env_2"));
        }
        other => panic!("another environment should be refused, was {other:?}"),
    }
    assert_eq!(owned.everything().await, before);
    assert_eq!(owned.store.work(&"work_2".into()).await.expect("read work"), None);
}

/// Each kind of change is refused under an old generation, also one of the same node: a restart
/// is a new owner.
pub async fn a_new_owner_shuts_the_old_one_out(place: &dyn Place) {
    for node in [NODE, "node-2"] {
        let store = place.open().await;
        let old = Owned::of(store, &format!("session of {node}"), node).await;
        let call = new_call("toolu_1");
        old.must(&[received(&call)]).await;
        let new = old.store.take_session(&old.session, &NodeId::new(node)).await;
        let new = new.expect("take session");
        assert!(new > old.generation);
        let record = old.store.session(&old.session).await.expect("read session");
        let record = record.expect("the session is known");
        assert_eq!((record.owner, record.generation), (Some(node.into()), new));

        let before = old.everything().await;
        for change in every_change(&old.work, &call.id) {
            let result = old.apply(std::slice::from_ref(&change)).await;
            assert!(matches!(result, Err(StoreError::NotOwner { .. })), "{change:?}: {result:?}");
        }
        let result = old.apply(&[]).await;
        assert!(matches!(result, Err(StoreError::NotOwner { .. })), "{result:?}");
        assert_eq!(old.everything().await, before);

        let new = Owned { generation: new, ..old };
        for change in every_change(&new.work, &call.id) {
            new.must(&[change]).await;
        }
    }
}

/// One of each kind, in an order in which a new owner may apply them to a received call.
fn every_change(work: &WorkId, call: &CallId) -> Vec<Change> {
    vec![
        Change::WorkAcked { work: work.clone() },
        Change::BeatIntended { work: work.clone() },
        Change::Beat { work: work.clone(), last: "1".into(), ttl_ms: None },
        Change::Identified(Box::new(identity())),
        Change::Phase(Phase::Serving),
        Change::Sandbox(sandbox(1, SandboxState::Creating)),
        received(&new_call("toolu_2")),
        Change::CallStarted { call: call.clone(), epoch: None },
        Change::CallFinished { call: call.clone(), end: end(b"{}") },
        Change::CallShortened { call: call.clone(), body: vec![] },
        Change::CallSettled { call: call.clone(), refused: None },
        Change::Note(LogEvent::Warning { text: "note".into() }),
        Change::WorkEnded { work: work.clone(), why: WorkEnd::Stopped },
    ]
}

pub async fn an_unknown_session_is_named(place: &dyn Place) {
    let store = place.open().await;
    let unknown = "session_none".into();
    let taken = store.take_session(&unknown, &NODE.into()).await;
    assert!(matches!(&taken, Err(StoreError::NoSuchSession(id)) if *id == unknown), "{taken:?}");
    let applied = store.apply(&unknown, Generation(1), &[Change::Phase(Phase::Idle)]).await;
    assert!(matches!(&applied, Err(StoreError::NoSuchSession(_))), "{applied:?}");
    assert_eq!(store.session(&unknown).await.expect("read session"), None);
    assert_eq!(store.calls(&unknown, None, 10).await.expect("list calls"), vec![]);
    assert_eq!(store.open_calls(&unknown).await.expect("list calls"), vec![]);
    assert_eq!(store.log(&unknown, None, 10).await.expect("read log"), vec![]);
    assert_eq!(store.call(&CallId::generate()).await.expect("read call"), None);
    assert_eq!(store.work(&"work_none".into()).await.expect("read work"), None);
}

pub async fn tenant_and_profile_are_chosen_once(place: &dyn Place) {
    let owned = Owned::new(place).await;
    owned.must(&[identified(&identity())]).await;
    let before = owned.everything().await;
    let other_tenant = Identity { tenant: "tenant-2".into(), ..identity() };
    match owned.apply(&[identified(&other_tenant)]).await {
        Err(StoreError::TenantChanged { session, known, offered }) => {
            assert_eq!(session, owned.session);
            assert_eq!((known.as_str(), offered.as_str()), ("tenant-1", "tenant-2"));
        }
        other => panic!("another tenant should be refused, was {other:?}"),
    }
    let other_profile = Identity { profile: "big".into(), ..identity() };
    assert_refused(owned.apply(&[identified(&other_profile)]).await, "identified");
    assert_eq!(owned.everything().await, before);

    let renamed = Identity { title: Some("a title".into()), unserved: vec![], ..identity() };
    owned.must(&[identified(&renamed)]).await;
    let record = owned.store.session(&owned.session).await.expect("read session");
    assert_eq!(record.expect("the session is known").identity, Some(renamed));
}

pub async fn a_sandbox_never_goes_back_an_epoch(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let states =
        [SandboxState::Creating, SandboxState::Running, SandboxState::Stopped, SandboxState::Gone];
    for state in states {
        let record = SandboxRecord {
            untold: Some(Untold::Processes { why: "restart".into() }),
            ..sandbox(2, state)
        };
        owned.must(&[Change::Sandbox(record.clone())]).await;
        let session = owned.store.session(&owned.session).await.expect("read session");
        assert_eq!(session.expect("the session is known").sandbox, Some(record));
    }
    let before = owned.everything().await;
    let back = Change::Sandbox(sandbox(1, SandboxState::Running));
    assert_refused(owned.apply(&[back]).await, "sandbox");
    assert_eq!(owned.everything().await, before);

    let another = SandboxRecord { id: SandboxId::generate(), ..sandbox(1, SandboxState::Creating) };
    owned.must(&[Change::Sandbox(another)]).await;
}

pub async fn phases_are_recorded_with_their_time(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let phases = [
        Phase::Preparing,
        Phase::Serving,
        Phase::Idle,
        Phase::Sleeping,
        Phase::Failed { reason: "no image".into() },
        Phase::Claimed,
        Phase::Ended { reason: String::new() },
    ];
    let mut last = owned.store.now().await.expect("read clock");
    for phase in phases {
        owned.must(&[Change::Phase(phase.clone())]).await;
        let record = owned.store.session(&owned.session).await.expect("read session");
        let record = record.expect("the session is known");
        assert_eq!(record.phase, phase);
        assert!(record.phase_at >= last && record.updated_at >= record.phase_at);
        last = record.phase_at;
        owned.must(&[received(&new_call(phase.name()))]).await;
        let record = owned.store.session(&owned.session).await.expect("read session");
        assert_eq!(record.expect("the session is known").phase_at, last);
    }
}

pub async fn sessions_are_listed_by_activity(place: &dyn Place) {
    let store = place.open().await;
    let mut owned = Vec::new();
    for name in ["a", "b", "c", "d"] {
        owned.push(Owned::of(store.clone(), name, name).await);
    }
    let over = Phase::Ended { reason: "terminated".into() };
    let failed = Phase::Failed { reason: "no image".into() };
    for (session, phase) in [(3, Phase::Idle), (1, over), (0, Phase::Serving), (2, failed)] {
        wait_for_the_next_tick(&*store).await;
        owned[session].must(&[Change::Phase(phase)]).await;
    }
    store.take_session(&"d".into(), &"node-2".into()).await.expect("take session");
    wait_for_the_next_tick(&*store).await;

    // A heartbeat is not activity.
    owned[1].must(&[Change::WorkAcked { work: owned[1].work.clone() }]).await;
    wait_for_the_next_tick(&*store).await;
    owned[0].must(&[Change::WorkAcked { work: owned[0].work.clone() }]).await;
    wait_for_the_next_tick(&*store).await;
    owned[1].must(&[Change::BeatIntended { work: owned[1].work.clone() }]).await;

    let list = async |filter: SessionFilter| -> Vec<String> {
        let records = store.sessions(&filter).await.expect("list sessions");
        records.into_iter().map(|record| record.id.into_string()).collect()
    };
    assert_eq!(list(EVERY_SESSION).await, ["a", "b", "d", "c"]);
    assert_eq!(list(SessionFilter { limit: 2, ..EVERY_SESSION }).await, ["a", "b"]);
    assert_eq!(list(SessionFilter { open_only: true, ..EVERY_SESSION }).await, ["a", "d"]);
    let mine = SessionFilter { open_only: true, owner: Some(NODE.into()), limit: u32::MAX };
    assert_eq!(list(mine).await, ["a"]);
    let stranger = SessionFilter { owner: Some("node-3".into()), ..EVERY_SESSION };
    assert!(list(stranger).await.is_empty());
}

/// A walk over what a node has to look after: each open session once, although activity changes
/// the order of every other list.
pub async fn a_walk_over_owned_sessions_misses_none(place: &dyn Place) {
    let store = place.open().await;
    let mut owned = Vec::new();
    for name in ["e", "c", "a", "d", "b", "over", "failed", "other"] {
        owned.push(Owned::of(store.clone(), name, name).await);
    }
    owned[5].must(&[Change::Phase(Phase::Ended { reason: String::new() })]).await;
    owned[6].must(&[Change::Phase(Phase::Failed { reason: String::new() })]).await;
    store.take_session(&"other".into(), &"node-2".into()).await.expect("take session");

    let mut walked: Vec<SessionRecord> = Vec::new();
    loop {
        let after = walked.last().map(|record| record.id.clone());
        let page = store.owned_sessions(&NODE.into(), after.as_ref(), 2).await;
        let page = page.expect("list owned sessions");
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        for record in page {
            let of = owned.iter().find(|owned| owned.session == record.id).expect("a known one");
            of.must(&[Change::Phase(Phase::Sleeping)]).await;
            walked.push(record);
        }
    }
    let walked: Vec<&str> = walked.iter().map(|record| record.id.as_str()).collect();
    assert_eq!(walked, ["a", "b", "c", "d", "e"]);
}

/// Damage is reported with the row it is in; it is never read as something else.
pub async fn what_cannot_be_read_is_said(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let call = new_call("toolu_1");
    owned.must(&[identified(&identity()), received(&call)]).await;
    // The last ones first, so that each is the first that its reader meets.
    for damage in [
        Damage::LogEvent,
        Damage::CallDocument,
        Damage::CallState,
        Damage::WorkPhase,
        Damage::SessionIdentity,
        Damage::SessionPhase,
    ] {
        place.damage(damage).await;
        let store = place.open().await;
        // Lists over several sessions go on without it.
        match damage {
            Damage::WorkPhase => {
                assert_eq!(store.open_work(&NODE.into()).await.expect("list work"), []);
            }
            Damage::SessionIdentity | Damage::SessionPhase => {
                let known = store.sessions(&EVERY_SESSION).await.expect("list sessions");
                assert!(known.iter().all(|session| session.id != owned.session));
                let walked = store.owned_sessions(&NODE.into(), None, 10).await;
                let walked = walked.expect("list owned sessions");
                assert!(walked.iter().all(|session| session.id != owned.session));
            }
            _ => {}
        }
        let results = match damage {
            Damage::LogEvent => vec![store.log(&owned.session, None, 10).await.map(drop)],
            Damage::CallDocument | Damage::CallState => vec![
                store.call(&call.id).await.map(drop),
                store.call_for(&owned.session, &call.tool_use).await.map(drop),
                store.calls(&owned.session, None, 10).await.map(drop),
                store.open_calls(&owned.session).await.map(drop),
            ],
            Damage::WorkPhase => vec![store.work(&owned.work).await.map(drop)],
            Damage::SessionIdentity => vec![
                store.session(&owned.session).await.map(drop),
                owned.apply(&[identified(&identity())]).await,
            ],
            Damage::SessionPhase => vec![store.session(&owned.session).await.map(drop)],
        };
        for result in results {
            match result {
                Err(StoreError::Unreadable { id, why, .. }) => {
                    assert!(!id.is_empty() && !why.is_empty());
                }
                other => panic!("{damage:?} should be reported, was {other:?}"),
            }
        }
    }
}

pub async fn times_are_the_stores_own(place: &dyn Place) {
    let store = place.open().await;
    let before = store.now().await.expect("read clock");
    let owned = Owned::of(store, "session_1", WORK).await;
    let call = new_call("toolu_1");
    owned.must(&[received(&call), started(&call)]).await;
    let after = owned.store.now().await.expect("read clock");
    let session = owned.store.session(&owned.session).await.expect("read session");
    let session = session.expect("the session is known");
    let record = owned.call(&call.id).await;
    let started = record.started.expect("the call started");
    let times = [
        session.created_at,
        session.updated_at,
        session.phase_at,
        owned.work().await.claimed_at,
        record.received_at,
        started.at,
    ];
    for time in times {
        assert!(before <= time && time <= after, "{before} ≤ {time} ≤ {after}");
    }
    // One batch happened at one time.
    assert_eq!(record.received_at, started.at);
    assert_eq!(started.epoch, Some(Epoch::FIRST));
}

pub async fn everything_survives_a_restart(place: &dyn Place) {
    let owned = Owned::new(place).await;
    let calls: Vec<_> = (0..4).map(|n| new_call(&format!("toolu_{n}"))).collect();
    owned.must(&[Change::WorkAcked { work: owned.work.clone() }]).await;
    owned.must(&[identified(&identity())]).await;
    owned.must(&[Change::Sandbox(sandbox(3, SandboxState::Running))]).await;
    owned.must(&[received(&calls[0])]).await;
    owned.must(&[received(&calls[1]), started(&calls[1])]).await;
    owned.must(&[received(&calls[2]), started(&calls[2]), finished(&calls[2])]).await;
    owned.must(&[received(&calls[3]), finished(&calls[3]), settled(&calls[3])]).await;
    let before = owned.everything().await;
    let reopened = Owned { store: place.open().await, ..owned };
    assert_eq!(reopened.everything().await, before);
    // The owner may go on under its generation.
    reopened.must(&[settled(&calls[2])]).await;
}

/// Orders by time need times that differ.
async fn wait_for_the_next_tick(store: &dyn crate::Store) {
    let start = store.now().await.expect("read clock");
    while store.now().await.expect("read clock") <= start {
        tokio::task::yield_now().await;
    }
}
