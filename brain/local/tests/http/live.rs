//! The official Python worker itself, through the scenarios it was recorded in.
//!
//! The brain says what the recorded one said, when it said it; the worker must make the recorded
//! requests, in their order, with the recorded kind of credential, and post the recorded
//! verdicts. Heartbeats and polls come with the clock and are not counted.
//!
//! Not run: `happy_path_all_tools` and `no_secret_with_memory` (skills and memory stores),
//! `handle_item_secret_only` and `cancel_mid_tool` (another program than a worker that polls),
//! `sse_event_name_none` (its worker never ends), `empty_poll_204` (the worker dies of it).

use std::path::PathBuf;
use std::time::Duration;

use base_types::SessionId;
use brain_local::{
    BrainConfig, BrainHandle, CredentialKind, Fault, FaultRule, NewSession, Recorded, Route,
    Switches, Timings,
};
use serde_json::Value;

use crate::sdk::{LIMIT, python_or_skip, worker};
use crate::support::brain;
use crate::transcript::{Request, Row, route_of};

/// One test for each scenario.
macro_rules! scenarios {
    ($($name:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let name = stringify!($name);
            let python = python_or_skip!(name);
            let rows = crate::transcript::scenarios()
                .remove(&("python".to_owned(), name.to_owned()))
                .unwrap();
            run(&python, name, rows).await.unwrap();
        }
    )* };
}

scenarios! {
    recovery_history
    parallel_and_permissions
    ordering
    no_secret_env_key_only
    terminated_session
    healthcheck_item
    status_terminated
    lease_lost_412
    stopping_by_operator
    heartbeat_404
    send_409_400_503
    sse_reconnect
    duplicate_event_and_sse_error
    sse_event_name_type
    unknown_events
    minimal_session_object
    interrupt_while_tool_runs
    ack_404
    ack_409
    poll_401
    poll_429
}

/// After these the recording brain had nothing more to offer, and this one has.
const GOES_ON: &[&str] = &["lease_lost_412", "ack_409", "poll_429", "poll_401"];

/// The refused beat and the opening of the stream overtake each other: either order is right.
const RACES: &[(&str, Route)] =
    &[("heartbeat_404", Route::EventStream), ("heartbeat_404", Route::EventList)];

struct Scene<'r> {
    name: &'r str,
    brain: BrainHandle,
    session: SessionId,
    rows: &'r [Row],
}

/// A request as far as it must be the recorded one.
type Line = (Route, CredentialKind, Option<(String, bool)>);

async fn run(python: &PathBuf, name: &str, rows: Vec<Row>) -> Result<(), String> {
    let scene = prepare(name, &rows).await;
    let workdir = tempfile::tempdir().unwrap();
    let mut worker = worker(python, &scene.brain, workdir.path());
    let mut expected: Vec<Line> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if let Some(frame) = &row.frame {
            scene.say(frame);
        }
        if row.closed && name == "sse_reconnect" && scene.opens_again(index) {
            scene.brain.end_streams(&scene.session);
            scene.tell_history(index);
        }
        let Some(request) = &row.request else { continue };
        match route_of(request) {
            Route::WorkPoll => {}
            Route::WorkHeartbeat => scene.at_heartbeat(request),
            route if RACES.contains(&(name, route)) => {}
            _ => {
                expected.push(line_of_row(request));
                scene.wait_for(&expected).await.map_err(|error| format!("{name}: {error}"))?;
            }
        }
    }
    if !GOES_ON.contains(&name) {
        // The next poll says that the worker is done with the session.
        let done = |brain: &BrainHandle| {
            let last = brain.requests().pop();
            last.is_some_and(|request| request.route == Some(Route::WorkPoll))
        };
        scene.brain.wait_until(LIMIT, done).await.map_err(|error| format!("{name}: {error}"))?;
    }
    scene.refused_polls().await.map_err(|error| format!("{name}: {error}"))?;
    if name == "poll_401" {
        let ended = tokio::time::timeout(LIMIT, worker.wait()).await;
        ended.map_err(|_| format!("{name}: the worker goes on"))?.unwrap();
    }
    let mut made = scene.made();
    if GOES_ON.contains(&name) {
        made.truncate(expected.len());
    }
    match made == expected {
        true => Ok(()),
        false => Err(format!("{name}: recorded {expected:#?}, made {made:#?}")),
    }
}

