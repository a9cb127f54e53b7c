//! A client of the development brain: what an application does with the agent service, for
//! `demo` and `bench`.

use std::time::Duration;

use anyhow::{Context, bail};
use base_types::SessionId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cmd::brain::BrainReady;

const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Events asked for at a time.
const PAGE: u32 = 100;

#[derive(Clone)]
pub struct BrainClient {
    http: reqwest::Client,
    ready: BrainReady,
}

/// What the development brain knows of a session beyond the protocol.
#[derive(Clone, Debug, Deserialize)]
pub struct Played {
    pub passed: bool,
    pub verdict: Verdict,
    pub results: Vec<PostedResult>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    pub failures: Vec<String>,
    pub open_calls: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PostedResult {
    pub tool_use_id: String,
    /// Identical re-posts, accepted without effect.
    pub repeats: u32,
    /// Re-posts with another content.
    pub conflicts: u32,
}

impl BrainClient {
    pub fn new(ready: BrainReady) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(REQUEST_WAIT).no_proxy().build();
        Ok(Self { http: http.context("set up an HTTP client")?, ready })
    }

    /// Makes an agent that plays `script` and a session of it, and starts it with a message.
    pub async fn start_session(&self, script: &str, message: &str) -> anyhow::Result<SessionId> {
        let agent = json!({
            "name": script,
            "model": format!("script/{script}"),
            "tools": [{ "type": "agent_toolset_20260401" }],
        });
        let agent = self.post("/v1/agents", &agent).await?;
        let session = json!({
            "agent": agent["id"],
            "environment_id": self.ready.environment_id,
            "title": message,
        });
        let session = self.post("/v1/sessions", &session).await?;
        let id = session["id"].as_str().context("the brain made a session without an id")?;
        let id = SessionId::from(id);
        let text = json!([{ "type": "text", "text": message }]);
        let events = json!({ "events": [{ "type": "user.message", "content": text }] });
        self.post(&format!("/v1/sessions/{id}/events"), &events).await?;
        Ok(id)
    }

    /// The history after `cursor`, which is moved on.
    pub async fn events(
        &self,
        session: &SessionId,
        cursor: &mut EventCursor,
    ) -> anyhow::Result<Vec<Value>> {
        let mut fresh = Vec::new();
        loop {
            let mut path = format!("/v1/sessions/{session}/events?limit={PAGE}");
            if let Some(page) = &cursor.page {
                path.push_str("&page=");
                path.push_str(page);
            }
            let answer = self.get(&path).await?;
            let events = answer["data"].as_array().cloned().unwrap_or_default();
            let seen = cursor.seen_on_page.min(events.len());
            let next = answer["next_page"].as_str().filter(|page| !page.is_empty());
            fresh.extend(events[seen..].iter().cloned());
            match next {
                Some(page) => {
                    *cursor = EventCursor { page: Some(page.to_owned()), seen_on_page: 0 }
                }
                None => {
                    cursor.seen_on_page = events.len();
                    return Ok(fresh);
                }
            }
        }
    }

    pub async fn played(&self, session: &SessionId) -> anyhow::Result<Played> {
        let answer = self.get(&format!("/dev/sessions/{session}")).await?;
        serde_json::from_value(answer).context("read what the brain knows of a session")
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.http.get(format!("{}{path}", self.ready.url)), path).await
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.ready.url)).json(body);
        self.send(request, path).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<Value> {
        let answer = request.bearer_auth(&self.ready.api_key).send().await;
        let answer = answer.with_context(|| format!("ask the development brain for {path}"))?;
        let status = answer.status();
        let body: Value = answer.json().await.context("read the brain's answer")?;
        if !status.is_success() {
            bail!("the brain answered {status} to {path}: {}", body["error"]["message"]);
        }
        Ok(body)
    }
}

/// A place in a session's history.
#[derive(Clone, Debug, Default)]
pub struct EventCursor {
    page: Option<String>,
    seen_on_page: usize,
}

/// When an event happened by the brain's clock, in microseconds.
pub fn event_micros(event: &Value) -> Option<i64> {
    let at: jiff::Timestamp = event["processed_at"].as_str()?.parse().ok()?;
    Some(at.as_microsecond())
}
