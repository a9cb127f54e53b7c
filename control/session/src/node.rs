//! This node among those that share the store: it says that it is alive, and it knows when it may
//! not believe so any more.
//!
//! A session whose files are on a node is not given to another while that node is alive. So a node
//! that cannot say so lets go of its sessions before the others may take them. Whatever it still
//! writes afterwards fails at the generation, so a clock that stood still does no harm.
//!
//! A node does not retire when it shuts down: it is expected back, with the files of its sessions,
//! within the time that its last sign of life lasts.

use std::sync::Arc;
use std::time::Duration;

use base_types::{NodeId, SessionId};
use store_api::StoreError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hub::Shared;
use crate::keeper;
use crate::message::{Outside, line};

/// Signs of life in the time that one lasts.
const RENEWALS_PER_TTL: u32 = 6;
/// The part of that time after which a node without an answer lets go, in quarters: the rest is
/// for ending what runs before another node may begin.
const LAPSE_QUARTERS: u32 = 3;

/// Whether this node may believe that its sessions are its own, and since when it has been in touch
/// with the store without a gap.
pub(crate) struct Standing(watch::Sender<Option<Instant>>);

/// Where a session's files are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Us,
    /// Nowhere: no node has anything of it.
    Nobody,
    /// On a node that is alive.
    Other {
        node: NodeId,
    },
    /// On a node that is gone.
    Lost {
        node: NodeId,
    },
}

// === impl Standing ===

impl Standing {
    pub fn new() -> Self {
        Self(watch::Sender::new(Some(Instant::now())))
    }

    /// The first sign of life was taken.
    pub fn begin(&self, renewed: Instant) {
        self.0.send_replace(Some(renewed));
    }

    pub fn has_lapsed(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Whether a node that is silent now has been so for as long as it may be: whoever was away from
    /// the store himself cannot know. After an outage for all, the first one back would take the
    /// others, who are about to speak, for gone, and their sessions' files with them.
    pub fn may_judge(&self, ttl: Duration) -> bool {
        self.0.borrow().is_some_and(|since| since.elapsed() >= ttl)
    }

    /// Resolves when the node's word counts again.
    pub async fn holds(&self) {
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    /// Says whether that is a change.
    fn set(&self, holds: bool) -> bool {
        self.0.send_if_modified(|since| {
            let changes = since.is_some() != holds;
            if changes {
                *since = holds.then(Instant::now);
            }
            changes
        })
    }
}

// === impl Shared ===

impl Shared {
    /// Where the session's files are, as the store sees it now.
    pub async fn holder(&self, session: &SessionId) -> Result<Holder, StoreError> {
        Ok(match self.store.owner(session).await? {
            Some(owner) if owner.node == self.node => Holder::Us,
            Some(owner) if owner.holds_volume && owner.alive => Holder::Other { node: owner.node },
            Some(owner) if owner.holds_volume => Holder::Lost { node: owner.node },
            Some(_) | None => Holder::Nobody,
        })
    }

    /// One sign of life. The answer is the moment from which it counts.
    pub async fn renew(&self) -> Result<Instant, StoreError> {
        // Taken before the store's clock is read, so that ours runs out first.
        let sent = Instant::now();
        self.store.renew_node(&self.node, self.timeouts.node_ttl).await?;
        Ok(sent)
    }
}

/// Gives signs of life until `stop`, the first of them at `renewed`.
pub(crate) async fn keep(shared: Arc<Shared>, renewed: Instant, stop: CancellationToken) {
    let ttl = shared.timeouts.node_ttl;
    let every = ttl / RENEWALS_PER_TTL;
    let mut renewed = renewed;
    let mut next = renewed + every;
    loop {
        let lapses = renewed + ttl * LAPSE_QUARTERS / 4;
        if Instant::now() >= lapses && shared.standing.set(false) {
            tracing::error!(node = %shared.node,
                "the store was out of reach for too long: this node lets go of its sessions");
            shared.tell_all(|| Outside::Lapsed);
        }
        let wake = if shared.standing.has_lapsed() { next } else { next.min(lapses) };
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            () = stop.cancelled() => return,
        }
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + every;
        // An attempt that does not come back must not hide that the time is over.
        match tokio::time::timeout(attempt(lapses, every), shared.renew()).await {
            Ok(Ok(at)) => {
                renewed = at;
                if shared.standing.set(true) {
                    tracing::info!(node = %shared.node, "the store is in reach again");
                    if let Err(error) = keeper::sweep(&shared).await {
                        tracing::warn!(error = %line(&error), "look after what is left here");
                    }
                }
            }
            Ok(Err(error)) => tracing::warn!(error = %line(&error), "say that this node is alive"),
            Err(_) => tracing::warn!("the store did not answer that this node is alive"),
        }
    }
}

fn attempt(lapses: Instant, every: Duration) -> Duration {
    let left = lapses.saturating_duration_since(Instant::now());
    if left.is_zero() { every } else { left.min(every) }
}
