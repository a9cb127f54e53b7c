//! The work queue: items, leases and who polls.
//!
//! Pure: the time is an argument, and nothing here waits. An item belongs to the worker that
//! acknowledged it for as long as it beats in time; [`Queue::expire`] gives it back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::config::{Switches, Timings};
use crate::metadata::patch_metadata;
use crate::reply::{ApiError, Fields, Stamps, new_id, new_key, ttl_seconds};

/// What a first beat expects.
const NO_HEARTBEAT: &str = "NO_HEARTBEAT";
const TOKEN_PREFIX: &str = "sk-ant-sesstok-dev-";
/// Stopped items are remembered up to this many, the oldest forgotten first.
const MAX_STOPPED: usize = 10_000;
/// Items that are not stopped.
const MAX_LIVE: usize = 20_000;
/// A worker counts as polling for this long after its last poll.
const POLLING_WINDOW: Duration = Duration::from_secs(30);
/// Worker ids remembered for the statistics of all environments.
const MAX_WORKERS: usize = 10_000;
/// A worker that was asked to stop may take this long to confirm it; official workers finish the
/// running call first, without a beat. Then the item counts as stopped.
const STOPPING_GRACE: Duration = Duration::from_secs(120);
/// What a worker may wish for with `desired_ttl_seconds`.
const DESIRED_TTL: std::ops::RangeInclusive<u64> = 1..=3600;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    items: BTreeMap<String, Item>,
    /// The newest item of each session.
    by_session: BTreeMap<String, String>,
    /// The owners of tokens; one whose item is forgotten is in nobody's way.
    by_token: BTreeMap<String, String>,
    /// Grows when something becomes claimable, so that a waiting poll need not look each time
    /// something else happens.
    arrivals: u64,
    workers: BTreeMap<(String, String), Instant>,
}

#[derive(Debug)]
pub(crate) struct Item {
    pub id: String,
    pub environment: String,
    /// `session`, or something a worker does not know.
    pub data_type: String,
    pub session: String,
    pub phase: Phase,
    /// The token that goes out in `secret`; `None` when the switch was off at creation.
    pub token: Option<String>,
    order: u64,
    ttl: Duration,
    metadata: Fields,
    times: Times,
    lease_updated_at: Option<String>,
}

#[derive(Debug, Default)]
struct Times {
    created: String,
    acknowledged: Option<String>,
    started: Option<String>,
    heartbeat: Option<String>,
    stop_requested: Option<String>,
    stopped: Option<String>,
}

/// Where an item is. Only `Queued` is offered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    Queued { polled: Option<Instant> },
    Starting { since: Instant },
    Active { last_heartbeat: String, expires: Instant },
    Stopping { last_heartbeat: String, expires: Instant },
    Stopped,
}

impl Phase {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Phase::Queued { .. } => "queued",
            Phase::Starting { .. } => "starting",
            Phase::Active { .. } => "active",
            Phase::Stopping { .. } => "stopping",
            Phase::Stopped => "stopped",
        }
    }

    fn last_heartbeat(&self) -> Option<&str> {
        match self {
            Phase::Active { last_heartbeat, .. } | Phase::Stopping { last_heartbeat, .. } => {
                Some(last_heartbeat.as_str()).filter(|text| !text.is_empty())
            }
            _ => None,
        }
    }
}

/// What an operation needs beyond the queue.
pub(crate) struct Now<'a> {
    pub at: Instant,
    pub stamps: &'a mut Stamps,
    pub timings: &'a Timings,
    pub switches: &'a Switches,
}

/// A worker's question for work.
pub(crate) struct Poll<'a> {
    pub environment: &'a str,
    pub worker: Option<&'a str>,
    pub reclaim: Option<Duration>,
}

/// One beat as it came in.
pub(crate) struct Beat<'a> {
    pub expected: Option<&'a str>,
    pub desired_ttl: Option<u64>,
}

/// What an item is for.
pub(crate) struct NewItem<'a> {
    pub environment: &'a str,
    pub data_type: &'a str,
    pub data_id: &'a str,
}

