//! Counting what limits bound: one meter for each session, told the time.
//!
//! **Invariant:** with several limits on a request, either all have room and all are charged, or
//! none is.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base_types::{ByteSize, Timestamp};

use crate::decision::{Obligations, RuleRef};
use crate::model::Limits;

const MINUTE: Duration = Duration::from_secs(60);
/// A minute is counted in parts of this many; a request counts until its part is a minute old.
const PARTS: i64 = 60;

/// Rules that a session is counted under: more than a set of policies has. Edits bring new ones; the
/// old ones without a request under way are forgotten then.
const RULES_MAX: usize = 32_768;

/// What the requests of one session have used.
#[derive(Debug, Default)]
pub struct Meter {
    used: BTreeMap<Key, Used>,
}

/// A rule by layer, policy and id: what was used stays used when policies are edited.
type Key = (crate::model::Layer, String, String);

#[derive(Debug, Default)]
struct Used {
    /// Requests by the part of a minute in which they began, oldest first; at most [`PARTS`] + 1.
    recent: VecDeque<(i64, u32)>,
    concurrent: u32,
    up: u64,
    down: u64,
}

/// A request that is counted. It goes back with [`Meter::finish`].
#[must_use]
#[derive(Debug)]
pub struct Slot {
    limits: Vec<(Key, Limits)>,
    /// Bytes of this request's body.
    body: u64,
}

/// Which limit has no room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("more than {limit} requests in a minute ({rule})")]
    Requests { limit: u32, rule: String, retry_after: Duration },
    #[error("more than {limit} requests at the same time ({rule})")]
    Concurrent { limit: u32, rule: String },
    #[error("a body of more than {limit} ({rule})")]
    Body { limit: ByteSize, rule: String },
    #[error("more than {limit} sent by the session ({rule})")]
    Up { limit: ByteSize, rule: String },
    #[error("more than {limit} received by the session ({rule})")]
    Down { limit: ByteSize, rule: String },
}

fn key(rule: &RuleRef) -> Key {
    (rule.layer(), rule.policy().to_owned(), rule.id().to_owned())
}

fn named((layer, policy, rule): &Key) -> String {
    format!("rule `{rule}` of the {layer} policy `{policy}`")
}

impl Meter {
    /// Counts a request that begins now.
    pub fn start(&mut self, obligations: &Obligations, now: Timestamp) -> Result<Slot, Exceeded> {
        let limits: Vec<(Key, Limits)> =
            obligations.limits().map(|(rule, limits)| (key(rule), *limits)).collect();
        if self.used.len() > RULES_MAX {
            let is_asked = |key: &Key| limits.iter().any(|(asked, _)| asked == key);
            self.used.retain(|key, used| used.concurrent > 0 || is_asked(key));
        }
        for (key, limits) in &limits {
            let used = self.used.entry(key.clone()).or_default();
            used.forget_before(now);
            used.has_room(key, limits, now)?;
        }
        for (key, _) in &limits {
            let used = self.used.entry(key.clone()).or_default();
            used.concurrent += 1;
            used.count(now);
        }
        Ok(Slot { limits, body: 0 })
    }

    /// Counts bytes of the request before they are sent.
    pub fn up(&mut self, slot: &mut Slot, bytes: u64) -> Result<(), Exceeded> {
        let body = slot.body.saturating_add(bytes);
        for (key, limits) in &slot.limits {
            if let Some(limit) = limits.body.filter(|limit| body > limit.bytes()) {
                return Err(Exceeded::Body { limit, rule: named(key) });
            }
            let up = self.used.get(key).map_or(0, |used| used.up).saturating_add(bytes);
            if let Some(limit) = limits.bytes_up.filter(|limit| up > limit.bytes()) {
                return Err(Exceeded::Up { limit, rule: named(key) });
            }
        }
        slot.body = body;
        self.charge(slot, |used| used.up = used.up.saturating_add(bytes));
        Ok(())
    }

    /// Counts bytes of the response before they are passed on.
    pub fn down(&mut self, slot: &Slot, bytes: u64) -> Result<(), Exceeded> {
        for (key, limits) in &slot.limits {
            let down = self.used.get(key).map_or(0, |used| used.down).saturating_add(bytes);
            if let Some(limit) = limits.bytes_down.filter(|limit| down > limit.bytes()) {
                return Err(Exceeded::Down { limit, rule: named(key) });
            }
        }
        self.charge(slot, |used| used.down = used.down.saturating_add(bytes));
        Ok(())
    }

    /// The request is over, however it ended.
    pub fn finish(&mut self, slot: Slot) {
        self.charge(&slot, |used| used.concurrent = used.concurrent.saturating_sub(1));
    }

    fn charge(&mut self, slot: &Slot, charge: impl Fn(&mut Used)) {
        for (key, _) in &slot.limits {
            if let Some(used) = self.used.get_mut(key) {
                charge(used);
            }
        }
    }
}

fn part(now: Timestamp) -> i64 {
    now.0.div_euclid(MINUTE.as_millis() as i64 / PARTS)
}

impl Used {
    fn has_room(&self, key: &Key, limits: &Limits, now: Timestamp) -> Result<(), Exceeded> {
        let rule = || named(key);
        let recent: u64 = self.recent.iter().map(|(_, count)| u64::from(*count)).sum();
        if let Some(limit) = limits.requests_per_minute.filter(|limit| recent >= (*limit).into()) {
            let oldest = self.recent.front().map_or(0, |(part, _)| *part);
            let seconds = (oldest + PARTS + 1 - part(now)).clamp(1, PARTS + 1);
            let retry_after = MINUTE / PARTS as u32 * seconds as u32;
            return Err(Exceeded::Requests { limit, rule: rule(), retry_after });
        }
        if let Some(limit) = limits.concurrent.filter(|limit| self.concurrent >= *limit) {
            return Err(Exceeded::Concurrent { limit, rule: rule() });
        }
        if let Some(limit) = limits.bytes_up.filter(|limit| self.up >= limit.bytes()) {
            return Err(Exceeded::Up { limit, rule: rule() });
        }
        match limits.bytes_down.filter(|limit| self.down >= limit.bytes()) {
            Some(limit) => Err(Exceeded::Down { limit, rule: rule() }),
            None => Ok(()),
        }
    }

    fn forget_before(&mut self, now: Timestamp) {
        let oldest = part(now).saturating_sub(PARTS);
        self.recent.retain(|(part, _)| *part >= oldest);
    }

    fn count(&mut self, now: Timestamp) {
        // A clock that went back counts into the newest part, so that they stay in order.
        let now = self.recent.back().map_or(part(now), |(last, _)| part(now).max(*last));
        match self.recent.back_mut() {
            Some((last, count)) if *last == now => *count = count.saturating_add(1),
            _ => self.recent.push_back((now, 1)),
        }
    }
}