async fn prepare<'r>(name: &'r str, rows: &'r [Row]) -> Scene<'r> {
    let requests = || rows.iter().filter_map(|row| row.request.as_ref());
    let answers = || requests().map(|request| &request.answer);
    let offered = answers().find(|answer| answer["type"] == "work");
    let paged = answers().any(|answer| answer["next_page"].is_string());
    let switches = Switches {
        secret: offered.is_none_or(|item| item["secret"].is_string()),
        events_per_page: paged.then_some(3),
        ..Switches::default()
    };
    let timings = Timings {
        lease_ttl: Duration::from_secs(2),
        reclaim: Duration::from_secs(60),
        ..Timings::default()
    };
    let brain = brain(BrainConfig { switches, timings, ..BrainConfig::default() }).await;
    let kind = offered.and_then(|item| item["data"]["type"].as_str()).unwrap_or("session");
    let mut session = SessionId::from("none");
    if kind == "session" {
        let new = NewSession {
            script: "long-count".to_owned(),
            environment: brain.environment_id().clone(),
            title: None,
            metadata: Vec::new(),
            message: None,
        };
        session = brain.start_session(new).unwrap();
    } else {
        brain.queue_item(brain.environment_id(), kind, "none").unwrap();
    }
    if answers().any(|answer| answer["status"] == "terminated") {
        brain.terminate(&session).unwrap();
    }
    inject_refusals(&brain, requests());
    let scene = Scene { name, brain, session, rows };
    let first_stream = rows.iter().position(|row| {
        row.request.as_ref().is_some_and(|request| route_of(request) == Route::EventStream)
    });
    if let Some(index) = first_stream {
        scene.tell_history(index);
    }
    scene
}

/// Each recorded refusal that this brain would not make by itself, at its place.
fn inject_refusals<'r>(brain: &BrainHandle, requests: impl Iterator<Item = &'r Request>) {
    let mut passed = std::collections::BTreeMap::new();
    for request in requests {
        let route = route_of(request);
        let skip: &mut u32 = passed.entry(format!("{route:?}")).or_default();
        match request.status {
            None | Some(200 | 412) => *skip += 1,
            Some(status) => {
                let fault = Fault::Status { status, retry_after: None };
                brain.inject(FaultRule { route, skip: *skip, times: 1, fault }).unwrap();
                *skip = 0;
            }
        }
    }
}

