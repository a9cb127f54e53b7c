//! What a program that started the brain can see and do, beside what HTTP allows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base_tasks::{Drained, Tasks};
use base_types::{EnvironmentId, Secret, SessionId, WorkId};
use http::StatusCode;
use serde_json::{Value, json};

use crate::api::{Request, agents, environments, sessions};
use crate::config::Switches;
use crate::fault::{FaultRule, TooManyFaults};
use crate::queue::NewItem;
use crate::record::Recorded;
use crate::reply::ApiError;
use crate::route::{Caller, Route, Target};
use crate::scenario::MODEL_PREFIX;
use crate::send::Counters;
use crate::server;
use crate::session::{ResultRecord, Verdict};
use crate::state::{Shared, State};

/// Ends the brain when it is dropped; [`BrainHandle::shutdown`] also waits for the end.
pub struct BrainHandle {
    shared: Arc<Shared>,
    tasks: Tasks,
    address: SocketAddr,
    environment_id: EnvironmentId,
}

/// A refusal of the brain, as a caller in the same process gets it.
#[derive(Debug, thiserror::Error)]
#[error("the development brain refuses: {message}")]
pub struct Refused {
    pub status: StatusCode,
    pub message: String,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Refused { status: error.status, message: error.message }
    }
}

/// A condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("still not so after {0:?}")]
pub struct NotInTime(pub Duration);

/// A session to play a script, with everything it needs.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The script's name, without the prefix.
    pub script: String,
    pub environment: EnvironmentId,
    pub title: Option<String>,
    pub metadata: Vec<(String, String)>,
    /// The message that starts the script; without one the session waits for its first.
    pub message: Option<String>,
}

/// One work item as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkView {
    pub id: WorkId,
    pub environment: EnvironmentId,
    pub session: String,
    /// `queued`, `starting`, `active`, `stopping` or `stopped`.
    pub state: &'static str,
}

