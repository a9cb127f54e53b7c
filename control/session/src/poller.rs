//! Claims work of one environment, as long as there is room for it.
//!
//! **Invariant:** a poller never ends by itself. Whatever its brain does costs its own sessions
//! time, and no other environment anything: each wait is its own, and claims have a pace.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base_types::WorkId;
use brain_api::{BrainError, WorkItem};
use rand::Rng;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::hub::Shared;
use crate::message::{Outside, line};
use crate::node::Holder;

/// Between empty polls, uniformly: many workers must not poll in step.
const EMPTY_WAIT_MS: std::ops::RangeInclusive<u64> = 1_000..=3_000;
/// The same where an offer was left to another node: it shall be the next to ask.
const LEFT_WAIT_MS: std::ops::RangeInclusive<u64> = 3_000..=4_000;
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Below this much available memory no new session is begun: those there are need it.
const MEMORY_FLOOR_KIB: u64 = 256 * 1024;
const MEMORY_WAIT: Duration = Duration::from_secs(5);
/// Between two items that are taken: each is a few commits to the journal that all environments
/// share, and a brain that floods us with offers must leave room in it for the others.
const CLAIM_PACE: Duration = Duration::from_millis(20);
/// Different items that are asked for without a pause.
const ROUND_MAX: usize = 1_024;
/// How often a key that was refused is looked for again, as a part of the time after which the
/// same key is tried again.
const KEY_LOOKS: u32 = 12;

pub(crate) struct Poller {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub stop: CancellationToken,
}

/// The stop signal came.
struct Stopped;

impl Poller {
    pub async fn run(self) {
        let _ = self.poll_on().await;
    }

    async fn poll_on(&self) -> Result<(), Stopped> {
        let mut failures: u32 = 0;
        let mut round = Round::default();
        let mut claim_at = Instant::now();
        loop {
            let permit = self.room().await?;
            self.environment().asking();
            let polled = tokio::select! {
                polled = self.environment().parts.brain.poll() => polled,
                () = self.stop.cancelled() => return Err(Stopped),
            };
            match polled {
                Ok(item) => {
                    failures = 0;
                    self.environment().healthy(self.shared.clock.now());
                    let Some(item) = item else {
                        self.pause(std::mem::take(&mut round).wait()).await?;
                        continue;
                    };
                    // Where there was one item there may be more: ask again at once. A brain that
                    // offers the same one again has no other.
                    if !round.is_new(&item.id) {
                        self.pause(std::mem::take(&mut round).wait()).await?;
                    }
                    self.pause_until(claim_at).await?;
                    match self.take(item, permit).await {
                        true => claim_at = Instant::now() + CLAIM_PACE,
                        false => round.left = true,
                    }
                }
                Err(error) if error.is_transient() => {
                    failures += 1;
                    self.ill(line(&error), false);
                    self.pause(error.retry_after().unwrap_or_else(|| backoff(failures))).await?;
                }
                Err(error) => self.refused(&error).await?,
            }
        }
    }

    fn environment(&self) -> &Environment {
        &self.shared.environments[self.index]
    }

    fn ill(&self, what: String, refused: bool) {
        self.environment().ill(what, refused, self.shared.clock.now());
    }

    /// The brain refuses the key or the environment. Another key is used as soon as it is where
    /// the key is read from; the same one is tried again from time to time: whoever revoked it may
    /// think better of it.
    async fn refused(&self, error: &BrainError) -> Result<(), Stopped> {
        let what = line(error);
        let retry_at = Instant::now() + self.shared.timeouts.refused_retry;
        let look_every = self.shared.timeouts.refused_retry / KEY_LOOKS;
        while Instant::now() < retry_at {
            match self.renew_key().await {
                Ok(true) => {
                    tracing::info!(environment = %self.environment().id(), "another key is tried");
                    return Ok(());
                }
                Ok(false) => self.ill(what.clone(), true),
                Err(why) => self.ill(format!("{what} (a new key is not seen: {why})"), true),
            }
            self.pause(look_every).await?;
        }
        Ok(())
    }

    async fn renew_key(&self) -> Result<bool, String> {
        match &self.environment().parts.key {
            Some(key) => {
                let key = key.clone();
                base_tasks::blocking(move || key.renew()).await
            }
            None => Ok(false),
        }
    }

