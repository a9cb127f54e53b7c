//! What a brain may do wrong, and what each call makes of it.

mod support;

use std::time::{Duration, Instant};

use brain_api::{
    Brain, BrainError, BrainErrorKind, EventKind, ExpectedBeat, SendCredential, StreamItem,
};
use brain_http::{HttpBrain, Timeouts};
use futures::StreamExt;
use support::{Reply, ScriptedBrain, answer, config_for, event_stream, token};

const ROUTES: [&str; 8] =
    ["poll", "ack", "heartbeat", "stop", "retrieve", "events", "stream", "send"];

async fn call(client: &HttpBrain, route: &str) -> Result<(), BrainError> {
    let work = "work_1".into();
    let session = client.session(&"sesn_1".into(), Some(token()));
    match route {
        "poll" => client.poll().await.map(drop),
        "ack" => client.ack(&work).await,
        "heartbeat" => client.heartbeat(&work, Some(&token()), &ExpectedBeat::None).await.map(drop),
        "stop" => client.stop(&work, Some(&token())).await,
        "retrieve" => session.retrieve().await.map(drop),
        "events" => session.events(None).await.map(drop),
        "stream" => session.stream().await.map(drop),
        "send" => session.send(b"{}", SendCredential::Item).await,
        _ => unreachable!("{route}"),
    }
}

/// The error of one call, and how many requests it made.
async fn fail(route: &str, replies: Vec<Reply>) -> (BrainError, usize) {
    let brain = ScriptedBrain::start(replies).await;
    let error = call(&brain.client(), route).await.expect_err(route);
    (error, brain.seen().len())
}

fn transient(retry_after_ms: Option<u64>) -> BrainErrorKind {
    BrainErrorKind::Transient { retry_after: retry_after_ms.map(Duration::from_millis) }
}

#[tokio::test]
async fn a_refusal_for_good_is_final_on_every_route() {
    for route in ROUTES {
        for (status, expected) in [
            (400, BrainErrorKind::Fatal { status: 400 }),
            (401, BrainErrorKind::Unauthorized { status: 401 }),
            (402, BrainErrorKind::Fatal { status: 402 }),
            (403, BrainErrorKind::Unauthorized { status: 403 }),
            (404, BrainErrorKind::NotFound),
            (412, BrainErrorKind::Fatal { status: 412 }),
            (413, BrainErrorKind::TooLarge),
        ] {
            let expected = match (route, status) {
                ("heartbeat", 412) => BrainErrorKind::LeaseLost,
                _ => expected,
            };
            let body = r#"{"error":{"type":"t","message":"m"},"request_id":"req_1"}"#;
            let (error, requests) = fail(route, vec![answer(status, body)]).await;
            assert_eq!((error.kind, requests), (expected, 1), "{route} {status}");
            assert!(error.detail.ends_with("t: m"), "{route} {status}: {error}");
            assert_eq!(error.request_id.as_deref(), Some("req_1"));
        }
    }
}

#[tokio::test]
async fn what_may_pass_is_repeated_twice_and_a_send_never() {
    for route in ROUTES {
        for status in [408, 409, 429, 500, 502, 503, 529] {
            if (route, status) == ("stop", 409) {
                continue;
            }
            let replies = vec![answer(status, ""); 3];
            let (error, requests) = fail(route, replies).await;
            let ambiguous = route == "send" && matches!(status, 500 | 502);
            let expected = if ambiguous { BrainErrorKind::Ambiguous } else { transient(None) };
            assert_eq!(error.kind, expected, "{route} {status}");
            assert_eq!(requests, if route == "send" { 1 } else { 3 }, "{route} {status}");
        }
    }
}

#[tokio::test]
async fn a_repeat_that_succeeds_is_a_success() {
    let brain = ScriptedBrain::start([
        answer(503, "").header("retry-after-ms", "1"),
        Reply::Raw(vec![]),
        answer(200, "{}"),
    ])
    .await;
    call(&brain.client(), "ack").await.unwrap();
    assert_eq!(brain.seen().len(), 3);
}

#[tokio::test]
async fn the_brain_can_say_whether_to_repeat() {
    let no = answer(503, "").header("x-should-retry", "false");
    assert_eq!(fail("poll", vec![no]).await.1, 1);
    let yes = answer(400, "").header("x-should-retry", "true");
    let (error, requests) = fail("poll", vec![yes.clone(), yes.clone(), yes]).await;
    assert_eq!((error.kind, requests), (BrainErrorKind::Fatal { status: 400 }, 3));
}

