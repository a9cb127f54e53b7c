//! The recorded traffic of the official workers against this brain.
//!
//! Each scenario's requests are sent again as they were recorded, with the recorded kind of
//! credential, while the recorded events are emitted between them. Each answer must have the
//! recorded status and at least the recorded fields, of the recorded kinds, and the stream must
//! carry the recorded events. What the recording brain answered by force (a 503, a 204) is put
//! on the line by a fault rule.
//!
//! `happy_path_all_tools` is replayed without its requests for skills and memory stores, which
//! this brain does not serve. Nothing else is left out; [`DIFFERENCES`] names where an answer is
//! another one on purpose.

use std::collections::BTreeMap;
use std::time::Duration;

use base_types::Secret;
use brain_local::{BrainConfig, BrainHandle, Fault, FaultRule, NewSession, Route, Switches};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Client, Frames, brain};

const EXCHANGES: &str = include_str!("../transcript/exchanges.jsonl");

/// After a lost lease the recording brain had no work; this one offers the item again.
const DIFFERENCES: &[(&str, Route)] = &[("lease_lost_412", Route::WorkPoll)];

/// What was emitted is on the stream at once; a loaded machine gets its time.
const FRAME_LIMIT: Duration = Duration::from_secs(10);

/// Subtrees whose content is the caller's or the recording brain's, not the protocol's.
const FREE: &[&str] =
    &["input", "metadata", "usage", "model", "tools", "skills", "resources", "request_id"];

#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    client: String,
    scenario: String,
    pub request: Option<Request>,
    pub frame: Option<Value>,
    #[serde(default)]
    pub closed: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    method: String,
    path: String,
    query: String,
    pub credential: String,
    pub body: Option<Value>,
    pub status: Option<u16>,
    pub answer: Value,
}

/// All rows, by client and scenario.
pub fn scenarios() -> BTreeMap<(String, String), Vec<Row>> {
    let mut scenarios: BTreeMap<_, Vec<Row>> = BTreeMap::new();
    for line in EXCHANGES.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        scenarios.entry((row.client.clone(), row.scenario.clone())).or_default().push(row);
    }
    scenarios
}

struct Replay {
    name: String,
    brain: BrainHandle,
    worker: Client,
    session: base_types::SessionId,
    token: Option<Secret>,
    work: String,
    last_heartbeat: String,
    next_page: String,
    stream: Option<Frames>,
    problems: Vec<String>,
    compared: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_answer_has_its_status_and_shape_here() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 36, "{}", scenarios.len());
    let replays = scenarios.into_iter().map(|((client, scenario), rows)| {
        tokio::spawn(async move {
            let mut replay = Replay::start(format!("{client} {scenario}"), &rows).await;
            for (index, row) in rows.iter().enumerate() {
                replay.row(row, &rows[index + 1..], &scenario).await;
            }
            (replay.compared, replay.problems)
        })
    });
    let (mut compared, mut problems) = (0, Vec::new());
    for replay in replays.collect::<Vec<_>>() {
        let (count, found) = replay.await.unwrap();
        compared += count;
        problems.extend(found);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(compared > 330, "{compared} answers were compared");
}

impl Replay {
    async fn start(name: String, rows: &[Row]) -> Self {
        let answers = || rows.iter().filter_map(|row| row.request.as_ref()).map(|r| &r.answer);
        let offered = answers().find(|answer| answer["type"] == "work");
        let paged = answers().any(|answer| answer["next_page"].is_string());
        let switches = Switches {
            secret: offered.is_none_or(|item| item["secret"].is_string()),
            events_per_page: paged.then_some(3),
            ..Switches::default()
        };
        let brain = brain(BrainConfig { switches, ..BrainConfig::default() }).await;
        let mut replay = Self {
            name,
            worker: Client::worker(&brain),
            brain,
            session: "none".into(),
            token: None,
            work: String::new(),
            last_heartbeat: String::new(),
            next_page: String::new(),
            stream: None,
            problems: Vec::new(),
            compared: 0,
        };
        // Where no poll is recorded, the item was claimed before the recording began.
        if offered.is_none_or(|_| !name_of(rows, "/work/poll")) && name_of(rows, "/heartbeat") {
            replay.queue("session");
            replay.claim().await;
        }
        replay
    }

    fn queue(&mut self, data_type: &str) {
        if data_type == "session" {
            let new = NewSession {
                script: "long-count".to_owned(),
                environment: self.brain.environment_id().clone(),
                title: None,
                metadata: Vec::new(),
                message: None,
            };
            self.session = self.brain.start_session(new).unwrap();
        } else {
            let environment = self.brain.environment_id();
            self.brain.queue_item(environment, data_type, "none").unwrap();
        }
    }