impl Queue {
    pub(crate) fn add(&mut self, new: NewItem<'_>, now: &mut Now<'_>) -> Result<&Item, ApiError> {
        let live = self.items.values().filter(|item| item.phase != Phase::Stopped).count();
        if live >= MAX_LIVE {
            return Err(ApiError::full(format!("more than {MAX_LIVE} work items")));
        }
        self.forget_stopped();
        let item = Item {
            id: new_id("work"),
            environment: new.environment.to_owned(),
            data_type: new.data_type.to_owned(),
            session: new.data_id.to_owned(),
            phase: Phase::Queued { polled: None },
            token: now.switches.secret.then(|| new_key(TOKEN_PREFIX)),
            order: now.stamps.sequence(),
            ttl: now.timings.lease_ttl,
            metadata: Map::new(),
            times: Times { created: now.stamps.now(), ..Times::default() },
            lease_updated_at: None,
        };
        self.by_session.insert(item.session.clone(), item.id.clone());
        if let Some(token) = &item.token {
            self.by_token.insert(token.clone(), item.id.clone());
        }
        self.arrivals += 1;
        Ok(self.items.entry(item.id.clone()).or_insert(item))
    }

    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    fn forget_stopped(&mut self) {
        if self.items.len() < MAX_LIVE + MAX_STOPPED {
            return;
        }
        let stopped = self.items.values().filter(|item| item.phase == Phase::Stopped);
        let oldest = stopped.min_by_key(|item| item.order).map(|item| item.id.clone());
        let Some(item) = oldest.and_then(|id| self.items.remove(&id)) else { return };
        if self.by_session.get(&item.session) == Some(&item.id) {
            self.by_session.remove(&item.session);
        }
        item.token.and_then(|token| self.by_token.remove(&token));
    }

    /// The item of this session that is not stopped.
    pub(crate) fn live_item(&self, session: &str) -> Option<&Item> {
        let newest = self.by_session.get(session).and_then(|id| self.items.get(id));
        newest.filter(|item| item.phase != Phase::Stopped)
    }

