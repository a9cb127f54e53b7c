//! The development brain, as an application and a test see it.

use std::time::{Duration, Instant};

use base_types::SessionId;
use serde::Deserialize;
use serde_json::{Value, json};

const REQUEST_WAIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// More events than any test makes.
const EVENTS_MAX: u32 = 1_000;

/// What `sinew brain --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Brain {
    pub url: String,
    pub environment_id: String,
    pub environment_key: String,
    pub api_key: String,
    #[serde(skip)]
    http: reqwest::Client,
}

/// How a session's script fares.
#[derive(Clone, Debug, Deserialize)]
pub struct Played {
    pub passed: bool,
    pub verdict: Verdict,
    pub results: Vec<PostedResult>,
    pub session: Value,
    /// The session's work items.
    pub items: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    /// How often the script was played to its end.
    pub completed: u32,
    pub failures: Vec<String>,
    pub open_calls: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PostedResult {
    pub tool_use_id: String,
    pub tool: String,
    pub is_error: bool,
    pub text: String,
    pub repeats: u32,
    pub conflicts: u32,
}

impl Brain {
    /// Makes an agent that plays `script` and a session of it, with its first message.
    pub async fn start_session(&self, script: &str, message: &str) -> SessionId {
        let tools = json!([{ "type": "agent_toolset_20260401" }]);
        let agent = json!({ "name": script, "model": format!("script/{script}"), "tools": tools });
        let agent = self.post("/v1/agents", &agent).await;
        let session = json!({ "agent": agent["id"], "environment_id": self.environment_id });
        let session = self.post("/v1/sessions", &session).await;
        let id = SessionId::from(session["id"].as_str().expect("a session's id"));
        self.say(&id, message).await;
        id
    }

    /// Sends a message into a session.
    pub async fn say(&self, session: &SessionId, text: &str) {
        let content = json!([{ "type": "text", "text": text }]);
        self.send(session, json!({ "type": "user.message", "content": content })).await;
    }

    pub async fn send(&self, session: &SessionId, event: Value) {
        self.post(&format!("/v1/sessions/{session}/events"), &json!({ "events": [event] })).await;
    }

    pub async fn events(&self, session: &SessionId) -> Vec<Value> {
        let mut events = Vec::new();
        let mut page = String::new();
        loop {
            let path = format!("/v1/sessions/{session}/events?limit=100{page}");
            let answer = self.get(&path).await;
            events.extend(answer["data"].as_array().cloned().unwrap_or_default());
            assert!(events.len() <= EVENTS_MAX as usize, "a session with too many events");
            match answer["next_page"].as_str().filter(|next| !next.is_empty()) {
                Some(next) => page = format!("&page={next}"),
                None => return events,
            }
        }
    }

    pub async fn played(&self, session: &SessionId) -> Played {
        let answer = self.get(&format!("/dev/sessions/{session}")).await;
        serde_json::from_value(answer).expect("what the brain knows of a session")
    }

    /// Waits for a condition on how a session fares; an expectation of the script that fails ends
    /// the wait.
    ///
    /// # Panics
    /// When it does not come true in time, or the script fails.
    pub async fn wait_until(
        &self,
        session: &SessionId,
        limit: Duration,
        what: &str,
        condition: impl Fn(&Played) -> bool,
    ) -> Played {
        let until = Instant::now() + limit;
        loop {
            let played = self.played(session).await;
            assert!(played.verdict.failures.is_empty(), "{what}: {:#?}", played.verdict.failures);
            if condition(&played) {
                return played;
            }
            assert!(Instant::now() < until, "{what}: not after {limit:?}: {played:#?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the script was played to its end `times` times.
    pub async fn wait_played(&self, session: &SessionId, times: u32, limit: Duration) -> Played {
        let what = format!("the script of {session} is played {times} times");
        self.wait_until(session, limit, &what, |played| played.verdict.completed >= times).await
    }

    /// Every request since the `since`th, as the brain recorded them.
    pub async fn requests(&self, since: u64) -> Vec<Value> {
        let answer = self.get(&format!("/dev/requests?since={since}")).await;
        answer["data"].as_array().cloned().unwrap_or_default()
    }

    /// Puts fault rules on the line.
    pub async fn inject(&self, rules: Value) {
        self.post("/dev/faults", &json!({ "rules": rules })).await;
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask(self.http.get(format!("{}{path}", self.url)), path).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(self.http.post(format!("{}{path}", self.url)).json(body), path).await
    }

    async fn ask(&self, request: reqwest::RequestBuilder, path: &str) -> Value {
        let request = request.bearer_auth(&self.api_key).timeout(REQUEST_WAIT);
        let answer = request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }
}
