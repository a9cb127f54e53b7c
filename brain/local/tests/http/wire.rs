//! What goes over the wire: credentials, errors, leases, pages, streams and faults.

use std::time::Duration;

use crate::support::{Client, Frame, LIMIT, answer, brain, brain_with, start, tool_uses};
use base_types::Secret;
use brain_local::{
    BrainConfig, CredentialKind, Fault, FaultRule, Route, StreamFault, Switches, Timings,
};
use reqwest::Method;
use serde_json::{Value, json};

const ONE_CALL: &str = "[[step]]\n[[step.call]]\ntool = \"bash\"\n[[step]]\nsay = \"done\"\n";

fn work(brain: &brain_local::BrainHandle) -> String {
    format!("/v1/environments/{}/work", brain.environment_id())
}

/// The sessions token inside an offered item.
pub fn token(item: &Value) -> Secret {
    let secret = item["secret"].as_str().unwrap();
    use base64::Engine;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(secret).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    Secret::new(json["sessions_token"].as_str().unwrap())
}

#[tokio::test]
async fn each_credential_opens_what_is_its_own() {
    let brain = brain_with(ONE_CALL).await;
    let (session, other) = (start(&brain, None), start(&brain, None));
    let key = Client::worker(&brain);
    let item = key.claim(&brain).await;
    let first = item["data"]["id"].as_str().unwrap().to_owned();
    let (own, foreign) =
        if first == session.as_str() { (&session, &other) } else { (&other, &session) };
    let tokens = Client::with(&brain, token(&item));
    let id = item["id"].as_str().unwrap();
    let beat = format!("{}/{id}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT", work(&brain));

    assert_eq!(tokens.get(&format!("/v1/sessions/{own}")).await.0, 200);
    assert_eq!(tokens.get(&format!("/v1/sessions/{foreign}")).await.0, 403);
    assert_eq!(tokens.get(&format!("{}/poll", work(&brain))).await.0, 403);
    assert_eq!(tokens.post_empty(&beat).await.0, 200);
    let (_, second) = key.get(&format!("{}/poll", work(&brain))).await;
    let beat = format!("{}/{}/heartbeat", work(&brain), second["id"].as_str().unwrap());
    assert_eq!(tokens.post_empty(&beat).await.0, 403);

    let api = Client::api(&brain);
    assert_eq!(api.get(&format!("{}/poll", work(&brain))).await.0, 403);
    assert_eq!(api.get(&work(&brain)).await.0, 403);
    assert_eq!(api.get(&format!("{}/{id}", work(&brain))).await.0, 200);
    assert_eq!(key.get(&format!("{}/{id}", work(&brain))).await.0, 403);
    assert_eq!(key.get("/v1/agents").await.0, 403);

    let (foreign_environment, foreign_key) = brain.create_environment("elsewhere").unwrap();
    let stranger = Client::with(&brain, foreign_key);
    assert_eq!(stranger.get(&format!("/v1/sessions/{own}")).await.0, 403);
    assert_eq!(stranger.get(&format!("{}/poll", work(&brain))).await.0, 403);
    brain.rotate_key(&foreign_environment).unwrap();
    let (status, body) =
        stranger.get(&format!("/v1/environments/{foreign_environment}/work/poll")).await;
    assert_eq!((status, &body["error"]["type"]), (401, &json!("authentication_error")));
}