    /// Waits for a free place, for memory to fill it with, and for the right to.
    async fn room(&self) -> Result<OwnedSemaphorePermit, Stopped> {
        self.environment().not_asking();
        let capacity = self.environment().capacity.clone();
        let permit = tokio::select! {
            permit = capacity.acquire_owned() => permit.map_err(|_| Stopped)?,
            () = self.stop.cancelled() => return Err(Stopped),
        };
        while available_memory_kib().is_some_and(|kib| kib < MEMORY_FLOOR_KIB) {
            self.ill("little memory is left: no new session is begun".to_owned(), false);
            self.pause(MEMORY_WAIT).await?;
        }
        if self.shared.standing.has_lapsed() {
            self.ill("the store is out of reach: no new session is begun".to_owned(), false);
            tokio::select! {
                () = self.shared.standing.holds() => {}
                () = self.stop.cancelled() => return Err(Stopped),
            }
        }
        Ok(permit)
    }

    /// Says whether the item came to something.
    async fn take(&self, item: WorkItem, permit: OwnedSemaphorePermit) -> bool {
        let environment = self.environment();
        if environment.is_left(&item.id) {
            return false;
        }
        let Some(session) = item.session.clone() else {
            self.wave_through(item).await;
            return true;
        };
        let work = item.id.clone();
        match self.shared.holder(&session).await {
            Ok(Holder::Other { node }) => {
                tracing::info!(%session, %work, %node, "left to the node that has its files");
                environment.leave(&work);
                return false;
            }
            Ok(Holder::Lost { node })
                if !self.shared.standing.may_judge(self.shared.timeouts.node_ttl) =>
            {
                tracing::info!(%session, %work, %node,
                    "left for a while: the node that has its files is silent, and may be back soon");
                environment.leave(&work);
                return false;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%session, %work, error = %line(&error), "ask whose session it is");
                environment.leave(&work);
                return false;
            }
        }
        if self.shared.tell(&session, Outside::Offered { item, permit }).is_err() {
            // Not acknowledged, so it is offered again.
            tracing::warn!(%session, %work, "the session is too busy to take its work item");
            environment.leave(&work);
        }
        true
    }

    /// An item that is not for a session is acknowledged, not run, and stopped.
    async fn wave_through(&self, item: WorkItem) {
        let environment = self.environment();
        let brain = &environment.parts.brain;
        tracing::info!(work = %item.id, kind = %item.data_type, "a work item that is not run");
        if let Err(error) = brain.ack(&item.id).await {
            tracing::warn!(work = %item.id, error = %line(&error), "acknowledge");
            environment.leave(&item.id);
        }
        if let Err(error) = brain.stop(&item.id, item.token.as_ref()).await {
            tracing::warn!(work = %item.id, error = %line(&error), "stop");
            environment.leave(&item.id);
        }
    }

    async fn pause(&self, time: Duration) -> Result<(), Stopped> {
        self.pause_until(Instant::now() + time).await
    }

    async fn pause_until(&self, at: Instant) -> Result<(), Stopped> {
        tokio::select! {
            () = tokio::time::sleep_until(at) => Ok(()),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }
}

/// The items of polls that followed each other without a pause.
#[derive(Default)]
struct Round {
    offered: HashSet<WorkId>,
    /// One of them was left alone.
    left: bool,
}

impl Round {
    fn is_new(&mut self, work: &WorkId) -> bool {
        self.offered.len() < ROUND_MAX && self.offered.insert(work.clone())
    }

    /// How long to wait before the next one.
    fn wait(self) -> Duration {
        let range = if self.left { LEFT_WAIT_MS } else { EMPTY_WAIT_MS };
        Duration::from_millis(rand::rng().random_range(range))
    }
}

/// `min(60, 2^n)` seconds and up to one more.
fn backoff(failures: u32) -> Duration {
    let wait = Duration::from_secs(1u64 << failures.min(6)).min(BACKOFF_MAX);
    wait + Duration::from_millis(rand::rng().random_range(0..1_000))
}

/// `None` where the kernel does not say.
fn available_memory_kib() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
