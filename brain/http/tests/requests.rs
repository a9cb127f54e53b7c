//! What leaves: routes, headers, credentials, bodies.

mod support;

use base_types::Secret;
use brain_api::{Brain, ExpectedBeat, SendCredential, ToolResult, ToolResultKind};
use brain_http::{HttpBrain, HttpBrainConfig};
use support::{KEY, ScriptedBrain, TOKEN, answer, config_for, event_stream, token};

const BEAT: &str = r#"{"last_heartbeat":"2026-11-24T11:40:19.954111Z","lease_extended":true,"state":"active","ttl_seconds":4}"#;

fn script() -> Vec<support::Reply> {
    vec![
        answer(200, "null"),
        answer(200, "{}"),
        answer(200, BEAT),
        answer(200, BEAT),
        answer(200, "{}"),
        answer(200, "{}"),
        answer(200, r#"{"data":[]}"#),
        answer(200, r#"{"data":[]}"#),
        event_stream(b"", true),
        answer(200, "{}"),
        answer(200, "{}"),
    ]
}

async fn every_call(brain: &ScriptedBrain, with_token: bool) {
    let client = brain.client();
    let work = "work_1".into();
    let token = with_token.then(token);
    assert!(client.poll().await.unwrap().is_none());
    client.ack(&work).await.unwrap();
    client.heartbeat(&work, token.as_ref(), &ExpectedBeat::None).await.unwrap();
    let last = ExpectedBeat::Last("2026-11-24T11:40:19.954111Z".to_owned());
    client.heartbeat(&work, token.as_ref(), &last).await.unwrap();
    client.stop(&work, token.as_ref()).await.unwrap();
    let session = client.session(&"sesn_1".into(), token);
    session.retrieve().await.unwrap();
    session.events(None).await.unwrap();
    session.events(Some("3&x")).await.unwrap();
    session.stream().await.map(drop).unwrap();
    let body = session.encode(&ToolResult::text("c".into(), ToolResultKind::Builtin, "hi"));
    session.send(&body, SendCredential::Item).await.unwrap();
    session.send(&body, SendCredential::EnvironmentKey).await.unwrap();
}

#[tokio::test]
async fn each_call_goes_to_its_route_with_its_credential() {
    let brain = ScriptedBrain::start(script()).await;
    every_call(&brain, true).await;
    let seen = brain.seen();
    let lines: Vec<String> =
        seen.iter().map(|s| format!("{} {} {}", s.credential(), s.method, s.target)).collect();
    assert_eq!(
        lines,
        [
            "key GET /v1/environments/env_1/work/poll?block_ms=999",
            "key POST /v1/environments/env_1/work/work_1/ack",
            "token POST /v1/environments/env_1/work/work_1/heartbeat?expected_last_heartbeat=NO_HEARTBEAT",
            "token POST /v1/environments/env_1/work/work_1/heartbeat?expected_last_heartbeat=2026-11-24T11%3A40%3A19.954111Z",
            "token POST /v1/environments/env_1/work/work_1/stop",
            "token GET /v1/sessions/sesn_1",
            "token GET /v1/sessions/sesn_1/events?limit=1000",
            "token GET /v1/sessions/sesn_1/events?limit=1000&page=3%26x",
            "token GET /v1/sessions/sesn_1/events/stream",
            "token POST /v1/sessions/sesn_1/events",
            "key POST /v1/sessions/sesn_1/events",
        ]
    );
    for request in &seen {
        let post = request.method == "POST";
        assert_eq!(request.header("anthropic-version"), Some("2026-10-21"));
        assert_eq!(request.header("anthropic-beta"), Some("managed-agents-2026-04-01"));
        assert_eq!(request.header("accept"), Some("application/json"));
        assert_eq!(request.header("content-type"), post.then_some("application/json"));
        assert!(request.header("user-agent").unwrap().starts_with("sinew/"));
        assert_eq!(request.header("x-api-key"), None);
        let polls = request.target.contains("/work/poll");
        assert_eq!(request.header("anthropic-worker-id"), polls.then_some("worker-1"));
        let length = request.body.len().to_string();
        assert_eq!(request.header("content-length"), post.then_some(length.as_str()));
    }
    assert_eq!(seen[4].body, br#"{"force":true}"#);
    for index in [1, 2, 3] {
        assert!(seen[index].body.is_empty());
    }
}

#[tokio::test]
async fn without_a_token_the_key_is_used_everywhere() {
    let brain = ScriptedBrain::start(script()).await;
    every_call(&brain, false).await;
    assert!(brain.seen().iter().all(|request| request.credential() == "key"));
}

#[tokio::test]
async fn routes_follow_a_path_prefix_and_ids_are_escaped() {
    let brain = ScriptedBrain::start([answer(200, "{}"), answer(200, "{}")]).await;
    for base in ["/proxy/brain", "/proxy/brain/"] {
        let client = support::client_at(&format!("{}{base}", brain.url));
        client.ack(&"../../v1/x?y#z".into()).await.unwrap();
    }
    for request in brain.seen() {
        assert_eq!(
            request.target,
            "/proxy/brain/v1/environments/env_1/work/..%2F..%2Fv1%2Fx%3Fy%23z/ack"
        );
    }
}

#[tokio::test]
async fn no_error_and_no_debug_text_shows_a_credential() {
    let config = config_for("http://127.0.0.1:1");
    let debug = format!("{config:?} {:?}", token());
    assert!(!debug.contains(KEY) && !debug.contains(TOKEN), "{debug}");

    let nobody = support::client_at("http://127.0.0.1:1");
    let refused = nobody.poll().await.unwrap_err();
    let error = format!("{refused:?} {}", base_types::Chain(&refused));
    assert!(!error.contains(KEY), "{error}");
    assert!(error.contains("refused"), "{error}");
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_envelope_that_cannot_be_read_is_logged_without_what_is_in_it() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let item = r#"{"id":"work_1","secret":"ENVELOPE!","data":{"type":"session","id":"s"}}"#;
    let brain = ScriptedBrain::start([answer(503, ""), answer(200, item), answer(200, "{}")]).await;
    let client = brain.client();
    let item = client.poll().await.unwrap().unwrap();
    assert!(item.token.is_none());
    client.session(&"s".into(), Some(token())).retrieve().await.unwrap();

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("using the environment key"), "{log}");
    assert!(log.contains("repeating a request"), "{log}");
    for secret in [KEY, TOKEN, "ENVELOPE"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_before_anything_is_sent() {
    let good = config_for("http://127.0.0.1:1");
    let changes: [fn(&mut brain_http::HttpBrainConfig); 6] = [
        |c| c.base_url = "http://brain.example.com".into(),
        |c| c.base_url = "https://user:pw@brain.example.com".into(),
        |c| c.key = base_types::Secret::new("two\nlines"),
        |c| c.worker_id = "a\nb".into(),
        |c| c.environment = "..".into(),
        |c| {
            c.base_url = "https://brain.example.com".into();
            c.extra_ca_pem = Some(b"no certificate".to_vec());
        },
    ];
    for change in changes {
        let mut config = good.clone();
        change(&mut config);
        let error = brain_http::HttpBrain::new(config).map(drop).unwrap_err();
        let text = base_types::Chain(&error).to_string();
        assert!(!text.contains("pw") && !text.contains("lines"), "{text}");
    }
}

/// A new key is used at once, by sessions without a token of their own too.
#[tokio::test]
async fn another_key_is_used_from_the_next_request_on() {
    let replies = vec![answer(200, "null"), answer(200, r#"{"data":[]}"#), answer(200, "null")];
    let brain = ScriptedBrain::start(replies).await;
    let client = brain.client();
    let session = client.session(&"sesn_1".into(), None);
    client.poll().await.unwrap();
    assert!(!client.replace_key(&Secret::new(KEY)).unwrap(), "the same key is no other one");
    assert!(client.replace_key(&Secret::new("another-key")).unwrap());
    assert!(client.replace_key(&Secret::new("no\nkey")).is_err());
    session.events(None).await.unwrap();
    client.poll().await.unwrap();
    let credentials: Vec<String> =
        brain.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(credentials[0], format!("Bearer {KEY}"));
    assert_eq!(credentials[1..], ["Bearer another-key", "Bearer another-key"]);
}

#[tokio::test]
async fn an_item_that_was_left_is_asked_for_again_as_soon_as_wished() {
    let brain = ScriptedBrain::start(vec![answer(200, "null")]).await;
    let reclaim = Some(std::time::Duration::from_secs(2));
    let config = HttpBrainConfig { reclaim, ..config_for(&brain.url) };
    HttpBrain::new(config).unwrap().poll().await.unwrap();
    let seen = brain.seen();
    assert!(seen[0].target.ends_with("/poll?block_ms=999&reclaim_older_than_ms=2000"));
}