    /// Every item of a session, stopped or not.
    pub(crate) fn items_of<'q>(&'q self, session: &'q str) -> impl Iterator<Item = &'q Item> {
        self.items.values().filter(move |item| item.session == session)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// The owner of a sessions token that is still good.
    pub(crate) fn by_token(&self, token: &str, switches: &Switches) -> Option<&Item> {
        let item = self.by_token.get(token).and_then(|id| self.items.get(id))?;
        let ended = item.phase == Phase::Stopped && switches.tokens_end_with_item;
        (!ended).then_some(item)
    }

    pub(crate) fn get(&self, environment: &str, id: &str) -> Result<&Item, ApiError> {
        let item = self.items.get(id).filter(|item| item.environment == environment);
        item.ok_or_else(|| ApiError::not_found("work item", id))
    }

    fn get_mut(&mut self, environment: &str, id: &str) -> Result<&mut Item, ApiError> {
        let item = self.items.get_mut(id).filter(|item| item.environment == environment);
        item.ok_or_else(|| ApiError::not_found("work item", id))
    }

    /// Offers the oldest claimable item, with its secret.
    pub(crate) fn poll(&mut self, poll: &Poll<'_>, now: &mut Now<'_>) -> Option<Value> {
        self.saw_worker(poll, now.at);
        let reclaim = poll.reclaim.unwrap_or(now.timings.reclaim);
        let claimable = |item: &&mut Item| {
            item.environment == poll.environment && item.is_claimable(now.at, reclaim)
        };
        let item = self.items.values_mut().filter(claimable).min_by_key(|item| item.order)?;
        item.phase = Phase::Queued { polled: Some(now.at) };
        let mut body = item.body();
        if let Some(token) = &item.token {
            let secret = json!({ "sessions_token": token }).to_string();
            body["secret"] = Value::from(URL_SAFE_NO_PAD.encode(secret));
        }
        Some(body)
    }

    fn saw_worker(&mut self, poll: &Poll<'_>, at: Instant) {
        let Some(worker) = poll.worker else { return };
        self.workers.retain(|_, seen| at.saturating_duration_since(*seen) < POLLING_WINDOW);
        if self.workers.len() < MAX_WORKERS {
            self.workers.insert((poll.environment.to_owned(), worker.to_owned()), at);
        }
    }

    pub(crate) fn ack(
        &mut self,
        environment: &str,
        id: &str,
        now: &mut Now<'_>,
    ) -> Result<Value, ApiError> {
        let item = self.get_mut(environment, id)?;
        match &item.phase {
            Phase::Queued { .. } => {
                item.phase = Phase::Starting { since: now.at };
                item.times.acknowledged = Some(now.stamps.now());
            }
            // The replay of a request whose answer was lost. Of two workers that got this far,
            // the first beat decides.
            Phase::Starting { .. } => {}
            other => {
                return Err(ApiError::conflict(format!("work item {id} is {}", other.name())));
            }
        }
        Ok(item.body())
    }

    pub(crate) fn heartbeat(
        &mut self,
        (environment, id): (&str, &str),
        beat: &Beat<'_>,
        now: &mut Now<'_>,
    ) -> Result<Value, ApiError> {
        let item = self.get_mut(environment, id)?;
        if matches!(item.phase, Phase::Stopping { .. } | Phase::Stopped) {
            return Ok(item.beat_body(false));
        }
        let expected_matches = match &item.phase {
            Phase::Starting { .. } => beat.expected.is_none_or(|text| text == NO_HEARTBEAT),
            Phase::Active { last_heartbeat, .. } => {
                beat.expected.is_none_or(|text| text == last_heartbeat)
            }
            _ => false,
        };
        if !expected_matches {
            return Err(item.precondition_failed(beat.expected));
        }
        if let Some(seconds) = beat.desired_ttl {
            if !DESIRED_TTL.contains(&seconds) {
                return Err(ApiError::invalid("desired_ttl_seconds: from 1 to 3600"));
            }
            item.ttl = Duration::from_secs(seconds);
        }
        let time = now.stamps.now();
        item.times.started.get_or_insert_with(|| time.clone());
        item.times.heartbeat = Some(time.clone());
        item.lease_updated_at = Some(time.clone());
        item.phase = Phase::Active { last_heartbeat: time, expires: now.at + item.ttl };
        Ok(item.beat_body(true))
    }

    pub(crate) fn stop(
        &mut self,
        (environment, id): (&str, &str),
        force: bool,
        now: &mut Now<'_>,
    ) -> Result<Value, ApiError> {
        let item = self.get_mut(environment, id)?;
        let time = now.stamps.now();
        match (&item.phase, force) {
            (Phase::Stopped, _) => {
                return Err(ApiError::conflict(format!("work item {id} is already stopped")));
            }
            (Phase::Stopping { .. }, false) => {}
            (Phase::Active { .. } | Phase::Starting { .. }, false) => {
                let last_heartbeat = item.phase.last_heartbeat().unwrap_or_default().to_owned();
                item.phase = Phase::Stopping { last_heartbeat, expires: now.at + STOPPING_GRACE };
            }
            // Nobody holds it: there is nobody to wait for.
            (Phase::Queued { .. }, false) | (_, true) => item.end(&time),
        }
        item.times.stop_requested.get_or_insert(time);
        Ok(item.body())
    }

    /// Gives back what nobody beats for. Answers whether something became claimable.
    pub(crate) fn expire(&mut self, now: &mut Now<'_>) -> bool {
        let mut lost = Vec::new();
        for item in self.items.values_mut() {
            match &item.phase {
                Phase::Active { expires, .. } if *expires <= now.at => lost.push(item.id.clone()),
                Phase::Starting { since }
                    if now.switches.requeue_unbeaten && *since + item.ttl <= now.at =>
                {
                    lost.push(item.id.clone());
                }
                Phase::Stopping { expires, .. } if *expires <= now.at => {
                    item.end(&now.stamps.now());
                }
                _ => {}
            }
        }
        for id in &lost {
            self.requeue(id, now);
        }
        !lost.is_empty()
    }

    /// Ends the lease on a session's item before its time.
    pub(crate) fn expire_now(&mut self, session: &str, now: &mut Now<'_>) {
        let held = self
            .live_item(session)
            .filter(|item| matches!(item.phase, Phase::Active { .. } | Phase::Starting { .. }));
        if let Some(id) = held.map(|item| item.id.clone()) {
            self.requeue(&id, now);
        }
    }

    fn requeue(&mut self, id: &str, now: &mut Now<'_>) {
        let Some(item) = self.items.get_mut(id) else { return };
        item.phase = Phase::Queued { polled: None };
        item.order = now.stamps.sequence();
        item.times.heartbeat = None;
        item.times.acknowledged = None;
        item.lease_updated_at = Some(now.stamps.now());
        if now.switches.tokens_end_with_item
            && let Some(old) = item.token.take()
        {
            let new = new_key(TOKEN_PREFIX);
            self.by_token.remove(&old);
            self.by_token.insert(new.clone(), id.to_owned());
            item.token = Some(new);
        }
        self.arrivals += 1;
    }

    /// When [`Queue::expire`] has something to do next.
    pub(crate) fn next_expiry(&self, switches: &Switches) -> Option<Instant> {
        let expiry = |item: &Item| match &item.phase {
            Phase::Active { expires, .. } | Phase::Stopping { expires, .. } => Some(*expires),
            Phase::Starting { since } if switches.requeue_unbeaten => Some(*since + item.ttl),
            _ => None,
        };
        self.items.values().filter_map(expiry).min()
    }

    pub(crate) fn update(
        &mut self,
        environment: &str,
        id: &str,
        body: &Value,
    ) -> Result<Value, ApiError> {
        let patch = body["metadata"]
            .as_object()
            .ok_or_else(|| ApiError::invalid("metadata: expected an object"))?;
        let item = self.get_mut(environment, id)?;
        patch_metadata(&mut item.metadata, patch)?;
        Ok(item.body())
    }

    /// The items of an environment, the oldest first.
    pub(crate) fn list(&self, environment: &str) -> Vec<Value> {
        let mut items: Vec<&Item> =
            self.items.values().filter(|item| item.environment == environment).collect();
        items.sort_by_key(|item| item.order);
        items.into_iter().map(Item::body).collect()
    }

    pub(crate) fn stats(&self, environment: &str, now: &Now<'_>) -> Value {
        let queued: Vec<(&Item, Option<Instant>)> = self
            .items
            .values()
            .filter(|item| item.environment == environment)
            .filter_map(|item| match item.phase {
                Phase::Queued { polled } => Some((item, polled)),
                _ => None,
            })
            .collect();
        let claimable = |(item, _): &&(&Item, _)| item.is_claimable(now.at, now.timings.reclaim);
        let depth = queued.iter().filter(claimable).count();
        let oldest = queued.iter().map(|(item, _)| item.times.created.as_str()).min();
        let recent = |((of, _), seen): &(&(String, String), &Instant)| {
            of == environment && now.at.saturating_duration_since(**seen) < POLLING_WINDOW
        };
        json!({
            "type": "work_queue_stats",
            "depth": depth,
            "pending": queued.len() - depth,
            "oldest_queued_at": oldest,
            "workers_polling": self.workers.iter().filter(recent).count(),
        })
    }

    /// Ends every item of an environment or a session that is gone.
    pub(crate) fn end_where(&mut self, gone: impl Fn(&Item) -> bool, stamps: &mut Stamps) {
        for item in self.items.values_mut() {
            if item.phase != Phase::Stopped && gone(item) {
                item.end(&stamps.now());
            }
        }
    }
}

impl Item {
    fn is_claimable(&self, at: Instant, reclaim: Duration) -> bool {
        match self.phase {
            Phase::Queued { polled: None } => true,
            Phase::Queued { polled: Some(polled) } => {
                at.saturating_duration_since(polled) > reclaim
            }
            _ => false,
        }
    }

