//! Everything the brain knows, in memory, behind one lock.
//!
//! The lock is held for one operation and never across a wait. Who waits (a poll, the timers, a
//! test) watches the change counter instead.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base_tasks::CancellationToken;
use base_types::Secret;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use crate::config::{BrainConfig, Switches, Timings};
use crate::fault::Faults;
use crate::queue::{Now, Queue};
use crate::record::Recorder;
use crate::reply::{ApiError, Stamps, new_id, new_key};
use crate::route::Caller;
use crate::scenario::{ScenarioError, Scenarios};
use crate::send::Counters;
use crate::session::{Phase, Play, Session};

/// Event streams open at once.
const MAX_STREAMS: usize = 16_384;

pub(crate) const MAX_AGENTS: usize = 10_000;
pub(crate) const MAX_AGENT_VERSIONS: usize = 1000;
pub(crate) const MAX_ENVIRONMENTS: usize = 1000;
pub(crate) const MAX_SESSIONS: usize = 20_000;

pub(crate) struct Shared {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    pub recorder: Recorder,
    pub faults: Faults,
    pub streams: Arc<Semaphore>,
    pub stop: CancellationToken,
}

pub(crate) struct State {
    pub stamps: Stamps,
    pub timings: Timings,
    pub switches: Switches,
    pub scenarios: Scenarios,
    pub api_key: Secret,
    pub agents: BTreeMap<String, Agent>,
    pub environments: BTreeMap<String, Environment>,
    pub sessions: BTreeMap<String, Session>,
    pub queue: Queue,
    pub counters: Counters,
}

/// All versions of an agent, the current one last. Never empty.
#[derive(Debug)]
pub(crate) struct Agent {
    pub order: u64,
    pub versions: Vec<Value>,
}

#[derive(Debug)]
pub(crate) struct Environment {
    pub order: u64,
    pub key: Secret,
    pub body: Value,
}

impl Shared {
    /// Reads the scenario files: blocking work, once, at start.
    pub(crate) fn new(config: BrainConfig) -> Result<(Self, String), ScenarioError> {
        let directory = config.scenario_dir.as_deref().map(Path::new);
        let scenarios = Scenarios::load(directory, &config.scenarios)?;
        let BrainConfig { timings, switches, faults, credentials, .. } = config;
        let mut state = State {
            stamps: Stamps::default(),
            timings,
            switches,
            scenarios,
            api_key: credentials
                .api_key
                .unwrap_or_else(|| Secret::new(new_key("sk-ant-api03-dev-"))),
            agents: BTreeMap::new(),
            environments: BTreeMap::new(),
            sessions: BTreeMap::new(),
            queue: Queue::default(),
            counters: Counters::default(),
        };
        let id = credentials
            .environment_id
            .map_or_else(|| new_id("env"), base_types::EnvironmentId::into_string);
        state.put_environment(&id, "development", credentials.environment_key);
        let shared = Self {
            state: Mutex::new(state),
            changes: watch::channel(0).0,
            recorder: Recorder::default(),
            faults: Faults::new(faults),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            stop: CancellationToken::new(),
        };
        Ok((shared, id))
    }

    /// Looks without changing.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes, and wakes who waits for a change.
    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let done = act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.touched();
        done
    }

    /// Like [`Shared::change`] for what changes nothing anybody waits for.
    pub(crate) fn change_silently<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn touched(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl State {
    /// The queue together with the time.
    pub(crate) fn queue(&mut self) -> (&mut Queue, Now<'_>) {
        let Self { queue, stamps, timings, switches, .. } = self;
        (queue, Now { at: Instant::now(), stamps, timings, switches })
    }

    pub(crate) fn play(&mut self, session: &str) -> Result<(Play<'_>, &mut Counters), ApiError> {
        let Self { sessions, queue, stamps, timings, switches, counters, .. } = self;
        let session =
            sessions.get_mut(session).ok_or_else(|| ApiError::not_found("session", session))?;
        let now = Now { at: Instant::now(), stamps, timings, switches };
        Ok((Play { session, queue, now }, counters))
    }

    pub(crate) fn session(&self, id: &str) -> Result<&Session, ApiError> {
        self.sessions.get(id).ok_or_else(|| ApiError::not_found("session", id))
    }

    pub(crate) fn environment(&self, id: &str) -> Result<&Environment, ApiError> {
        self.environments.get(id).ok_or_else(|| {
            ApiError::not_found("environment", id).with_code("environment_not_found")
        })
    }

    pub(crate) fn agent(&self, id: &str) -> Result<&Agent, ApiError> {
        self.agents.get(id).ok_or_else(|| ApiError::not_found("agent", id))
    }

    pub(crate) fn put_environment(&mut self, id: &str, name: &str, key: Option<Secret>) {
        let time = self.stamps.now();
        let body = serde_json::json!({
            "type": "environment",
            "id": id,
            "name": name,
            "description": null,
            "config": { "type": "self_hosted" },
            "metadata": {},
            "scope": "organization",
            "created_at": time,
            "updated_at": time,
            "archived_at": null,
        });
        let key = key.unwrap_or_else(new_environment_key);
        let order = self.stamps.sequence();
        self.environments.insert(id.to_owned(), Environment { order, key, body });
    }

    /// Whose credential this is.
    pub(crate) fn identify(&self, credential: &str) -> Option<Caller> {
        if self.api_key.expose() == credential {
            return Some(Caller::ApiKey);
        }
        let owner = self.environments.iter().find(|(_, of)| of.key.expose() == credential);
        if let Some((id, _)) = owner {
            return Some(Caller::EnvironmentKey { environment: id.clone() });
        }
        let item = self.queue.by_token(credential, &self.switches)?;
        Some(Caller::SessionsToken { work: item.id.clone(), session: item.session.clone() })
    }

    /// Does what time has made due, and answers when to look again.
    pub(crate) fn advance(&mut self) -> (bool, Option<Instant>) {
        let (queue, mut now) = self.queue();
        let at = now.at;
        let mut changed = queue.expire(&mut now);
        let is_due = |session: &&Session| matches!(session.player.phase, Phase::AwaitTime(time) if time <= at);
        let due: Vec<String> =
            self.sessions.values().filter(is_due).map(|session| session.id.clone()).collect();
        for id in due {
            changed = true;
            if let Ok((mut play, _)) = self.play(&id) {
                play.drive();
            }
        }
        let waits = self.sessions.values().filter_map(|session| match session.player.phase {
            Phase::AwaitTime(time) => Some(time),
            _ => None,
        });
        let next = waits.chain(self.queue.next_expiry(&self.switches)).min();
        (changed, next)
    }
}

impl Agent {
    pub(crate) fn current(&self) -> &Value {
        // `versions` is never empty: an agent is made with its first one.
        self.versions.last().unwrap_or(&Value::Null)
    }
}

pub(crate) fn new_environment_key() -> Secret {
    Secret::new(new_key("sk-ant-oat01-dev-"))
}