#[tokio::test]
async fn a_long_wait_is_the_callers_and_a_beat_waits_for_none() {
    let (error, requests) = fail("poll", vec![answer(429, "").header("retry-after", "100")]).await;
    assert_eq!((error.kind, requests), (transient(Some(100_000)), 1));
    let (error, requests) =
        fail("heartbeat", vec![answer(429, "").header("retry-after", "5")]).await;
    assert_eq!((error.kind, requests), (transient(Some(5_000)), 1));
    let (error, _) = fail("send", vec![answer(503, "").header("retry-after-ms", "70")]).await;
    assert_eq!(error.kind, transient(Some(70)));
}

#[tokio::test]
async fn the_state_of_the_queue_is_asked_for_once_with_the_key() {
    let stats = r#"{"type":"work_queue_stats","depth":3,"pending":1,"workers_polling":null}"#;
    let brain =
        ScriptedBrain::start([answer(200, stats), answer(401, ""), answer(200, "{}")]).await;
    let client = brain.client();
    let stats = client.queue_stats().await.unwrap();
    assert_eq!((stats.depth, stats.pending, stats.workers_polling), (3, 1, None));
    let refused = client.queue_stats().await.unwrap_err().kind;
    assert_eq!(refused, BrainErrorKind::Unauthorized { status: 401 });
    assert_eq!(client.queue_stats().await.unwrap_err().kind, transient(None));
    for seen in brain.seen() {
        assert_eq!(seen.target, "/v1/environments/env_1/work/stats");
        assert_eq!(seen.credential(), "key");
    }
}

