//! One environment at run time: its brain, its room, how it is doing, and which of its offers are
//! left alone for a while.
//!
//! **Invariant:** environments share nothing here. One whose brain is down, slow, or refuses the
//! key has its own poller, its own places and its own record of trouble.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base_types::{EnvironmentId, Timestamp, WorkId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::parts::{EnvironmentParts, EnvironmentStatus, Tenancy};

/// The brain holds a poll for about a second; one that takes this long is not on its way.
const POLL_SLOW: Duration = Duration::from_secs(10);
/// How long an offer that was not taken is left alone the first time; then it doubles.
const LEAVE_MIN: Duration = Duration::from_secs(2);
/// An offer that is another node's is looked at this often at least: its node may be gone.
const LEAVE_MAX: Duration = Duration::from_secs(15);
/// Offers remembered; a brain has one live item per session.
const LEFT_MAX: usize = 4_096;

pub(crate) struct Environment {
    pub parts: EnvironmentParts,
    pub capacity: Arc<Semaphore>,
    health: Mutex<Health>,
    left: Mutex<LeftAlone>,
}

#[derive(Default)]
struct Health {
    last_poll_at: Option<Timestamp>,
    /// Since when a poll has been under way.
    asking_since: Option<Instant>,
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub what: String,
    /// The brain refuses the key, or the environment.
    pub refused: bool,
    pub since: Timestamp,
}

impl Environment {
    pub fn new(parts: EnvironmentParts) -> Self {
        Self {
            capacity: Arc::new(Semaphore::new(parts.concurrency_max)),
            parts,
            health: Mutex::default(),
            left: Mutex::default(),
        }
    }

    pub fn id(&self) -> &EnvironmentId {
        self.parts.brain.environment()
    }

    pub fn tenancy(&self) -> &Tenancy {
        &self.parts.tenancy
    }

    /// A poll leaves.
    pub fn asking(&self) {
        self.health().asking_since = Some(Instant::now());
    }

    /// No poll is under way: there is no room, or the poller waits.
    pub fn not_asking(&self) {
        self.health().asking_since = None;
    }

    pub fn healthy(&self, now: Timestamp) {
        let mut health = self.health();
        health.asking_since = None;
        health.last_poll_at = Some(now);
        if health.trouble.take().is_some() {
            tracing::info!(environment = %self.id(), "polling works again");
        }
    }

    pub fn ill(&self, what: String, refused: bool, now: Timestamp) {
        let mut health = self.health();
        health.asking_since = None;
        let known = health.trouble.take();
        if known.as_ref().is_none_or(|known| known.what != what) {
            tracing::warn!(environment = %self.id(), trouble = %what, refused, "polling");
        }
        let since = known.map_or(now, |known| known.since);
        health.trouble = Some(Trouble { what, refused, since });
    }

    /// What keeps this environment from being polled, if anything does.
    pub fn trouble(&self) -> Option<Trouble> {
        self.health().trouble.clone()
    }

    /// An offer was not taken: it is the brain's still, and is looked at again after a while.
    pub fn leave(&self, work: &WorkId) {
        self.left().leave(work, Instant::now());
    }

    pub fn is_left(&self, work: &WorkId) -> bool {
        self.left().is_left(work, Instant::now())
    }

    /// An offer was taken after all.
    pub fn taken(&self, work: &WorkId) {
        self.left().offers.remove(work);
    }

    pub fn status(&self, now: Timestamp) -> EnvironmentStatus {
        let health = self.health();
        let concurrency_max = self.parts.concurrency_max;
        let asking = health.asking_since.map(|since| since.elapsed());
        let slow = asking.filter(|asking| *asking >= POLL_SLOW).map(|asking| Trouble {
            what: format!("a poll has not been answered for {}s", asking.as_secs()),
            refused: false,
            since: Timestamp(
                now.0.saturating_sub(i64::try_from(asking.as_millis()).unwrap_or(i64::MAX)),
            ),
        });
        let trouble = health.trouble.clone().or(slow);
        EnvironmentStatus {
            environment: self.id().clone(),
            configured: true,
            serving: concurrency_max.saturating_sub(self.capacity.available_permits()),
            concurrency_max,
            last_poll_at: health.last_poll_at,
            refused: trouble.as_ref().is_some_and(|trouble| trouble.refused),
            trouble_since: trouble.as_ref().map(|trouble| trouble.since),
            trouble: trouble.map(|trouble| trouble.what),
            left_alone: self.left().count(Instant::now()),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // A panic while holding it leaves plain data behind.
        self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn left(&self) -> MutexGuard<'_, LeftAlone> {
        self.left.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Offers that were not taken. Their acknowledgement and lease are untouched: somebody else may
/// take them at any time.
#[derive(Default)]
struct LeftAlone {
    offers: HashMap<WorkId, Left>,
}

struct Left {
    until: Instant,
    wait: Duration,
}

impl LeftAlone {
    fn leave(&mut self, work: &WorkId, now: Instant) {
        self.forget(now);
        let wait = self.offers.get(work).map_or(LEAVE_MIN, |left| (left.wait * 2).min(LEAVE_MAX));
        self.offers.insert(work.clone(), Left { until: now + wait, wait });
    }

    fn is_left(&self, work: &WorkId, now: Instant) -> bool {
        self.offers.get(work).is_some_and(|left| left.until > now)
    }

    fn count(&self, now: Instant) -> usize {
        self.offers.values().filter(|left| left.until > now).count()
    }

    /// Drops offers that nobody made again for a while, and the oldest when there are too many.
    fn forget(&mut self, now: Instant) {
        self.offers.retain(|_, left| left.until + 4 * LEAVE_MAX > now);
        if self.offers.len() >= LEFT_MAX {
            let oldest = self.offers.iter().min_by_key(|(_, left)| left.until);
            let oldest = oldest.map(|(work, _)| work.clone());
            oldest.and_then(|work| self.offers.remove(&work));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_offer_is_left_alone_longer_each_time_and_never_forever() {
        let (work, mut now) = (WorkId::from("work_1"), Instant::now());
        let mut left = LeftAlone::default();
        assert!(!left.is_left(&work, now));
        let mut waits = Vec::new();
        for _ in 0..6 {
            left.leave(&work, now);
            let mut wait = Duration::ZERO;
            while left.is_left(&work, now + wait) {
                wait += Duration::from_secs(1);
            }
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [2, 4, 8, 15, 15, 15]);
        // One that was not offered again for long begins anew.
        now += 10 * LEAVE_MAX;
        left.leave(&WorkId::from("work_2"), now);
        assert_eq!(left.offers.len(), 1);
    }

    #[tokio::test]
    async fn a_flood_of_offers_is_remembered_up_to_a_limit() {
        let now = Instant::now();
        let mut left = LeftAlone::default();
        for n in 0..LEFT_MAX + 100 {
            left.leave(&WorkId::from(format!("work_{n}")), now + Duration::from_micros(n as u64));
        }
        assert_eq!(left.offers.len(), LEFT_MAX);
        assert!(left.is_left(&WorkId::from(format!("work_{}", LEFT_MAX + 99)), now));
    }
}