    async fn claim(&mut self) {
        let item = self.worker.claim(&self.brain).await;
        self.offered(&item);
    }

    fn offered(&mut self, item: &Value) {
        self.work = item["id"].as_str().unwrap_or_default().to_owned();
        if item["secret"].is_string() {
            self.token = Some(crate::wire::token(item));
        }
    }

    async fn row(&mut self, row: &Row, later: &[Row], scenario: &str) {
        if row.closed {
            self.stream = None;
        }
        if let Some(frame) = &row.frame {
            self.frame(frame).await;
        }
        // A request without an answer was cut off by the end of the recording.
        if let Some(request) = row.request.as_ref().filter(|request| request.status.is_some()) {
            self.request(request, scenario).await;
        } else if let Some(request) = &row.request
            && request.path.ends_with("/stream")
        {
            self.catch_up(later);
            let client = self.client(&request.credential);
            self.stream = Some(client.stream(&self.session).await);
        }
    }

    /// Lets the brain say what it said, and finds it on the stream.
    async fn frame(&mut self, frame: &Value) {
        let kind = frame["type"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            // The brain makes these of what is sent.
            "user.tool_result" => {}
            // The application behind the session sent this one.
            "user.custom_tool_result" => {
                let mut event = frame.clone();
                event
                    .as_object_mut()
                    .unwrap()
                    .retain(|key, _| key != "id" && key != "processed_at");
                self.brain.send(&self.session, json!([event])).unwrap();
            }
            "error" | "ping" => return,
            "user.interrupt" => {
                self.brain.interrupt(&self.session).unwrap();
            }
            "session.status_terminated" => self.brain.terminate(&self.session).unwrap(),
            _ if frame.get("processed_at").is_none() => {
                self.brain.emit_only_on_stream(&self.session, frame.clone()).unwrap();
            }
            _ if self.knows(frame) => {
                self.brain.emit_only_on_stream(&self.session, frame.clone()).unwrap();
            }
            _ => self.brain.emit(&self.session, frame.clone()).unwrap(),
        }
        let Some(stream) = &mut self.stream else { return };
        let Ok(seen) = tokio::time::timeout(FRAME_LIMIT, stream.event()).await else {
            self.problems.push(format!("{}: {frame} was not streamed", self.name));
            return;
        };
        self.compared += 1;
        if seen["type"] != kind.as_str() {
            self.problems.push(format!("{}: {kind} expected, {seen} streamed", self.name));
        }
        self.compare("frame", frame, &seen);
    }

    fn knows(&self, event: &Value) -> bool {
        self.brain.history(&self.session).iter().any(|known| known["id"] == event["id"])
    }

    async fn request(&mut self, request: &Request, scenario: &str) {
        let (route, status) = (route_of(request), request.status.unwrap_or_default());
        self.prepare(request, route, status);
        let path = self.path_of(request);
        let client = self.client(&request.credential);
        let method = Method::from_bytes(request.method.as_bytes()).unwrap();
        let body = request.body.as_ref();
        let response = client.raw(method, &path, body).await.unwrap();
        let (found, answer) = crate::support::answer(response).await;
        self.compared += 1;
        if found != status {
            self.problems.push(format!("{}: {path}: {status} recorded, {found}", self.name));
        }
        if route == Route::WorkPoll && answer["type"] == "work" {
            self.offered(&answer);
        }
        if let Some(last) = answer["last_heartbeat"].as_str() {
            self.last_heartbeat = last.to_owned();
        }
        if let Some(next) = answer["next_page"].as_str() {
            self.next_page = next.to_owned();
        }
        if !DIFFERENCES.contains(&(scenario, route)) {
            self.compare(&path, &request.answer, &answer);
        }
    }

    /// Brings the brain to where the recording one was.
    fn prepare(&mut self, request: &Request, route: Route, status: u16) {
        let answer = &request.answer;
        match (route, status) {
            (Route::WorkPoll, 200) if answer["type"] == "work" => {
                self.queue(answer["data"]["type"].as_str().unwrap());
            }
            (Route::WorkHeartbeat, 412) => self.brain.expire_lease(&self.session),
            (Route::WorkHeartbeat, 200) if answer["state"] == "stopping" => {
                let item = self.brain.items_of(&self.session).remove(0);
                self.brain.stop_item(&item, false).unwrap();
            }
            (Route::SessionGet, 200) if answer["status"] == "terminated" => {
                self.brain.terminate(&self.session).unwrap();
            }
            (_, 204) => self.inject(route, Fault::NoContent),
            (_, 200) => {}
            _ => self.inject(route, Fault::Status { status, retry_after: None }),
        }
    }

