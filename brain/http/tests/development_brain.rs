//! A whole work item served against the development brain, faults included: two readings of the
//! protocol that must fit.

use std::time::Duration;

use base_types::ToolUseId;
use brain_api::{
    Brain, BrainErrorKind, BrainSession, EventKind, ExpectedBeat, SendCredential, SessionStatus,
    StopReason, StreamItem, ToolResult, ToolResultKind, WorkItem,
};
use brain_http::{HttpBrain, HttpBrainConfig};
use brain_local::{
    BrainConfig, BrainHandle, BrainServer, CredentialKind, Fault, FaultRule, NewSession, Route,
    StreamFault,
};
use futures::StreamExt;

const SCRIPT: &str = r#"
[[step]]
[[step.call]]
tool = "bash"
input = { command = "echo hi" }
expect = { equals = "hi" }

[[step]]
end_turn = "end_turn"
"#;

async fn start() -> (BrainHandle, HttpBrain) {
    let scenarios = vec![("greet".to_owned(), SCRIPT.to_owned())];
    let brain = BrainServer::start(BrainConfig { scenarios, ..Default::default() }).await.unwrap();
    brain
        .start_session(NewSession {
            script: "greet".to_owned(),
            environment: brain.environment_id().clone(),
            title: Some("a title".to_owned()),
            metadata: vec![("team".to_owned(), "a".to_owned())],
            message: Some("go".to_owned()),
        })
        .unwrap();
    let config = HttpBrainConfig {
        base_url: brain.url(),
        ..HttpBrainConfig::new(brain.environment_id().clone(), brain.environment_key(), "worker-1")
    };
    let client = HttpBrain::new(config).unwrap();
    (brain, client)
}

fn inject(brain: &BrainHandle, route: Route, fault: Fault) {
    brain.inject(FaultRule { route, skip: 0, times: 1, fault }).unwrap();
}

async fn claim(client: &HttpBrain) -> WorkItem {
    let item = client.poll().await.unwrap().expect("a session is queued");
    client.ack(&item.id).await.unwrap();
    item
}

/// The tool uses and answered calls of the whole history.
async fn history(session: &dyn BrainSession) -> (Vec<ToolUseId>, Vec<ToolUseId>) {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    let mut next = None;
    loop {
        let page = session.events(next.as_deref()).await.unwrap();
        for event in page.events {
            match event.kind {
                EventKind::ToolUse(call) => asked.push(call.id),
                EventKind::Answered(call) => answered.push(call),
                _ => {}
            }
        }
        next = page.next;
        if next.is_none() {
            return (asked, answered);
        }
    }
}

#[tokio::test]
async fn an_item_is_served_from_poll_to_stop() {
    let (brain, client) = start().await;
    let stats = client.queue_stats().await.unwrap();
    assert_eq!(stats.depth, 1);
    let item = claim(&client).await;
    let (token, id) = (item.token.clone(), item.session.clone().unwrap());
    assert!(token.is_some());
    let first = client.heartbeat(&item.id, token.as_ref(), &ExpectedBeat::None).await.unwrap();
    let next = ExpectedBeat::Last(first.last.clone());
    let second = client.heartbeat(&item.id, token.as_ref(), &next).await.unwrap();
    assert!(second.extended && second.ttl.is_some());

    let session = client.session(&id, token.clone());
    let info = session.retrieve().await.unwrap();
    assert_ne!(info.status, SessionStatus::Unknown);
    assert_eq!(info.title.as_deref(), Some("a title"));
    assert_eq!(info.metadata.get("team").map(String::as_str), Some("a"));
    assert!(info.agent.is_some() && info.unserved.is_empty(), "{info:?}");

    let mut stream = session.stream().await.unwrap();
    brain.wait_until(Duration::from_secs(10), |b| b.status(&id) == "idle").await.unwrap();
    let (asked, answered) = history(&*session).await;
    assert_eq!((asked.len(), answered.len()), (1, 0));
    let result = ToolResult::text(asked[0].clone(), ToolResultKind::Builtin, "hi");
    let body = session.encode(&result);
    session.send(&body, SendCredential::Item).await.unwrap();
    loop {
        let item = stream.next().await.expect("the turn ends before the stream").unwrap();
        let StreamItem::Event(event) = item else { continue };
        if event.kind == EventKind::StatusIdle(StopReason::TurnOver { reason: "end_turn".into() }) {
            break;
        }
    }
    client.stop(&item.id, token.as_ref()).await.unwrap();
    client.stop(&item.id, token.as_ref()).await.unwrap();

    assert_eq!(brain.results(&id).len(), 1);
    let credentials = |route| {
        let of_route = brain.requests_of(route).into_iter();
        of_route.map(|request| request.credential).collect::<Vec<_>>()
    };
    for route in [Route::WorkPoll, Route::WorkAck, Route::WorkStats] {
        assert!(credentials(route).iter().all(|kind| *kind == CredentialKind::EnvironmentKey));
    }
    for route in [Route::WorkHeartbeat, Route::WorkStop, Route::SessionGet, Route::EventSend] {
        assert!(credentials(route).iter().all(|kind| *kind == CredentialKind::SessionsToken));
    }
}

