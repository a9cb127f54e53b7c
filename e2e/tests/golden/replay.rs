//! Plays the brain's side of the recorded scenarios, several at a time: each scenario is an
//! environment of its own under its own path, with the recorded ids made unique.
//!
//! Answers come in the recorded order per kind of request. What the brain says by itself (frames,
//! the end of a stream) follows the request that it followed in the recording, after the recorded
//! time: a worker that is faster or slower than the recorded one sees the same conversation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

/// The recorded ids; each scenario gets its own in their place.
const RECORDED_ID: &str = "000000000000000000000001";
/// A recorded pause says little beyond this.
const PAUSE_MAX: Duration = Duration::from_millis(1_500);
/// What an empty queue takes to say so.
const EMPTY_POLL: Duration = Duration::from_millis(300);
const BODY_BYTES_MAX: usize = 32 << 20;

/// Every scenario of the transcript, and what the worker asked in each.
#[derive(Clone)]
pub struct Replay(Arc<HashMap<String, Scenario>>);

struct Scenario {
    rows: Vec<Row>,
    seen: Mutex<Vec<Seen>>,
    /// Counts what was seen, for those who wait for it.
    news: watch::Sender<usize>,
}

/// One line of the transcript.
#[derive(Clone, Debug)]
struct Row {
    n: u64,
    at: f64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Request(Kind, String),
    Response { to: u64, status: u16, body: String },
    StreamOpen,
    Frame(String),
    StreamClose,
}

/// The calls of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Poll,
    Ack,
    Heartbeat,
    Stop,
    Retrieve,
    List,
    Stream,
    Send,
    Other,
}

/// One request of the worker under test.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: Kind,
    pub query: String,
    pub authorization: String,
    pub body: String,
}

impl Seen {
    /// The results in a send: id, whether it is an error, its text.
    pub fn results(&self) -> Vec<(String, bool, String)> {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let events = body["events"].as_array().cloned().unwrap_or_default();
        let result = |event: &Value| {
            let id = event["tool_use_id"].as_str().unwrap_or_default().to_owned();
            let text = event["content"][0]["text"].as_str().unwrap_or_default().to_owned();
            (id, event["is_error"].as_bool().unwrap_or_default(), text)
        };
        events.iter().map(result).collect()
    }
}

impl Replay {
    pub fn load(transcript: &str) -> Self {
        let mut scenarios: HashMap<String, Vec<Row>> = HashMap::new();
        for line in transcript.lines().filter(|line| !line.is_empty()) {
            let value: Value = serde_json::from_str(line).expect("a line of the transcript");
            let name = value["scenario"].as_str().expect("a scenario").to_owned();
            if let Some(row) = Row::read(&value, &name) {
                scenarios.entry(name).or_default().push(row);
            }
        }
        let with_log = |(name, rows)| {
            (name, Scenario { rows, seen: Mutex::default(), news: watch::Sender::new(0) })
        };
        Self(Arc::new(scenarios.into_iter().map(with_log).collect()))
    }

    pub fn scenarios(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.keys().cloned().collect();
        names.sort();
        names
    }

    pub fn environment_id(scenario: &str) -> String {
        format!("env_{scenario}")
    }

    pub fn session_id(scenario: &str) -> String {
        format!("sesn_{scenario}")
    }

    /// What the worker has asked so far.
    pub fn seen(&self, scenario: &str) -> Vec<Seen> {
        self.0[scenario].seen.lock().expect("the log").clone()
    }

    /// Serves on a free loopback port and returns it. A scenario's base URL is
    /// `http://127.0.0.1:PORT/NAME`.
    pub async fn listen(&self) -> std::io::Result<u16> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(port)
    }
}

impl Row {
    fn read(value: &Value, scenario: &str) -> Option<Self> {
        let text = |key: &str| {
            let text = value[key].as_str().unwrap_or_default();
            ["env", "work", "sesn"].iter().fold(text.to_owned(), |text, prefix| {
                text.replace(&format!("{prefix}_{RECORDED_ID}"), &format!("{prefix}_{scenario}"))
            })
        };
        let what = match value["dir"].as_str()? {
            "request" => {
                let kind = Kind::of(value["method"].as_str()?, &text("path"));
                What::Request(kind, text("query"))
            }
            "response" => What::Response {
                to: value["to"].as_u64()?,
                status: u16::try_from(value["status"].as_u64()?).ok()?,
                body: text("body"),
            },
            "sse-open" => What::StreamOpen,
            "sse-frame" => What::Frame(text("frame")),
            "sse-close" => What::StreamClose,
            _ => return None,
        };
        Some(Row { n: value["n"].as_u64()?, at: value["t"].as_f64()?, what })
    }
}

impl Kind {
    fn of(method: &str, path: &str) -> Self {
        match (method, path.rsplit('/').next().unwrap_or_default()) {
            ("GET", "poll") => Kind::Poll,
            ("POST", "ack") => Kind::Ack,
            ("POST", "heartbeat") => Kind::Heartbeat,
            ("POST", "stop") => Kind::Stop,
            ("GET", "stream") => Kind::Stream,
            ("GET", "events") => Kind::List,
            ("POST", "events") => Kind::Send,
            ("GET", last) if last.starts_with("sesn_") => Kind::Retrieve,
            _ => Kind::Other,
        }
    }
}

/// What a recorded frame or end of a stream waits for.
struct Cue {
    after: (Kind, usize),
    pause: Duration,
    frame: Option<String>,
}