#[tokio::test]
async fn an_empty_poll_is_empty_and_garbage_is_transient() {
    for empty in [answer(200, "null"), answer(204, ""), answer(200, ""), answer(200, " \n")] {
        let brain = ScriptedBrain::start([empty.clone()]).await;
        assert!(brain.client().poll().await.unwrap().is_none(), "{empty:?}");
    }
    for route in ["poll", "heartbeat", "retrieve", "events"] {
        let html = answer(200, "<html>busy</html>");
        let zipped = answer(200, "null").header("content-encoding", "gzip");
        for garbage in [html, zipped] {
            let (error, requests) = fail(route, vec![garbage]).await;
            assert_eq!((error.kind, requests), (transient(None), 1), "{route}: {error}");
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_asked_for_again() {
    let cut = Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"data\":[".to_vec());
    let (error, requests) = fail("events", vec![cut.clone(); 3]).await;
    assert_eq!((error.kind, requests), (transient(None), 3));
    let brain = ScriptedBrain::start([cut, answer(200, r#"{"data":[]}"#)]).await;
    call(&brain.client(), "events").await.unwrap();
}

#[tokio::test]
async fn a_body_without_end_is_given_up() {
    let endless = [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n200000\r\n".to_vec(),
        vec![b' '; 0x200000],
    ];
    let (error, requests) = fail("poll", vec![Reply::Hold(endless.concat())]).await;
    assert_eq!((error.kind, requests), (transient(None), 1));
    let large = b"HTTP/1.1 503 X\r\ncontent-length: 99999999\r\n\r\n".to_vec();
    assert_eq!(fail("ack", vec![Reply::Hold(large); 3]).await.1, 3);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = ScriptedBrain::start([]).await;
    for route in ROUTES {
        let redirect = answer(307, "").header("location", &elsewhere.url);
        let (error, requests) = fail(route, vec![redirect]).await;
        assert_eq!((error.kind, requests), (transient(None), 1), "{route}");
        assert!(error.detail.contains("redirect"), "{error}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn an_item_that_is_stopped_already_is_stopped() {
    let brain = ScriptedBrain::start([answer(409, "already stopped")]).await;
    call(&brain.client(), "stop").await.unwrap();
    assert_eq!(brain.seen().len(), 1);
}

#[tokio::test]
async fn a_lost_beat_is_repeated_long_before_the_interval() {
    let beat = r#"{"last_heartbeat":"b","lease_extended":true,"state":"active"}"#;
    let brain = ScriptedBrain::start([Reply::hang(), answer(200, beat)]).await;
    let mut config = config_for(&brain.url);
    config.timeouts.beat_attempt = Duration::from_millis(100);
    let client = HttpBrain::new(config).unwrap();
    let begun = Instant::now();
    call(&client, "heartbeat").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(Timeouts::default().beat_attempt < Duration::from_secs(10));
}

#[tokio::test]
async fn a_send_that_may_have_arrived_is_ambiguous() {
    let half = Reply::Raw(b"HTTP/1.1 20".to_vec());
    for lost in [Reply::Raw(vec![]), half, answer(504, "")] {
        let (error, requests) = fail("send", vec![lost.clone()]).await;
        assert_eq!((error.kind, requests), (BrainErrorKind::Ambiguous, 1), "{lost:?}: {error}");
    }
    let brain = ScriptedBrain::start([Reply::hang()]).await;
    let mut config = config_for(&brain.url);
    config.timeouts.request = Duration::from_millis(100);
    let error = call(&HttpBrain::new(config).unwrap(), "send").await.unwrap_err();
    assert_eq!((error.kind, brain.seen().len()), (BrainErrorKind::Ambiguous, 1));
}

#[tokio::test]
async fn a_send_that_cannot_have_arrived_is_transient() {
    let error = call(&support::client_at("http://127.0.0.1:1"), "send").await.unwrap_err();
    assert_eq!(error.kind, transient(None));
    // Nobody speaks TLS there: the request never left either.
    let plain = ScriptedBrain::start([]).await;
    let mut config = config_for(&plain.url.replace("http:", "https:"));
    config.timeouts.connect = Duration::from_millis(200);
    let error = call(&HttpBrain::new(config).unwrap(), "send").await.unwrap_err();
    assert_eq!(error.kind, transient(None), "{error}");
}

#[tokio::test]
async fn a_send_whose_echo_breaks_off_has_arrived() {
    let cut = Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec());
    let brain = ScriptedBrain::start([cut]).await;
    call(&brain.client(), "send").await.unwrap();
    assert_eq!(brain.seen().len(), 1);
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_in_parts() {
    let large = Reply::Hold(b"HTTP/1.1 200 OK\r\ncontent-length: 900000000\r\n\r\n".to_vec());
    let page = answer(200, r#"{"data":[{"type":"user.message"}],"next_page":"2"}"#);
    let brain = ScriptedBrain::start([large.clone(), large, page.clone(), page]).await;
    let session = brain.client().session(&"s".into(), None);
    assert_eq!(session.events(None).await.unwrap().next.as_deref(), Some("2"));
    session.events(Some("2")).await.unwrap();
    let queries: Vec<_> =
        brain.seen().iter().map(|s| s.target.split_once('?').unwrap().1.to_owned()).collect();
    assert_eq!(queries, ["limit=1000", "limit=100", "limit=10", "limit=10&page=2"]);
}

async fn follow(reply: Reply, silence: Duration) -> Vec<Result<StreamItem, BrainError>> {
    let brain = ScriptedBrain::start([reply]).await;
    let mut config = config_for(&brain.url);
    config.timeouts.stream_silence = silence;
    let session = HttpBrain::new(config).unwrap().session(&"s".into(), None);
    session.stream().await.unwrap().collect().await
}

const LONG: Duration = Duration::from_secs(60);
const EVENT: &str = "data: {\"type\":\"session.status_running\",\"id\":\"e1\"}\n\n";

#[tokio::test]
async fn a_stream_delivers_frames_with_and_without_a_name_until_it_ends() {
    let body =
        format!(": hi\n\n{EVENT}event: ping\ndata: {{}}\n\nevent: later\n{EVENT}data: {{\"ty");
    let items = follow(event_stream(body.as_bytes(), true), LONG).await;
    assert_eq!(items.len(), 4, "{items:?}");
    for index in [1, 3] {
        let Ok(StreamItem::Event(event)) = &items[index] else { panic!("{items:?}") };
        assert_eq!(event.kind, EventKind::StatusRunning);
    }
    for index in [0, 2] {
        assert!(matches!(items[index], Ok(StreamItem::Ping)), "{items:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_first_error() {
    let error = "event: error\ndata: {\"error\":{\"type\":\"overloaded_error\"}}\n\n";
    let cut = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
        transfer-encoding: chunked\r\n\r\n100\r\ndata";
    for reply in [
        event_stream(format!("{error}{EVENT}").as_bytes(), false),
        event_stream(format!("data: not json\n\n{EVENT}").as_bytes(), false),
        Reply::Raw(cut.to_vec()),
    ] {
        let items = follow(reply.clone(), LONG).await;
        assert_eq!(items.len(), 1, "{items:?}");
        assert!(items[0].as_ref().unwrap_err().is_transient(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let reply = event_stream(EVENT.as_bytes(), false);
    let items = follow(reply, Duration::from_millis(200)).await;
    assert_eq!(items.len(), 2, "{items:?}");
    assert!(items[1].as_ref().unwrap_err().detail.contains("silent"));
}

#[tokio::test]
async fn an_answer_that_is_no_stream_is_refused() {
    for reply in [
        answer(200, "<html>").header("content-type", "text/html"),
        answer(200, "{}").header("content-type", "application/json"),
        answer(200, ""),
    ] {
        let (error, _) = fail("stream", vec![reply]).await;
        assert!(error.detail.contains("event stream"), "{error}");
    }
}
