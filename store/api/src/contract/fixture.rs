//! What the promises are tried on.

use std::collections::BTreeMap;
use std::sync::Arc;

use base_types::{CallId, Epoch, Generation, NodeId, SandboxId, SessionId, VolumeId, WorkId};

use super::Place;
use crate::{
    CallEnd, CallRecord, Change, Identity, LogEntry, NewCall, NewWork, SandboxRecord, SandboxState,
    Sealed, SessionFilter, Store, StoreError, WorkRecord,
};

pub(super) const ENVIRONMENT: &str = "env_1";
pub(super) const NODE: &str = "node-1";
pub(super) const WORK: &str = "work_1";
pub(super) const EVERY_SESSION: SessionFilter =
    SessionFilter { open_only: false, owner: None, limit: 100 };

/// One session that this node has claimed and owns.
pub(super) struct Owned {
    pub store: Arc<dyn Store>,
    pub session: SessionId,
    pub work: WorkId,
    pub generation: Generation,
}

impl Owned {
    pub(super) async fn new(place: &dyn Place) -> Owned {
        Owned::of(place.open().await, "session_1", WORK).await
    }

    pub(super) async fn of(store: Arc<dyn Store>, session: &str, work: &str) -> Owned {
        store.claim_work(&new_work(session, work)).await.expect("claim work");
        let session = SessionId::new(session);
        let generation =
            store.take_session(&session, &NodeId::new(NODE)).await.expect("take session");
        Owned { store, session, work: WorkId::new(work), generation }
    }

    pub(super) async fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.store.apply(&self.session, self.generation, changes).await
    }

    /// Applies what must be accepted.
    pub(super) async fn must(&self, changes: &[Change]) {
        self.apply(changes).await.unwrap_or_else(|error| panic!("{changes:?}: {error:?}"));
    }

    pub(super) async fn call(&self, call: &CallId) -> CallRecord {
        self.store.call(call).await.expect("read call").expect("the call is known")
    }

    pub(super) async fn work(&self) -> WorkRecord {
        self.store.work(&self.work).await.expect("read work").expect("the item is known")
    }

    pub(super) async fn log(&self) -> Vec<LogEntry> {
        self.store.log(&self.session, None, 1_000).await.expect("read log")
    }

    /// Everything the store says about the session; two that are equal mean nothing was written.
    pub(super) async fn everything(&self) -> String {
        let session = self.store.session(&self.session).await;
        let calls = self.store.calls(&self.session, None, 1_000).await;
        let work = self.store.work(&self.work).await;
        format!("{session:?} {calls:?} {work:?} {:?}", self.log().await)
    }
}

pub(super) fn new_work(session: &str, work: &str) -> NewWork {
    NewWork {
        id: WorkId::new(work),
        environment: ENVIRONMENT.into(),
        session: session.into(),
        node: NODE.into(),
        token: Some(Sealed(vec![0, 1, 2, 255])),
    }
}

pub(super) fn new_call(tool_use: &str) -> NewCall {
    NewCall {
        id: CallId::generate(),
        tool_use: tool_use.into(),
        tool: "bash".into(),
        custom: false,
        thread: None,
        input: serde_json::json!({"command": "true"}),
    }
}

pub(super) fn received(call: &NewCall) -> Change {
    Change::CallReceived(Box::new(call.clone()))
}

pub(super) fn started(call: &NewCall) -> Change {
    Change::CallStarted { call: call.id.clone(), epoch: Some(Epoch::FIRST) }
}

pub(super) fn finished(call: &NewCall) -> Change {
    Change::CallFinished { call: call.id.clone(), end: end(b"{\"is_error\":false}") }
}

pub(super) fn shortened(call: &NewCall) -> Change {
    Change::CallShortened { call: call.id.clone(), body: b"short".to_vec() }
}

pub(super) fn settled(call: &NewCall) -> Change {
    Change::CallSettled { call: call.id.clone(), refused: None }
}

pub(super) fn end(body: &[u8]) -> CallEnd {
    CallEnd {
        body: body.to_vec(),
        is_error: false,
        summary: "exit code 0".into(),
        exit_code: Some(0),
    }
}

pub(super) fn identity() -> Identity {
    Identity {
        tenant: "tenant-1".into(),
        profile: "default".into(),
        chosen_by: "profile `default`".into(),
        agent: Some("agent_1".into()),
        agent_version: Some(3),
        agent_name: Some("coder".into()),
        title: None,
        metadata: BTreeMap::from([("team".into(), "blue".into())]),
        unserved: vec!["skill xlsx".into()],
    }
}

pub(super) fn identified(identity: &Identity) -> Change {
    Change::Identified(Box::new(identity.clone()))
}

pub(super) fn sandbox(epoch: u64, state: SandboxState) -> SandboxRecord {
    SandboxRecord {
        id: SandboxId::parse("sbx_00000000000000000000000000000001").expect("an id"),
        volume: VolumeId::parse("vol_00000000000000000000000000000001").expect("an id"),
        node: Some(NODE.into()),
        image: "sha256:0".into(),
        tier: "container".into(),
        epoch: Epoch(epoch),
        state,
        untold: None,
    }
}

/// That a change was refused for what it is, with a reason.
#[track_caller]
pub(super) fn assert_refused(result: Result<(), StoreError>, change: &str) {
    match result {
        Err(StoreError::Refused { change: refused, why }) => {
            assert_eq!(refused, change, "{why}");
            assert!(!why.is_empty(), "a refusal has a reason");
        }
        other => panic!("`{change}` should be refused, was {other:?}"),
    }
}