impl Scenario {
    /// Notes a request and says the how-manieth of its kind it is, from 0.
    fn note(&self, seen: Seen) -> usize {
        let mut log = self.seen.lock().expect("the log");
        let nth = log.iter().filter(|earlier| earlier.kind == seen.kind).count();
        log.push(seen);
        self.news.send_replace(log.len());
        nth
    }

    fn count(&self, kind: Kind) -> usize {
        self.seen.lock().expect("the log").iter().filter(|seen| seen.kind == kind).count()
    }

    /// The recorded answers to one kind of request, in order, each with its request's query.
    fn answers(&self, kind: Kind) -> Vec<(String, u16, String)> {
        let requests = self.rows.iter().filter_map(|row| match &row.what {
            What::Request(of, query) if *of == kind => Some((row.n, query.clone())),
            _ => None,
        });
        requests
            .filter_map(|(n, query)| {
                self.rows.iter().find_map(|row| match &row.what {
                    What::Response { to, status, body } if *to == n => {
                        Some((query.clone(), *status, body.clone()))
                    }
                    _ => None,
                })
            })
            .collect()
    }

    /// The list that belongs to the present stream: the recorded worker listed once for each.
    fn list(&self, query: &str) -> Option<(u16, String)> {
        let stream = self.count(Kind::Stream).max(1);
        let mut opened = 0;
        let mut answers = self.answers(Kind::List).into_iter();
        let mut found = None;
        for row in &self.rows {
            match &row.what {
                What::Request(Kind::Stream, _) => opened += 1,
                What::Request(Kind::List, of) => {
                    let Some((_, status, body)) = answers.next() else { break };
                    if opened <= stream && page_of(of) == page_of(query) {
                        found = Some((status, body));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// What the brain said by itself on the `nth` stream.
    fn cues(&self, nth: usize) -> Vec<Cue> {
        let (mut opened, mut closed) = (0, 0);
        let mut counts: HashMap<Kind, usize> = HashMap::new();
        let mut after = (Kind::Stream, 0, 0.0);
        let mut cues = Vec::new();
        for row in &self.rows {
            let (stream, frame) = match &row.what {
                What::Request(kind @ (Kind::Send | Kind::Stream), _) => {
                    let count = counts.entry(*kind).or_default();
                    *count += 1;
                    after = (*kind, *count, row.at);
                    continue;
                }
                What::StreamOpen => {
                    opened += 1;
                    continue;
                }
                What::Frame(frame) => (opened, Some(frame.clone())),
                What::StreamClose => {
                    closed += 1;
                    (closed, None)
                }
                _ => continue,
            };
            if stream == nth {
                let pause = Duration::from_secs_f64((row.at - after.2).max(0.0)).min(PAUSE_MAX);
                cues.push(Cue { after: (after.0, after.1), pause, frame });
            }
        }
        cues
    }
}

async fn answer(State(replay): State<Replay>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/').to_owned();
    let name = path.split('/').next().unwrap_or_default().to_owned();
    let Some(scenario) = replay.0.get(&name) else { return plain(404, String::new()) };
    let kind = Kind::of(parts.method.as_str(), &path);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let authorization = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let nth = scenario.note(Seen {
        kind,
        query: query.clone(),
        authorization: authorization.unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let recorded = scenario.answers(kind);
    match kind {
        Kind::Stream => stream(replay.clone(), name, nth + 1),
        Kind::List => match scenario.list(&query) {
            Some((status, body)) => plain(status, body),
            None => plain(200, r#"{"data":[],"next_page":null}"#.to_owned()),
        },
        Kind::Poll => match recorded.get(nth) {
            Some((_, status, body)) => plain(*status, body.clone()),
            None => {
                tokio::time::sleep(EMPTY_POLL).await;
                plain(200, "null".to_owned())
            }
        },
        // Beyond what was recorded the last word stands.
        Kind::Heartbeat | Kind::Retrieve | Kind::Ack | Kind::Stop => {
            match recorded.get(nth).or(recorded.last()) {
                Some((_, status, body)) => plain(*status, body.clone()),
                None => plain(200, "{}".to_owned()),
            }
        }
        Kind::Send => match recorded.get(nth) {
            Some((_, status, body)) => plain(*status, body.clone()),
            None => plain(200, r#"{"data":[]}"#.to_owned()),
        },
        Kind::Other => plain(404, String::new()),
    }
}

fn stream(replay: Replay, name: String, nth: usize) -> Response {
    let cues = replay.0[&name].cues(nth);
    let frames = futures::stream::unfold((replay, name, cues.into_iter()), async |state| {
        let (replay, name, mut cues) = state;
        let scenario = &replay.0[&name];
        let Some(cue) = cues.next() else {
            // Nothing more was recorded: the stream stays open and silent.
            std::future::pending::<()>().await;
            return None;
        };
        let (kind, count) = cue.after;
        let mut news = scenario.news.subscribe();
        let _ = news.wait_for(|_| scenario.count(kind) >= count).await;
        tokio::time::sleep(cue.pause).await;
        let frame = cue.frame?;
        Some((Ok::<_, std::io::Error>(Bytes::from(frame)), (replay, name, cues)))
    });
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(Body::from_stream(frames)).expect("a response")
}

fn plain(status: u16, body: String) -> Response {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Body::from(body)).expect("a response")
}

fn page_of(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("page="))
}