impl BrainHandle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        tasks: Tasks,
        address: SocketAddr,
        environment_id: EnvironmentId,
    ) -> Self {
        Self { shared, tasks, address, environment_id }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment made at start.
    pub fn environment_id(&self) -> &EnvironmentId {
        &self.environment_id
    }

    /// The key of the environment made at start.
    pub fn environment_key(&self) -> Secret {
        let found = self.key_of(&self.environment_id);
        // The environment is made before the handle; it is missing only after a delete.
        found.unwrap_or_else(|| Secret::new(""))
    }

    pub fn key_of(&self, environment: &EnvironmentId) -> Option<Secret> {
        self.shared.read(|state| {
            state.environments.get(environment.as_str()).map(|found| found.key.clone())
        })
    }

    pub fn api_key(&self) -> Secret {
        server::api_key(&self.shared)
    }

    pub async fn shutdown(self) -> Drained {
        server::drain(&self.shared, &self.tasks).await
    }

    /// Every request that is still remembered, the oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.recorder.since(0)
    }

    /// The POST requests among them.
    pub fn posts(&self) -> Vec<Recorded> {
        self.requests().into_iter().filter(|request| request.method == "POST").collect()
    }

    /// The requests of one route.
    pub fn requests_of(&self, route: Route) -> Vec<Recorded> {
        self.requests().into_iter().filter(|request| request.route == Some(route)).collect()
    }

    /// The results a session got, in the order they came; nothing for an unknown session.
    pub fn results(&self, session: &SessionId) -> Vec<ResultRecord> {
        self.look(session, |session| session.results.clone())
    }

    /// A session's whole history.
    pub fn history(&self, session: &SessionId) -> Vec<Arc<Value>> {
        self.look(session, |session| session.history.all())
    }

    pub fn verdict(&self, session: &SessionId) -> Verdict {
        self.look(session, |session| session.verdict())
    }

    /// `idle`, `running` or `terminated`; empty for an unknown session.
    pub fn status(&self, session: &SessionId) -> &'static str {
        self.look(session, |session| session.status.name())
    }

    fn look<T: Default>(
        &self,
        session: &SessionId,
        look: impl FnOnce(&crate::session::Session) -> T,
    ) -> T {
        self.shared.read(|state| state.sessions.get(session.as_str()).map(look).unwrap_or_default())
    }

    pub fn sessions(&self) -> Vec<SessionId> {
        let ids =
            |state: &State| state.sessions.keys().map(|id| SessionId::from(id.as_str())).collect();
        self.shared.read(ids)
    }

    pub fn work_items(&self) -> Vec<WorkView> {
        self.shared.read(|state| {
            let view = |item: &crate::queue::Item| WorkView {
                id: WorkId::from(item.id.as_str()),
                environment: EnvironmentId::from(item.environment.as_str()),
                session: item.session.clone(),
                state: item.phase.name(),
            };
            state.queue.all().map(view).collect()
        })
    }

    /// The items of one session, whatever their state.
    pub fn items_of(&self, session: &SessionId) -> Vec<WorkView> {
        let items = self.work_items();
        items.into_iter().filter(|item| item.session == session.as_str()).collect()
    }

    pub fn counters(&self) -> Counters {
        self.shared.read(|state| state.counters)
    }

    /// The rule applies from the next request on.
    pub fn inject(&self, rule: FaultRule) -> Result<(), TooManyFaults> {
        self.shared.faults.add(rule)
    }

    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    pub fn set_switches(&self, set: impl FnOnce(&mut Switches)) {
        self.shared.change(|state| set(&mut state.switches));
    }

    pub fn create_environment(&self, name: &str) -> Result<(EnvironmentId, Secret), Refused> {
        let body = self.call(environments::create, &json!({ "name": name }))?;
        let id = EnvironmentId::from(text(&body, "id"));
        Ok((id, Secret::new(text(&body, "environment_key"))))
    }

    /// Gives an environment a new key; the old one is refused from now on.
    pub fn rotate_key(&self, environment: &EnvironmentId) -> Result<Secret, Refused> {
        let target = Target { environment: environment.as_str().to_owned(), ..Target::default() };
        let body = self.call_on(environments::rotate_key, target, &json!({}))?;
        Ok(Secret::new(text(&body, "environment_key")))
    }

    /// Makes an agent for the script and a session of it, and starts the script.
    pub fn start_session(&self, new: NewSession) -> Result<SessionId, Refused> {
        let model = format!("{MODEL_PREFIX}{}", new.script);
        let tools = json!([{ "type": "agent_toolset_20260401" }]);
        let agent = json!({ "name": new.script, "model": model, "tools": tools });
        let agent = self.call(agents::create, &agent)?;
        let metadata: serde_json::Map<String, Value> =
            new.metadata.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
        let message = |text: String| json!([{ "type": "user.message", "content": [{ "type": "text", "text": text }] }]);
        let body = json!({
            "agent": agent["id"],
            "environment_id": new.environment.as_str(),
            "title": new.title,
            "metadata": metadata,
            "initial_events": new.message.map_or(json!([]), message),
        });
        let session = self.call(sessions::create, &body)?;
        Ok(SessionId::from(text(&session, "id")))
    }

    /// Sends events into a session, as a client with the API key would.
    pub fn send(&self, session: &SessionId, events: Value) -> Result<Value, Refused> {
        let target = Target { session: session.as_str().to_owned(), ..Target::default() };
        self.call_on(sessions::event_send, target, &json!({ "events": events }))
    }

    /// Sends one message.
    pub fn say(&self, session: &SessionId, text: &str) -> Result<Value, Refused> {
        let content = json!([{ "type": "text", "text": text }]);
        self.send(session, json!([{ "type": "user.message", "content": content }]))
    }

    pub fn interrupt(&self, session: &SessionId) -> Result<Value, Refused> {
        self.send(session, json!([{ "type": "user.interrupt" }]))
    }

    /// Appends any event to a session's history and streams it.
    pub fn emit(&self, session: &SessionId, event: Value) -> Result<(), Refused> {
        self.shared.change(|state| {
            let (mut play, _) = state.play(session.as_str())?;
            play.emit_raw(event);
            Ok(())
        })
    }

    /// Streams an event that never becomes part of the history.
    pub fn emit_only_on_stream(&self, session: &SessionId, event: Value) -> Result<(), Refused> {
        self.shared.change(|state| {
            let (play, _) = state.play(session.as_str())?;
            play.session.history.only_stream(event);
            Ok(())
        })
    }

    /// Ends the streams of a session that are open now, cleanly.
    pub fn end_streams(&self, session: &SessionId) {
        self.shared.change(|state| {
            if let Some(session) = state.sessions.get_mut(session.as_str()) {
                session.history.end_streams();
            }
        });
    }

    /// Ends a session for good.
    pub fn terminate(&self, session: &SessionId) -> Result<(), Refused> {
        self.shared.change(|state| {
            let (mut play, _) = state.play(session.as_str())?;
            play.terminate();
            Ok(())
        })
    }

    /// Queues an item that is not for a session, such as `healthcheck`.
    pub fn queue_item(
        &self,
        environment: &EnvironmentId,
        data_type: &str,
        data_id: &str,
    ) -> Result<WorkId, Refused> {
        self.shared.change(|state| {
            let new = NewItem { environment: environment.as_str(), data_type, data_id };
            let (queue, mut now) = state.queue();
            Ok(WorkId::from(queue.add(new, &mut now)?.id.as_str()))
        })
    }

    /// Asks for an item's end, as an operator does; with `force` it ends at once.
    pub fn stop_item(&self, item: &WorkView, force: bool) -> Result<(), Refused> {
        self.shared.change(|state| {
            let (queue, mut now) = state.queue();
            queue.stop((item.environment.as_str(), item.id.as_str()), force, &mut now)?;
            Ok(())
        })
    }

    /// Takes a lease away at once: the item is queued again, its worker gets 412.
    pub fn expire_lease(&self, session: &SessionId) {
        self.shared.change(|state| {
            let (queue, mut now) = state.queue();
            queue.expire_now(session.as_str(), &mut now);
        });
    }

    /// Waits for a condition on what this handle shows; it is looked at after every change.
    pub async fn wait_until(
        &self,
        limit: Duration,
        condition: impl Fn(&BrainHandle) -> bool,
    ) -> Result<(), NotInTime> {
        let mut changes = self.shared.changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                if condition(self) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(limit, wait).await;
        waited.map_err(|_| NotInTime(limit))
    }

    fn call(
        &self,
        route: fn(&mut State, &Request) -> Result<Value, ApiError>,
        body: &Value,
    ) -> Result<Value, Refused> {
        self.call_on(route, Target::default(), body)
    }

    fn call_on(
        &self,
        route: fn(&mut State, &Request) -> Result<Value, ApiError>,
        target: Target,
        body: &Value,
    ) -> Result<Value, Refused> {
        let request = Request {
            route: Route::Banner,
            target,
            query: Vec::new(),
            body: body.to_string().into(),
            caller: Caller::ApiKey,
            worker: None,
        };
        Ok(self.shared.change(|state| route(state, &request))?)
    }
}

impl Drop for BrainHandle {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn text(body: &Value, key: &str) -> String {
    body[key].as_str().unwrap_or_default().to_owned()
}
