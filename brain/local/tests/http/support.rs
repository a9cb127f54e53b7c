//! A plain HTTP client with a credential, and a brain that plays one scenario.

use std::time::Duration;

use base_types::{Secret, SessionId};
use brain_local::{BrainConfig, BrainHandle, BrainServer, NewSession};
use futures::StreamExt;
use reqwest::{Method, Response};
use serde_json::{Value, json};

/// Everything here happens within milliseconds; a loaded machine gets its time.
pub const LIMIT: Duration = Duration::from_secs(20);

pub async fn brain(config: BrainConfig) -> BrainHandle {
    BrainServer::start(config).await.unwrap()
}

/// A brain with one more scenario, `test`.
pub async fn brain_with(scenario: &str) -> BrainHandle {
    let scenarios = vec![("test".to_owned(), scenario.to_owned())];
    brain(BrainConfig { scenarios, ..BrainConfig::default() }).await
}

pub fn start(brain: &BrainHandle, message: Option<&str>) -> SessionId {
    let new = NewSession {
        script: "test".to_owned(),
        environment: brain.environment_id().clone(),
        title: None,
        metadata: Vec::new(),
        message: message.map(str::to_owned),
    };
    brain.start_session(new).unwrap()
}

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    credential: Secret,
}

/// A status and the JSON that came with it.
pub type Answer = (u16, Value);

impl Client {
    pub fn api(brain: &BrainHandle) -> Self {
        Self::with(brain, brain.api_key())
    }

    pub fn worker(brain: &BrainHandle) -> Self {
        Self::with(brain, brain.environment_key())
    }

    pub fn with(brain: &BrainHandle, credential: Secret) -> Self {
        Self { http: reqwest::Client::new(), base: brain.url(), credential }
    }

    /// The same connections with another credential.
    pub fn by(&self, credential: Secret) -> Self {
        Self { credential, ..self.clone() }
    }

    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response, reqwest::Error> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = request.bearer_auth(self.credential.expose());
        match body {
            Some(body) => request.json(body).send().await,
            None => request.send().await,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.raw(Method::GET, path, None).await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.raw(Method::POST, path, Some(body)).await.unwrap()).await
    }

    pub async fn post_empty(&self, path: &str) -> Answer {
        answer(self.raw(Method::POST, path, None).await.unwrap()).await
    }

    pub async fn send(&self, session: &SessionId, event: Value) -> Answer {
        self.post(&format!("/v1/sessions/{session}/events"), &json!({ "events": [event] })).await
    }

    pub async fn result(&self, session: &SessionId, id: &str, text: &str) -> Answer {
        let content = json!([{ "type": "text", "text": text }]);
        let event = json!({ "type": "user.tool_result", "tool_use_id": id, "is_error": false, "content": content });
        self.send(session, event).await
    }

    /// Polls once and acknowledges what is offered; answers the item.
    pub async fn claim(&self, brain: &BrainHandle) -> Value {
        let work = format!("/v1/environments/{}/work", brain.environment_id());
        let (status, item) = self.get(&format!("{work}/poll?block_ms=999")).await;
        assert_eq!(status, 200, "{item}");
        let id = item["id"].as_str().expect("an item is offered");
        let (status, acked) = self.post_empty(&format!("{work}/{id}/ack")).await;
        assert_eq!(status, 200, "{acked}");
        item
    }

    pub async fn stream(&self, session: &SessionId) -> Frames {
        let path = format!("/v1/sessions/{session}/events/stream");
        let response = self.raw(Method::GET, &path, None).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        Frames { bytes: Box::pin(response.bytes_stream()), buffer: String::new() }
    }
}

pub async fn answer(response: Response) -> Answer {
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("request-id"));
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

type Bytes = Result<bytes::Bytes, reqwest::Error>;

/// The frames of an event stream, without pings.
pub struct Frames {
    bytes: std::pin::Pin<Box<dyn futures::Stream<Item = Bytes> + Send>>,
    buffer: String,
}

/// How a stream went on.
#[derive(Debug)]
pub enum Frame {
    Event { name: Option<String>, data: String },
    End,
    Broken { rest: String },
}

impl Frames {
    pub async fn next(&mut self) -> Frame {
        tokio::time::timeout(LIMIT, self.read()).await.expect("a frame in time")
    }

    async fn read(&mut self) -> Frame {
        loop {
            while let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let field = |key: &str| {
                    let line = frame.lines().find_map(|line| line.strip_prefix(key));
                    line.map(|text| text.trim().to_owned())
                };
                let (name, data) = (field("event:"), field("data:").unwrap_or_default());
                self.buffer = rest.to_owned();
                if name.as_deref() != Some("ping") {
                    return Frame::Event { name, data };
                }
            }
            match self.bytes.next().await {
                Some(Ok(bytes)) => self.buffer.push_str(std::str::from_utf8(&bytes).unwrap()),
                Some(Err(_)) => return Frame::Broken { rest: std::mem::take(&mut self.buffer) },
                None => return Frame::End,
            }
        }
    }

    /// The next event, parsed.
    pub async fn event(&mut self) -> Value {
        match self.next().await {
            Frame::Event { data, .. } => serde_json::from_str(&data).unwrap(),
            other => panic!("the stream is over: {other:?}"),
        }
    }

    /// Reads up to the first event of this type.
    pub async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["type"] == kind {
                return event;
            }
        }
    }
}

/// The ids of a session's tool uses, in order.
pub fn tool_uses(brain: &BrainHandle, session: &SessionId) -> Vec<String> {
    let history = brain.history(session);
    let uses = history.iter().filter(|event| {
        matches!(event["type"].as_str(), Some("agent.tool_use" | "agent.custom_tool_use"))
    });
    uses.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// The stop reasons of all idles so far: their type, and how many ids they name.
pub fn idles(brain: &BrainHandle, session: &SessionId) -> Vec<(String, usize)> {
    let history = brain.history(session);
    let idles = history.iter().filter(|event| event["type"] == "session.status_idle");
    idles
        .map(|event| {
            let reason = &event["stop_reason"];
            let ids = reason["event_ids"].as_array().map_or(0, Vec::len);
            (reason["type"].as_str().unwrap().to_owned(), ids)
        })
        .collect()
}