#[tokio::test]
async fn an_api_key_is_taken_in_either_header_but_not_in_both() {
    let brain = brain_with(ONE_CALL).await;
    let session = start(&brain, None);
    let http = reqwest::Client::new();
    let url = format!("{}/v1/sessions/{session}?beta=true", brain.url());
    let key = brain.api_key();
    let only = http.get(&url).header("x-api-key", key.expose()).send().await.unwrap();
    assert_eq!(only.status().as_u16(), 200);
    let both = http.get(&url).header("x-api-key", key.expose()).bearer_auth(key.expose());
    assert_eq!(both.send().await.unwrap().status().as_u16(), 401);
    let none = answer(http.get(&url).send().await.unwrap()).await;
    assert_eq!(none.0, 401);
    assert!(none.1["request_id"].as_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn the_beta_header_is_demanded_only_by_the_switch() {
    let switches = Switches { require_beta_header: true, ..Switches::default() };
    let brain = brain(BrainConfig { switches, ..BrainConfig::default() }).await;
    let api = Client::api(&brain);
    assert_eq!(api.get("/v1/agents").await.0, 404);
    let http = reqwest::Client::new();
    let request = http.get(format!("{}/v1/agents", brain.url()));
    let request = request.bearer_auth(brain.api_key().expose());
    let request = request.header("anthropic-beta", "managed-agents-2026-04-01");
    assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn the_front_page_says_what_this_is() {
    let brain = brain(BrainConfig::default()).await;
    let text = reqwest::get(brain.url()).await.unwrap().text().await.unwrap();
    assert_eq!(text, brain_local::BANNER);
    assert_eq!(Client::api(&brain).get("/v1/nothing").await.0, 404);
    let put = Client::api(&brain).raw(Method::PUT, "/v1/agents", None).await.unwrap();
    assert_eq!(put.status().as_u16(), 404);
}

#[tokio::test]
async fn malformed_requests_are_refused_with_the_reason() {
    let brain = brain_with(ONE_CALL).await;
    let (key, api) = (Client::worker(&brain), Client::api(&brain));
    for query in ["block_ms=0", "block_ms=1000", "block_ms=x"] {
        let (status, body) = key.get(&format!("{}/poll?{query}", work(&brain))).await;
        assert_eq!(status, 400, "{query}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("block_ms"));
    }
    let environment = json!(brain.environment_id());
    let broken = [
        ("/v1/agents", json!({"name": "a"})),
        ("/v1/agents", json!({"name": 1, "model": "m"})),
        ("/v1/agents", json!({"name": "a", "model": "m", "tools": [{"type": "custom"}]})),
        ("/v1/environments", json!({"name": "e", "config": {"type": "cloud"}})),
        ("/v1/sessions", json!({"agent": 5, "environment_id": environment})),
        ("/v1/sessions", json!({"agent": "a"})),
        ("/v1/agents", json!([])),
    ];
    for (path, body) in broken {
        let (status, answer) = api.post(path, &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
    }
    let unknown = json!({"agent": "agent_none", "environment_id": environment});
    assert_eq!(api.post("/v1/sessions", &unknown).await.0, 404);
    let session = start(&brain, None);
    for query in ["order=up", "limit=0", "limit=1001", "page=x", "created_at[gt]=yesterday"] {
        let path = format!("/v1/sessions/{session}/events?{query}");
        assert_eq!(api.get(&path).await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn a_lost_lease_goes_to_the_next_worker_over_the_wire() {
    let timings = Timings { lease_ttl: Duration::from_millis(150), ..Timings::default() };
    let scenarios = vec![("test".to_owned(), ONE_CALL.to_owned())];
    let brain = brain(BrainConfig { timings, scenarios, ..BrainConfig::default() }).await;
    let session = start(&brain, Some("go"));
    let key = Client::worker(&brain);
    let item = key.claim(&brain).await;
    let id = item["id"].as_str().unwrap();
    let beat = |expected: &str| {
        format!(
            "{}/{id}/heartbeat?expected_last_heartbeat={}",
            work(&brain),
            expected.replace(':', "%3A")
        )
    };
    let (status, first) = key.post_empty(&beat("NO_HEARTBEAT")).await;
    assert_eq!((status, &first["ttl_seconds"]), (200, &json!(1)));
    let last = first["last_heartbeat"].as_str().unwrap();
    let (status, second) = key.post_empty(&beat(last)).await;
    assert_eq!(status, 200, "{second}");
    let queued = |brain: &brain_local::BrainHandle| brain.items_of(&session)[0].state == "queued";
    brain.wait_until(LIMIT, queued).await.unwrap();
    let again = key.claim(&brain).await;
    assert_eq!(again["id"], item["id"]);
    let (status, lost) = key.post_empty(&beat(second["last_heartbeat"].as_str().unwrap())).await;
    assert_eq!(status, 412);
    assert_eq!(lost["error"]["details"]["error_code"], "heartbeat_precondition_failed");
}

#[tokio::test]
async fn a_blocking_poll_returns_when_work_comes() {
    let brain = brain_with(ONE_CALL).await;
    let key = Client::worker(&brain);
    let path = format!("{}/poll?block_ms=999", work(&brain));
    let (status, nothing) = key.get(&path).await;
    assert_eq!((status, nothing), (200, Value::Null));
    let (polled, session) = tokio::join!(key.get(&path), async { start(&brain, None) });
    assert_eq!(polled.1["data"]["id"], session.as_str());
}

#[tokio::test]
async fn a_stream_carries_what_happens_after_it_opened_named_by_type() {
    let timings = Timings { ping: Duration::from_millis(20), ..Timings::default() };
    let scenarios = vec![("test".to_owned(), ONE_CALL.to_owned())];
    let brain = brain(BrainConfig { timings, scenarios, ..BrainConfig::default() }).await;
    let session = start(&brain, Some("go"));
    let worker = Client::worker(&brain);
    let mut stream = worker.stream(&session).await;
    let id = tool_uses(&brain, &session)[0].clone();
    worker.result(&session, &id, "x").await;
    match stream.next().await {
        Frame::Event { name, data } => {
            assert_eq!(name.as_deref(), Some("user.tool_result"));
            assert!(data.contains(&id), "nothing older is replayed: {data}");
        }
        other => panic!("{other:?}"),
    }
    stream.until("session.status_idle").await;
    let path = format!("/v1/sessions/{session}");
    let deleted = Client::api(&brain).raw(Method::DELETE, &path, None).await.unwrap();
    assert_eq!(deleted.status().as_u16(), 200);
    stream.until("session.deleted").await;
    assert!(matches!(stream.next().await, Frame::End));
}

#[tokio::test]
async fn request_faults_do_what_they_say() {
    let brain = brain_with(ONE_CALL).await;
    let session = start(&brain, Some("go"));
    let worker = Client::worker(&brain);
    let id = tool_uses(&brain, &session)[0].clone();
    let inject = |fault| {
        let rule = FaultRule { route: Route::EventSend, skip: 0, times: 1, fault };
        brain.inject(rule).unwrap();
    };
    let path = format!("/v1/sessions/{session}/events");
    let event = json!({"type": "user.tool_result", "tool_use_id": id});
    let body = json!({"events": [event]});

    inject(Fault::Status { status: 429, retry_after: Some("7".to_owned()) });
    let response = worker.raw(Method::POST, &path, Some(&body)).await.unwrap();
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(answer(response).await.1["error"]["type"], "rate_limit_error");
    inject(Fault::Garbage);
    assert!(worker.post(&path, &body).await.1.is_string());
    inject(Fault::NoContent);
    assert_eq!(worker.post(&path, &body).await.0, 204);
    inject(Fault::DropBefore);
    assert!(worker.raw(Method::POST, &path, Some(&body)).await.is_err());
    assert!(brain.results(&session).is_empty(), "nothing of that was applied");

    inject(Fault::DropAnswer);
    assert!(worker.raw(Method::POST, &path, Some(&body)).await.is_err());
    assert_eq!(brain.results(&session).len(), 1, "it was applied without an answer");
    assert_eq!(brain.counters().dropped_answers, 1);
    inject(Fault::SlowBody { piece: 3, pause_ms: 1 });
    assert_eq!(worker.post(&path, &body).await.0, 200);
    inject(Fault::CutBody { after: 5 });
    let cut = worker.raw(Method::POST, &path, Some(&body)).await.unwrap();
    assert!(cut.bytes().await.is_err());
    inject(Fault::DelayAnswer { ms: 1 });
    assert_eq!(worker.post(&path, &body).await.0, 200);
    assert_eq!(brain.results(&session)[0].repeats, 3);
}

#[tokio::test]
async fn stream_faults_do_what_they_say() {
    let brain = brain_with(ONE_CALL).await;
    let session = start(&brain, None);
    let worker = Client::worker(&brain);
    let news = |n: u32| json!({"type": "agent.news", "n": n});
    let open = async |stream: StreamFault| {
        let fault = Fault::Stream { stream };
        brain.inject(FaultRule { route: Route::EventStream, skip: 0, times: 1, fault }).unwrap();
        let stream = worker.stream(&session).await;
        brain.emit(&session, news(1)).unwrap();
        brain.emit(&session, news(2)).unwrap();
        stream
    };
    let name = |frame: Frame| match frame {
        Frame::Event { name, .. } => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(name(open(StreamFault::NoName).await.next().await), None);
    let named = StreamFault::Name { name: "message".to_owned() };
    assert_eq!(name(open(named).await.next().await).unwrap(), "message");

    let mut twice = open(StreamFault::Duplicate).await;
    assert_eq!(twice.event().await, twice.event().await);
    let mut ended = open(StreamFault::End { after_events: 1 }).await;
    assert_eq!(ended.event().await["n"], 1);
    assert!(matches!(ended.next().await, Frame::End));
    let mut half = open(StreamFault::HalfFrame { after_events: 1 }).await;
    half.event().await;
    match half.next().await {
        Frame::Broken { rest } => assert!(rest.starts_with("event: agent.news"), "{rest}"),
        other => panic!("{other:?}"),
    }
    let mut cut = open(StreamFault::Cut { after_bytes: 60 }).await;
    assert!(matches!(cut.next().await, Frame::Broken { .. }));
    let mut error = open(StreamFault::ErrorFrame { after_events: 1 }).await;
    error.event().await;
    assert_eq!(name(error.next().await).unwrap(), "error");
    assert_eq!(error.event().await["n"], 2);
    let mut garbage = open(StreamFault::GarbageFrame { after_events: 0 }).await;
    match garbage.next().await {
        Frame::Event { data, .. } => assert!(serde_json::from_str::<Value>(&data).is_err()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_post_is_kept_as_it_came() {
    let brain = brain_with(ONE_CALL).await;
    let session = start(&brain, Some("go"));
    let id = tool_uses(&brain, &session)[0].clone();
    let body = format!(
        r#"{{"events":[{{"type":"user.tool_result","tool_use_id":"{id}","is_error":false,"content":[{{"type":"text","text":"ü \ud83d\ude00"}}]}}]}}"#
    );
    let http = reqwest::Client::new();
    let url = format!("{}/v1/sessions/{session}/events", brain.url());
    let request = http.post(url).bearer_auth(brain.environment_key().expose()).body(body.clone());
    assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    let posts = brain.posts();
    let last = posts.last().unwrap();
    assert_eq!(last.body, body.as_bytes());
    assert_eq!(last.credential, CredentialKind::EnvironmentKey);
    assert_eq!(last.status, Some(200));
    let (_, kept) = Client::api(&brain).get("/dev/requests").await;
    assert_eq!(kept["data"][0]["body"], body);
    assert!(!kept.to_string().contains(brain.environment_key().expose()));
    assert_eq!(Client::worker(&brain).get("/dev/requests").await.0, 403);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_told_so() {
    let brain = brain_with(ONE_CALL).await;
    let session = start(&brain, Some("go"));
    let id = tool_uses(&brain, &session)[0].clone();
    let worker = Client::worker(&brain);
    let (status, _) = worker.result(&session, &id, &"x".repeat(20 << 20)).await;
    assert_eq!(status, 200, "20 MB are taken");
    let sent = worker.result(&session, &id, &"x".repeat(33 << 20)).await;
    assert_eq!((sent.0, &sent.1["error"]["type"]), (413, &json!("request_too_large")));
}

#[tokio::test]
async fn faults_and_items_can_be_set_over_http() {
    let brain = brain_with(ONE_CALL).await;
    let (api, key) = (Client::api(&brain), Client::worker(&brain));
    let rules = json!({"rules": [{"route": "work_poll", "fault": {"kind": "no_content"}}]});
    assert_eq!(api.post("/dev/faults", &rules).await.1["added"], 1);
    assert_eq!(key.get(&format!("{}/poll", work(&brain))).await.0, 204);
    let bad = json!({"rules": [{"route": "nowhere", "fault": {"kind": "no_content"}}]});
    assert_eq!(api.post("/dev/faults", &bad).await.0, 400);
    let path = format!("/dev/environments/{}/items", brain.environment_id());
    assert_eq!(api.post(&path, &json!({"data_type": "healthcheck"})).await.0, 200);
    assert_eq!(key.claim(&brain).await["data"]["type"], "healthcheck");
}

#[tokio::test]
async fn a_shutdown_ends_open_streams_and_frees_the_port() {
    let brain = brain_with(ONE_CALL).await;
    let session = start(&brain, None);
    let mut stream = Client::worker(&brain).stream(&session).await;
    let address = brain.address();
    assert_eq!(brain.shutdown().await, base_tasks::Drained::All);
    assert!(matches!(stream.next().await, Frame::End | Frame::Broken { .. }));
    tokio::net::TcpListener::bind(address).await.unwrap();
}
