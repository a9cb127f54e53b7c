//! Claims work of one environment, as long as there is room for it.

use std::sync::Arc;
use std::time::Duration;

use brain_api::WorkItem;
use rand::Rng;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::hub::{Environment, Shared};
use crate::message::{Outside, line};

/// Between empty polls, uniformly: many workers must not poll in step.
const EMPTY_WAIT_MS: std::ops::RangeInclusive<u64> = 1_000..=3_000;
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Below this much available memory no new session is begun: those there are need it.
const MEMORY_FLOOR_KIB: u64 = 256 * 1024;
const MEMORY_WAIT: Duration = Duration::from_secs(5);

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
        loop {
            let permit = self.room().await?;
            let polled = tokio::select! {
                polled = self.environment().parts.brain.poll() => polled,
                () = self.stop.cancelled() => return Err(Stopped),
            };
            match polled {
                Ok(item) => {
                    failures = 0;
                    self.healthy();
                    match item {
                        // Where there was one item there may be more: ask again at once.
                        Some(item) => self.take(item, permit).await,
                        None => self.pause(empty_wait()).await?,
                    }
                }
                Err(error) if error.is_transient() => {
                    failures += 1;
                    self.ill(line(&error), false);
                    self.pause(error.retry_after().unwrap_or_else(|| backoff(failures))).await?;
                }
                Err(error) => {
                    let environment = self.environment().id();
                    tracing::error!(%environment, error = %line(&error),
                        "the brain refuses to hand out work; this environment is no longer polled");
                    self.ill(line(&error), true);
                    return Ok(());
                }
            }
        }
    }

    fn environment(&self) -> &Environment {
        &self.shared.environments[self.index]
    }

    /// Waits for a free place and for memory to fill it with.
    async fn room(&self) -> Result<OwnedSemaphorePermit, Stopped> {
        let capacity = self.environment().capacity.clone();
        let permit = tokio::select! {
            permit = capacity.acquire_owned() => permit.map_err(|_| Stopped)?,
            () = self.stop.cancelled() => return Err(Stopped),
        };
        while available_memory_kib().is_some_and(|kib| kib < MEMORY_FLOOR_KIB) {
            self.ill("little memory is left: no new session is begun".to_owned(), false);
            self.pause(MEMORY_WAIT).await?;
        }
        Ok(permit)
    }

    async fn take(&self, item: WorkItem, permit: OwnedSemaphorePermit) {
        let Some(session) = item.session.clone() else {
            return self.wave_through(item).await;
        };
        let work = item.id.clone();
        if self.shared.tell(&session, Outside::Offered { item, permit }).is_err() {
            // Not acknowledged, so it is offered again.
            tracing::warn!(%session, %work, "the session is too busy to take its work item");
        }
    }

    /// An item that is not for a session is acknowledged, not run, and stopped.
    async fn wave_through(&self, item: WorkItem) {
        let brain = &self.environment().parts.brain;
        tracing::info!(work = %item.id, kind = %item.data_type, "a work item that is not run");
        if let Err(error) = brain.ack(&item.id).await {
            tracing::warn!(work = %item.id, error = %line(&error), "acknowledge");
        }
        if let Err(error) = brain.stop(&item.id, item.token.as_ref()).await {
            tracing::warn!(work = %item.id, error = %line(&error), "stop");
        }
    }

    fn healthy(&self) {
        let mut health = self.environment().health();
        health.last_poll_at = Some(self.shared.clock.now());
        if health.trouble.take().is_some() {
            tracing::info!(environment = %self.environment().id(), "polling works again");
        }
    }

    fn ill(&self, trouble: String, refused: bool) {
        let mut health = self.environment().health();
        if health.trouble.as_ref() != Some(&trouble) {
            tracing::warn!(environment = %self.environment().id(), %trouble, "polling");
        }
        health.trouble = Some(trouble);
        health.refused = refused;
    }

    async fn pause(&self, time: Duration) -> Result<(), Stopped> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }
}

fn empty_wait() -> Duration {
    Duration::from_millis(rand::rng().random_range(EMPTY_WAIT_MS))
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