    fn end(&mut self, time: &str) {
        self.phase = Phase::Stopped;
        self.times.stopped = Some(time.to_owned());
    }

    pub(crate) fn body(&self) -> Value {
        json!({
            "type": "work",
            "id": self.id,
            "environment_id": self.environment,
            "state": self.phase.name(),
            "data": { "type": self.data_type, "id": self.session },
            "metadata": self.metadata,
            "secret": null,
            "created_at": self.times.created,
            "acknowledged_at": self.times.acknowledged,
            "started_at": self.times.started,
            "latest_heartbeat_at": self.times.heartbeat,
            "stop_requested_at": self.times.stop_requested,
            "stopped_at": self.times.stopped,
        })
    }

    fn beat_body(&self, extended: bool) -> Value {
        // A stopped item keeps its last beat in its times.
        let last = self.phase.last_heartbeat().or(self.times.heartbeat.as_deref());
        json!({
            "type": "work_heartbeat",
            "last_heartbeat": last.unwrap_or_default(),
            "lease_extended": extended,
            "state": self.phase.name(),
            "ttl_seconds": ttl_seconds(self.ttl),
        })
    }

    fn precondition_failed(&self, expected: Option<&str>) -> ApiError {
        let actual = self.phase.last_heartbeat();
        let message = format!(
            "Heartbeat precondition failed: expected {}, actual was {}",
            expected.unwrap_or("nothing"),
            actual.unwrap_or("null"),
        );
        ApiError::precondition(
            message,
            json!({
                "error_code": "heartbeat_precondition_failed",
                "error_visibility": "user_facing",
                "current_state": {
                    "state": self.phase.name(),
                    "last_heartbeat": actual,
                    "lease_updated_at": self.lease_updated_at,
                    "lease_extended": false,
                    "ttl_seconds": ttl_seconds(self.ttl),
                },
            }),
        )
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