#[tokio::test]
async fn a_send_without_an_answer_is_in_the_history_and_left_once() {
    let (brain, client) = start().await;
    let item = claim(&client).await;
    let id = item.session.clone().unwrap();
    let session = client.session(&id, item.token.clone());
    brain.wait_until(Duration::from_secs(10), |b| b.status(&id) == "idle").await.unwrap();
    let (asked, _) = history(&*session).await;
    let result = ToolResult::text(asked[0].clone(), ToolResultKind::Builtin, "hi");
    let body = session.encode(&result);

    inject(&brain, Route::EventSend, Fault::DropBefore);
    let before = session.send(&body, SendCredential::Item).await.unwrap_err();
    assert_eq!(before.kind, BrainErrorKind::Ambiguous);
    assert_eq!(history(&*session).await.1, []);

    inject(&brain, Route::EventSend, Fault::DropAnswer);
    let after = session.send(&body, SendCredential::Item).await.unwrap_err();
    assert_eq!(after.kind, BrainErrorKind::Ambiguous);
    assert_eq!(history(&*session).await.1, asked);
    assert_eq!(brain.requests_of(Route::EventSend).len(), 2);
    assert_eq!(brain.counters().results, 1);
}

#[tokio::test]
async fn a_lost_answer_costs_no_lease_and_an_expired_lease_is_lost() {
    let (brain, client) = start().await;
    let item = claim(&client).await;
    let token = item.token.as_ref();
    inject(&brain, Route::WorkHeartbeat, Fault::DropAnswer);
    let first = client.heartbeat(&item.id, token, &ExpectedBeat::None).await.unwrap();
    inject(&brain, Route::WorkHeartbeat, Fault::DropAnswer);
    let next = ExpectedBeat::Last(first.last);
    let second = client.heartbeat(&item.id, token, &next).await.unwrap();

    brain.expire_lease(item.session.as_ref().unwrap());
    let next = ExpectedBeat::Last(second.last);
    let error = client.heartbeat(&item.id, token, &next).await.unwrap_err();
    assert_eq!(error.kind, BrainErrorKind::LeaseLost, "{error}");
}

#[tokio::test]
async fn streams_fail_as_they_should_and_nameless_frames_are_read() {
    let (brain, client) = start().await;
    let item = claim(&client).await;
    let id = item.session.clone().unwrap();
    let session = client.session(&id, item.token.clone());
    brain.wait_until(Duration::from_secs(10), |b| b.status(&id) == "idle").await.unwrap();
    for (stream_fault, breaks) in [
        (StreamFault::NoName, false),
        (StreamFault::Name { name: "message".to_owned() }, false),
        (StreamFault::Duplicate, false),
        (StreamFault::ErrorFrame { after_events: 1 }, true),
        (StreamFault::GarbageFrame { after_events: 1 }, true),
        (StreamFault::HalfFrame { after_events: 1 }, true),
    ] {
        inject(&brain, Route::EventStream, Fault::Stream { stream: stream_fault.clone() });
        let mut stream = session.stream().await.unwrap();
        let news = serde_json::json!({"type": "agent.news"});
        brain.emit(&id, news.clone()).unwrap();
        let event = next_event(&mut stream).await.unwrap().unwrap();
        assert_eq!(event, "agent.news", "{stream_fault:?}");
        brain.emit(&id, news).unwrap();
        match next_event(&mut stream).await {
            Some(Ok(_)) => assert!(!breaks, "{stream_fault:?}"),
            Some(Err(kind)) => {
                assert!(breaks, "{stream_fault:?}");
                assert_eq!(kind, BrainErrorKind::Transient { retry_after: None });
                assert!(stream.next().await.is_none());
            }
            None => assert!(breaks, "{stream_fault:?}"),
        }
    }
}

type Stream = futures::stream::BoxStream<'static, Result<StreamItem, brain_api::BrainError>>;

/// The name of the next event that is no ping.
async fn next_event(stream: &mut Stream) -> Option<Result<String, BrainErrorKind>> {
    loop {
        match stream.next().await? {
            Ok(StreamItem::Ping) => {}
            Ok(StreamItem::Event(event)) => return Some(Ok(event.name)),
            Err(error) => return Some(Err(error.kind)),
        }
    }
}