    /// What the lists right after a new stream show happened before the stream opened.
    fn catch_up(&self, later: &[Row]) {
        let lists = later
            .iter()
            .map_while(|row| row.request.as_ref())
            .take_while(|request| request.method == "GET" && request.path.ends_with("/events"));
        for event in lists.flat_map(|list| list.answer["data"].as_array().into_iter().flatten()) {
            let made_here = event["type"] == "user.tool_result"
                && self
                    .brain
                    .results(&self.session)
                    .iter()
                    .any(|result| event["tool_use_id"] == result.tool_use_id.as_str());
            if !self.knows(event) && !made_here {
                self.brain.emit(&self.session, event.clone()).unwrap();
            }
        }
    }

    fn inject(&self, route: Route, fault: Fault) {
        self.brain.inject(FaultRule { route, skip: 0, times: 1, fault }).unwrap();
    }

    /// The recorded path with the ids and tokens of this brain.
    fn path_of(&self, request: &Request) -> String {
        let mut path = String::new();
        let mut previous = "";
        for part in request.path.split('/').filter(|part| !part.is_empty()) {
            path.push('/');
            path.push_str(match previous {
                "environments" => self.brain.environment_id().as_str(),
                "sessions" => self.session.as_str(),
                "work" if part != "poll" => &self.work,
                _ => part,
            });
            previous = part;
        }
        let query: Vec<String> = request
            .query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| match pair.split_once('=') {
                Some(("page", _)) => format!("page={}", self.next_page),
                Some(("expected_last_heartbeat", text)) if text != "NO_HEARTBEAT" => {
                    format!("expected_last_heartbeat={}", self.last_heartbeat.replace(':', "%3A"))
                }
                _ => pair.to_owned(),
            })
            .collect();
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }

    fn client(&self, credential: &str) -> Client {
        match (credential, &self.token) {
            ("sessions_token", Some(token)) => self.worker.by(token.clone()),
            _ => self.worker.clone(),
        }
    }

    fn compare(&mut self, place: &str, recorded: &Value, found: &Value) {
        let mut missing = Vec::new();
        fits(recorded, found, "", &mut missing);
        let name = &self.name;
        self.problems.extend(missing.iter().map(|what| format!("{name}: {place}: {what}")));
    }
}

fn name_of(rows: &[Row], ending: &str) -> bool {
    rows.iter().filter_map(|row| row.request.as_ref()).any(|r| r.path.ends_with(ending))
}

pub fn route_of(request: &Request) -> Route {
    let last = request.path.rsplit('/').next().unwrap_or_default();
    match (request.method.as_str(), last) {
        ("GET", "poll") => Route::WorkPoll,
        ("POST", "ack") => Route::WorkAck,
        ("POST", "heartbeat") => Route::WorkHeartbeat,
        ("POST", "stop") => Route::WorkStop,
        ("GET", "stream") => Route::EventStream,
        ("GET", "events") => Route::EventList,
        ("POST", "events") => Route::EventSend,
        ("GET", _) => Route::SessionGet,
        other => panic!("no such exchange is recorded: {other:?}"),
    }
}

/// Every recorded field must be there, of the same kind; null stands for any kind.
fn fits(recorded: &Value, found: &Value, place: &str, missing: &mut Vec<String>) {
    match (recorded, found) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(recorded), Value::Object(found)) => {
            for (key, value) in recorded {
                let place = format!("{place}.{key}");
                match found.get(key) {
                    None => missing.push(format!("{place} is missing")),
                    Some(_) if FREE.contains(&key.as_str()) => {}
                    Some(found) => fits(value, found, &place, missing),
                }
            }
        }
        (Value::Array(recorded), Value::Array(found)) => {
            if recorded.len() != found.len() {
                let (recorded, found) = (recorded.len(), found.len());
                missing.push(format!("{place} has {found} members, {recorded} are recorded"));
            }
            for (index, (recorded, found)) in recorded.iter().zip(found).enumerate() {
                fits(recorded, found, &format!("{place}.{index}"), missing);
            }
        }
        _ if kind(recorded) == kind(found) => {}
        _ => missing.push(format!("{place} is {found}, {recorded} is recorded")),
    }
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

#[test]
fn the_comparison_finds_what_is_missing_or_of_another_kind() {
    let recorded = json!({"a": 1, "b": {"c": "x"}, "d": [1], "e": null});
    let mut missing = Vec::new();
    fits(&recorded, &json!({"a": "1", "b": {}, "d": [], "e": 5}), "", &mut missing);
    assert_eq!(missing.len(), 3, "{missing:?}");
    missing.clear();
    fits(&recorded, &json!({"a": 2, "b": {"c": "y", "z": 1}, "d": [2], "e": 5}), "", &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}
