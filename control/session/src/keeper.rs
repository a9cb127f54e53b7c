//! Brings what exists in line with what the journal says: at start, and from time to time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base_types::{Chain, EnvironmentId, SessionId};
use sandbox_api::Vitality;
use store_api::{PAGE_MAX, SandboxState, SessionRecord, StoreError, WorkRecord};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::hub::Shared;
use crate::message::{Outside, line};
use crate::parts::EnvironmentStatus;

const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How long files are kept whose profile, which would say so, is not configured any more.
const RETAIN_WITHOUT_PROFILE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Environments that are not configured any more, with their sessions that still have something
/// here.
#[derive(Default)]
pub(crate) struct Removed(BTreeMap<EnvironmentId, usize>);

impl Removed {
    pub fn statuses(&self) -> Vec<EnvironmentStatus> {
        let status = |(environment, sessions): (&EnvironmentId, &usize)| EnvironmentStatus {
            environment: environment.clone(),
            configured: false,
            serving: 0,
            concurrency_max: 0,
            last_poll_at: None,
            trouble: Some(format!(
                "not in the configuration any more; files of {sessions} of its sessions are kept \
                 here until their retention is over"
            )),
            trouble_since: None,
            refused: false,
            left_alone: 0,
        };
        self.0.iter().map(status).collect()
    }
}

/// Goes on with what a restart left: items whose lease may still be ours, and sandboxes whose
/// processes are still there.
pub(crate) async fn resume(shared: &Arc<Shared>) -> Result<(), StoreError> {
    for work in shared.store.open_work(&shared.node).await? {
        resume_work(shared, work);
    }
    let mut removed = Removed::default();
    let mut owned = Owned { shared, after: None };
    loop {
        let page = owned.page().await?;
        if page.is_empty() {
            break;
        }
        for session in &page {
            count_removed(shared, session, &mut removed);
            if has_processes(session) && !shared.has_actor(&session.id) {
                tend(shared, session);
            }
        }
    }
    for (environment, sessions) in &removed.0 {
        tracing::warn!(%environment, sessions,
            "sessions of an environment that is not configured any more keep files here");
    }
    *shared.removed() = removed;
    sweep(shared).await
}

fn count_removed(shared: &Shared, session: &SessionRecord, removed: &mut Removed) {
    let keeps = session.sandbox.as_ref().is_some_and(|s| s.state != SandboxState::Gone);
    if keeps && shared.environment(&session.environment).is_none() {
        *removed.0.entry(session.environment.clone()).or_default() += 1;
    }
}

/// Until `stop`: removes what has outlived its time.
pub(crate) async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(KEEP_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = keep_once(&shared).await {
            tracing::warn!(error = %Chain(&error), "look after sleeping sessions");
        }
    }
}

async fn keep_once(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let mut removed = Removed::default();
    let mut owned = Owned { shared, after: None };
    loop {
        let page = owned.page().await?;
        if page.is_empty() {
            break;
        }
        for session in &page {
            count_removed(shared, session, &mut removed);
            let kept = session.sandbox.as_ref().is_some_and(|s| s.state == SandboxState::Stopped);
            if kept && !shared.has_actor(&session.id) && is_past_retention(shared, session).await? {
                tend(shared, session);
            }
        }
    }
    *shared.removed() = removed;
    let now = shared.store.now().await?;
    let retention = i64::try_from(shared.timeouts.log_retention.as_millis()).unwrap_or(i64::MAX);
    let before = base_types::Timestamp(now.0.saturating_sub(retention));
    let forgotten = shared.store.prune(before).await?;
    if forgotten > 0 {
        tracing::info!(rows = forgotten, "forgot what is past its retention");
    }
    sweep(shared).await
}

fn has_processes(session: &SessionRecord) -> bool {
    session.sandbox.as_ref().is_some_and(|sandbox| {
        matches!(sandbox.state, SandboxState::Creating | SandboxState::Running)
    })
}