impl Scene<'_> {
    fn say(&self, frame: &Value) {
        let (brain, session) = (&self.brain, &self.session);
        match frame["type"].as_str().unwrap_or_default() {
            // The brain makes these of what the worker posts.
            "user.tool_result" => {}
            "user.interrupt" => {
                brain.interrupt(session).unwrap();
            }
            "session.status_terminated" => brain.terminate(session).unwrap(),
            _ if frame.get("processed_at").is_none() || self.knows(frame) => {
                brain.emit_only_on_stream(session, frame.clone()).unwrap();
            }
            _ => brain.emit(session, frame.clone()).unwrap(),
        }
    }

    fn knows(&self, event: &Value) -> bool {
        self.brain.history(&self.session).iter().any(|known| known["id"] == event["id"])
    }

    /// What the lists after this row show for the first time happened by now.
    fn tell_history(&self, index: usize) {
        let lists = self.rows[index + 1..]
            .iter()
            .filter_map(|row| row.request.as_ref())
            .skip_while(|request| route_of(request) == Route::EventStream)
            .take_while(|request| route_of(request) == Route::EventList);
        for event in lists.flat_map(|list| list.answer["data"].as_array().into_iter().flatten()) {
            let made_here = self
                .brain
                .results(&self.session)
                .iter()
                .any(|result| event["tool_use_id"] == result.tool_use_id.as_str());
            if !self.knows(event) && !made_here {
                self.brain.emit(&self.session, event.clone()).unwrap();
            }
        }
    }

    fn opens_again(&self, index: usize) -> bool {
        let later = self.rows[index..].iter().filter_map(|row| row.request.as_ref());
        later.into_iter().any(|request| route_of(request) == Route::EventStream)
    }

    fn at_heartbeat(&self, request: &Request) {
        if request.status == Some(412) {
            self.brain.expire_lease(&self.session);
        } else if request.answer["state"] == "stopping" {
            let item = self.brain.items_of(&self.session).remove(0);
            self.brain.stop_item(&item, false).unwrap();
        }
    }

    /// Where polls were refused, the worker must have polled as often as recorded.
    async fn refused_polls(&self) -> Result<(), String> {
        let polls = self.rows.iter().filter_map(|row| row.request.as_ref());
        let polls = polls.filter(|request| route_of(request) == Route::WorkPoll);
        // The first poll that is not refused gets an item here: what follows is another story.
        let mut taken = false;
        let recorded: Vec<u16> = polls
            .filter_map(|request| request.status)
            .take_while(|status| !std::mem::replace(&mut taken, *status == 200))
            .collect();
        if recorded.iter().all(|status| *status == 200) {
            return Ok(());
        }
        let made = |brain: &BrainHandle| {
            let polls = brain.requests_of(Route::WorkPoll);
            polls.iter().filter_map(|poll| poll.status).take(recorded.len()).collect::<Vec<_>>()
        };
        let waited = self.brain.wait_until(LIMIT, |brain| made(brain) == recorded).await;
        waited.map_err(|error| format!("{error}: polls {recorded:?}, {:?}", made(&self.brain)))
    }

    /// Until the worker has made as many requests, and has the answers.
    async fn wait_for(&self, expected: &[Line]) -> Result<(), String> {
        let reached = |_: &BrainHandle| {
            let counted = self.counted();
            counted.len() >= expected.len()
                && counted.iter().take(expected.len()).all(|request| request.status.is_some())
        };
        let waited = self.brain.wait_until(LIMIT, reached).await;
        waited.map_err(|error| format!("{error}: recorded {expected:#?}, made {:#?}", self.made()))
    }

    /// The requests whose order is fixed.
    fn counted(&self) -> Vec<Recorded> {
        let is_fixed = |request: &Recorded| {
            let route = request.route.unwrap_or(Route::Banner);
            let by_clock = matches!(route, Route::WorkPoll | Route::WorkHeartbeat);
            !by_clock && !RACES.contains(&(self.name, route))
        };
        self.brain.requests().into_iter().filter(is_fixed).collect()
    }

    fn made(&self) -> Vec<Line> {
        let line = |request: Recorded| {
            let body = serde_json::from_slice(&request.body).unwrap_or_default();
            (request.route.unwrap(), request.credential, verdict_of(&body))
        };
        self.counted().into_iter().map(line).collect()
    }
}

fn line_of_row(request: &Request) -> Line {
    let credential = match request.credential.as_str() {
        "sessions_token" => CredentialKind::SessionsToken,
        _ => CredentialKind::EnvironmentKey,
    };
    let body = request.body.clone().unwrap_or_default();
    (route_of(request), credential, verdict_of(&body))
}

/// Which call a post answers, and whether with an error.
fn verdict_of(body: &Value) -> Option<(String, bool)> {
    let event = &body["events"][0];
    Some((event["tool_use_id"].as_str()?.to_owned(), event["is_error"].as_bool()?))
}