/// Whether a sleeping session's files have been kept as long as promised.
pub(crate) async fn is_past_retention(
    shared: &Shared,
    session: &SessionRecord,
) -> Result<bool, StoreError> {
    let profile = session.identity.as_ref().map(|identity| &identity.profile);
    let shape = profile.and_then(|profile| shared.profiles.shape(profile));
    let retain = shape.map_or(RETAIN_WITHOUT_PROFILE, |shape| shape.retain);
    Ok(shared.store.now().await?.since(session.phase_at) >= retain)
}

/// Ends sandboxes that no session of this installation stands behind. Only what a session has
/// replaced or given up is removed with its files; where no session is known, the volume is left
/// and named: it may be somebody's only copy.
pub(crate) async fn sweep(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let found = match shared.driver.list().await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(error = %line(&error), "list sandboxes");
            return Ok(());
        }
    };
    for status in found {
        let session = match &status.session {
            Some(session) => shared.store.session(session).await?,
            None => None,
        };
        let ended = match (session.and_then(|session| session.sandbox), &status.vitality) {
            (Some(own), _) if own.id == status.sandbox && own.state != SandboxState::Gone => Ok(()),
            (Some(_), _) => {
                tracing::info!(sandbox = %status.sandbox, "removing a sandbox its session gave up");
                shared.driver.destroy(&status.sandbox, &status.volume).await.map_err(|e| line(&e))
            }
            (None, Vitality::Running { .. }) => {
                tracing::warn!(sandbox = %status.sandbox, volume = %status.volume,
                    "stopping a sandbox that no session knows; its volume is kept");
                shared.driver.stop(&status.sandbox).await.map_err(|e| line(&e))
            }
            (None, Vitality::Stopped { .. } | Vitality::VolumeOnly) => Ok(()),
        };
        if let Err(why) = ended {
            tracing::warn!(sandbox = %status.sandbox, %why, "could not be ended");
        }
    }
    Ok(())
}

fn resume_work(shared: &Arc<Shared>, work: WorkRecord) {
    let permit = match shared.environment(&work.environment) {
        Some(environment) => environment.capacity.clone().try_acquire_owned(),
        None => {
            tracing::warn!(work = %work.id, session = %work.session,
                environment = %work.environment,
                "an open work item of an environment that is not configured any more is let go");
            let session = work.session.clone();
            if shared.tell(&session, Outside::Orphaned { work }).is_err() {
                tracing::warn!(%session, "the session is too busy to let its work item go");
            }
            return;
        }
    };
    let Ok(permit) = permit else {
        // Its lease lapses and the brain offers it again when there is room.
        tracing::warn!(work = %work.id, "no room to resume a work item");
        return;
    };
    tell_resumed(shared, work, permit);
}

fn tell_resumed(shared: &Arc<Shared>, work: WorkRecord, permit: OwnedSemaphorePermit) {
    let session = work.session.clone();
    if shared.tell(&session, Outside::Resumed { work, permit }).is_err() {
        tracing::warn!(%session, "the session is too busy to resume its work item");
    }
}

fn tend(shared: &Arc<Shared>, session: &SessionRecord) {
    if shared.tell(&session.id, Outside::Tend).is_err() {
        tracing::debug!(session = %session.id, "the session is busy and needs no tending");
    }
}

/// The open sessions of this node, page by page.
struct Owned<'a> {
    shared: &'a Shared,
    after: Option<SessionId>,
}

impl Owned<'_> {
    /// The next page; an empty one is the end.
    async fn page(&mut self) -> Result<Vec<SessionRecord>, StoreError> {
        let Shared { store, node, .. } = self.shared;
        let page = store.owned_sessions(node, self.after.as_ref(), PAGE_MAX).await?;
        if let Some(last) = page.last() {
            self.after = Some(last.id.clone());
        }
        Ok(page)
    }
}
